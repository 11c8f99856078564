"""What a world is made of beside the parts of K2 themselves: the server's database used again, and small values."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from common.datasets import Dataset
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.database import CATALOG, Database
from flight_server.storage.file_index import ADDED_BY, PATH, ROWS, FileIndex, lower, upper
from flight_server.storage.read_view import Cut, literal
from sink.dead_letters import DeadLetter
from tests.support.fake_table import FakeStore

SETTINGS = FlightSettings(threads=1, memory_bytes_max=256 * 1024**2, batch_rows_max=16, hot_window_bytes=0)

#: Topic, partition, offset and id of a record.
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
    is DuckDB's cache of Parquet footers, and no two files have the same name.
    """

    _idle: ClassVar[list[SealedDatabase]] = []
    #: What was dropped leaves traces in DuckDB's memory: after 50 servers a schedule took half as long again.
    _uses_max: ClassVar[int] = 10
    _uses = 0

    def _open_warehouse(self, lake: LakeSettings) -> None:
        self._root.execute(f"SET allowed_directories = [{literal(str(lake.data_dir) + '/')}]")

    @classmethod
    def take(cls) -> SealedDatabase:
        return cls._idle.pop() if cls._idle else cls(SETTINGS, LakeSettings(data_dir=base_folder()))

    def give_back(self) -> None:
        self._uses += 1
        if self._uses >= self._uses_max:
            self.close()
            return
        with self.publication():
            for schema, name in self._writer.execute(
                "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal"
            ).fetchall():
                self._writer.execute(f"DROP VIEW {CATALOG}.{schema}.{name}")
            for (name,) in self._writer.execute(
                "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tail' AND table_name <> 'positions'"
            ).fetchall():
                self._writer.execute(f"DROP TABLE {CATALOG}.tail.{name}")
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

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def index_of(dataset: Dataset, files: Mapping[str, tuple[int, pa.Table]]) -> FileIndex | None:
    """The bounds of the ids in these files, each given with the snapshot that added it."""
    if not files:
        return None
    bounds = [pc.min_max(table.column(dataset.id_column)).as_py() for _, table in files.values()]
    return FileIndex.of(
        pa.table(
            {
                PATH: list(files),
                ADDED_BY: pa.array([added_by for added_by, _ in files.values()], pa.int64()),
                ROWS: pa.array([table.num_rows for _, table in files.values()], pa.int64()),
                lower(dataset.id_column): pa.array([bound["min"] for bound in bounds], pa.int64()),
                upper(dataset.id_column): pa.array([bound["max"] for bound in bounds], pa.int64()),
            }
        )
    )


def grown_from(store: FakeStore) -> frozenset[int | None]:
    """As flight_server.storage.snapshots: the ancestors from which on there were only appends and new layouts."""
    found: list[int | None] = []
    for snapshot in store.ancestors():
        if snapshot.operation == "overwrite":
            break
        found.append(snapshot.parent_id)
    return frozenset(found)


def columns_of(dataset: Dataset) -> str:
    return f"SELECT _kafka_topic, _kafka_partition, _kafka_offset, {dataset.id_column}"


def select_of(dataset: Dataset) -> str:
    return f"{columns_of(dataset)} FROM {dataset.table}"


def tuples_of(batch: pa.RecordBatch) -> list[Row]:
    return list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def difference(rows: list[Any], expected: list[Any], cut: Cut) -> str:
    missing = [row for row in expected if row not in rows]
    surplus = [row for row in rows if row not in expected]
    doubled = sorted({row for row in rows if rows.count(row) > 1})
    return f"at {cut.to_text()}: missing {missing[:5]}, not in the log {surplus[:5]}, more than once {doubled[:5]}"
