"""The `k2` command part by part: help, settings, each part as a process, wrong use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.settings import ALL_SETTINGS
from k2.cli import cli
from tests.support.command import Done, command
from tests.support.kafka import eventually
from tests.support.processes import started

FRAMES = [
    f'{{"stream":"btcusdt@trade","data":{{"e":"trade","E":1723161601438,"s":"BTCUSDT","t":{n},"p":"61685.99000000",'
    f'"q":"0.00017000","T":1723161601437,"m":true,"M":true}}}}'
    for n in range(1, 201)
]

k2_here = pytest.fixture(command)

NOBODY = {"K2_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "K2_KAFKA_REQUEST_TIMEOUT_MS": "500"}


def k2(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "k2.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "ingest",
        "ingest binance",
        "ingest replay",
        "sink",
        "serve",
        "broker",
        "simulate",
        "query",
        "export",
        "shell",
        "tail",
        "bars",
    ],
)
def test_help_reads_well(command: str) -> None:
    done = CliRunner().invoke(cli, [*command.split(), "--help"], prog_name="k2")
    assert done.exit_code == 0
    assert f"Usage: k2 {command}".strip() in done.output
    assert len(done.output.splitlines()) > 5


def test_the_settings_in_force_are_listed(k2_here: Callable[..., Done]) -> None:
    done = k2_here("--check-settings", K2_SINK_COMMIT_AGE_MS_MAX="1234", K2_KAFKA_SASL_PASSWORD="hidden-word")
    assert done.returncode == 0, done.stderr
    for kind in ALL_SETTINGS:
        for name in kind.model_fields:
            assert f"{kind.model_config['env_prefix']}{name.upper()}" in done.stdout
    assert "1234" in done.stdout
    assert "hidden-word" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (("--check-settings",), {"K2_SINK_COMMIT_AGE_MS_MAX": "soon"}, 2, "K2_SINK_COMMIT_AGE_MS_MAX"),
        (("sink",), NOBODY, 3, "127.0.0.1:1"),
        (("serve",), NOBODY, 3, "127.0.0.1:1"),
        (("sink", "--data-dir", "/proc/k2"), {}, 2, "/proc/k2"),
        (("simulate", "no-such-file.gz"), {}, 2, "no-such-file.gz"),
        (("simulate", "--symbols", "0"), {}, 2, "symbols"),
        (("ingest", "binance", "--symbols", ","), {}, 2, "symbol"),
        (("ingest", "binance", "--url", "http://127.0.0.1:1"), {}, 2, "ws"),
        (("query", "SELECT 1", "--uri", "grpc://127.0.0.1:1"), {}, 3, "127.0.0.1:1"),
        (("query", "SELECT 1", "--uri", "nonsense"), {}, 1, "nonsense"),
        (("no-such-command",), {}, 2, "No such command"),
    ],
)  # fmt: skip
def test_wrong_use_gets_one_clear_sentence(
    k2_here: Callable[..., Done], arguments: tuple[str, ...], env: dict[str, str], code: int, words: str, tmp_path: Path
) -> None:
    done = k2_here(*arguments, **{"K2_LAKE_DATA_DIR": str(tmp_path / "lake"), **env})
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_parts_as_processes_of_their_own(tmp_path: Path) -> None:
    """Broker, simulator, ingest, sink and server, each by its own command; one of them with a taken port."""
    capture = tmp_path / "capture.txt"
    capture.write_text("".join(f"{1_723_161_600_000_000_000 + n} {frame}\n" for n, frame in enumerate(FRAMES)))
    env = {
        "K2_LAKE_DATA_DIR": str(tmp_path / "lake"),
        "K2_SINK_COMMIT_AGE_MS_MAX": "100",
        "K2_TELEMETRY_METRICS_PORT": "0",
    }
    with started("broker", "--port", "0", env=env) as broker:
        servers = broker.wait_for(r"K2_KAFKA_BOOTSTRAP_SERVERS=(\S+)")[1]
        env["K2_KAFKA_BOOTSTRAP_SERVERS"] = servers
        port = servers.rpartition(":")[2]
        taken = k2("broker", "--port", port)
        assert taken.returncode == 2
        assert f"127.0.0.1:{port}" in taken.stderr
        with (
            started("simulate", str(capture), "--speed", "max", "--port", "0", env=env) as simulator,
            started("sink", env=env) as sink,
            started("serve", "--port", "0", env=env) as server,
        ):
            url = simulator.wait_for(r"at (ws://\S+)")[1]
            sink.wait_for(r" -> ")
            assert sink.wait_for(r"metrics at (http://127\.0\.0\.1:\d+/metrics)")
            uri = server.wait_for(r"Flight SQL at (\S+)")[1]
            with started("ingest", "binance", "--symbols", "BTCUSDT", "--url", url, env=env) as ingest:
                ingest.wait_for("ingesting BTCUSDT")
                second = k2("ingest", "binance", "--symbols", "BTCUSDT", "--url", url, **env)
                assert second.returncode == 2
                assert "another ingest" in second.stderr

                def count() -> int:
                    done = k2("query", "--uri", uri, "--format", "json", "SELECT count(*) AS n FROM market.trades")
                    assert done.returncode == 0, done.stderr
                    return int(json.loads(done.stdout)["n"])

                eventually(lambda: count() == 200)
                assert ingest.stop() == 0
            again = k2("ingest", "replay", str(capture), "--symbols", "BTCUSDT", **env)
            assert again.returncode == 0, again.stderr
            assert "0 messages acknowledged, 201 duplicates dropped" in again.stderr  # 200 trades and the instrument
            refused = k2("query", "--uri", uri, "DROP TABLE market.trades")
            assert refused.returncode == 4, refused.stderr
            out = tmp_path / "trades.parquet"
            export = k2("query", "--uri", uri, "--format", "parquet", "--output", str(out), "FROM market.trades")
            assert export.returncode == 0, export.stderr
            assert out.stat().st_size > 0
            assert [part.stop() for part in (server, sink, simulator)] == [0, 0, 0]
        assert broker.stop() == 0


def test_a_flight_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = k2("serve", "--port", port, "--data-dir", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert port in done.stderr
    assert "Traceback" not in done.stderr
