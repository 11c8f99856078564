"""Misspelt names: what DuckDB itself says of them, and K2's own names in what is suggested."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from common.errors import InvalidStatement, TableNotFound
from flight_server.engine.errors import translated
from flight_server.engine.suggestions import suggested


@pytest.fixture(scope="module")
def cursor() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        for statement in (
            "ATTACH ':memory:' AS k2",
            "CREATE SCHEMA k2.market",
            "CREATE SCHEMA k2.ops",
            "CREATE TABLE k2.market.trades (symbol VARCHAR, price DECIMAL(18,8), side VARCHAR)",
            "CREATE TABLE k2.market.bars_1m (symbol VARCHAR)",
            "CREATE TABLE k2.ops.gaps (gap_id BIGINT)",
            "CREATE MACRO k2.market.vwap(price, quantity) AS sum(price * quantity)",
            "SET search_path = 'k2.market'",
        ):
            connection.execute(statement)
        yield connection


@pytest.mark.parametrize(
    ("sql", "second"),
    [
        ("FROM ohlvc('X')", 'Did you mean "ohlcv"?'),
        ("FROM k2.market.ohlvc('X')", 'Did you mean "ohlcv"?'),
        ("FROM asofquotes('X')", 'Did you mean "asof_quotes"?'),
        ("EXPLAIN FROM MARKOUT('X')", 'Did you mean "markouts"?'),
        ("FROM zzz('X')", "SELECT name, help FROM k2_functions() lists the functions that are K2's own"),
        ("FROM trades()", "trades is a table, and stands without parentheses: FROM market.trades"),
        ("SELECT ohlcv('X')", "ohlcv is a function of FROM: SELECT * FROM ohlcv('BTCUSDT', "),
        ("SELECT vwp(1, 2)", 'Did you mean "vwap"?'),
        ("SELECT realised_vol(1)", 'Did you mean "realized_vol", a function of FROM: SELECT * FROM realized_vol('),
        ("SELECT cuont(*) FROM trades", 'Did you mean "count"?'),
        ("SELECT zzzzzz(1)", "SELECT name, help FROM k2_functions() lists"),
        ("FROM trade", 'Did you mean "trades"?'),
        ("FROM ops.gap", 'Did you mean "gaps"?'),
        ("FROM ohlcv", "ohlcv is a function, and takes arguments: SELECT * FROM ohlcv('BTCUSDT', "),
        ("FROM ohlvc", 'Did you mean "ohlcv", which is a function: SELECT * FROM ohlcv('),
        ("FROM markt.trades", 'Did you mean "market"?'),
        ("SELECT prise FROM trades", 'Candidate bindings: "price"'),
    ],
)
def test_the_second_line_says_what_may_have_been_meant(
    cursor: duckdb.DuckDBPyConnection, sql: str, second: str
) -> None:
    with pytest.raises(duckdb.Error) as raised:
        cursor.execute(sql)
    said = translated(raised.value)
    assert isinstance(said, InvalidStatement | TableNotFound)
    lines = str(said).splitlines()
    assert lines[1].startswith(second), lines
    assert lines[3].startswith("LINE 1:") and lines[4].endswith("^"), "the place is still shown"


def test_a_symbol_without_its_quotes_is_a_text(cursor: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error) as raised:
        cursor.execute("SELECT * FROM trades WHERE symbol = BTCUSDT")
    assert "\nA text stands in single quotes: 'BTCUSDT'\n\nLINE 1:" in suggested(str(raised.value))
    with pytest.raises(duckdb.Error) as raised:
        cursor.execute("SELECT PRISE FROM trades")
    assert "single quotes" not in suggested(str(raised.value))


@pytest.mark.parametrize(
    "text", ["", "Parser Error: syntax error", "Catalog Error: Type with name X does not exist!", "boom"]
)
def test_anything_else_stays_as_it_is(text: str) -> None:
    assert suggested(text) == text
