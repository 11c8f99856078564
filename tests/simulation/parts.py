"""What a world is made of beside the parts of K2 themselves: the server's database used again, and small values."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from common.datasets import BARS, GAP_EVENTS, QUOTES, SHED, TRADES, Bars, Dataset
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.database import CATALOG, Database
from flight_server.storage.file_index import ADDED_BY, PATH, ROWS, FileIndex, lower, upper
from flight_server.storage.read_view import Cut, literal, quoted
from sink.dead_letters import DeadLetter
from tests.support.fake_table import FakeStore

SETTINGS = FlightSettings(threads=1, memory_bytes_max=256 * 1024**2, batch_rows_max=16, hot_window_bytes=0)
#: SHED is optional: it is there once it has a topic.
DATASETS: tuple[Dataset, ...] = (TRADES, QUOTES, GAP_EVENTS, SHED)
BARS_KEPT: tuple[Bars, ...] = (BARS["bars_1s"], BARS["bars_1m"])
#: The column of each dataset that a world numbers its records by.
NUMBER_COLUMNS = {"trades": "trade_id", "quotes": "quote_id", "gap_events": "first_id", "shed": "first_id"}

#: Topic, partition, offset and number of a record.
Row = tuple[str, int, int, int]


class Crash(Exception):
    """The sink's process is gone."""


class FilesGone(Exception):
    """The statement was refused because files of its snapshot were deleted while it was pinned."""


class Letters:
    """The dead-letter topic: what was acknowledged there."""

    def __init__(self) -> None:
        self.written: list[DeadLetter] = []

    def write(self, letters: list[DeadLetter]) -> None:
        self.written += letters

    def close(self) -> None:
        pass


class SealedDatabase(Database):
    """The server's database on a folder of Parquet files, without the extensions that it needs for none of them.

    A server that starts gets one that another has used, emptied: to open one costs as much as ten actions. What stays
    is DuckDB's cache of Parquet footers, and no two files have the same name. A publication can be made to fail at any
    of its statements.
    """

    _idle: ClassVar[list[SealedDatabase]] = []
    #: What was dropped leaves traces in DuckDB's memory: after 50 servers a schedule took half as long again.
    _uses_max: ClassVar[int] = 10
    _uses = 0
    #: What each schema's columns are in SQL: asking takes as long as an action.
    _types: ClassVar[dict[pa.Schema, dict[str, str]]] = {}
    #: How many more statements of publications pass before one fails; None: all do.
    fails_after: int | None = None
    failures = 0

    def _open_warehouse(self, lake: LakeSettings) -> None:
        self._root.execute(f"SET allowed_directories = [{literal(str(lake.data_dir) + '/')}]")

    @contextmanager
    def publication(self) -> Iterator[None]:
        with super().publication():
            yield
            self._pass()

    def column_types(self, schema: pa.Schema) -> dict[str, str]:
        if schema not in self._types:
            self._types[schema] = super().column_types(schema)
        return dict(self._types[schema])

    def create_segment(self, name: str, columns: Mapping[str, str]) -> str:
        self._pass()
        return super().create_segment(name, columns)

    def _insert(self, relation: str, rows: pa.Table) -> str:
        self._pass()
        return super()._insert(relation, rows)

    def drop_segment(self, relation: str) -> None:
        self._pass()
        super().drop_segment(relation)

    def replace_view(self, table: str, select: str) -> None:
        self._pass()
        super().replace_view(table, select)

    def _move(self, moved: Mapping[int, int]) -> str:
        self._pass()
        return super()._move(moved)

    def _pass(self) -> None:
        if self.fails_after is None:
            return
        self.fails_after -= 1
        if self.fails_after < 0:
            self.fails_after = None
            self.failures += 1
            raise duckdb.OutOfMemoryException("the schedule has this publication fail here")

    @classmethod
    def take(cls) -> SealedDatabase:
        return cls._idle.pop() if cls._idle else cls(SETTINGS, LakeSettings(data_dir=base_folder()))

    def give_back(self) -> None:
        self._uses += 1
        self.fails_after, self.failures = None, 0
        if self._uses >= self._uses_max:
            self.close()
            return
        with self.publication():
            for schema, name in self._writer.execute(
                f"SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = '{CATALOG}' AND NOT internal"
            ).fetchall():
                self._writer.execute(f"DROP VIEW {CATALOG}.{schema}.{name}")
            for (name,) in self._writer.execute(
                "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tail' AND table_name <> 'positions'"
            ).fetchall():
                self.drop_segment(f"{CATALOG}.tail.{quoted(name)}")
            positions = f"{CATALOG}.tail.positions"
            self._writer.execute(
                f"CREATE OR REPLACE TABLE {positions} AS SELECT -1::INTEGER AS number, 0::BIGINT AS next_offset"
            )
        self._idle.append(self)


@functools.cache
def base_folder() -> Path:
    """Of this process, in memory where there is such a place, gone with the process."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="k2-simulation-", dir=memory if os.access(memory, os.W_OK) else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass
class OpenQuery:
    """A reader's transaction whose instant is fixed and whose statement has not run, or not come to its end, yet."""

    cursor: Any
    cut: Cut
    stream: Any = None
    streamed: Dataset | None = None
    first: list[Any] | None = None


@dataclass
class Counts:
    """What a schedule came to."""

    answered: int = 0
    refused: int = 0
    expired: int = 0
    crashes: int = 0
    read_again: int = 0
    changes: int = 0
    subscribed: int = 0
    reconnects: int = 0
    in_parts: int = 0
    chosen: int = 0
    bars: int = 0
    bars_again: int = 0
    gaps: int = 0
    added: int = 0
    transactions: int = 0
    aborted: int = 0
    letters: int = 0
    failed: int = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def index_of(columns: Iterable[str], files: Mapping[str, tuple[int, pa.Table]]) -> FileIndex | None:
    """The bounds of these columns, numbers or times, in these files, each given with the snapshot that added it."""
    if not files:
        return None
    found: dict[str, Any] = {
        PATH: list(files),
        ADDED_BY: pa.array([added_by for added_by, _ in files.values()], pa.int64()),
        ROWS: pa.array([table.num_rows for _, table in files.values()], pa.int64()),
    }
    for column in columns:
        bounds = [pc.min_max(table.column(column).cast(pa.int64())).as_py() for _, table in files.values()]
        found[lower(column)] = pa.array([bound["min"] for bound in bounds], pa.int64())
        found[upper(column)] = pa.array([bound["max"] for bound in bounds], pa.int64())
    return FileIndex.of(pa.table(found))


def grown_from(store: FakeStore) -> frozenset[int | None]:
    """As flight_server.storage.snapshots: the ancestors from which on there were only appends and new layouts."""
    found: list[int | None] = []
    for snapshot in store.ancestors():
        if snapshot.operation == "overwrite":
            break
        found.append(snapshot.parent_id)
    return frozenset(found)


def columns_of(dataset: Dataset) -> str:
    return f"SELECT _kafka_topic, _kafka_partition, _kafka_offset, {NUMBER_COLUMNS[dataset.name]}"


def select_of(dataset: Dataset) -> str:
    return f"{columns_of(dataset)} FROM {dataset.table}"


def tuples_of(batch: pa.RecordBatch) -> list[Row]:
    return list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def difference(rows: list[Any], expected: list[Any], cut: Cut) -> str:
    missing = [row for row in expected if row not in rows]
    surplus = [row for row in rows if row not in expected]
    doubled = sorted({row for row in rows if rows.count(row) > 1})
    return f"at {cut.to_text()}: missing {missing[:5]}, not in the log {surplus[:5]}, more than once {doubled[:5]}"
