"""The main job as processes on a real Apache Kafka: one part is SIGKILLed at ten random moments during a replay."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import clients
from clients import ClientError, Connection
from common.settings import KafkaSettings
from tests.support.kafka import eventually
from tests.support.processes import Process, started

KILLS = 10
SYMBOLS = {"BTCUSDT": 10_147, "ETHUSDT": 6_106}
_PER_SYMBOL = (
    "SELECT symbol, count(*) AS trades, count(DISTINCT trade_id) AS ids, min(trade_id) AS first_id, "
    "max(trade_id) AS last_id FROM market.trades GROUP BY symbol ORDER BY symbol"
)


class Watcher(threading.Thread):
    """A client that asks all the time; each answer must be a gapless prefix that never gets shorter."""

    def __init__(self, uri: str) -> None:
        super().__init__(name="watcher")
        self._uri = uri
        self._ended = threading.Event()
        self.answers = 0
        self.faults: list[str] = []

    def run(self) -> None:
        seen: dict[str, int] = {}
        connection: Connection | None = None
        while not self._ended.wait(0.05):
            try:
                connection = connection or clients.connect(self._uri, connect_timeout_s=1.0)
                rows = connection.arrow(_PER_SYMBOL).to_pylist()
            except ClientError:  # the server is down or starting: the next turn connects again
                if connection is not None:
                    connection.close()
                connection = None
                continue
            self.answers += 1
            for row in rows:
                whole = row["trades"] == row["ids"] == row["last_id"] - row["first_id"] + 1
                if not whole or row["trades"] < seen.get(row["symbol"], 0):
                    self.faults.append(f"{row} after {seen}")
                seen[row["symbol"]] = row["trades"]
        if connection is not None:
            connection.close()

    def end(self) -> None:
        self._ended.set()
        self.join()


@pytest.mark.parametrize("victim", ["sink", "serve"])
def test_a_part_killed_ten_times_loses_and_doubles_nothing(
    victim: str, kafka: KafkaSettings, captures: dict[str, Path], tmp_path: Path
) -> None:
    env = {
        "K2_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers or "",
        "K2_LAKE_DATA_DIR": str(tmp_path / "lake"),
        "K2_SINK_COMMIT_AGE_MS_MAX": "200",
        "K2_TELEMETRY_LOG_LEVEL": "warning",
    }
    rng = random.Random(20261124)
    files = [str(path) for path in captures.values()]
    uri = f"grpc://127.0.0.1:{_free_port()}"
    commands = {"sink": ("sink",), "serve": ("serve", "--port", uri.rpartition(":")[2])}
    ready = {"sink": r"k2: .* -> ", "serve": r"Flight SQL at "}
    with started("ingest", "replay", *files, "--speed", "1", env=env) as ingest:
        ingest.wait_for("replaying into")
        parts = {name: Process(*command, env=env) for name, command in commands.items()}
        watcher = Watcher(uri)
        try:
            for name, part in parts.items():
                part.wait_for(ready[name])
            watcher.start()
            for _kill in range(KILLS):
                time.sleep(rng.uniform(0.0, 1.5))
                parts[victim].kill()
                parts[victim] = Process(*commands[victim], env=env)
                parts[victim].wait_for(ready[victim])
            assert ingest.running, "the replay was over before the last kill: nothing was under way"
            assert ingest.stop() == 0, "".join(ingest.lines[-5:])
            # The rest at once: what was taken before is dropped by the ledger.
            with started("ingest", "replay", *files, "--speed", "max", env=env) as rest:
                assert rest.wait(120) == 0, "".join(rest.lines[-5:])
            eventually(lambda: _counts(uri) == SYMBOLS, timeout_s=60, what="every trade in the answer")
        finally:
            if watcher.is_alive():
                watcher.end()
            codes = {name: part.stop() for name, part in parts.items()}
        assert codes == {"sink": 0, "serve": 0}
    assert watcher.faults == []
    assert watcher.answers > 10
    with started(*commands["serve"], env=env) as server:
        server.wait_for(ready["serve"])
        with clients.connect(uri) as connection:
            rows = connection.arrow(_PER_SYMBOL).to_pylist()
        assert server.stop() == 0
    assert {row["symbol"]: row["trades"] for row in rows} == SYMBOLS
    assert all(row["ids"] == row["trades"] == row["last_id"] - row["first_id"] + 1 for row in rows)


def _counts(uri: str) -> dict[Any, Any]:
    with clients.connect(uri) as connection:
        return {row["symbol"]: row["trades"] for row in connection.arrow(_PER_SYMBOL).to_pylist()}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
