"""Research tables: each write is one snapshot or nothing, its values are exact, and others can read it."""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException

from common.clock import ManualClock
from common.errors import (
    CatalogError,
    CommitConflict,
    CommitStateUnknown,
    InvalidStatement,
    K2Error,
    SnapshotNotFound,
    TableNotFound,
    Unsupported,
)
from common.iceberg import open_catalog
from common.settings import FlightSettings, LakeSettings
from flight_server.storage import research_write
from flight_server.storage.as_of import AsOfSnapshot, AsOfTime
from flight_server.storage.database import Database
from flight_server.storage.research import TABLE_PROPERTIES, ResearchTables, WriteMode, valid_name
from flight_server.storage.research_upkeep import KEEP_UNREACHABLE_S

CREATE, APPEND, REPLACE, CREATE_APPEND = WriteMode
SIMPLE = pa.schema([("id", pa.int64()), ("name", pa.string())])


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path)


@pytest.fixture
def research(settings: LakeSettings) -> ResearchTables:
    return ResearchTables(settings, clock=ManualClock())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cursor of a flight server's database that may read the warehouses of all tests here."""
    everywhere = LakeSettings.load(warehouse=f"file://{tmp_path_factory.getbasetemp()}")
    database = Database(FlightSettings.load(threads=1, memory_bytes_max=256 * 1024**2), everywhere)
    yield database.cursor()
    database.close()


@pytest.fixture
def foreign(settings: LakeSettings) -> Catalog:
    """Another engine on the same catalog."""
    return open_catalog(settings)


def simple(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "name": [f"n{number}" for number in ids]}, schema=SIMPLE)


def put(research: ResearchTables, name: str, rows: pa.Table, mode: WriteMode = CREATE, **more: Any) -> int:
    write = research.begin_write(name, rows.schema, mode, **more)
    for batch in rows.to_batches():
        write.write(batch)
    return write.commit()


def rows_of(engine: Any, research: ResearchTables, name: str, what: str = "*") -> list[tuple[Any, ...]]:
    """As the flight server reads it."""
    table = research.table(name)
    assert table is not None
    if table.relation is None:
        return []
    return list(engine.execute(f"SELECT {what} FROM {table.relation} ORDER BY 1").fetchall())


def files_under(settings: LakeSettings) -> set[str]:
    folder = settings.data_dir / "warehouse" / "research"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- modes


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


# -- types


def everything() -> tuple[pa.Schema, list[dict[str, Any]], list[tuple[Any, ...]]]:
    """Schema, rows as they come, and what they are when they are read again by DuckDB."""
    utc = dt.UTC
    some = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    columns: list[tuple[str, pa.DataType, Any, Any]] = [
        ("bool", pa.bool_(), True, True),
        ("i8", pa.int8(), -128, -128),
        ("i16", pa.int16(), -32768, -32768),
        ("i32", pa.int32(), -(2**31), -(2**31)),
        ("i64", pa.int64(), -(2**63), -(2**63)),
        ("u8", pa.uint8(), 255, 255),
        ("u16", pa.uint16(), 65535, 65535),
        ("u32", pa.uint32(), 2**32 - 1, 2**32 - 1),
        ("u64", pa.uint64(), 2**64 - 1, Decimal(2**64 - 1)),
        ("hugeint", pa.decimal128(38, 0), Decimal(10**38 - 1), Decimal(10**38 - 1)),
        ("price", pa.decimal128(18, 8), Decimal("0.00000001"), Decimal("0.00000001")),
        ("d256", pa.decimal256(38, 10), Decimal("1.5"), Decimal("1.5000000000")),
        ("f16", pa.float16(), 1.5, 1.5),
        ("f32", pa.float32(), 1.25, 1.25),
        ("f64", pa.float64(), 0.1, 0.1),
        ("string", pa.string(), "Zürich 🏔", "Zürich 🏔"),
        ("large", pa.large_string(), "x", "x"),
        ("view", pa.string_view(), "y", "y"),
        ("enum", pa.dictionary(pa.int8(), pa.string()), "BUY", "BUY"),
        ("json", pa.json_(), '{"a":1}', '{"a":1}'),
        ("blob", pa.binary(), b"\x00\xff", b"\x00\xff"),
        ("fixed", pa.binary(3), b"abc", b"abc"),
        ("uuid", pa.uuid(), some.bytes, some),
        ("date", pa.date32(), dt.date(1, 1, 1), dt.date(1, 1, 1)),
        ("date64", pa.date64(), dt.date(2024, 2, 29), dt.date(2024, 2, 29)),
        ("time_s", pa.time32("s"), dt.time(1, 2, 3), dt.time(1, 2, 3)),
        ("time", pa.time64("us"), dt.time(23, 59, 59, 999999), dt.time(23, 59, 59, 999999)),
        ("time_ns", pa.time64("ns"), dt.time(1), dt.time(1)),
        ("ts_s", pa.timestamp("s"), dt.datetime(1969, 1, 1), dt.datetime(1969, 1, 1)),
        ("ts_ms", pa.timestamp("ms"), dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1)),
        ("ts", pa.timestamp("us"), dt.datetime(2024, 1, 1, 0, 0, 0, 1), dt.datetime(2024, 1, 1, 0, 0, 0, 1)),
        ("ts_ns", pa.timestamp("ns"), 1_000, dt.datetime(1970, 1, 1, 0, 0, 0, 1)),
        ("tstz", pa.timestamp("us", "UTC"), dt.datetime(2024, 1, 1, tzinfo=utc), "2024-01-01 00:00:00+00"),
        ("tstz_b", pa.timestamp("ms", "Etc/UTC"), dt.datetime(2024, 1, 1, tzinfo=utc), "2024-01-01 00:00:00+00"),
        ("list", pa.list_(pa.int32()), [1, None], [1, None]),
        ("fixed_list", pa.list_(pa.float32(), 2), [1.0, 2.0], [1.0, 2.0]),
        ("struct", pa.struct([("a b", pa.uint8()), ("c", pa.list_(pa.string()))]), {"a b": 1, "c": ["d"]}, None),
        ("deep", pa.list_(pa.struct([("x", pa.list_(pa.uint64()))])), [{"x": [1]}], [{"x": [Decimal(1)]}]),
        ("map", pa.map_(pa.string(), pa.int64()), [("k", 1)], {"k": 1}),
        ("map_deep", pa.map_(pa.string(), pa.struct([("v", pa.int8())])), [("k", {"v": 1})], {"k": {"v": 1}}),
        ("null", pa.null(), None, None),
        ("odd name.é\"'", pa.int32(), 7, 7),
    ]
    schema = pa.schema([(name, kind) for name, kind, _, _ in columns])
    given = [{name: value for name, _, value, _ in columns}, dict.fromkeys(schema.names)]
    read = tuple(value if expected is None else expected for _, _, value, expected in columns)
    return schema, given, [read, (None,) * len(columns)]


def table_of(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    arrays = []
    for field in schema:
        values = [row[field.name] for row in rows]
        arrays.append(
            pa.array(values, field.type) if field.name != "uuid" else pa.array(values, pa.binary(16)).cast(field.type)
        )
    return pa.Table.from_arrays(arrays, schema=schema)


def test_every_type_comes_back_with_its_exact_value(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    schema, given, expected = everything()
    put(research, "types", table_of(schema, given))
    what = "* REPLACE (tstz::VARCHAR AS tstz, tstz_b::VARCHAR AS tstz_b)"
    found = rows_of(engine, research, "types", what)
    found.sort(key=lambda row: row[0] is None)
    for name, read, value in zip(schema.names, found[0], expected[0], strict=True):
        assert read == value, name
    assert found[1] == expected[1]
    scanned = foreign.load_table("research.types").scan().to_arrow().sort_by([("bool", "ascending")]).to_pylist()
    assert scanned[0]["u64"] == Decimal(2**64 - 1)
    assert scanned[0]["ts_ns"] == dt.datetime(1970, 1, 1, 0, 0, 0, 1)
    assert scanned[0]["struct"] == {"a b": 1, "c": ["d"]}
    assert pl.scan_iceberg(foreign.load_table("research.types")).collect()["i64"].to_list()[0] == -(2**63)


def test_either_way_of_reading_gives_the_same_types(research: ResearchTables, engine: Any) -> None:
    schema, given, _ = everything()
    put(research, "types", table_of(schema, given))
    table = research.table("types")
    assert table is not None and table.relation is not None and table.relation.startswith("read_parquet")
    scan = f"iceberg_scan('{table.metadata_location}', snapshot_from_id => {table.snapshot_id})"
    described = [engine.execute(f"DESCRIBE FROM {relation}").fetchall() for relation in (table.relation, scan)]
    assert described[0] == described[1]


@pytest.mark.parametrize("folder", ["id=7", "a[b]*", "it's", "with space"])
def test_a_folder_says_nothing_of_what_is_in_it(tmp_path: Path, engine: Any, folder: str) -> None:
    (tmp_path / folder).mkdir()
    research = ResearchTables(LakeSettings.load(data_dir=tmp_path / folder))
    put(research, "t", simple(1))
    assert rows_of(engine, research, "t") == [(1, "n1")]


def test_rows_of_duckdb_itself_keep_their_types(research: ResearchTables, engine: Any) -> None:
    select = (
        "SELECT 1::UTINYINT AS a, uuid() AS u, 'a'::ENUM('a', 'b') AS e, NULL AS n, 7::HUGEINT AS h, "
        "TIME '10:00:00' AS t, TIMESTAMPTZ '2024-01-01 00:00:00+00' AS tz, [{'x': 1, 'y': 'z'}] AS l, "
        "MAP {'a': 1.50} AS m, '{}'::JSON AS j, [1, 2]::INTEGER[2] AS f"
    )
    types = [kind for _, kind, *_ in engine.execute(f"DESCRIBE {select}").fetchall()]
    rows = engine.execute(select).to_arrow_table()
    put(research, "t", rows, sql_types=types)
    table = research.table("t")
    assert table is not None
    described = {name: kind for name, kind, *_ in engine.execute(f"DESCRIBE FROM {table.relation}").fetchall()}
    assert described == {
        "a": "INTEGER", "u": "UUID", "e": "VARCHAR", "n": "INTEGER", "h": "DECIMAL(38,0)", "t": "TIME",
        "tz": "TIMESTAMP WITH TIME ZONE", "l": "STRUCT(x INTEGER, y VARCHAR)[]", "m": "MAP(VARCHAR, DECIMAL(3,2))",
        "j": "VARCHAR", "f": "INTEGER[]",
    }  # fmt: skip
    assert engine.execute(f"SELECT u::VARCHAR FROM {table.relation}").fetchall() == [(rows["u"][0].as_py(),)]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("INTERVAL 1 DAY", "column x is INTERVAL.*cast it to VARCHAR"),
        ("'101'::BIT", "column x is BIT.*cast it to VARCHAR"),
        ("'10:00:00+01'::TIMETZ", "column x is TIME WITH TIME ZONE"),
        ("1::UHUGEINT", "column x is UHUGEINT.*DECIMAL"),
        ("union_value(a := 1)", "column x is UNION"),
        ("[INTERVAL 1 DAY]", "column x is INTERVAL"),
        ("{'a': '1'::BIT}", "column x is BIT"),
        ("1::BIGNUM", "column x is BIGNUM"),
    ],
)
def test_what_iceberg_cannot_hold_is_refused_by_name(
    research: ResearchTables, engine: Any, expression: str, said: str
) -> None:
    select = f"SELECT {expression} AS x"
    types = [kind for _, kind, *_ in engine.execute(f"DESCRIBE {select}").fetchall()]
    schema = engine.execute(select).to_arrow_reader(1).schema
    with pytest.raises(Unsupported, match=said):
        research.begin_write("t", schema, CREATE, sql_types=types)
    assert research.tables() == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [(pa.timestamp("ns"), 1), (pa.time64("ns"), 1), (pa.timestamp("s"), 2**62)],
)
def test_a_time_is_never_cut(research: ResearchTables, kind: pa.DataType, value: int) -> None:
    with pytest.raises(InvalidStatement, match="column x cannot take"):
        put(research, "t", pa.table({"x": pa.array([value], pa.int64()).cast(kind)}))
    assert research.tables() == []


def test_a_hugeint_of_39_digits_is_refused(research: ResearchTables, engine: Any) -> None:
    rows = engine.execute("SELECT 170141183460469231731687303715884105727::HUGEINT AS x").to_arrow_table()
    with pytest.raises(InvalidStatement, match="does not fit"):
        put(research, "t", rows)


def test_rows_with_broken_buffers_are_refused(research: ResearchTables) -> None:
    offsets = pa.array([0, 1_000_000, 3], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abc")])
    with pytest.raises(InvalidStatement, match="not valid"):
        put(research, "t", pa.Table.from_arrays([broken], names=["x"]))


def test_text_becomes_a_uuid_only_when_it_is_one(research: ResearchTables, engine: Any) -> None:
    rows = pa.table({"u": ["00112233-4455-6677-8899-aabbccddeeff", None, "00112233445566778899AABBCCDDEEFF"]})
    put(research, "t", rows, sql_types=["UUID"])
    same = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    assert rows_of(engine, research, "t") == [(same,), (same,), (None,)]
    with pytest.raises(InvalidStatement, match="is no UUID"):
        put(research, "t", pa.table({"u": ["nonsense"]}), APPEND)


def test_nullability_and_comments_of_columns_are_kept(research: ResearchTables, foreign: Catalog) -> None:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False, metadata={"doc": "the key"}), ("x", pa.int32())])
    put(research, "t", pa.table({"id": [1], "x": [2]}).cast(schema))
    first, second = foreign.load_table("research.t").schema().fields
    assert (first.required, first.doc, second.required) == (True, "the key", False)
    table = research.table("t")
    assert table is not None and not table.arrow_schema.field("id").nullable


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([]),
        pa.schema([("", pa.int32())]),
        pa.schema([("a", pa.int32()), ("A", pa.int32())]),
        pa.schema([("a\n", pa.int32())]),
        pa.schema([("a", pa.struct([]))]),
        pa.schema([("a", pa.struct([("b", pa.int32())])), ("a.b", pa.int32())]),
    ],
)
def test_columns_that_could_not_be_told_apart_are_refused(research: ResearchTables, schema: pa.Schema) -> None:
    with pytest.raises(InvalidStatement):
        research.begin_write("t", schema, CREATE)
    assert research.tables() == []


@pytest.mark.parametrize(
    "name", ["", "a.b", "a b", "1a", "a" * 129, "../x", "k2_x", "duckdb_tables", "ä", 'a"b', "a\n"]
)
def test_a_bad_name_is_refused_in_one_sentence(research: ResearchTables, name: str) -> None:
    for use in (lambda: put(research, name, simple(1)), lambda: research.drop(name), lambda: research.table(name)):
        with pytest.raises(InvalidStatement) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_names_are_kept_in_lower_case() -> None:
    assert valid_name("My_Table2") == "my_table2"


# -- atomicity


def test_nothing_is_to_be_seen_before_the_commit(research: ResearchTables, engine: Any) -> None:
    write = research.begin_write("t", SIMPLE, CREATE)
    write.write(simple(1))
    assert research.tables() == [] and research.table("t") is None
    write.commit()
    write = research.begin_write("t", SIMPLE, APPEND)
    write.write(simple(2))
    assert rows_of(engine, research, "t", "id") == [(1,)]
    write.write(simple(3))
    done: list[int] = []
    committing = threading.Thread(target=lambda: done.append(write.commit()))  # a transaction's end is another call
    committing.start()
    committing.join()
    assert done == [2]
    assert rows_of(engine, research, "t", "id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE])
def test_an_aborted_write_leaves_no_files(
    research: ResearchTables, engine: Any, settings: LakeSettings, mode: WriteMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(research_write, "_GROUP_BYTES", 1)
    monkeypatch.setattr(research_write, "_FILE_BYTES", 100)
    if mode is not CREATE:
        put(research, "t", simple(1))
    before = files_under(settings)
    write = research.begin_write("t", SIMPLE, mode)
    for number in range(20):
        write.write(simple(number))
    assert len(files_under(settings)) > len(before) + 2
    write.abort()
    write.abort()
    assert files_under(settings) == before
    with pytest.raises(InvalidStatement, match="over"):
        write.write(simple(1))
    assert [table.name for table in research.tables()] == ([] if mode is CREATE else ["t"])


def crash_points() -> list[tuple[str, Callable[[pytest.MonkeyPatch], None]]]:
    """Between any two steps of a commit the process may die, or the store may refuse."""

    def dies(*_: Any, **__: Any) -> Any:
        raise OSError("no space left")

    def at(path: str) -> Callable[[pytest.MonkeyPatch], None]:
        return lambda monkeypatch: monkeypatch.setattr(path, dies)

    return [
        ("the first byte of a data file", at("pyiceberg.io.pyarrow.ParquetFormatWriter.write")),
        ("the end of a data file", at("pyiceberg.io.pyarrow.ParquetFormatWriter.close")),
        ("the manifest", at("pyiceberg.table.update.snapshot._SnapshotProducer._manifests")),
        ("the manifest list", at("pyiceberg.table.update.snapshot.write_manifest_list")),
        ("the metadata", at("pyiceberg.catalog.MetastoreCatalog._write_metadata")),
        ("the catalog", at("sqlalchemy.orm.Session.commit")),
    ]


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE])
@pytest.mark.parametrize(("where", "breaks"), crash_points(), ids=[where for where, _ in crash_points()])
def test_a_failure_at_any_step_leaves_the_table_as_it_was(
    research: ResearchTables,
    settings: LakeSettings,
    engine: Any,
    mode: WriteMode,
    where: str,
    breaks: Callable[[pytest.MonkeyPatch], None],
) -> None:
    if mode is not CREATE:
        put(research, "t", simple(1))
    write = research.begin_write("t", SIMPLE, mode)
    with pytest.MonkeyPatch.context() as monkeypatch:
        breaks(monkeypatch)
        with pytest.raises(K2Error) as caught:
            write.write(simple(2))
            write.commit()
    assert isinstance(caught.value, CommitStateUnknown if where in ("the metadata", "the catalog") else CatalogError)
    again = ResearchTables(settings)  # a new process
    if mode is CREATE:
        assert again.tables() == []
    else:
        assert rows_of(engine, again, "t", "id") == [(1,)]
    put(again, "t", simple(3), REPLACE)
    assert rows_of(engine, again, "t", "id") == [(3,)]


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE])
def test_a_commit_whose_answer_is_lost_is_found(
    research: ResearchTables, engine: Any, mode: WriteMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not CREATE:
        put(research, "t", simple(1))
    write = research.begin_write("t", SIMPLE, mode)
    write.write(simple(2))
    real = type(research._catalog()).commit_table

    def lost(*args: Any, **more: Any) -> Any:
        real(*args, **more)
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(research._catalog()), "commit_table", lost)
    assert write.commit() == 1
    assert rows_of(engine, research, "t", "id") == ([(1,), (2,)] if mode is APPEND else [(2,)])


def test_after_an_unknown_outcome_nothing_is_deleted(
    research: ResearchTables, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = research.begin_write("t", SIMPLE, CREATE)
    write.write(simple(1))

    def gone(*_: Any, **__: Any) -> Any:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(research._catalog()), "commit_table", gone)
    with pytest.raises(CommitStateUnknown, match="look at the table"):
        write.commit()
    write.abort()
    assert any(name.endswith(".parquet") for name in files_under(settings))


# -- two writers


@pytest.mark.parametrize("mode", [CREATE, CREATE_APPEND, REPLACE])
def test_of_two_that_make_a_table_the_second_conflicts(
    research: ResearchTables, settings: LakeSettings, engine: Any, mode: WriteMode
) -> None:
    first, second = (research.begin_write("t", SIMPLE, mode) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    first.commit()
    after_first = files_under(settings)
    with pytest.raises(CommitConflict, match="made by somebody else meanwhile"):
        second.commit()
    assert rows_of(engine, research, "t", "id") == [(1,)]
    assert files_under(settings) == after_first


def test_of_two_replacements_the_second_conflicts(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    first, second = (research.begin_write("t", SIMPLE, REPLACE) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    second.commit()
    with pytest.raises(CommitConflict, match="changed by somebody else"):
        first.commit()
    assert rows_of(engine, research, "t", "id") == [(2,)]


def test_a_replacement_conflicts_with_an_append(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    replacing = research.begin_write("t", SIMPLE, REPLACE)
    put(research, "t", simple(1), APPEND)
    with pytest.raises(CommitConflict):
        replacing.commit()
    assert rows_of(engine, research, "t", "id") == [(0,), (1,)]


def test_two_appends_both_land(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    first, second = (research.begin_write("t", SIMPLE, APPEND) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    assert (second.commit(), first.commit()) == (1, 1)
    assert rows_of(engine, research, "t", "id") == [(0,), (1,), (2,)]


def test_an_append_conflicts_with_other_columns_and_with_a_drop(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    first, second = (research.begin_write("t", SIMPLE, APPEND) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    put(research, "t", pa.table({"other": [1]}), REPLACE)
    with pytest.raises(CommitConflict, match="were changed by somebody else"):
        first.commit()
    research.drop("t")
    put(research, "t", simple(9))
    with pytest.raises(CommitConflict, match="dropped by somebody else"):
        second.commit()
    assert rows_of(engine, research, "t", "id") == [(9,)]


def test_appends_from_many_threads_and_processes_all_land(settings: LakeSettings, engine: Any) -> None:
    """Each pair of threads with a catalog connection of its own, as processes have."""
    tables = [ResearchTables(settings) for _ in range(3)]
    put(tables[0], "t", simple())
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(4):
                put(tables[number % 3], "t", simple(number * 100 + index), APPEND)
        except BaseException as error:  # noqa: BLE001  (carried to the test's thread)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    expected = sorted((number * 100 + index,) for number in range(6) for index in range(4))
    assert rows_of(engine, tables[0], "t", "id") == expected


def test_a_lost_race_at_the_last_step_is_a_conflict_and_leaves_no_data(
    research: ResearchTables, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(research, "t", simple(0))
    before = {name for name in files_under(settings) if name.endswith((".parquet", ".avro"))}

    def loses(*_: Any, **__: Any) -> Any:
        raise CommitFailedException("another was first")

    write = research.begin_write("t", SIMPLE, REPLACE)
    write.write(simple(1))
    with monkeypatch.context() as patched:
        patched.setattr(type(research._catalog()), "commit_table", loses)
        with pytest.raises(CommitConflict):
            write.commit()
    assert {name for name in files_under(settings) if name.endswith((".parquet", ".avro"))} == before


# -- dropping, and what others do


def later(research: ResearchTables) -> int:
    """More than an hour later: how many files the sweep deletes."""
    clock = research._unreachable._clock
    assert isinstance(clock, ManualClock)
    clock.advance(KEEP_UNREACHABLE_S + 1)
    return research.sweep()


def test_drop_and_make_again(research: ResearchTables, engine: Any, settings: LakeSettings) -> None:
    put(research, "t", simple(1))
    put(research, "t", simple(2), APPEND)
    held = research.table("t")
    assert held is not None
    assert research.drop("T")
    assert not research.drop("t", if_exists=True)
    with pytest.raises(TableNotFound):
        research.drop("t")
    assert research.tables() == []
    put(research, "t", simple(3))
    assert research.sweep() == 0
    assert engine.execute(f"SELECT count(*) FROM {held.relation}").fetchall() == [(2,)]  # who has it open reads on
    assert later(research) > 0
    assert rows_of(engine, research, "t", "id") == [(3,)]
    table = research.table("t")
    assert table is not None
    folders = {name.split("/")[0] for name in files_under(settings)}
    assert len(folders) == 1 and folders.pop() in table.metadata_location


def test_old_snapshots_expire_and_their_files_go(
    research: ResearchTables, engine: Any, settings: LakeSettings, foreign: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any mix of writes each snapshot that is kept is whole, and what none of them reaches is gone."""
    for name, value in (("SNAPSHOTS_KEPT_KEY", "k2.snapshots-kept"), ("_AT_ONCE", 3)):
        monkeypatch.setattr(f"flight_server.storage.research_upkeep.{name}", value)
    monkeypatch.setitem(TABLE_PROPERTIES, "k2.snapshots-kept", "5")  # type: ignore[arg-type]
    monkeypatch.setitem(TABLE_PROPERTIES, "commit.manifest.min-count-to-merge", "3")  # type: ignore[arg-type]
    rng = random.Random(7)
    expected: dict[int, int] = {}
    put(research, "t", simple(0))
    rows, replaced = 1, 0
    for number in range(1, 60):
        if rng.random() < 0.3:
            put(research, "t", simple(number), REPLACE)
            rows, replaced = 1, replaced + 1
        else:
            put(research, "t", simple(number), APPEND)
            rows += 1
        table = foreign.load_table("research.t")
        current = table.metadata.current_snapshot()
        assert current is not None
        expected[current.snapshot_id] = rows
        if rng.random() < 0.2:
            later(research)
        assert len(table.metadata.snapshots) <= 8
    assert replaced > 5
    later(research)
    table = foreign.load_table("research.t")
    for snapshot in table.metadata.snapshots:
        if snapshot.snapshot_id in expected:
            assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows == expected[snapshot.snapshot_id]
    reached = {
        entry.data_file.file_path.rpartition("/")[2]
        for snapshot in table.metadata.snapshots
        for manifest in snapshot.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io)
    }
    names = {name.rpartition("/")[2] for name in files_under(settings)}
    assert {name for name in names if name.endswith(".parquet")} == reached
    assert len({name for name in names if name.startswith("snap-")}) == len(table.metadata.snapshots)


def test_a_table_of_another_tool_keeps_its_snapshots(research: ResearchTables, foreign: Catalog) -> None:
    foreign.create_namespace("research")
    foreign.create_table("research.theirs", SIMPLE)
    for number in range(30):
        put(research, "theirs", simple(number), APPEND)
    assert len(foreign.load_table("research.theirs").metadata.snapshots) == 30


def test_truncate_keeps_the_columns(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    put(research, "t", simple(1, 2), owner="ann")
    assert research.truncate("t") == 2
    assert rows_of(engine, research, "t") == []
    table = research.table("t")
    assert table is not None and (table.owner, table.rows) == ("ann", 0)
    assert len(foreign.load_table("research.t").metadata.schemas) == 1
    put(research, "t", simple(3), APPEND)
    assert rows_of(engine, research, "t", "id") == [(3,)]
    with pytest.raises(TableNotFound):
        research.truncate("absent")


def test_an_older_state_can_be_read_by_id_and_by_time(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    def count(as_of: AsOfSnapshot | AsOfTime) -> int:
        select = research.select_at("T", research.snapshot_at("T", as_of))
        return int(engine.execute(f"SELECT count(*) FROM ({select})").fetchone()[0])

    with pytest.raises(TableNotFound):
        count(AsOfSnapshot(1))
    put(research, "t", simple(1))
    put(research, "t", simple(2, 3), APPEND)
    put(research, "t", simple(4), REPLACE)
    first, second, third = foreign.load_table("research.t").metadata.snapshot_log
    assert [count(AsOfSnapshot(entry.snapshot_id)) for entry in (first, second, third)] == [1, 3, 1]
    assert [count(AsOfTime(entry.timestamp_ms * 1_000)) for entry in (first, second, third)] == [1, 3, 1]
    for unknown in (AsOfSnapshot(1), AsOfTime(0)):
        with pytest.raises(SnapshotNotFound, match=r"research\.t has no such snapshot"):
            count(unknown)
    put(research, "t", pa.table({"other": [1]}), REPLACE)
    with pytest.raises(Unsupported, match="other columns then"):
        count(AsOfSnapshot(first.snapshot_id))


def test_what_another_engine_writes_is_seen(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    assert research.tables() == []
    foreign.create_namespace("research")
    table = foreign.create_table("research.Theirs", SIMPLE)
    assert [(known.name, known.relation) for known in research.tables()] == [("Theirs", None)]
    table.append(simple(1))
    (known,) = research.tables()
    assert known.rows == 1
    assert rows_of(engine, research, "theirs", "id") == [(1,)]
    put(research, "theirs", simple(2), APPEND)
    assert foreign.load_table("research.Theirs").scan().to_arrow().num_rows == 2
    foreign.drop_table("research.Theirs")
    assert research.tables() == []


def test_a_partitioned_table_of_another_engine_is_not_written_to(research: ResearchTables, foreign: Catalog) -> None:
    put(research, "t", simple(1))
    with foreign.load_table("research.t").update_spec() as update:
        update.add_identity("name")
    for mode in (APPEND, REPLACE):
        with pytest.raises(Unsupported, match="partitioned by another tool"):
            put(research, "t", simple(2), mode)


def test_a_broken_table_does_not_hide_the_others(research: ResearchTables, settings: LakeSettings) -> None:
    put(research, "whole", simple(1))
    put(research, "broken", simple(1))
    table = research.table("broken")
    assert table is not None
    Path(table.metadata_location.removeprefix("file://")).write_text("{}")
    assert [known.name for known in ResearchTables(settings).tables()] == ["whole"]


def test_listing_reads_only_what_changed(research: ResearchTables, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        put(research, f"t{number}", simple(number))
    research.tables()
    loaded: list[str] = []
    real = research._load

    def load(name: str) -> Any:
        loaded.append(name)
        return real(name)

    monkeypatch.setattr(research, "_load", load)
    research.tables()
    assert loaded == []
    put(research, "t3", simple(9), APPEND)
    loaded.clear()
    assert [table.rows for table in research.tables()] == [1, 1, 1, 2, 1]
    assert loaded == ["t3"]


def test_a_catalog_that_is_gone_is_said(tmp_path: Path) -> None:
    research = ResearchTables(LakeSettings.load(data_dir=tmp_path, catalog_uri=f"sqlite:///{tmp_path}/no/where.db"))
    with pytest.raises(CatalogError, match="catalog"):
        research.tables()


# -- size


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
