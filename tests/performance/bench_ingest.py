"""Websocket to acknowledged Kafka: `k2 ingest binance` as a process, a venue and a broker beside it, real sockets."""

from __future__ import annotations

import contextlib
import tempfile
import time

import psutil

from tests.performance.brokers import BROKERS
from tests.performance.feed_load import FIRST_ID, FeedLoad
from tests.performance.figures import Figure
from tests.performance.scraped import Metrics, quantile
from tests.support.processes import Process

_TRADES_AT_FULL_SPEED, _RATE, _SECONDS = 600_000, 20_000, 15.0
_SYMBOLS, _PATIENCE_S = 20, 120.0


def run(scale: float) -> list[Figure]:
    figures: list[Figure] = []
    for running in BROKERS:
        with running() as broker:
            if broker is not None:
                figures += _measure(broker.name, broker.bootstrap_servers, scale)
    return figures


def _measure(name: str, servers: str, scale: float) -> list[Figure]:
    trades, figures = int(_TRADES_AT_FULL_SPEED * scale), []
    for connections in (1, 2):
        first_id = FIRST_ID * (2 + connections)
        with _Ingest(servers, rate=0, trades=trades, first_id=first_id, connections=connections) as ingest:
            begun_s = ingest.load.began_s()
            wall_s = ingest.acknowledged(trades) - begun_s
            cpu_us, rss = ingest.cpu_s() / trades * 1e6, ingest.rss_mib()
            echoes = ingest.metrics.read()["k2_ingest_echoes_dropped_total"] / trades
        over = f"{name}, {connections} connection" + "s" * (connections > 1)
        beside = f"one process, venue beside it; {echoes:.0%} told by their bytes"
        figures += [
            Figure("ingest", f"socket to acknowledged, {over}", trades / wall_s, "trades/s", beside),
            Figure("ingest", f"CPU a trade at full speed, {over}", cpu_us, "us", f"RSS {rss:.0f} MiB"),
        ]
    trades = int(_RATE * _SECONDS * scale)
    with _Ingest(servers, rate=_RATE, trades=trades, first_id=2 * FIRST_ID) as ingest:
        ingest.load.began_s()
        _, behind_s = ingest.load.ended()
        ingest.acknowledged(trades)
        cpu_us, rss = ingest.cpu_s() / trades * 1e6, ingest.rss_mib()
        waits = ingest.metrics.read()
    p50, p99 = (quantile(waits, "k2_ingest_acknowledged_seconds", q) * 1000 for q in (0.5, 0.99))
    beside = (
        f"p50 {p50:.1f}; CPU {cpu_us:.1f} us a trade, RSS {rss:.0f} MiB; the venue fell {behind_s * 1000:.0f} ms behind"
    )
    return [*figures, Figure("ingest", f"socket to acknowledged at {_RATE:,}/s, p99, {name}", p99, "ms", beside)]


class _Ingest:
    """An ingest and its venue; the venue begins once the ingest is connected."""

    def __init__(
        self, servers: str, *, rate: float, trades: int, first_id: int = FIRST_ID, connections: int = 2
    ) -> None:
        self._servers, self._rate, self._trades, self._first_id = servers, rate, trades, first_id
        self._connections = connections

    def __enter__(self) -> _Ingest:
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-ingest-"))
        self.load = FeedLoad(
            rate=self._rate,
            trades=self._trades,
            symbol_count=_SYMBOLS,
            first_id=self._first_id,
            connections=self._connections,
        )
        self._stack.callback(self.load.stop)
        env = {
            "K2_KAFKA_BOOTSTRAP_SERVERS": self._servers,
            "K2_TELEMETRY_LOG_LEVEL": "warning",
            "K2_TELEMETRY_METRICS_PORT": "0",
            "K2_INGEST_CONNECTIONS": str(self._connections),
            "K2_INGEST_SHED": "false",  # what is measured is how much it takes
        }
        words = ("--symbols", self.load.symbols, "--url", self.load.url, "--data-dir", folder)
        self._process = Process("ingest", "binance", *words, env=env)
        self._stack.callback(self._process.kill)
        self.metrics = Metrics(self._process.wait_for(r"metrics at (\S+)")[1])
        self._process.wait_for("ingesting")
        self._resources = psutil.Process(self._process.pid)
        self._cpu_before_s = sum(self._resources.cpu_times()[:2])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def acknowledged(self, trades: int) -> float:
        """When so many trades were acknowledged (Unix time), within 20 ms."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            now = self.metrics.read()
            assert time.monotonic() < deadline_s, f"{trades} trades were never acknowledged: {now}"
            if now['k2_ingest_records_total{dataset="trades"}'] >= trades and not now["k2_ingest_queued_messages"]:
                return time.time()
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """CPU used since the ingest was ready; what came before a look at it is a few ms of the first frames."""
        return sum(self._resources.cpu_times()[:2]) - self._cpu_before_s

    def rss_mib(self) -> float:
        return float(self._resources.memory_info().rss) / 1024**2
