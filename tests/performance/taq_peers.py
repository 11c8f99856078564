"""K2 over Flight SQL, plain DuckDB and polars on the same Parquet files, those of K2's tables, asked the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb
import polars as pl
import pyarrow as pa
from polars.testing import assert_frame_equal

from common.datasets import Dataset
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.performance.taq_queries import Query

Ask = Callable[[Query], pl.DataFrame]


def k2(uri: str, stack: ExitStack) -> Ask:
    """The server; the connection ends with the stack."""
    connection = stack.enter_context(flight_sql.connect(uri, autocommit=True))
    cursor = stack.enter_context(connection.cursor())

    def ask(query: Query) -> pl.DataFrame:
        cursor.execute((query.k2 or query.sql).format(trades="market.trades", quotes="market.quotes"))
        return _frame(cursor.fetch_arrow_table())

    return ask


def in_duckdb(files: Mapping[str, list[str]], stack: ExitStack, *, memory_limit: str = "4GB") -> Ask:
    """DuckDB in this process, with the settings that are fair: nothing has to keep the order of rows, footers are kept,
    and it has the memory that the server has by default."""
    local = stack.enter_context(duckdb.connect(config={"memory_limit": memory_limit}))
    local.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET parquet_metadata_cache = true")
    for name, paths in files.items():
        local.execute(f"CREATE VIEW {name} AS FROM read_parquet({paths!r}, hive_partitioning = false)")

    def ask(query: Query) -> pl.DataFrame:
        return _frame(local.execute(query.sql.format(trades="trades", quotes="quotes")).to_arrow_table())

    return ask


def in_polars(files: Mapping[str, list[str]]) -> Ask:
    """polars in this process."""
    scans = {name: pl.scan_parquet(paths, hive_partitioning=False) for name, paths in files.items()}

    def ask(query: Query) -> pl.DataFrame:
        return query.polars(scans["trades"], scans["quotes"]).collect()

    return ask


def check_same(query: Query, answers: Mapping[str, pl.DataFrame]) -> None:
    """Raises RuntimeError unless all answered as K2 did."""
    comparable = {name: _comparable(frame) for name, frame in answers.items()}
    for name, frame in comparable.items():
        try:
            assert_frame_equal(frame, comparable["K2"], rel_tol=1e-9, abs_tol=1e-12)
        except AssertionError as error:
            raise RuntimeError(f"{query.name}: {name} did not answer as K2 did: {error}"[:2000]) from None


def fill(folder: Path, dataset: Dataset, tables: Iterable[pa.Table]) -> list[str]:
    """K2's table of the dataset with these rows, a commit for each part; its data files."""
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    table = IcebergTable.open(lake, dataset)
    partition = KafkaPartition("bench", f"{dataset.name}-topic-id", 0)
    done = 0
    for rows in tables:
        base = {partition: done} if done else {}
        to = PartitionOffsets({partition: done + rows.num_rows})
        table.append(rows, PartitionOffsets(base), to, f"bench-{done}")
        done += rows.num_rows
    return sorted(map(str, folder.glob(f"warehouse/**/{dataset.name}/**/*.parquet")))


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


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
