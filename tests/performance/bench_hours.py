"""What processes hold after an hour, played fast: is their memory flat?

Ingest: `k2 ingest binance` on an hour of a market of 500 symbols and 1,000 trades a second, sent at 20,000. Sink,
maintenance and server: an hour of commits, one a second, of 500 trades of 500 symbols each, as fast as they are made:
`k2 serve` follows, and is asked a question now and then. So that snapshots expire and files are compacted after as many
commits as in life, the sink's and the maintenance's clock runs by commits. Each process is looked at every five minutes
of that hour; `--scale 2` plays two.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import psutil
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

import clients
from common.codec import Encoder
from common.datasets import TRADES
from common.heap import heap
from common.log import KafkaLog
from common.registry import open_registry
from common.settings import (
    KafkaSettings,
    LakeSettings,
    MaintenanceSettings,
    RetentionSettings,
    SinkSettings,
    TelemetrySettings,
)
from common.telemetry import configure_logging
from ingest.market import market_symbols
from k2.broker import EmbeddedBroker
from sink.maintenance.worker import MaintenanceWorker
from sink.service import SinkService
from tests.performance.feed_load import FeedLoad
from tests.performance.figures import Figure
from tests.performance.scraped import Metrics
from tests.soak.resources import slope_per_hour
from tests.support.processes import Process
from tests.support.records import EPOCH, trade

_HOUR_S, _LOOKS = 3600, 12
_SYMBOLS = 500
#: The market of ingest's hour, and how fast it is sent.
_RATE, _SENT_PER_S = 1_000, 20_000
#: Trades of a commit. Ahead of the sink there are never more commits than these, so that each is one of its own.
_COMMIT_ROWS, _AHEAD = 500, 4
#: How often maintenance works, in the market's seconds; and the bars, which have no clock: a commit takes some 80 ms.
_COMPACT_S, _EXPIRE_S, _MANIFESTS_S, _BARS_INTERVAL_MS = 60, 60, 600, 800
_AHEAD_US = 890 * 1_000_000
_TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
_PATIENCE_S = 600.0
_QUESTION = "SELECT symbol, count(*), max(price) FROM market.trades WHERE trade_id > ? GROUP BY symbol"


def run(scale: float) -> list[Figure]:
    seconds = int(_HOUR_S * scale)
    return [*_ingest(seconds), *_commits(seconds)]


def _figures(what: str, seconds: int, looks: Sequence[Mapping[str, int]]) -> Iterator[Figure]:
    """Of each process: what it held at the end, and beside it what it held over time. The first third is warm-up."""
    for name in looks[-1]:
        held = [look[name] / 1e6 for look in looks]
        late = [(number * seconds / _LOOKS, mb) for number, mb in enumerate(held) if number >= len(held) // 3]
        beside = f"{slope_per_hour(late):+.0f} MB an hour behind the first third; " + ", ".join(
            f"{mb:.0f}" for mb in held
        )
        yield Figure("hours", f"{name}, {what}", held[-1], "MB", beside)


def _rss(pids: Mapping[str, int]) -> dict[str, int]:
    return {name: int(psutil.Process(pid).memory_info().rss) for name, pid in pids.items()}


# -- ingest


def _ingest(seconds: int) -> list[Figure]:
    trades = seconds * _RATE
    looks: list[Mapping[str, int]] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-hours-"))
        broker = stack.enter_context(EmbeddedBroker())
        load = FeedLoad(rate=_SENT_PER_S, trades=trades, symbol_count=_SYMBOLS, connections=2)
        stack.callback(load.stop)
        env = {
            "K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "K2_TELEMETRY_LOG_LEVEL": "warning",
            "K2_TELEMETRY_METRICS_PORT": "0",
        }
        words = ("--symbols", load.symbols, "--url", load.url, "--data-dir", folder)
        process = Process("ingest", "binance", *words, env=env)
        stack.callback(process.kill)
        metrics = Metrics(process.wait_for(r"metrics at (\S+)")[1])
        process.wait_for("ingesting", _PATIENCE_S)
        for number in range(_LOOKS + 1):
            _until(lambda due=number * trades // _LOOKS: _taken(metrics) >= due)  # type: ignore[misc]
            looks.append(_rss({"ingest": process.pid}))
    return list(_figures(f"{trades:,} trades of {_SYMBOLS} symbols", seconds, looks))


def _taken(metrics: Metrics) -> float:
    return metrics.read()['k2_ingest_records_total{dataset="trades"}']


def _until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "nothing came of it for too long"
        time.sleep(0.05)


# -- sink, maintenance, server


def _commits(seconds: int) -> list[Figure]:
    looks: list[Mapping[str, int]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-hours-")))
        broker = stack.enter_context(EmbeddedBroker())
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        KafkaLog(kafka).ensure_topics([_TOPIC])
        market = _Market(kafka)
        env = {"K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "K2_TELEMETRY_LOG_LEVEL": "warning"}
        env |= {"K2_FLIGHT_HOT_WINDOW_BYTES": str(32 * 1024**2), "K2_FLIGHT_SNAPSHOT_REFRESH_MS": "50"}
        sink = stack.enter_context(_Child("sink", kafka, folder))
        server = Process("serve", "--port", "0", "--data-dir", str(folder), env=env)
        stack.callback(server.kill)
        uri = server.wait_for(r"Flight SQL at (\S+)", _PATIENCE_S)[1]
        maintain = stack.enter_context(_Child("maintain", kafka, folder))
        connection = stack.enter_context(clients.connect(uri))
        pids = {"sink": sink.pid, "maintain": maintain.pid, "serve": server.pid}
        step = max(1, seconds // _LOOKS)
        for second in range(seconds):
            if second % step == 0 and len(looks) < _LOOKS:
                looks.append(_rss(pids))
            market.send(second)
            sink.go_to(second + 1 - _AHEAD)
            if second % 30 == 0:
                maintain.go_to(second)
                connection.arrow(_QUESTION, [second * _COMMIT_ROWS // 2])
        sink.go_to(seconds)
        looks.append(_rss(pids))
    return list(_figures(f"{seconds:,} commits of {_COMMIT_ROWS} trades of {_SYMBOLS} symbols", seconds, looks))


class _Market:
    """Second by second, the trades of one commit."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._encoder = Encoder(TRADES, open_registry(kafka), topic=_TOPIC)
        self._symbols = market_symbols(_SYMBOLS)
        self._producer = Producer(kafka.client_config() | {"linger.ms": 1, "partitioner": "murmur2_random"})

    def send(self, second: int) -> None:
        at = EPOCH + timedelta(seconds=second)
        for number in range(_COMMIT_ROWS):
            time_of = dict.fromkeys(("event_time", "transaction_time", "receive_time"), at)
            symbol = self._symbols[(second * 7 + number * number) % _SYMBOLS]
            record = trade(second * _COMMIT_ROWS + number, symbol=symbol, **time_of)
            self._producer.produce(_TOPIC, self._encoder.encode(record), key=symbol)
        self._producer.flush()


class _Child:
    """A sink, or maintenance, whose clock stands at a second until it has done what is due then."""

    def __init__(self, what: str, kafka: KafkaSettings, folder: Path) -> None:
        task = json.dumps({"what": what, "servers": kafka.bootstrap_servers, "data_dir": str(folder)})
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.performance.bench_hours", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid

    def __enter__(self) -> _Child:
        self._line()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def go_to(self, second: int) -> None:
        """Until as many commits were made, or the work of that second is done."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{second}\n")
        self._child.stdin.flush()
        self._line()

    def _line(self) -> None:
        assert self._child.stdout is not None
        assert self._child.stdout.readline(), "the child ended"


class _Clock:
    """Time as a child of the benchmark has it: `second` is the market's. Wall time runs ahead of the snapshots' own
    times by nearly as much as bars' snapshots are kept for, so that they go after some seconds of the run.
    """

    second: float | None = None

    def now_us(self) -> int:
        return time.time_ns() // 1_000 + _AHEAD_US

    def monotonic_s(self) -> float:
        return time.monotonic() if self.second is None else self.second


def _sink(kafka: KafkaSettings, lake: LakeSettings) -> Generator[None, int, None]:
    """A sink as `k2 sink` runs it, but that it commits by rows."""
    settings = SinkSettings.load(
        commit_rows_max=_COMMIT_ROWS,
        poll_messages_max=_COMMIT_ROWS,
        bars_interval_ms=_BARS_INTERVAL_MS,
    )
    sink = SinkService(kafka, lake, settings, clock=_Clock(), registry=CollectorRegistry())
    sink.start()
    while True:
        second = yield
        while sink.stats()[TRADES.name].rows_committed < second * _COMMIT_ROWS:
            if sink.failure is not None:
                raise sink.failure
            time.sleep(0.002)


def _maintain(lake: LakeSettings) -> Generator[None, int, None]:
    intervals = MaintenanceSettings.load(
        compact_interval_s=_COMPACT_S, expire_interval_s=_EXPIRE_S, manifests_interval_s=_MANIFESTS_S
    )
    clock = _Clock()
    sink = SinkSettings.load()
    worker = MaintenanceWorker(lake, intervals, RetentionSettings.load(), sink, clock=clock)
    while True:
        clock.second = yield
        for failure in worker.run_due():
            raise failure


def _child(task: Mapping[str, str]) -> None:
    """Says that it is ready; told a second, works until that is done, and says so."""
    heap.keep_few()
    configure_logging(TelemetrySettings.load(log_level="error"), service="bench")
    lake = LakeSettings.load(data_dir=Path(task["data_dir"]))
    kafka = KafkaSettings.load(bootstrap_servers=task["servers"])
    part = _sink(kafka, lake) if task["what"] == "sink" else _maintain(lake)
    next(part)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        part.send(int(line))
        print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
