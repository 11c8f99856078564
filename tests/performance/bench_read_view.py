"""The read view: point queries out of files and out of memory, by one client and by many; planning over the years."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb
import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from common.codec import Encoder
from common.datasets import TRADES
from common.log import KafkaLog
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings, LakeSettings
from k2.broker import EmbeddedBroker
from sink.table import IcebergTable, WrittenFiles
from tests.performance.bench_flight import fill
from tests.performance.figures import Figure, times_ms
from tests.performance.k2_server import FloorServer, K2Server
from tests.performance.market_data import rows
from tests.performance.point_clients import Report, asker, run_clients
from tests.support.processes import Process
from tests.support.records import EPOCH, trade

_ROWS, _SYMBOLS = 10_000_000, 100
_POINT = (
    "SELECT count(*) AS n, sum(quantity) AS volume, max(price) AS high FROM {table} WHERE symbol = '{symbol}' "
    "AND event_time >= TIMESTAMPTZ '{begin}' AND event_time < TIMESTAMPTZ '{begin}' + INTERVAL 30 MINUTE"
)
_BULK = "SELECT symbol, event_time, price, quantity FROM market.trades"
_KINDS = ("adbc", "flight")
_CLIENTS, _SECONDS, _CALLS = 100, 20.0, 200
#: The large table: a year, in commits that were not expired.
_COMMITS, _FILES_EACH, _FILE_ROWS = 1_000, 10, 1_000
_HOT_ROWS, _HOT_HOURS = 1_000_000, 4


def run(scale: float) -> list[Figure]:
    return [*_floor(scale), *_files(scale), *_memory(scale), *_planning(scale)]


def _floor(scale: float) -> list[Figure]:
    """What the clients and the transport take by themselves."""
    where, statement = "of a server that does nothing", "SELECT 1"
    with FloorServer() as server:
        figures = _one_client(server, statement, where, None, "one ready row")
        return figures + [_throughput(server, kind, statement, where, scale)[0] for kind in _KINDS]


def _files(scale: float) -> list[Figure]:
    """Ten days in ten files."""
    point = {"symbol": "S042USDT", "begin": "2024-08-12 10:00:00+00"}
    remote, count = _POINT.format(table="market.trades", **point), int(_ROWS * scale)
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as name:
        files = fill(Path(name), count)
        local = duckdb.connect()
        local.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET parquet_metadata_cache = true")
        plain = _POINT.format(table=f"read_parquet({files!r})", **point)
        with K2Server(Path(name)) as server:
            figures = _one_client(
                server, remote, "from files", lambda: local.execute(plain).to_arrow_table(), f"{len(files)} files"
            )
            figures += _many_clients(server, remote, "from files", scale)
            return figures + _bulk(server, count)


def _memory(scale: float) -> list[Figure]:
    """The same out of the hot window: rows that came through the log and were committed while the server ran."""
    count = int(_HOT_ROWS * scale)
    begin = (EPOCH + timedelta(hours=_HOT_HOURS - 1)).isoformat(sep=" ")
    remote = _POINT.format(table="market.trades", symbol="S042USDT", begin=begin)
    with _live_lake(count) as server:
        plan = str(asker(server.uri, "flight", f"EXPLAIN {remote}")[0]().to_pylist())
        if "READ_PARQUET" in plan or "ICEBERG" in plan:
            raise RuntimeError(f"the point query is not answered from memory: {plan}")
        figures = _one_client(server, remote, "from the hot window", None, f"{count:,} rows in memory")
        return figures + _many_clients(server, remote, "from the hot window", scale)


def _planning(scale: float) -> list[Figure]:
    """Ten files beside ten thousand, one snapshot a file beside a thousand snapshots, ten days beside a year."""
    commits = max(10, int(_COMMITS * scale))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        _many_files(large, commits)
        fill(small, _COMMITS * _FILES_EACH * _FILE_ROWS // 10)
        for name, lake in (("small", small), ("large", large)):
            with K2Server(lake) as server:
                statements = {
                    "SELECT 1": "SELECT 1",
                    "point query": _POINT.format(
                        table="market.trades", symbol="S042USDT", begin="2024-08-12 10:00:00+00"
                    ),
                }
                found[name] = {what: _p50(server.uri, "flight", sql) for what, sql in statements.items()}
    return [
        Figure(
            "read view",
            f"{what}, table of {commits * _FILES_EACH:,} files and {commits:,} snapshots, times that of 10 files",
            found["large"][what] / small_ms,
            "x",
            f"p50 {found['large'][what]:.2f} and {small_ms:.2f} ms, pyarrow.flight",
        )
        for what, small_ms in found["small"].items()
    ]


def _one_client(server: K2Server | FloorServer, statement: str, where: str, local: object, beside: str) -> list[Figure]:
    figures = []
    for kind in _KINDS:
        ask, close = asker(server.uri, kind, statement)
        times_ms(ask, 20)
        begun_s, own_s = server.cpu_s(), time.process_time()
        taken = times_ms(ask, _CALLS, warm_up=0)
        cpu_ms = (server.cpu_s() - begun_s) * 1000 / _CALLS
        own_ms = (time.process_time() - own_s) * 1000 / _CALLS
        if callable(local):
            assert ask().to_pylist() == local().to_pylist(), "the two engines do not agree"
            beside_ms = f"in-process {np.median(times_ms(local, _CALLS, warm_up=20)):.2f} ms, {beside}"
        else:
            beside_ms = beside
        close()
        p50, p99 = np.percentile(taken, [50, 99])
        figures.append(
            Figure(
                "read view",
                f"point query {where}, {kind}, p50",
                float(p50),
                "ms",
                f"p99 {p99:.2f}; {_cpu(cpu_ms, own_ms)}; {beside_ms}",
            )
        )
    return figures


def _many_clients(server: K2Server, statement: str, where: str, scale: float) -> list[Figure]:
    figures = []
    for kind in _KINDS:
        figure, alone = _throughput(server, kind, statement, where, scale)
        figures.append(figure)
    with _reading_all(server.uri) as rounds:
        report = run_clients(server.uri, "flight", statement, clients=_CLIENTS, seconds=_seconds(scale))
    beside = np.percentile(report.taken_ms, 99)
    return [
        *figures,
        Figure(
            "read view",
            f"the same with a bulk reader beside, {where}: p99, times that without",
            float(beside / np.percentile(alone.taken_ms, 99)),
            "x",
            f"p99 {beside:.0f} ms, {report.per_second:.0f}/s, {len(report.errors)} errors; {len(rounds)} bulk reads",
        ),
    ]


def _throughput(
    server: K2Server | FloorServer, kind: str, statement: str, where: str, scale: float
) -> tuple[Figure, Report]:
    begun_s = server.cpu_s()
    report = run_clients(server.uri, kind, statement, clients=_CLIENTS, seconds=_seconds(scale))
    cpu_ms = (server.cpu_s() - begun_s) * 1000 / len(report.taken_ms)
    p50, p99 = np.percentile(report.taken_ms, [50, 99])
    errors = f"{len(report.errors)} errors {report.errors[:2]}" if report.errors else "no error"
    figure = Figure(
        "read view",
        f"{_CLIENTS} clients, point query {where}, {kind}",
        report.per_second,
        "/s",
        f"p50 {p50:.0f}, p99 {p99:.0f} ms; {_cpu(cpu_ms, report.cpu_ms)}; {errors}",
    )
    return figure, report


def _seconds(scale: float) -> float:
    return max(3.0, _SECONDS * min(1.0, scale))


def _cpu(server_ms: float, client_ms: float) -> str:
    """Processor time says how dear a query is where other work takes its part of the cores; times on a wall do not."""
    return f"CPU a query: server {server_ms:.2f}, client {client_ms:.2f} ms"


@contextlib.contextmanager
def _reading_all(uri: str) -> Iterator[list[int]]:
    """A client that reads the whole table again and again, meanwhile."""
    done = threading.Event()
    rounds: list[int] = []

    def go() -> None:
        ask, close = asker(uri, "flight", _BULK)
        while not done.is_set():
            rounds.append(ask().num_rows)
        close()

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield rounds
    finally:
        done.set()
        thread.join()


def _bulk(server: K2Server, count: int) -> list[Figure]:
    """When the first batch comes, and whether the server grows with the result."""
    first_ms = []
    before = server.memory_mib()
    highest = before
    with flight_sql.connect(server.uri, autocommit=True) as connection, connection.cursor() as cursor:
        for _ in range(7):
            begin = time.perf_counter()
            cursor.execute(_BULK)
            reader = cursor.fetch_record_batch()
            batch: pa.RecordBatch | None = reader.read_next_batch()
            first_ms.append((time.perf_counter() - begin) * 1000)
            assert batch is not None and batch.num_rows
            read = batch.num_rows + sum(batch.num_rows for batch in reader)
            assert read == count
            highest = max(highest, server.memory_mib())
    return [
        Figure("read view", f"first batch of {count:,} rows, adbc, p50", float(np.median(first_ms[1:])), "ms"),
        Figure(
            "read view", "memory of the server after reading all, seven times", highest, "MiB", f"before {before:,.0f}"
        ),
    ]


def _p50(uri: str, kind: str, statement: str) -> float:
    ask, close = asker(uri, kind, statement)
    taken = times_ms(ask, _CALLS, warm_up=20)
    close()
    return float(np.median(taken))


@contextlib.contextmanager
def _live_lake(count: int) -> Iterator[K2Server]:
    """A broker, a sink and a server, through which `count` trades of some hours have gone; all are committed."""
    topic = TRADES.topic(asset_class="crypto", exchange="binance")
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        KafkaLog(kafka).ensure_topics([topic])
        env = {
            "K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "K2_FLIGHT_HOT_WINDOW_BYTES": str(1024**3),
            "K2_TELEMETRY_LOG_LEVEL": "warning",
        }
        with K2Server(Path(folder), **env) as server:
            sink = Process("sink", "--data-dir", folder, env=env)
            try:
                _produce(kafka, topic, count)
                ask, close = asker(server.uri, "flight", "SELECT count(*) FROM market.trades")
                _until(lambda: ask().column(0)[0].as_py() == count, f"{count} rows never came")
                _until(lambda: _committed(Path(folder)) == count, f"{count} rows were never committed")
                close()
                time.sleep(2.0)  # the server asks the catalog twice a second
                yield server
            finally:
                sink.stop()


def _produce(kafka: KafkaSettings, topic: str, count: int) -> None:
    encoder = Encoder(TRADES, EmbeddedRegistry(), topic=topic)
    producer = Producer(kafka.client_config() | {"linger.ms": 20, "queue.buffering.max.messages": 2_000_000})
    step = timedelta(hours=_HOT_HOURS) / count
    for number in range(count):
        at = EPOCH + number * step
        record = trade(number, symbol=f"S{number % _SYMBOLS:03d}USDT", event_time=at, transaction_time=at)
        producer.produce(topic, encoder.encode(record))
        if number % 10_000 == 0:
            producer.poll(0)
    producer.flush()


def _committed(folder: Path) -> int:
    table = IcebergTable.open(LakeSettings.load(data_dir=folder), TRADES)
    return table.rows


def _until(holds: object, otherwise: str) -> None:
    assert callable(holds)
    deadline_s = time.monotonic() + 300
    while not holds():
        if time.monotonic() > deadline_s:
            raise RuntimeError(otherwise)
        time.sleep(0.1)


def _many_files(folder: Path, commits: int) -> None:
    """A year of trades in `commits` snapshots that were all kept."""
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    table = IcebergTable.open(lake, TRADES)
    partition = KafkaPartition("bench", "bench-topic-id", 0)
    each = _FILES_EACH * _FILE_ROWS
    for number in range(commits):
        done = number * each
        data = rows(done, each, symbols=_SYMBOLS, days=365, total=commits * each)
        written = [table.write(data.slice(start, _FILE_ROWS)) for start in range(0, each, _FILE_ROWS)]
        files = WrittenFiles(tuple(file for one in written for file in one.data_files), each)
        base = PartitionOffsets({partition: done} if done else {})
        table.commit(files, base, PartitionOffsets({partition: done + each}), f"bench-{number}")
