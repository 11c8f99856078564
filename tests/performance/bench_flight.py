"""Flight SQL through ADBC beside in-process DuckDB on the same files: SELECT 1, a point query, a bulk scan."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb
import numpy as np
import pyarrow as pa
from google.protobuf import any_pb2
from pyarrow import flight

from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from flight_server.protocol import FlightSql_pb2
from sink.table import IcebergTable
from tests.performance.figures import Figure, times_ms
from tests.performance.k2_server import K2Server
from tests.performance.market_data import rows

_ROWS, _CHUNK, _SYMBOLS, _DAYS = 10_000_000, 1_000_000, 100, 10
_BULK = "SELECT symbol, event_time, price, quantity FROM {table}"
_POINT = (
    "SELECT count(*), sum(quantity), max(price) FROM {table} WHERE symbol = 'S042USDT' "
    "AND event_time >= TIMESTAMPTZ '2024-08-12 10:00:00+00' AND event_time < TIMESTAMPTZ '2024-08-12 10:30:00+00'"
)


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale)
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        files = fill(Path(folder), count)
        with K2Server(Path(folder)) as server:
            return _measure(server, files, count)


def _measure(server: K2Server, files: list[str], count: int) -> list[Figure]:
    local = duckdb.connect()
    local.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET parquet_metadata_cache = true")
    parquet = f"read_parquet({files!r})"
    with flight_sql.connect(server.uri, autocommit=True) as connection, connection.cursor() as cursor:

        def remote(sql: str) -> pa.Table:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

        def in_process(sql: str) -> pa.Table:
            return local.execute(sql).to_arrow_table()

        bare = times_ms(_bare_flight_sql(server.uri, "SELECT 1"), 300)
        one, one_local = times_ms(lambda: remote("SELECT 1"), 300), times_ms(lambda: in_process("SELECT 1"), 300)
        point = times_ms(lambda: remote(_POINT.format(table="market.trades")), 30)
        point_local = times_ms(lambda: in_process(_POINT.format(table=parquet)), 30)
        answers = remote(_POINT.format(table="market.trades")), in_process(_POINT.format(table=parquet))
        assert answers[0].to_pylist() == answers[1].to_pylist(), "the two engines do not agree"
        memory_before = server.memory_mib()
        bulk, bulk_local = [], []
        for _ in range(5):  # by turns, so that both meet the same machine
            bulk += list(times_ms(lambda: _drain(cursor, _BULK.format(table="market.trades"), count), 1, warm_up=0))
            bulk_local += list(times_ms(lambda: _same(in_process(_BULK.format(table=parquet)), count), 1, warm_up=0))
        memory_after = server.memory_mib()
    ratio = float(np.median(bulk) / np.median(bulk_local))
    in_process_p50, in_process_p99 = (f"in-process {_p(one_local, q):.2f} ms" for q in (50, 99))
    return [
        Figure("flight", "SELECT 1 p50, GetFlightInfo and DoGet", _p(bare, 50), "ms", in_process_p50),
        Figure("flight", "SELECT 1 p99, GetFlightInfo and DoGet", _p(bare, 99), "ms", in_process_p99),
        Figure("flight", "SELECT 1 p50, through ADBC", _p(one, 50), "ms", in_process_p50),
        Figure("flight", "SELECT 1 p99, through ADBC", _p(one, 99), "ms", in_process_p99),
        Figure(
            "flight",
            "point query p50",
            float(np.median(point)),
            "ms",
            f"in-process {np.median(point_local):.2f} ms, {len(files)} files",
        ),
        Figure(
            "flight",
            f"scan of {count:,} rows x 4",
            float(np.median(bulk)),
            "ms",
            f"in-process {np.median(bulk_local):,.0f} ms",
        ),
        Figure("flight", "scan, times in-process", ratio, "x", "median of 5 each, by turns"),
        Figure(
            "flight",
            "server memory, before and after the scans",
            memory_after,
            "MiB",
            f"before {memory_before:,.0f} MiB",
        ),
    ]


def _p(times: np.ndarray, percent: float) -> float:
    return float(np.percentile(times, percent))


def _bare_flight_sql(uri: str, query: str) -> Callable[[], pa.Table]:
    """The statement's two calls by pyarrow's Flight client: what the server and the transport cost without a driver."""
    client = flight.connect(uri)
    command = any_pb2.Any()
    command.Pack(FlightSql_pb2.CommandStatementQuery(query=query))
    descriptor = flight.FlightDescriptor.for_command(command.SerializeToString())
    return lambda: client.do_get(client.get_flight_info(descriptor).endpoints[0].ticket).read_all()


def _drain(cursor: flight_sql.Cursor, sql: str, count: int) -> None:
    """The whole result as a table on the client, as `fetch_arrow_table` gives it."""
    cursor.execute(sql)
    _same(cursor.fetch_arrow_table(), count)


def _same(table: pa.Table, count: int) -> None:
    assert table.num_rows == count


def fill(folder: Path, count: int) -> list[str]:
    """A table of `count` trades in commits of a million rows; its data files."""
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    table = IcebergTable.open(lake, TRADES)
    partition = KafkaPartition("bench", "bench-topic-id", 0)
    done = 0
    while done < count:
        chunk = min(_CHUNK, count - done)
        data = rows(done, chunk, symbols=_SYMBOLS, days=_DAYS, total=count)
        base, to = ({partition: done} if done else {}), {partition: done + chunk}
        table.append(data, PartitionOffsets(base), PartitionOffsets(to), f"bench-{done}")
        done += chunk
    return [str(path) for path in sorted(folder.glob("warehouse/**/*.parquet"))]
