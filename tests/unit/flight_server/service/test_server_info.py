"""SqlInfo: complete for the items there are, in the kinds that JDBC reads, and true where it can be checked."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from common.settings import FlightSettings
from flight_server.engine.dialect import Dialect, dialect_of
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.sql_info import SQL_INFO, Bitmask, sql_info
from flight_server.service.server_info import answers


@pytest.fixture(scope="module")
def dialect() -> Dialect:
    with duckdb.connect(":memory:") as connection:
        return dialect_of(connection)


def test_every_item_is_answered_but_the_versions_of_what_is_not_offered(dialect: Dialect) -> None:
    substrait = {sql.FLIGHT_SQL_SERVER_SUBSTRAIT_MIN_VERSION, sql.FLIGHT_SQL_SERVER_SUBSTRAIT_MAX_VERSION}
    assert set(answers(dialect, FlightSettings())) == set(sql.SqlInfo.values()) - substrait


def test_the_version_names_the_dialect(dialect: Dialect) -> None:
    assert answers(dialect, FlightSettings())[sql.FLIGHT_SQL_SERVER_VERSION] == f"duckdb v{duckdb.__version__}"


def test_numbers_and_bitmasks_are_what_jdbc_reads(dialect: Dialect) -> None:
    said = answers(dialect, FlightSettings())
    for item in range(sql.SQL_MAX_BINARY_LITERAL_LENGTH, sql.SQL_MAX_USERNAME_LENGTH + 1):
        if item != sql.SQL_MAX_ROW_SIZE_INCLUDES_BLOBS:
            assert type(said[item]) is int
    assert type(int(said[sql.SQL_DEFAULT_TRANSACTION_ISOLATION])) is int  # type: ignore[call-overload]
    assert not isinstance(said[sql.SQL_DEFAULT_TRANSACTION_ISOLATION], Bitmask)
    for item in (sql.SQL_SUPPORTED_GROUP_BY, sql.SQL_SUPPORTED_UNIONS, sql.SQL_OUTER_JOINS_SUPPORT_LEVEL):
        assert isinstance(said[item], Bitmask)


def test_lists_come_from_the_engine(dialect: Dialect) -> None:
    assert "SELECT" in dialect.keywords and "QUALIFY" in dialect.keywords
    assert {"abs", "round"} <= set(dialect.numeric_functions)
    assert {"lower", "regexp_matches"} <= set(dialect.string_functions)
    assert {"date_trunc", "dayofweek"} & set(dialect.datetime_functions)
    with duckdb.connect(":memory:") as connection:
        for name in dialect.system_functions:
            connection.execute(f"SELECT function_name FROM duckdb_functions() WHERE function_name = '{name}'")
            assert connection.fetchone() is not None, name


def test_conversions_that_are_promised_work(dialect: Dialect) -> None:
    types = {
        sql.SQL_CONVERT_BIGINT: ("BIGINT", "1"),
        sql.SQL_CONVERT_VARCHAR: ("VARCHAR", "'1'"),
        sql.SQL_CONVERT_DECIMAL: ("DECIMAL(18,8)", "1.5"),
        sql.SQL_CONVERT_BIT: ("BOOLEAN", "true"),
        sql.SQL_CONVERT_DATE: ("DATE", "'2024-01-01'"),
        sql.SQL_CONVERT_TIMESTAMP: ("TIMESTAMP", "'2024-01-01 00:00:00'"),
        sql.SQL_CONVERT_TIME: ("TIME", "'12:00:00'"),
        sql.SQL_CONVERT_VARBINARY: ("BLOB", "'a'"),
        sql.SQL_CONVERT_REAL: ("REAL", "1.5"),
    }
    promised = answers(dialect, FlightSettings())[sql.SQL_SUPPORTS_CONVERT]
    assert isinstance(promised, dict)
    with duckdb.connect(":memory:") as connection:
        for source, (source_type, literal) in types.items():
            for target in promised[source]:
                if target in types and source != sql.SQL_CONVERT_VARCHAR:
                    connection.execute(
                        f"SELECT CAST(CAST({literal} AS {source_type}) AS {types[target][0]})"
                    ).fetchone()


def test_the_table_is_a_valid_dense_union_filtered_by_id(dialect: Dialect) -> None:
    said = answers(dialect, FlightSettings())
    whole = sql_info(sql.CommandGetSqlInfo(), said)
    whole.validate(full=True)
    assert whole.schema == SQL_INFO and whole.column("info_name").to_pylist() == sorted(said)
    some = sql_info(sql.CommandGetSqlInfo(info=[504, 0, 504, 99_999]), said)
    assert some.to_pylist() == [{"info_name": 0, "value": "K2"}, {"info_name": 504, "value": '"'}]
    assert sql_info(sql.CommandGetSqlInfo(info=[99_999]), said).num_rows == 0
    assert [field.name for field in SQL_INFO.field("value").type] == [
        "string_value",
        "bool_value",
        "bigint_value",
        "int32_bitmask",
        "string_list",
        "int32_to_int32_list_map",
    ]
    assert pa.types.is_union(SQL_INFO.field("value").type) and not SQL_INFO.field("value").nullable
