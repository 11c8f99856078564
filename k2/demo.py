"""`k2 demo`: all of K2 from one command in one terminal, every part real.

Market (simulated, replayed or live) -> ingest -> Kafka (embedded unless one is set) -> sink -> Iceberg, and tail, ->
Flight SQL -> queries over ADBC. On a kept data directory a second run goes on from the first: what the tables hold is
what ingest takes as taken, because the embedded broker forgets its log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.live import Live

from clients import Connection, connect
from common.datasets import CORE_DATASETS, DATASETS
from common.degradation import Level
from common.errors import SettingsError, Unavailable
from common.log import KafkaLog
from common.settings import (
    FlightSettings,
    IngestSettings,
    KafkaSettings,
    LakeSettings,
    MaintenanceSettings,
    RetentionSettings,
    SinkSettings,
)
from ingest.capture import read_capture
from ingest.checkpoint import StateDirectory
from ingest.ledger import Ledger
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from k2.broker import EmbeddedBroker
from k2.console import say
from k2.panel import Panel, Shown
from k2.runner import STOP_S_MAX, stop_on_signals
from k2.seed import ledger_of_tables
from k2.stack import Server
from sink.maintenance.worker import MaintenanceWorker
from sink.service import SinkService

_MARKET_SYMBOLS = 12
_DEFAULT_SYMBOLS = ("BTCUSDT", "ETHUSDT")
#: Frames of a capture that are looked at to learn its symbols.
_FRAMES_LOOKED_AT = 2_000
_DRAIN_S_MAX = 120.0
#: How often the counters are looked at, and how often the panel's queries run.
_LOOK_S, _QUERIES_S = 0.25, 3.0
#: With Ctrl-C the whole must end within 5 s: this is the sink's share.
_DRAIN_ON_SIGNAL_S_MAX = 2.5

QUERIES: tuple[tuple[str, str], ...] = (
    (
        "each symbol's trades, and whether an id is missing",
        "SELECT symbol, count(*) AS trades, min(trade_id) AS first_id, max(trade_id) AS last_id, "
        "max(trade_id) - min(trade_id) + 1 = count(*) AS gapless, sum(quantity) AS volume, "
        "sum(price * quantity) AS notional, arg_min(price, trade_id) AS first_price, "
        "arg_max(price, trade_id) AS last_price FROM market.trades GROUP BY symbol ORDER BY symbol",
    ),
    (
        "one-minute candles",
        "SELECT symbol, time_bucket(INTERVAL '1 minute', event_time) AS minute, arg_min(price, trade_id) AS open, "
        "max(price) AS high, min(price) AS low, arg_max(price, trade_id) AS close, sum(quantity) AS volume "
        "FROM market.trades GROUP BY symbol, minute ORDER BY minute DESC, symbol LIMIT 6",
    ),
    (
        "the spread, in basis points of the middle",
        "SELECT symbol, count(*) AS quotes, "
        "round(avg((ask_price - bid_price)::DOUBLE / ((ask_price + bid_price)::DOUBLE / 2) * 1e4), 4) AS spread_bp "
        "FROM market.quotes WHERE bid_price > 0 AND ask_price > 0 GROUP BY symbol ORDER BY symbol LIMIT 6",
    ),
    (
        "trades with the quote that stood before them",
        "SELECT t.symbol, t.trade_id, t.side, t.price, q.bid_price, q.ask_price FROM "
        "(SELECT * FROM market.trades ORDER BY receive_time DESC LIMIT 500) t ASOF JOIN market.quotes q "
        "ON t.symbol = q.symbol AND t.receive_time >= q.receive_time ORDER BY t.symbol, t.trade_id DESC LIMIT 5",
    ),
)


@dataclass(frozen=True)
class DemoOptions:
    """What `k2 demo` was asked for; see `k2 demo --help`."""

    replay: tuple[Path, ...] = ()
    live: bool = False
    symbols: tuple[str, ...] | None = None
    rate: float = 1_000.0
    speed: float = 1.0
    seconds: float = 10.0
    data_dir: Path | None = None
    flight_port: int = 0
    once: bool = False
    as_json: bool = False


@dataclass
class Answer:
    """One query's result and how long it took, over the wire."""

    name: str
    sql: str
    ms: float
    table: pa.Table


@dataclass
class Parts:
    """Everything that runs, in the order in which it was started."""

    kafka: KafkaSettings
    sink: SinkService
    maintenance: MaintenanceWorker
    server: Server
    simulator: Simulator | None
    ingest: IngestService
    started_s: float = field(default_factory=time.monotonic)

    def failure(self) -> BaseException | None:
        return (
            self.ingest.failure
            or (self.simulator.failure if self.simulator else None)
            or self.sink.failure
            or self.maintenance.failure
            or self.server.failure
        )


class Demo:
    """One run. `run` returns when it is over and everything is stopped; it raises what a part failed with."""

    def __init__(self, options: DemoOptions) -> None:
        if options.once and options.live and not options.seconds > 0:
            raise SettingsError("--once with --live needs --seconds above 0")
        self._options = options
        self._symbols = options.symbols or self._symbols_of_input()
        self._console = Console(stderr=options.as_json)

    def run(self) -> None:
        with stop_on_signals() as stop, ThreadPoolExecutor(1, thread_name_prefix="k2-demo") as body:
            # Off the main thread: there ADBC takes SIGINT for itself while one of its calls runs, and cancels the call.
            body.submit(self._run, stop).result()

    def _run(self, stop: Event) -> None:
        with self._data_dir() as data_dir:
            lake = LakeSettings.load(data_dir=data_dir)
            lake.prepare()
            say("starting broker, sink, server and feed; the panel follows")
            lock = StateDirectory(data_dir / "demo").open()
            try:
                with self._kafka() as kafka, contextlib.ExitStack() as stack:
                    parts = self._start(kafka, lake, data_dir, stack)
                    summary = self._follow(parts, stop)
            finally:
                lock.close()
        if self._options.as_json:
            sys.stdout.write(json.dumps(summary, default=str) + "\n")

    # -- starting

    @contextlib.contextmanager
    def _data_dir(self) -> Iterator[Path]:
        if self._options.data_dir is not None:
            yield self._options.data_dir
            return
        folder = Path(tempfile.mkdtemp(prefix="k2-demo-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _kafka(self) -> Iterator[KafkaSettings]:
        settings = KafkaSettings.load()
        if settings.bootstrap_servers:
            yield settings
            return
        with EmbeddedBroker() as broker:
            yield KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)

    def _start(self, kafka: KafkaSettings, lake: LakeSettings, data_dir: Path, stack: contextlib.ExitStack) -> Parts:
        """Start from the end of the pipe to its beginning; what was started is stopped on every way out."""
        registry = CollectorRegistry()
        sink = SinkService(kafka, lake, SinkSettings.load(), registry=registry)
        sink.start()
        stack.callback(sink.stop, STOP_S_MAX)
        settings = MaintenanceSettings.load(), RetentionSettings.load(), SinkSettings.load()
        maintenance = MaintenanceWorker(
            lake, *settings, registry=registry, waits=lambda: sink.load_level is not Level.NORMAL
        )
        maintenance.start()
        stack.callback(maintenance.stop, STOP_S_MAX)
        # The demo's own clients come without credentials and trust no certificate.
        in_the_clear = {"tls_cert_file": None, "tls_key_file": None, "tls_client_ca_file": None}
        flight = FlightSettings.load(port=self._options.flight_port).model_copy(update=in_the_clear)
        server = Server(kafka, lake, flight, registry)
        server.start()
        stack.callback(server.stop, STOP_S_MAX)
        seed = ledger_of_tables(lake)
        simulator = self._simulator(seed)
        if simulator is not None:
            simulator.start()
            stack.callback(simulator.stop)
        ingest = IngestService(
            self._symbols,
            kafka=kafka,
            settings=IngestSettings.load(**({"connections": 1, "shed": False} if self._options.replay else {})),
            url=simulator.url if simulator else None,
            state_dir=data_dir / "ingest" if KafkaSettings.load().bootstrap_servers else None,
            seed=seed,
            registry=registry,
        )
        ingest.start()
        stack.callback(ingest.stop, STOP_S_MAX)
        return Parts(kafka, sink, maintenance, server, simulator, ingest)

    def _simulator(self, seed: Ledger) -> Simulator | None:
        if self._options.live:
            return None
        if self._options.replay:
            # Left open, the silence behind the end makes ingest connect anew: it is not to get everything again.
            return Simulator.replay(self._options.replay, speed=self._options.speed, resume=not self._options.once)
        return Simulator.random_market(Market(self._symbols, seed=1, after=seed), trades_per_s=self._options.rate)

    def _symbols_of_input(self) -> tuple[str, ...]:
        if self._options.live:
            return _DEFAULT_SYMBOLS
        if not self._options.replay:
            return market_symbols(_MARKET_SYMBOLS)
        symbols: dict[str, None] = {}
        for path in self._options.replay:
            for frame in itertools.islice(read_capture(path), _FRAMES_LOOKED_AT):
                symbols[frame.stream.partition("@")[0].upper()] = None
        return tuple(symbols) or _DEFAULT_SYMBOLS

    # -- following

    def _follow(self, parts: Parts, stop: Event) -> dict[str, Any]:
        """Show what happens until it is over, then drain, ask the queries once more, and sum up."""
        panel = Panel(parts.server.flight.uri, parts.kafka.bootstrap_servers or "", self._options.live)
        if self._options.as_json or not self._console.is_terminal:
            say(f"Flight SQL at {parts.server.flight.uri}; Ctrl-C ends it all")
        watch = _Watch(parts, replaying=bool(self._options.replay))
        with connect(parts.server.flight.uri) as connection:
            with self._live(panel) as live:
                look_due_s = queries_due_s = 0.0
                while not stop.wait(0.02) and not self._is_over(parts):
                    if (failure := parts.failure()) is not None:
                        raise failure
                    if time.monotonic() < look_due_s:
                        continue
                    look_due_s = time.monotonic() + _LOOK_S
                    shown = watch.look()
                    if live is None:
                        continue
                    if time.monotonic() >= queries_due_s:
                        panel.answers = answers(connection)
                        queries_due_s = time.monotonic() + _QUERIES_S
                    live.update(panel.render(shown))
                signalled = stop.is_set()
                parts.ingest.stop(STOP_S_MAX)
                drained = self._drain(parts, _DRAIN_ON_SIGNAL_S_MAX if signalled else _DRAIN_S_MAX)
                shown = watch.look()
                if live is not None:
                    panel.answers = answers(connection)
                    live.update(panel.render(shown))
            if not drained and not signalled:
                raise Unavailable(
                    f"the sink did not commit everything within {_DRAIN_S_MAX:g} s; see its log with --debug"
                )
            if not drained:
                self._console.print("what was not committed yet is gone with the embedded broker", style="yellow")
            return self._summary(parts, watch, connection) if self._options.as_json or self._options.once else {}

    @contextlib.contextmanager
    def _live(self, panel: Panel) -> Iterator[Live | None]:
        if self._options.as_json:
            yield None
            return
        with Live(console=self._console, auto_refresh=False, transient=False) as live:
            yield _Refreshing(live)  # type: ignore[misc]

    def _is_over(self, parts: Parts) -> bool:
        if not self._options.once:
            return False
        if parts.simulator is not None and self._options.replay:
            return (
                parts.simulator.finished.is_set() and parts.ingest.stats().frames >= parts.simulator.stats().frames_sent
            )
        return time.monotonic() - parts.started_s >= self._options.seconds

    def _drain(self, parts: Parts, seconds: float) -> bool:
        """Wait until every acknowledged message is committed; False when that took longer."""
        log = KafkaLog(parts.kafka)
        topics = [info for dataset in DATASETS.values() for info in log.topics(dataset.topic_pattern).values()]
        ends = log.end_offsets(topics)
        deadline_s = time.monotonic() + seconds
        while not parts.sink.drained(ends):
            if parts.sink.failure is not None:
                raise parts.sink.failure
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        # The server learns of the last commits within its refresh interval; then none of its rows are the tail's. Which
        # snapshot that is, the sink need not know: maintenance makes newer ones of the same rows.
        committed = {name for name, stats in parts.sink.stats().items() if stats.snapshot_id is not None}
        while time.monotonic() < deadline_s:
            lake = parts.server.lake.stats()
            if not any(lake.tail_rows.values()) and all(lake.snapshot_ids.get(name) is not None for name in committed):
                break
            time.sleep(0.02)
        return True

    def _summary(self, parts: Parts, watch: _Watch, connection: Connection) -> dict[str, Any]:
        ingest = parts.ingest.stats()
        shown = watch.look()
        asked = answers(connection)
        rows = {
            dataset.table: int(connection.arrow(f"SELECT count(*) FROM {dataset.table}").column(0)[0].as_py())
            for dataset in CORE_DATASETS
        }
        cursor = parts.server.lake.cursor()
        try:
            cut = json.loads(parts.server.lake.begin(cursor).cut or "null")
        finally:
            cursor.close()
        return {
            "rows": rows,
            "duplicates_dropped": sum(ingest.duplicates_dropped.values()),
            "duplicates_dropped_by_dataset": ingest.duplicates_dropped,
            "dead_letters": ingest.dead_letters,
            "cut": cut,
            "commits": shown.commits,
            "seconds": round(watch.busy_s, 3),
            "rates_per_s": {
                "frames": round(watch.rate(ingest.frames)),
                "acknowledged": round(watch.rate(ingest.acknowledged)),
                "committed": round(watch.rate(shown.rows_committed)),
            },
            "freshness_ms": {
                "from": shown.freshness_from,
                "p50": shown.freshness_ms_p50,
                "p99": shown.freshness_ms_p99,
            },
            "queries": [
                {"name": answer.name, "ms": round(answer.ms, 3), "rows": answer.table.to_pylist()} for answer in asked
            ],
        }


class _Refreshing:
    """A Live that redraws with each update."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def update(self, renderable: Any) -> None:
        self._live.update(renderable, refresh=True)


class _Watch:
    """Turns the parts' counters into rates."""

    def __init__(self, parts: Parts, *, replaying: bool) -> None:
        self._parts = parts
        self._replaying = replaying
        self._last: tuple[float, int, int, int] | None = None
        self._rates = (0.0, 0.0, 0.0)
        self._first_frame_s: float | None = None
        self._last_change_s = 0.0
        self._seen = (-1, -1, -1)

    @property
    def busy_s(self) -> float:
        """From the first frame to the last one that was handled, or the last row that was committed."""
        return 0.0 if self._first_frame_s is None else max(self._last_change_s - self._first_frame_s, 1e-3)

    def rate(self, count: int) -> float:
        return 0.0 if self._first_frame_s is None else count / self.busy_s

    def look(self) -> Shown:
        now_s = time.monotonic()
        ingest, lake = self._parts.ingest.stats(), self._parts.server.lake.stats()
        sinks = self._parts.sink.stats().values()
        committed = sum(stats.rows_committed for stats in sinks)
        if self._first_frame_s is None and ingest.frames:
            self._first_frame_s = now_s
        if (ingest.frames, ingest.acknowledged, committed) != self._seen:
            self._seen, self._last_change_s = (ingest.frames, ingest.acknowledged, committed), now_s
        if self._last is None or now_s - self._last[0] >= 1.0:
            if self._last is not None:
                elapsed = now_s - self._last[0]
                self._rates = (
                    (ingest.frames - self._last[1]) / elapsed,
                    (ingest.acknowledged - self._last[2]) / elapsed,
                    (committed - self._last[3]) / elapsed,
                )
            self._last = (now_s, ingest.frames, ingest.acknowledged, committed)
        freshness = lake.freshness_ms if self._replaying else lake.event_freshness_ms
        p50, p99 = freshness if freshness is not None else (None, None)
        return Shown(
            frames=ingest.frames,
            acknowledged=ingest.acknowledged,
            duplicates=sum(ingest.duplicates_dropped.values()),
            dead_letters=ingest.dead_letters,
            gaps=ingest.gaps,
            reconnects=ingest.reconnects,
            rows_committed=committed,
            commits=sum(stats.commits for stats in sinks),
            tail_rows=sum(lake.tail_rows.values()),
            frames_per_s=self._rates[0],
            acknowledged_per_s=self._rates[1],
            committed_per_s=self._rates[2],
            freshness_from="socket" if self._replaying else "exchange event",
            freshness_ms_p50=None if p50 is None else round(p50, 3),
            freshness_ms_p99=None if p99 is None else round(p99, 3),
        )


def answers(connection: Connection) -> list[Answer]:
    """Run the demo's queries, one after the other."""
    asked = []
    for name, sql in QUERIES:
        begin_s = time.perf_counter()
        table = connection.arrow(sql)
        asked.append(Answer(name, sql, (time.perf_counter() - begin_s) * 1000, table))
    return asked
