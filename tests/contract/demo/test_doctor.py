"""`k2 doctor` with everything up, and with everything down."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from common.errors import Unavailable
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from ingest.market import Market
from ingest.simulator import Simulator
from k2.broker import EmbeddedBroker
from k2.doctor import doctor
from k2.runner import exit_code
from k2.stack import Server
from sink.service import SinkService

NAMES = ["binance REST", "binance feed", "binance clock", "broker", "registry", "catalog", "store", "Flight SQL"]
NAMES += ["disk", "versions"]


def examined(*arguments: str, timeout_s: float) -> tuple[dict[str, dict[str, Any]], BaseException | None]:
    done = CliRunner().invoke(doctor, [*arguments, "--json", "--timeout", str(timeout_s)], obj=False)
    tree = json.loads(done.stdout)
    assert [one["name"] for one in tree["checks"]] == NAMES
    assert tree["ok"] is (done.exception is None)
    return {one["name"]: one for one in tree["checks"]}, done.exception


def test_everything_up_and_everything_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = EmbeddedBroker().start()
    monkeypatch.setenv("K2_KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("K2_LAKE_DATA_DIR", str(tmp_path / "lake"))
    kafka, lake = KafkaSettings.load(), LakeSettings.load()
    lake.prepare()
    simulator = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=10)
    simulator.start()
    sink = SinkService(kafka, lake, SinkSettings(bars=False))
    sink.start()
    server = Server(kafka, lake, FlightSettings(port=0), CollectorRegistry())
    server.start()
    where = ["--url", simulator.url, "--uri", server.flight.uri]
    try:
        found, error = examined(*where, timeout_s=60)
        assert error is None
        assert {one["state"] for one in found.values()} == {"ok"}, found
        assert "answers SELECT 1" in found["Flight SQL"]["what"]
        assert "tables" in found["catalog"]["what"]
        assert not list((tmp_path / "lake").rglob("k2-doctor-*"))
        screen = CliRunner().invoke(doctor, [*where, "--timeout", "60"], obj=False)
        assert screen.exit_code == 0
        assert screen.stdout.count("\nok ") == len(NAMES) - 1
    finally:
        server.stop()
        sink.stop()
        simulator.stop()
        os.kill(broker.pid, signal.SIGKILL)
        broker.stop()

    catalog = tmp_path / "lake" / "catalog.db"
    catalog.write_bytes(b"this is no database, but what is left of one" * 100)
    store = tmp_path / "lake" / "warehouse"
    store.rename(tmp_path / "elsewhere")
    store.write_text("a file where the folder was")
    found, error = examined(*where, timeout_s=4)
    assert isinstance(error, Unavailable)
    assert exit_code(error) == 3
    states = {name: one["state"] for name, one in found.items()}
    assert states == dict.fromkeys(NAMES, "failed") | {"binance clock": "off", "disk": "ok", "versions": "ok"}, found
    assert all(one["todo"] for one in found.values() if one["state"] == "failed")


def test_nothing_is_made_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K2_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("K2_LAKE_DATA_DIR", str(tmp_path / "none"))
    done = CliRunner().invoke(
        doctor, ["--venue", "none", "--uri", "grpc://127.0.0.1:1", "--json", "--timeout", "30"], obj=False
    )
    states = {one["name"]: one["state"] for one in json.loads(done.stdout)["checks"]}
    assert states == {
        "broker": "off",
        "registry": "off",
        "catalog": "off",
        "store": "off",
        "Flight SQL": "failed",
        "disk": "ok",
        "versions": "ok",
    }
    assert list(tmp_path.iterdir()) == []
