"""Catalog results: the specification's schemas to the letter, filters, order, column metadata."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.schemas.arrow import table_schema as arrow_table_schema
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol import catalog
from flight_server.protocol.columns import sql_type_name
from flight_server.protocol.patterns import name_filter, pattern_filter
from flight_server.protocol.xdbc import XDBC_TYPE_INFO, xdbc_type_info
from tests.support.fake_lake import FakeTable


def table(name: str, *, schema: str = "market", owner: str = "k2", kind: str = "TABLE") -> FakeTable:
    return FakeTable(owner, schema, name, kind, arrow_table_schema("trade"))


KNOWN = [table("trades"), table("quotes"), table("bars_1m", schema="gold"), table("old", owner="attic", kind="VIEW")]


def names(command: sql.CommandGetTables) -> list[str]:
    return catalog.tables(command, KNOWN).column("table_name").to_pylist()


def test_schemas_are_the_specifications() -> None:
    def shape(schema: pa.Schema) -> list[tuple[str, str, bool]]:
        return [(field.name, str(field.type), field.nullable) for field in schema]

    assert shape(catalog.CATALOGS) == [("catalog_name", "string", False)]
    assert shape(catalog.DB_SCHEMAS) == [("catalog_name", "string", True), ("db_schema_name", "string", False)]
    four = [
        ("catalog_name", "string", True),
        ("db_schema_name", "string", True),
        ("table_name", "string", False),
        ("table_type", "string", False),
    ]
    assert shape(catalog.TABLES) == four
    assert shape(catalog.TABLES_WITH_SCHEMA) == [*four, ("table_schema", "binary", False)]
    assert shape(catalog.TABLE_TYPES) == [("table_type", "string", False)]
    assert [field.nullable for field in catalog.PRIMARY_KEYS] == [True, True, False, False, True, False]
    assert [str(field.type) for field in catalog.FOREIGN_KEYS][-5:] == ["int32", "string", "string", "uint8", "uint8"]


def test_rows_are_ordered_by_catalog_schema_and_name() -> None:
    assert names(sql.CommandGetTables()) == ["old", "bars_1m", "quotes", "trades"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (sql.CommandGetTables(catalog="k2"), ["bars_1m", "quotes", "trades"]),
        (sql.CommandGetTables(catalog=""), []),
        (sql.CommandGetTables(db_schema_filter_pattern="mar%"), ["old", "quotes", "trades"]),
        (sql.CommandGetTables(table_name_filter_pattern="TRADES"), ["trades"]),
        (sql.CommandGetTables(table_name_filter_pattern="bars\\_1m"), ["bars_1m"]),
        (sql.CommandGetTables(table_name_filter_pattern="trades\\_"), []),
        (sql.CommandGetTables(table_types=["VIEW"]), ["old"]),
        (
            sql.CommandGetTables(table_types=["VIEW", "TABLE"], catalog="k2", table_name_filter_pattern="%s"),
            ["quotes", "trades"],
        ),
        (sql.CommandGetTables(table_types=["SYSTEM TABLE"]), []),
    ],
)
def test_filters(command: sql.CommandGetTables, expected: list[str]) -> None:
    assert names(command) == expected


def test_an_empty_answer_has_the_schema() -> None:
    for include in (False, True):
        command = sql.CommandGetTables(catalog="none", include_schema=include)
        assert catalog.tables(command, KNOWN).schema == catalog.tables_schema(command)


def test_db_schemas_are_listed_once() -> None:
    known = {(item.catalog, item.schema) for item in KNOWN}
    answer = catalog.db_schemas(sql.CommandGetDbSchemas(), known)
    assert answer.to_pylist() == [
        {"catalog_name": "attic", "db_schema_name": "market"},
        {"catalog_name": "k2", "db_schema_name": "gold"},
        {"catalog_name": "k2", "db_schema_name": "market"},
    ]
    assert catalog.db_schemas(sql.CommandGetDbSchemas(db_schema_filter_pattern="g_ld"), known).num_rows == 1


def test_the_table_schema_carries_column_metadata_and_true_nullability() -> None:
    command = sql.CommandGetTables(table_name_filter_pattern="trades", include_schema=True)
    data = catalog.tables(command, KNOWN).column("table_schema")[0].as_py()
    schema = pa.ipc.read_schema(pa.py_buffer(data))
    assert [(f.name, f.type, f.nullable) for f in schema] == [
        (f.name, f.type, f.nullable) for f in arrow_table_schema("trade")
    ]
    said = {key.decode().rpartition(":")[2]: value.decode() for key, value in schema.field("price").metadata.items()}
    assert said["TYPE_NAME"] == "DECIMAL(18,8)"
    assert (said["PRECISION"], said["SCALE"], said["IS_AUTO_INCREMENT"]) == ("18", "8", "0")
    assert (said["CATALOG_NAME"], said["SCHEMA_NAME"], said["TABLE_NAME"]) == ("k2", "market", "trades")
    assert said["REMARKS"] == "Price per unit, in currency."
    assert schema.field("symbol").metadata[b"ARROW:FLIGHT:SQL:IS_CASE_SENSITIVE"] == b"1"


def test_sql_names_of_types() -> None:
    assert sql_type_name(pa.timestamp("us", "UTC")) == "TIMESTAMP WITH TIME ZONE"
    assert sql_type_name(pa.list_(pa.map_(pa.string(), pa.decimal128(4, 2)))) == "MAP(VARCHAR, DECIMAL(4,2))[]"
    assert sql_type_name(pa.struct([("a", pa.int8()), ("b", pa.bool_())])) == "STRUCT(a TINYINT, b BOOLEAN)"


def by_hand(pattern: str) -> Callable[[str], bool]:
    """The pattern's meaning written down naively: the oracle."""

    def matches(pattern: str, name: str) -> bool:
        if not pattern:
            return not name
        if pattern[0] == "%":
            return any(matches(pattern[1:], name[start:]) for start in range(len(name) + 1))
        if pattern[0] == "\\" and len(pattern) > 1:
            return bool(name) and name[0] == pattern[1] and matches(pattern[2:], name[1:])
        return bool(name) and pattern[0] in ("_", name[0]) and matches(pattern[1:], name[1:])

    return lambda name: matches(pattern, name)


@given(st.text("ab%_\\.", max_size=6), st.text("ab%_.", max_size=6))
def test_patterns_mean_what_they_say(pattern: str, name: str) -> None:
    assert pattern_filter(pattern)(name) == by_hand(pattern)(name)


def test_no_pattern_is_slow() -> None:
    """Ends at all: with backtracking over each run of % it would not."""
    assert not pattern_filter("%" * 60 + "x")("a" * 200)


def test_names_match_whole() -> None:
    assert name_filter("K2")("k2") and not name_filter("k")("k2") and name_filter(None)("x")


def test_xdbc_types_are_ordered_and_filtered() -> None:
    every = xdbc_type_info(sql.CommandGetXdbcTypeInfo())
    keys = [(row["data_type"], row["type_name"]) for row in every.to_pylist()]
    assert keys == sorted(keys) and every.schema == XDBC_TYPE_INFO
    decimal = xdbc_type_info(sql.CommandGetXdbcTypeInfo(data_type=sql.XDBC_DECIMAL)).to_pylist()
    assert [(row["type_name"], row["column_size"], row["create_params"]) for row in decimal] == [
        ("DECIMAL", 38, ["precision", "scale"])
    ]
    timestamps = xdbc_type_info(sql.CommandGetXdbcTypeInfo(data_type=sql.XDBC_TIMESTAMP)).to_pylist()
    assert {row["datetime_subcode"] for row in timestamps} == {3, 5}
    assert {row["sql_data_type"] for row in timestamps} == {sql.XDBC_DATETIME}
