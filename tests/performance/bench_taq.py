"""A day of trades and quotes, asked as analysts ask: K2 over Flight SQL, plain DuckDB and polars by turns in one run.

All three read the same Parquet files, those of K2's tables, and must answer the same, or the run ends with what
differs.
5M rows by default, a third of them trades; `--scale 10` is a day of 50M.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from polars.testing import assert_frame_equal

from common.datasets import QUOTES, TRADES, Dataset
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.k2_server import K2Server
from tests.performance.market_day import in_chunks, quotes, symbol_days, trades
from tests.performance.taq_queries import QUERIES, Query

_ROWS, _ROUNDS = 5_000_000, 3
Ask = Callable[[Query], pl.DataFrame]


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale)
    with tempfile.TemporaryDirectory(prefix="k2-taq-") as name, ExitStack() as stack:
        folder = Path(name)
        files = {dataset.name: _fill(folder, dataset, count) for dataset in (TRADES, QUOTES)}
        peers: dict[str, Ask] = {
            "K2": _k2(stack.enter_context(K2Server(folder)), stack),
            "DuckDB": _duckdb(files, stack),
            "polars": _polars(files),
        }
        return [figure for query in QUERIES for figure in _figures(query, peers, count)]


def _figures(query: Query, peers: Mapping[str, Ask], count: int) -> list[Figure]:
    """Milliseconds of each; the first call of each is compared, and not counted: caches, plans."""
    first = {name: _comparable(ask(query)) for name, ask in peers.items()}
    for name, frame in first.items():
        try:
            assert_frame_equal(frame, first["K2"], rel_tol=1e-9, abs_tol=1e-12)
        except AssertionError as error:
            raise RuntimeError(f"{query.name}: {name} did not answer as K2 did: {error}"[:2000]) from None
    taken_ms: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(_ROUNDS):  # by turns, so that all meet the same machine
        for name, ask in peers.items():
            begin = time.perf_counter()
            ask(query)
            taken_ms[name].append((time.perf_counter() - begin) * 1000)
    medians = {name: float(np.median(times)) for name, times in taken_ms.items()}
    beside = ", ".join(f"{name} {ms:,.1f}" for name, ms in medians.items() if name != "K2")
    rows = f"{first['K2'].height:,} rows of {count:,}"
    return [Figure("taq", f"{query.name}, K2", medians["K2"], "ms", f"{beside}; {rows}")]


def _comparable(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows in one order, numbers in one type: the three have types of their own for sums and counts."""
    as_one = [
        pl.col(name).cast(pl.Decimal(38, 8)) if kind.is_decimal() else pl.col(name).cast(pl.Int64)
        for name, kind in frame.schema.items()
        if kind.is_decimal() or kind.is_integer()
    ]
    times = [pl.col(pl.Datetime).cast(pl.Datetime("us", "UTC"))] if pl.Datetime in frame.dtypes else []
    keys = [name for name, kind in frame.schema.items() if not kind.is_float()]
    return frame.with_columns(as_one).with_columns(times).sort(keys)


# -- the peers


def _k2(server: K2Server, stack: ExitStack) -> Ask:
    connection = stack.enter_context(flight_sql.connect(server.uri, autocommit=True))
    cursor = stack.enter_context(connection.cursor())

    def ask(query: Query) -> pl.DataFrame:
        cursor.execute((query.k2 or query.sql).format(trades="market.trades", quotes="market.quotes"))
        return _frame(cursor.fetch_arrow_table())

    return ask


def _duckdb(files: Mapping[str, list[str]], stack: ExitStack) -> Ask:
    """With the settings that are fair: nothing has to keep the order of rows, and footers are kept."""
    local = stack.enter_context(duckdb.connect())
    local.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET parquet_metadata_cache = true")
    for name, paths in files.items():
        local.execute(f"CREATE VIEW {name} AS FROM read_parquet({paths!r})")

    def ask(query: Query) -> pl.DataFrame:
        return _frame(local.execute(query.sql.format(trades="trades", quotes="quotes")).to_arrow_table())

    return ask


def _polars(files: Mapping[str, list[str]]) -> Ask:
    scans = {name: pl.scan_parquet(paths) for name, paths in files.items()}

    def ask(query: Query) -> pl.DataFrame:
        return query.polars(scans["trades"], scans["quotes"]).collect()

    return ask


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _fill(folder: Path, dataset: Dataset, count: int) -> list[str]:
    """K2's table of the made-up day, in commits of a million rows; its data files."""
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    table = IcebergTable.open(lake, dataset)
    partition = KafkaPartition("bench", f"{dataset.name}-topic-id", 0)
    done = 0
    for rows in _rows_of(dataset, count):
        base = {partition: done} if done else {}
        to = PartitionOffsets({partition: done + rows.num_rows})
        table.append(rows, PartitionOffsets(base), to, f"bench-{done}")
        done += rows.num_rows
    return sorted(map(str, folder.glob(f"warehouse/**/{dataset.name}/**/*.parquet")))


def _rows_of(dataset: Dataset, count: int) -> Iterator[pa.Table]:
    return in_chunks((trades if dataset is TRADES else quotes)(symbol_days(count)))
