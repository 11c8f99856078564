"""What this server answers to GetSqlInfo. Every item that JDBC asks for has an answer, and each answer is true.

Sources: the engine for its dialect, the settings for its limits, this issue's scope for what is offered over the wire.
0 means no fixed limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from common.settings import FlightSettings
from flight_server.engine.dialect import Dialect
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.patterns import ESCAPE
from flight_server.protocol.sql_info import Bitmask, Value

#: Tools show it as the product's name.
SERVER_NAME = "K2"

_UNLIMITED = (
    sql.SQL_MAX_BINARY_LITERAL_LENGTH,
    sql.SQL_MAX_CHAR_LITERAL_LENGTH,
    sql.SQL_MAX_COLUMN_NAME_LENGTH,
    sql.SQL_MAX_COLUMNS_IN_GROUP_BY,
    sql.SQL_MAX_COLUMNS_IN_INDEX,
    sql.SQL_MAX_COLUMNS_IN_ORDER_BY,
    sql.SQL_MAX_COLUMNS_IN_SELECT,
    sql.SQL_MAX_COLUMNS_IN_TABLE,
    sql.SQL_MAX_CONNECTIONS,
    sql.SQL_MAX_CURSOR_NAME_LENGTH,
    sql.SQL_MAX_INDEX_LENGTH,
    sql.SQL_DB_SCHEMA_NAME_LENGTH,
    sql.SQL_MAX_PROCEDURE_NAME_LENGTH,
    sql.SQL_MAX_CATALOG_NAME_LENGTH,
    sql.SQL_MAX_ROW_SIZE,
    sql.SQL_MAX_STATEMENT_LENGTH,
    sql.SQL_MAX_STATEMENTS,
    sql.SQL_MAX_TABLE_NAME_LENGTH,
    sql.SQL_MAX_TABLES_IN_SELECT,
    sql.SQL_MAX_USERNAME_LENGTH,
)

_YES = (
    sql.SQL_ALL_TABLES_ARE_SELECTABLE,
    sql.SQL_SUPPORTS_COLUMN_ALIASING,
    sql.SQL_NULL_PLUS_NULL_IS_NULL,
    sql.SQL_SUPPORTS_TABLE_CORRELATION_NAMES,
    sql.SQL_SUPPORTS_EXPRESSIONS_IN_ORDER_BY,
    sql.SQL_SUPPORTS_ORDER_BY_UNRELATED,
    sql.SQL_SUPPORTS_LIKE_ESCAPE_CLAUSE,
    sql.SQL_SUPPORTS_NON_NULLABLE_COLUMNS,
    sql.SQL_CATALOG_AT_START,
    sql.SQL_CORRELATED_SUBQUERIES_SUPPORTED,
    sql.SQL_MAX_ROW_SIZE_INCLUDES_BLOBS,
    sql.FLIGHT_SQL_SERVER_SQL,
    sql.FLIGHT_SQL_SERVER_CANCEL,
    sql.FLIGHT_SQL_SERVER_BULK_INGESTION,
    sql.FLIGHT_SQL_SERVER_INGEST_TRANSACTIONS_SUPPORTED,
    sql.SQL_DDL_TABLE,
    sql.SQL_TRANSACTIONS_SUPPORTED,
    sql.SQL_BATCH_UPDATES_SUPPORTED,
)
_NO = (
    sql.FLIGHT_SQL_SERVER_READ_ONLY,
    sql.FLIGHT_SQL_SERVER_SUBSTRAIT,
    sql.SQL_DDL_CATALOG,
    sql.SQL_DDL_SCHEMA,
    sql.SQL_SUPPORTS_DIFFERENT_TABLE_CORRELATION_NAMES,
    sql.SQL_SUPPORTS_INTEGRITY_ENHANCEMENT_FACILITY,
    sql.SQL_SELECT_FOR_UPDATE_SUPPORTED,
    sql.SQL_STORED_PROCEDURES_SUPPORTED,
    sql.SQL_DATA_DEFINITION_CAUSES_TRANSACTION_COMMIT,
    sql.SQL_DATA_DEFINITIONS_IN_TRANSACTIONS_IGNORED,
    sql.SQL_SAVEPOINTS_SUPPORTED,
    sql.SQL_NAMED_PARAMETERS_SUPPORTED,
    sql.SQL_LOCATORS_UPDATE_COPY,
    sql.SQL_STORED_FUNCTIONS_USING_CALL_SYNTAX_SUPPORTED,
)

_READ_ONLY_FORWARD = Bitmask.of(sql.SQL_RESULT_SET_CONCURRENCY_READ_ONLY)


def answers(dialect: Dialect, settings: FlightSettings) -> Mapping[int, Value]:
    """SqlInfo id -> value."""
    return {
        **dict.fromkeys(_UNLIMITED, 0),
        **dict.fromkeys(_YES, True),
        **dict.fromkeys(_NO, False),
        sql.FLIGHT_SQL_SERVER_NAME: SERVER_NAME,
        sql.FLIGHT_SQL_SERVER_VERSION: dialect.version,
        sql.FLIGHT_SQL_SERVER_ARROW_VERSION: pa.__version__,
        sql.FLIGHT_SQL_SERVER_TRANSACTION: Bitmask(sql.SQL_SUPPORTED_TRANSACTION_TRANSACTION),
        sql.FLIGHT_SQL_SERVER_STATEMENT_TIMEOUT: Bitmask(min(2**31 - 1, round(settings.session_idle_s_max * 1000))),
        sql.FLIGHT_SQL_SERVER_TRANSACTION_TIMEOUT: Bitmask(
            min(2**31 - 1, round(settings.transaction_idle_s_max * 1000))
        ),
        sql.SQL_IDENTIFIER_CASE: Bitmask(sql.SQL_CASE_SENSITIVITY_CASE_INSENSITIVE),
        sql.SQL_IDENTIFIER_QUOTE_CHAR: '"',
        sql.SQL_QUOTED_IDENTIFIER_CASE: Bitmask(sql.SQL_CASE_SENSITIVITY_CASE_INSENSITIVE),
        sql.SQL_NULL_ORDERING: Bitmask(sql.SQL_NULLS_SORTED_AT_END),
        sql.SQL_KEYWORDS: dialect.keywords,
        sql.SQL_NUMERIC_FUNCTIONS: dialect.numeric_functions,
        sql.SQL_STRING_FUNCTIONS: dialect.string_functions,
        sql.SQL_SYSTEM_FUNCTIONS: dialect.system_functions,
        sql.SQL_DATETIME_FUNCTIONS: dialect.datetime_functions,
        sql.SQL_SEARCH_STRING_ESCAPE: ESCAPE,
        sql.SQL_EXTRA_NAME_CHARACTERS: "$",
        sql.SQL_SUPPORTS_CONVERT: _conversions(),
        sql.SQL_SUPPORTED_GROUP_BY: Bitmask.of(sql.SQL_GROUP_BY_UNRELATED, sql.SQL_GROUP_BY_BEYOND_SELECT),
        sql.SQL_SUPPORTED_GRAMMAR: Bitmask.of(sql.SQL_MINIMUM_GRAMMAR, sql.SQL_CORE_GRAMMAR),
        sql.SQL_ANSI92_SUPPORTED_LEVEL: Bitmask.of(sql.ANSI92_ENTRY_SQL),
        sql.SQL_OUTER_JOINS_SUPPORT_LEVEL: Bitmask.of(sql.SQL_LIMITED_OUTER_JOINS, sql.SQL_FULL_OUTER_JOINS),
        sql.SQL_SCHEMA_TERM: "schema",
        sql.SQL_PROCEDURE_TERM: "procedure",
        sql.SQL_CATALOG_TERM: "catalog",
        sql.SQL_SCHEMAS_SUPPORTED_ACTIONS: Bitmask(0),
        sql.SQL_CATALOGS_SUPPORTED_ACTIONS: Bitmask(0),
        sql.SQL_SUPPORTED_POSITIONED_COMMANDS: Bitmask(0),
        sql.SQL_SUPPORTED_SUBQUERIES: Bitmask.of(
            sql.SQL_SUBQUERIES_IN_COMPARISONS,
            sql.SQL_SUBQUERIES_IN_EXISTS,
            sql.SQL_SUBQUERIES_IN_INS,
            sql.SQL_SUBQUERIES_IN_QUANTIFIEDS,
        ),
        sql.SQL_SUPPORTED_UNIONS: Bitmask.of(sql.SQL_UNION, sql.SQL_UNION_ALL),
        # One cut for all of a transaction: stronger than REPEATABLE READ, and nothing can be written concurrently.
        sql.SQL_DEFAULT_TRANSACTION_ISOLATION: sql.SQL_TRANSACTION_REPEATABLE_READ,
        sql.SQL_SUPPORTED_TRANSACTIONS_ISOLATION_LEVELS: Bitmask.of(sql.SQL_TRANSACTION_REPEATABLE_READ),
        sql.SQL_SUPPORTED_RESULT_SET_TYPES: Bitmask.of(sql.SQL_RESULT_SET_TYPE_FORWARD_ONLY),
        sql.SQL_SUPPORTED_CONCURRENCIES_FOR_RESULT_SET_UNSPECIFIED: Bitmask(0),
        sql.SQL_SUPPORTED_CONCURRENCIES_FOR_RESULT_SET_FORWARD_ONLY: _READ_ONLY_FORWARD,
        sql.SQL_SUPPORTED_CONCURRENCIES_FOR_RESULT_SET_SCROLL_SENSITIVE: Bitmask(0),
        sql.SQL_SUPPORTED_CONCURRENCIES_FOR_RESULT_SET_SCROLL_INSENSITIVE: Bitmask(0),
    }


def _conversions() -> dict[int, list[int]]:
    """Which types CAST turns into which: text into all and all into text, numbers into numbers, dates and times."""
    text = [sql.SQL_CONVERT_CHAR, sql.SQL_CONVERT_VARCHAR, sql.SQL_CONVERT_LONGVARCHAR]
    numbers = [
        sql.SQL_CONVERT_TINYINT,
        sql.SQL_CONVERT_SMALLINT,
        sql.SQL_CONVERT_INTEGER,
        sql.SQL_CONVERT_BIGINT,
        sql.SQL_CONVERT_DECIMAL,
        sql.SQL_CONVERT_NUMERIC,
        sql.SQL_CONVERT_REAL,
        sql.SQL_CONVERT_FLOAT,
        sql.SQL_CONVERT_BIT,
    ]
    moments = [sql.SQL_CONVERT_DATE, sql.SQL_CONVERT_TIME, sql.SQL_CONVERT_TIMESTAMP]
    binary = [sql.SQL_CONVERT_BINARY, sql.SQL_CONVERT_VARBINARY, sql.SQL_CONVERT_LONGVARBINARY]
    every: list[int] = sorted({*text, *numbers, *moments, *binary})
    from_dates = {
        sql.SQL_CONVERT_DATE: [sql.SQL_CONVERT_DATE, sql.SQL_CONVERT_TIMESTAMP],
        sql.SQL_CONVERT_TIME: [sql.SQL_CONVERT_TIME],
        sql.SQL_CONVERT_TIMESTAMP: moments,
    }
    return {
        **dict.fromkeys(map(int, text), every),
        **{kind: sorted({*numbers, *text}) for kind in numbers},
        **{kind: sorted({*targets, *text}) for kind, targets in from_dates.items()},
        **{kind: sorted({*binary, *text}) for kind in binary},
    }
