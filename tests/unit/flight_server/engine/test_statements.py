"""Which texts are one reading statement; everything else gets one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Set

import duckdb
import pytest

from common.errors import InvalidStatement, K2Error, PermissionDenied, Unsupported
from flight_server.engine.statements import Statement, StatementKind, parse


@pytest.fixture(scope="module")
def parser() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config={"enable_external_access": False}) as connection:
        yield connection


@pytest.fixture(scope="module")
def functions(parser: duckdb.DuckDBPyConnection) -> Set[str]:
    rows = parser.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type IN ('table', 'table_macro', 'pragma')"
    ).fetchall()
    return {name for (name,) in rows} | {"iceberg_scan"}


READING = [
    "select 1",
    "SELECT 1;",
    "/* a; b */ select 1 ; -- and; this",
    "values (1, 'a')",
    "from market.trades",
    "table market.trades",
    "(select 1)",
    "with t as (select 1) select * from t",
    "describe market.trades",
    "show tables;",
    "summarize market.trades",
    "pivot market.trades on side in ('BUY', 'SELL') using sum(quantity)",
    "pragma table_info('market.trades')",
    "select 'read_csv(' , read_csv from market.trades",
    "select checkpoint from market.trades",
    "select * from range(10)",
    "explain select 1",
    "explain analyze select 1",
    "explain (select 1)",
    "/* x */ EXPLAIN /* y */ ANALYZE -- z\n select 1;",
]


@pytest.mark.parametrize("sql", READING)
def test_reading_statements_are_taken(sql: str, parser: duckdb.DuckDBPyConnection, functions: Set[str]) -> None:
    assert isinstance(parse(sql, parser, functions), Statement)


REFUSED = [
    ("", InvalidStatement, "no SQL statement"),
    (" ;; -- nothing", InvalidStatement, "no SQL statement"),
    ("select 1; select 2", InvalidStatement, "2 statements"),
    ("selec 1", InvalidStatement, "LINE 1: selec 1\n        ^"),
    ("select 'open", InvalidStatement, "unterminated"),
    ("pivot market.trades on side using sum(quantity)", Unsupported, "values named"),
    ("set threads = 1", PermissionDenied, "SET"),
    ("set variable x = 1", PermissionDenied, "SET"),
    ("attach 'x.db'", PermissionDenied, "ATTACH"),
    ("copy market.trades to 'x'", PermissionDenied, "COPY"),
    ("copy (select 1) to 'x'", PermissionDenied, "COPY"),
    ("export database 'x'", PermissionDenied, "EXPORT"),
    ("import database 'x'", PermissionDenied, "Cannot access file"),
    ("install httpfs", PermissionDenied, "INSTALL"),
    ("load httpfs", PermissionDenied, "LOAD"),
    ("call pragma_version()", PermissionDenied, "CALL"),
    ("pragma enable_profiling", PermissionDenied, "PRAGMA"),
    ("checkpoint", PermissionDenied, "CALL"),
    ("prepare p as select 1", Unsupported, "prepared statements"),
    ("execute p", Unsupported, "prepared statements"),
    ("explain insert into market.trades values (1)", Unsupported, "explains queries only"),
    ("explain analyze delete from market.trades", Unsupported, "explains queries only"),
    ("create schema s", PermissionDenied, "CREATE SCHEMA"),
    ("create macro m(a) as a", PermissionDenied, "CREATE MACRO"),
    ("create secret (type s3)", PermissionDenied, "CREATE SECRET"),
    ("create temp sequence s", PermissionDenied, "CREATE SEQUENCE"),
    ("create index i on t(a)", PermissionDenied, "CREATE INDEX"),
    ("create type m as enum ('a')", PermissionDenied, "CREATE TYPE"),
    ("drop schema market", PermissionDenied, "DROP SCHEMA"),
    ("drop table a, b", Unsupported, "one object at a time"),
    ("comment on table market.trades is 'x'", PermissionDenied, "ALTER"),
    ("insert into x values (1) returning a", Unsupported, "RETURNING"),
    ("create table x as select * from read_csv('/etc/passwd')", PermissionDenied, "read_csv"),
    ("create view x as from read_text('/etc/passwd')", PermissionDenied, "read_text"),
    ("reset threads", PermissionDenied, "SET threads"),
    ("set global timezone = 'UTC'; select 1", InvalidStatement, "2 statements"),
    ("kill everything", InvalidStatement, "KILL SESSION"),
    ("select * from read_csv('/etc/passwd')", PermissionDenied, "read_csv"),
    ("select * from \"READ_CSV\" /* x */ ('/etc/passwd')", PermissionDenied, "read_csv"),
    ("from system.main.read_text('/etc/passwd')", PermissionDenied, "read_text"),
    ("select * from t, lateral glob('/*')", PermissionDenied, "glob"),
    ("select * from iceberg_scan('/w')", PermissionDenied, "iceberg_scan"),
    ("select * from query('insert into x values (1)')", PermissionDenied, "query"),
    ("select * from enable_logging()", PermissionDenied, "enable_logging"),
    ("select * from checkpoint()", PermissionDenied, "checkpoint"),
    ("select * from arrow_scan(1, 2, 3)", PermissionDenied, "arrow_scan"),
    ("select write_log('x')", PermissionDenied, "write_log"),
    ("from duckdb_logs", PermissionDenied, "duckdb_logs"),
]


@pytest.mark.parametrize(("sql", "kind", "says"), REFUSED)
def test_others_are_refused(
    sql: str, kind: type[K2Error], says: str, parser: duckdb.DuckDBPyConnection, functions: Set[str]
) -> None:
    with pytest.raises(kind) as caught:
        parse(sql, parser, functions)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("select ?, ?", ("1", "2")),
        ("select $2, $1", ("1", "2")),
        ("select " + ", ".join(f"${n}" for n in range(1, 13)), tuple(str(n) for n in range(1, 13))),
        ("select $symbol, $From", ("symbol", "From")),
        ("explain select ?", ("1",)),
        ("select '?'", ()),
    ],
)
def test_parameters_come_in_the_order_of_binding(
    sql: str, parameters: tuple[str, ...], parser: duckdb.DuckDBPyConnection, functions: Set[str]
) -> None:
    assert parse(sql, parser, functions).parameters == parameters


def test_what_cannot_name_a_table_is_known(parser: duckdb.DuckDBPyConnection, functions: Set[str]) -> None:
    for sql in ("select 1", "values (1)", "select ? + 1 as informed"):
        assert not parse(sql, parser, functions).reads_tables
    for sql in READING[4:6] + READING[7:12]:
        assert parse(sql, parser, functions).reads_tables


def test_the_part_for_a_subquery_has_no_end(parser: duckdb.DuckDBPyConnection, functions: Set[str]) -> None:
    statement = parse("explain select 'ü;' as \"ü\" ; -- ü;", parser, functions)
    assert statement.kind is StatementKind.EXPLAIN
    assert statement.query.strip() == "select 'ü;' as \"ü\""
