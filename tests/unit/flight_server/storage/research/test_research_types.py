"""Research tables: every value is exact, or refused with its column."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from common.errors import (
    InvalidStatement,
    Unsupported,
)
from common.settings import LakeSettings
from flight_server.storage.research import ResearchTables, valid_name
from tests.support.research import APPEND, CREATE, put, rows_of, simple


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
