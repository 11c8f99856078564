"""Every type of DuckDB, out as a result and in as a parameter, with its exact values: through Flight, ADBC and JDBC.

Values are written as tests/support/canonical.py says. Where the JDBC driver shows something else, that is held here
with the reason; docs/flight-sql.md tells its users.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from conftest import Served
from test_flight_adbc import exported

from tests.support import canonical, flight_clients, jdbc
from tests.support.missing import MissingTool, skip_or_fail


@dataclass(frozen=True)
class Kind:
    """One SQL type: literals and the values that they are."""

    name: str
    arrow: str
    literals: dict[str, Any]
    #: What a parameter of this type is answered with, where it cannot be bound.
    unbindable: str | None = None
    #: The type that a bound value has in a result, where it is not the same.
    bound_arrow: str | None = None
    #: JDBC's name of the type, and its values where they are not the same: literal -> value.
    jdbc_type: str = "VARCHAR"
    jdbc: dict[str, Any] = field(default_factory=dict)


NINES = "9" * 38

KINDS = [
    Kind("boolean", "bool", {"true": True, "false": False}, jdbc_type="BOOLEAN"),
    Kind("tinyint", "int8", {"(-128)::tinyint": -128, "127::tinyint": 127}, jdbc_type="TINYINT"),
    Kind("smallint", "int16", {"(-32768)::smallint": -32768, "32767::smallint": 32767}, jdbc_type="SMALLINT"),
    Kind("integer", "int32", {"(-2147483648)::integer": -(2**31), "2147483647": 2**31 - 1}, jdbc_type="INTEGER"),
    Kind(
        "bigint",
        "int64",
        {"(-9223372036854775808)::bigint": -(2**63), "9223372036854775807::bigint": 2**63 - 1},
        jdbc_type="BIGINT",
    ),
    # The driver takes every integer for a signed one.
    Kind(
        "utinyint", "uint8", {"0::utinyint": 0, "255::utinyint": 255}, jdbc_type="TINYINT", jdbc={"255::utinyint": -1}
    ),
    Kind(
        "usmallint",
        "uint16",
        {"0::usmallint": 0, "65535::usmallint": 65535},
        jdbc_type="SMALLINT",
        jdbc={"65535::usmallint": -1},
    ),
    Kind(
        "uinteger",
        "uint32",
        {"0::uinteger": 0, "4294967295::uinteger": 2**32 - 1},
        jdbc_type="INTEGER",
        jdbc={"4294967295::uinteger": -1},
    ),
    Kind(
        "ubigint",
        "uint64",
        {"0::ubigint": 0, "18446744073709551615::ubigint": 2**64 - 1},
        jdbc_type="BIGINT",
        jdbc={"18446744073709551615::ubigint": -1},
    ),
    Kind(
        "hugeint",
        "decimal128(38, 0)",
        {f"{NINES}::hugeint": NINES, f"(-{NINES})::hugeint": f"-{NINES}", "0::hugeint": "0"},
        jdbc_type="DECIMAL",
    ),
    Kind("uhugeint", "decimal128(38, 0)", {f"{NINES}::uhugeint": NINES, "0::uhugeint": "0"}, jdbc_type="DECIMAL"),
    Kind(
        "float",
        "float",
        {
            "1.5::float": 1.5,
            "'nan'::float": "NaN",
            "'inf'::float": "Infinity",
            "'-inf'::float": "-Infinity",
            "3.4028234663852886e38::float": 3.4028234663852886e38,
        },
        jdbc_type="FLOAT",
    ),
    Kind(
        "double",
        "double",
        {
            "0.1::double": 0.1,
            "'nan'::double": "NaN",
            "'-inf'::double": "-Infinity",
            "5e-324::double": 5e-324,
            "1.7976931348623157e308::double": 1.7976931348623157e308,
        },
        jdbc_type="DOUBLE",
    ),
    Kind("decimal(4,1)", "decimal128(4, 1)", {"-999.9::decimal(4, 1)": "-999.9"}, jdbc_type="DECIMAL"),
    Kind("decimal(18,8)", "decimal128(18, 8)", {"-0.00000001::decimal(18, 8)": "-0.00000001"}, jdbc_type="DECIMAL"),
    Kind("decimal(38,0)", "decimal128(38, 0)", {f"{NINES}::decimal(38, 0)": NINES}, jdbc_type="DECIMAL"),
    Kind(
        "decimal(38,37)",
        "decimal128(38, 37)",
        {f"'-9.{NINES[1:]}'::decimal(38, 37)": f"-9.{NINES[1:]}"},
        jdbc_type="DECIMAL",
    ),
    Kind("decimal(38,38)", "decimal128(38, 38)", {f"'0.{NINES}'::decimal(38, 38)": f"0.{NINES}"}, jdbc_type="DECIMAL"),
    Kind(
        "timestamp_s",
        "timestamp[s]",
        {
            "'1969-12-31 23:59:59'::timestamp_s": "1969-12-31T23:59:59",
            "'9999-12-31 23:59:59'::timestamp_s": "9999-12-31T23:59:59",
        },
        bound_arrow="timestamp[us]",
        jdbc_type="TIMESTAMP",
    ),
    Kind(
        "timestamp_ms",
        "timestamp[ms]",
        {"'1969-12-31 23:59:59.999'::timestamp_ms": "1969-12-31T23:59:59.999"},
        bound_arrow="timestamp[us]",
        jdbc_type="TIMESTAMP",
    ),
    Kind(
        "timestamp",
        "timestamp[us]",
        {
            "'0001-01-01 00:00:00'::timestamp": "0001-01-01T00:00:00",
            "'1969-12-31 23:59:59.999999'::timestamp": "1969-12-31T23:59:59.999999",
            "'9999-12-31 23:59:59.999999'::timestamp": "9999-12-31T23:59:59.999999",
        },
        jdbc_type="TIMESTAMP",
    ),
    Kind(
        "timestamp_ns",
        "timestamp[ns]",
        {
            "'1677-09-22 00:00:00.000000001'::timestamp_ns": "1677-09-22T00:00:00.000000001",
            "'1969-12-31 23:59:59.999999999'::timestamp_ns": "1969-12-31T23:59:59.999999999",
        },
        jdbc_type="TIMESTAMP",
    ),
    Kind(
        "timestamptz",
        "timestamp[us, tz=UTC]",
        {
            "'1969-12-31 23:59:59.999999+00'::timestamptz": "1969-12-31T23:59:59.999999Z",
            "'2024-02-29 12:00:00+05:30'::timestamptz": "2024-02-29T06:30:00Z",
        },
        jdbc_type="TIMESTAMP_WITH_TIMEZONE",
    ),
    Kind(
        "timestamp, infinite and far",
        "timestamp[us]",
        {"'infinity'::timestamp": "294247-01-10T04:00:54.775807", "'294246-01-01'::timestamp": "294246-01-01T00:00:00"},
        jdbc_type="TIMESTAMP",
        # Java writes a plus before years of more than four digits.
        jdbc={
            "'infinity'::timestamp": "+294247-01-10T04:00:54.775807",
            "'294246-01-01'::timestamp": "+294246-01-01T00:00:00",
        },
    ),
    Kind(
        "date",
        "date32[day]",
        {"'0001-01-01'::date": "0001-01-01", "'1969-12-31'::date": "1969-12-31", "'9999-12-31'::date": "9999-12-31"},
        jdbc_type="DATE",
    ),
    Kind(
        "time",
        "time64[us]",
        {"'00:00:00'::time": "00:00:00", "'23:59:59.999999'::time": "23:59:59.999999"},
        jdbc_type="TIME",
        # java.sql.Time ends with milliseconds.
        jdbc={"'23:59:59.999999'::time": "23:59:59.999"},
    ),
    Kind(
        "time_ns",
        "time64[ns]",
        {"'12:00:00.123456789'::time_ns": "12:00:00.123456789"},
        jdbc_type="TIME",
        jdbc={"'12:00:00.123456789'::time_ns": "12:00:00.123"},
    ),
    # Arrow has no time with a zone: DuckDB gives the clock without its offset. Cast to VARCHAR to see it.
    Kind(
        "timetz",
        "time64[us]",
        {"'23:59:59.999+02'::timetz": "23:59:59.999"},
        jdbc_type="TIME",
    ),
    Kind(
        "interval",
        "month_day_nano_interval",
        {
            "interval '1 year 2 months 3 days 04:05:06.789'": "14 months 3 days 14706789000000 ns",
            "interval '-1 month 1 day'": "-1 months 1 days 0 ns",
        },
        jdbc_type="JAVA_OBJECT",
    ),
    Kind("varchar", "string", {"''": "", "'ü 漢 🦆'": "ü 漢 🦆", "chr(0) || 'x'": "\x00x"}),
    Kind("blob", "binary", {r"'\x00\xFF'::blob": "0x00ff", "''::blob": "0x"}, jdbc_type="VARBINARY"),
    # DuckDB's bytes of a bit string: how many bits pad the first byte, then the bits. Cast to VARCHAR to see them.
    Kind("bit", "binary", {"'10101'::bit": "0x03f5"}, jdbc_type="VARBINARY"),
    Kind("uuid", "string", {"'0123456789abcdef0123456789abcdef'::uuid": "01234567-89ab-cdef-0123-456789abcdef"}),
    Kind("json", "string", {"""'{"a": [1, null]}'::json""": '{"a": [1, null]}'}),
    Kind("enum", "string", {"'b'::enum('a', 'b')": "b", "'a'::enum('a', 'b')": "a"}),
    Kind("list", "list<int32>", {"[1, null, 3]": [1, None, 3], "[]::integer[]": []}, jdbc_type="ARRAY"),
    Kind(
        "list of decimals and instants",
        "list<struct<d: decimal128(18, 8), t: timestamp[us, tz=UTC]>>",
        {
            "[{'d': 1.5::decimal(18, 8), 't': '2024-01-01 00:00:00.000001+00'::timestamptz}]": [
                {"d": "1.50000000", "t": "2024-01-01T00:00:00.000001Z"}
            ]
        },
        jdbc_type="ARRAY",
        # Inside of a struct the driver shows an instant in UTC as its count of microseconds.
        jdbc={
            "[{'d': 1.5::decimal(18, 8), 't': '2024-01-01 00:00:00.000001+00'::timestamptz}]": [
                {"d": "1.50000000", "t": 1704067200000001}
            ]
        },
    ),
    Kind("list of lists", "list<list<string>>", {"[['a'], [], null]": [["a"], [], None]}, jdbc_type="ARRAY"),
    Kind("array", "list<int32>[3]", {"[1, null, 3]::integer[3]": [1, None, 3]}, jdbc_type="ARRAY"),
    Kind(
        "struct",
        "struct<a: int32, b: struct<c: string>>",
        {"{'a': 1, 'b': {'c': 'x'}}": {"a": 1, "b": {"c": "x"}}},
        jdbc_type="JAVA_OBJECT",
    ),
    Kind(
        "map",
        "map<string, decimal128(2, 1)>",
        {"map {'a': 1.5, 'b': null}": [["a", "1.5"], ["b", None]]},
        jdbc_type="JAVA_OBJECT",
        # The driver shows a map as it shows a struct.
        jdbc={"map {'a': 1.5, 'b': null}": {"a": "1.5", "b": None}},
    ),
    Kind(
        "union",
        "union<num: int32, str: string>",
        {"2::union(num integer, str varchar)": 2, "'x'::union(num integer, str varchar)": "x"},
        unbindable="cannot be bound",
        jdbc_type="JAVA_OBJECT",
    ),
    Kind(
        "geometry",
        "binary",
        {"'POINT (1 2)'::geometry": "0x0101000000000000000000f03f0000000000000040"},
        jdbc_type="VARBINARY",
    ),
    Kind("null", "int32", {"null": None}, jdbc_type="INTEGER"),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found = request.param
    assert isinstance(found, Kind)
    return found


@pytest.fixture(scope="module")
def java(served: Served) -> Iterator[Any]:
    try:
        jdbc.start_jvm()
    except MissingTool as why:
        skip_or_fail(why)
    with jdbc.connected(served.uri) as connection:
        yield connection


def values_of(kind: Kind) -> str:
    """A statement with the values of the type, and a null."""
    rows = ", ".join(f"({literal})" for literal in kind.literals)
    return f"select v from (values {rows}, (null)) t(v)"


def expected(kind: Kind) -> list[list[Any]]:
    return [*([value] for value in kind.literals.values()), [None]]


def same(found: Any, wanted: Any) -> bool:
    """As text: in Python 1, 1.0 and True are equal, and here they are not."""
    return json.dumps(found) == json.dumps(wanted)


@pytest.mark.flight_sql("CommandStatementQuery", "TicketStatementQuery", client="pyarrow")
def test_a_result_through_flight(served: Served, kind: Kind) -> None:
    answer = flight_clients.by_pyarrow(served.uri)(values_of(kind))
    assert answer.types == [kind.arrow]
    assert same(answer.rows, expected(kind))


@pytest.mark.flight_sql("CommandPreparedStatementQuery", "TicketStatementQuery", client="adbc")
def test_a_result_through_adbc(connection: dbapi.Connection, kind: Kind) -> None:
    with connection.cursor() as cursor:
        cursor.execute(values_of(kind))
        found = cursor.fetch_arrow_table()
        assert canonical.type_text(found.schema.field(0).type) == kind.arrow
        assert same(canonical.rows_of(found), expected(kind))
        cursor.execute(f"select * from ({values_of(kind)}) where false")
        empty = cursor.fetch_arrow_table()
        assert empty.num_rows == 0 and empty.schema == found.schema


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="adbc")
def test_a_bound_parameter_through_adbc(connection: dbapi.Connection, kind: Kind) -> None:
    """What came out goes in again, as one batch of parameter sets: the same values, of the same type."""
    # Where all is null there is no type to lose; elsewhere a null parameter has none to keep.
    wanted = [row for row in expected(kind) if row != [None] or kind.name == "null"]
    with connection.cursor() as cursor:
        cursor.execute(f"{values_of(kind)} limit {len(wanted)}")
        column = cursor.fetch_arrow_table().column(0).combine_chunks()
    with adbc_driver_manager.AdbcStatement(connection.adbc_connection) as statement:
        statement.set_sql_query("select ? as v")
        statement.prepare()
        statement.bind(*exported(pa.record_batch({"v": column})))
        if kind.unbindable is not None:
            with pytest.raises(dbapi.Error, match=kind.unbindable):
                statement.execute_query()
            return
        stream, _ = statement.execute_query()
        found = pa.RecordBatchReader._import_from_c(stream.address).read_all()
    assert canonical.type_text(found.schema.field(0).type) == (kind.bound_arrow or kind.arrow)
    assert same(canonical.rows_of(found), wanted)


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="jdbc")
def test_a_result_through_jdbc(java: Any, kind: Kind) -> None:
    with jdbc.statement_of(java) as statement:
        result = statement.executeQuery(values_of(kind))
        assert str(result.getMetaData().getColumnTypeName(1)) == kind.jdbc_type
        rows = jdbc.read(result)[1]
    wanted = [*([kind.jdbc.get(literal, value)] for literal, value in kind.literals.items()), [None]]
    assert same(rows, wanted)
    with jdbc.prepared(java, f"select * from ({values_of(kind)}) where false") as prepared:
        assert jdbc.read(prepared.executeQuery()) == (["v"], [])


@pytest.mark.parametrize(
    ("literal", "says"),
    [("42::variant", "VARIANT has no form in Arrow"), ("row(1, 'x')", "STRUCT.* has no form in Arrow")],
)
def test_what_arrow_has_no_form_for(connection: dbapi.Connection, literal: str, says: str) -> None:
    with connection.cursor() as cursor, pytest.raises(dbapi.NotSupportedError, match=says):
        cursor.execute(f"select {literal} as v")
