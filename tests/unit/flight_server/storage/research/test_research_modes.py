"""Research tables: what is made can be read by the server and by others, in each mode and in every size."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog

from common.errors import (
    InvalidStatement,
    TableNotFound,
)
from common.settings import LakeSettings
from flight_server.storage import research_write
from flight_server.storage.research import ResearchTables, WriteMode
from tests.support.research import APPEND, CREATE, CREATE_APPEND, REPLACE, SIMPLE, files_under, put, rows_of, simple


def test_what_is_created_can_be_read_by_the_server_and_by_others(
    research: ResearchTables, engine: Any, foreign: Catalog
) -> None:
    assert put(research, "first", simple(1, 2, 3), owner="ann", comment="a try") == 3
    assert rows_of(engine, research, "first") == [(1, "n1"), (2, "n2"), (3, "n3")]
    table = foreign.load_table("research.first")
    assert table.scan().to_arrow().to_pylist() == simple(1, 2, 3).to_pylist()
    assert pl.scan_iceberg(table).collect().rows() == [(1, "n1"), (2, "n2"), (3, "n3")]
    (listed,) = research.tables()
    assert (listed.name, listed.rows, listed.owner, listed.comment) == ("first", 3, "ann", "a try")
    assert len(table.metadata.snapshots) == 1


def test_create_refuses_a_table_that_exists(research: ResearchTables, engine: Any) -> None:
    put(research, "first", simple(1))
    with pytest.raises(InvalidStatement, match=r"research\.first exists already"):
        put(research, "FIRST", simple(2))
    assert rows_of(engine, research, "first") == [(1, "n1")]


def test_append_adds_in_one_snapshot_and_refuses_what_is_not_there(
    research: ResearchTables, engine: Any, foreign: Catalog
) -> None:
    with pytest.raises(TableNotFound, match=r"research\.first does not exist"):
        put(research, "first", simple(1), APPEND)
    put(research, "first", simple(1))
    assert put(research, "First", simple(2, 3), APPEND) == 2
    assert rows_of(engine, research, "first", "id") == [(1,), (2,), (3,)]
    assert len(foreign.load_table("research.first").metadata.snapshots) == 2


def test_create_append_makes_the_table_and_then_adds(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(1), CREATE_APPEND)
    put(research, "t", simple(2), CREATE_APPEND)
    assert rows_of(engine, research, "t", "id") == [(1,), (2,)]


def test_replace_puts_other_columns_and_rows_in_place(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    put(research, "t", simple(1, 2), REPLACE, owner="ann")
    before = research.table("t")
    assert before is not None and before.snapshot_id is not None
    other = pa.table({"name": pa.array([5, 6], pa.int32()), "new": [Decimal("1.50"), None]})
    assert put(research, "t", other, REPLACE, owner="bob", comment="anew") == 2
    assert rows_of(engine, research, "t") == [(5, Decimal("1.50")), (6, None)]
    after = research.table("t")
    assert after is not None and (after.owner, after.comment, after.rows) == ("bob", "anew", 2)
    assert engine.execute(f"SELECT count(*) FROM {before.relation}").fetchall() == [(2,)]  # as a reader had it
    table = foreign.load_table("research.t")
    assert table.scan().to_arrow().num_rows == 2
    old = table.scan(snapshot_id=before.snapshot_id).to_arrow()
    assert old.sort_by("id").to_pylist() == simple(1, 2).to_pylist()


def test_replace_with_the_same_columns_keeps_them(research: ResearchTables, foreign: Catalog) -> None:
    put(research, "t", simple(1))
    put(research, "t", simple(2), REPLACE)
    metadata = foreign.load_table("research.t").metadata
    assert len(metadata.schemas) == 1 and metadata.last_column_id == 2


@pytest.mark.parametrize("mode", [CREATE, REPLACE, CREATE_APPEND])
def test_a_table_without_rows_is_a_table(research: ResearchTables, engine: Any, mode: WriteMode) -> None:
    assert put(research, "t", simple(), mode) == 0
    table = research.table("t")
    assert table is not None and table.relation is None and table.arrow_schema.names == ["id", "name"]
    put(research, "t", simple(1), APPEND)
    assert rows_of(engine, research, "t") == [(1, "n1")]
    put(research, "t", simple(), REPLACE)
    assert rows_of(engine, research, "t") == []


def test_appending_nothing_makes_no_snapshot(research: ResearchTables, foreign: Catalog) -> None:
    put(research, "t", simple(1))
    assert put(research, "t", simple(), APPEND) == 0
    assert len(foreign.load_table("research.t").metadata.snapshots) == 1


def test_columns_are_matched_by_name_and_cast_when_that_loses_nothing(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(1))
    put(research, "t", pa.table({"NAME": ["x"], "id": pa.array([2], pa.uint8())}), APPEND)
    put(research, "t", pa.table({"id": pa.array([3.0])}), APPEND)
    assert rows_of(engine, research, "t") == [(1, "n1"), (2, "x"), (3, None)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"id": [1], "name": ["x"], "more": [1]}, "has no column more"),
        ({"id": [1.5], "name": ["x"]}, "column id cannot take"),
        ({"id": pa.array([2**63], pa.uint64()), "name": ["x"]}, "column id cannot take"),
        ({"id": [[1]], "name": ["x"]}, "column id cannot take"),
        ({"name": ["x"]}, "column id of research.t needs a value"),
        ({"id": pa.array([None], pa.int64())}, "column id may not be NULL"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_the_column(
    research: ResearchTables, engine: Any, settings: LakeSettings, rows: dict[str, Any], said: str
) -> None:
    columns = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])
    put(research, "t", simple(1).cast(columns))
    before = files_under(settings)
    with pytest.raises(InvalidStatement, match=said):
        put(research, "t", pa.table(rows), APPEND)
    assert rows_of(engine, research, "t") == [(1, "n1")]
    assert files_under(settings) == before


def test_after_a_value_that_does_not_fit_the_whole_write_is_over(research: ResearchTables) -> None:
    write = research.begin_write("t", SIMPLE, CREATE)
    write.write(simple(1))
    with pytest.raises(InvalidStatement):
        write.write(pa.table({"id": [0.5], "name": ["x"]}))
    with pytest.raises(InvalidStatement, match="over"):
        write.commit()
    assert research.tables() == []


def test_rows_are_gathered_to_row_groups_and_files(
    research: ResearchTables, settings: LakeSettings, foreign: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches become row groups of 122,880; what is held never grows with what was written."""
    monkeypatch.setattr(research_write, "_FILE_BYTES", 8 * 1024**2)
    write = research.begin_write("t", pa.schema([("id", pa.int64()), ("x", pa.float64())]), CREATE)
    batch = pa.table({"id": range(10_000), "x": [0.5] * 10_000})
    held = 0
    for _ in range(150):
        write.write(batch)
        held = max(held, sum(part.num_rows for part in write._pending))
    assert held < research_write.GROUP_ROWS
    assert write.commit() == 1_500_000
    table = foreign.load_table("research.t")
    files = [task.file for task in table.scan().plan_files()]
    assert len(files) > 1
    metadata = pq.read_metadata(files[0].file_path.removeprefix("file://"))
    assert metadata.row_group(0).num_rows >= 120_000
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert files[0].lower_bounds and files[0].upper_bounds and files[0].value_counts
    assert sum(file.record_count for file in files) == 1_500_000


def test_five_million_rows_need_no_more_memory_than_one_row_group(research: ResearchTables, engine: Any) -> None:
    schema = pa.schema([("id", pa.int64()), ("x", pa.decimal128(18, 8))])
    batch = engine.execute("SELECT range AS id, (range / 7)::DECIMAL(18, 8) AS x FROM range(100_000)").to_arrow_table()
    write = research.begin_write("t", schema, CREATE)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    highest = 0
    for _ in range(50):
        write.write(batch)
        highest = max(highest, pool.bytes_allocated() - before)
    assert write.commit() == 5_000_000
    assert highest < 96 * 1024**2
    assert rows_of(engine, research, "t", "count(*), sum(id)") == [(5_000_000, 50 * sum(range(100_000)))]


def test_duckdb_is_the_version_that_was_tried() -> None:
    assert duckdb.__version__.startswith("1.5.")
