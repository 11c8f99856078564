"""Which statements are run again, and the SELECTs that K2 writes."""

from __future__ import annotations

import pyarrow as pa
import pytest

from clients.errors import ClientError
from clients.statements import call_of, kind_of, rows_of


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT 1", "read"),
        ("-- all of them\n  select * from market.trades", "read"),
        ("/* of\nnow */ (SELECT 1)", "read"),
        ("FROM market.trades", "read"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "read"),
        ("EXPLAIN SELECT 1", "read"),
        ("SELECT 'insert into'", "read"),
        ("WITH a AS (SELECT 1) INSERT INTO research.t SELECT * FROM a", "change"),
        ("EXPLAIN ANALYZE DELETE FROM research.t", "change"),
        ("INSERT INTO research.t VALUES (1)", "change"),
        ("CREATE TABLE mine AS SELECT 1", "change"),
        ("KILL STATEMENT 'x'", "change"),
        ("", "change"),
        ("SET timezone = 'Australia/Sydney'", "session"),
        (" ; BEGIN", "session"),
        ("use research", "session"),
    ],
)
def test_what_a_statement_does_is_told_by_its_words(sql: str, kind: str) -> None:
    assert kind_of(sql) == kind


def test_a_span_of_one_symbol() -> None:
    query = rows_of("trades", "event_time", "trade_id", "BTCUSDT", "2024-08-09", None, columns=["price", 'a"b'])
    assert query.sql == (
        'SELECT "price", "a""b" FROM market.trades WHERE symbol = ? AND event_time >= ? '
        "ORDER BY event_time, exchange, symbol, trade_id"
    )
    assert query.parameters == ("BTCUSDT", pa.scalar(1_723_161_600_000_000, pa.timestamp("us", "UTC")))


def test_several_symbols_of_one_exchange() -> None:
    query = rows_of("quotes", "receive_time", "quote_id", ["A", "B"], None, None, exchange="asx")
    assert "SELECT * FROM market.quotes WHERE symbol IN (?, ?) AND exchange = ? ORDER BY" in query.sql
    assert query.parameters == ("A", "B", "asx")


@pytest.mark.parametrize(
    ("symbol", "start", "end", "columns", "says"),
    [
        ("", None, None, None, "symbol is a name such as 'BTCUSDT'"),
        ([], None, None, None, "symbol is a name such as 'BTCUSDT'"),
        ([7], None, None, None, "symbol is a name such as 'BTCUSDT'"),
        ("A", "2024-08-10", "2024-08-09", None, "start, 2024-08-10, lies behind end, 2024-08-09"),
        ("A", "2024-08-10T00:00", None, None, "start, '2024-08-10T00:00', has no time zone"),
        ("A", None, None, "price", "columns is a list of names"),
        ("A", None, None, [], "columns is a list of names"),
    ],
)
def test_wrong_arguments_are_a_sentence(
    symbol: str, start: str | None, end: str | None, columns: list[str] | None, says: str
) -> None:
    with pytest.raises(ClientError, match=says):
        rows_of("trades", "event_time", "trade_id", symbol, start, end, columns=columns)


def test_a_function_is_called_with_everything_quoted() -> None:
    options = {"every": "7'm", "horizons": ["1s", "5s"], "exchange": None}
    query = call_of("ohlcv", ["A", "B'C"], "2024-08-09", None, **options)
    assert query.sql == (
        "SELECT * FROM ohlcv(['A', 'B''C'], '2024-08-09T00:00:00+00:00', NULL, every := '7''m', "
        "horizons := ['1s', '5s'])"
    )
    with pytest.raises(ClientError, match="lies behind"):
        call_of("ohlcv", "A", "2024-08-10", "2024-08-09")
