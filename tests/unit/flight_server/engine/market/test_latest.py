"""latest_on and top_trades against plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import localcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidStatement
from tests.support.market import EPOCH, MarketDatabase, by_symbol, quote_series, trade_series, us_of
from tests.support.records import trade

BASE_US = us_of(datetime(2024, 8, 9, 10, tzinfo=EPOCH.tzinfo))
TRADES = trade_series(base_us=BASE_US, spread_us=5)
QUOTES = st.just([]) | quote_series(base_us=BASE_US, spread_us=5)


@pytest.fixture(scope="module")
def market() -> Iterator[MarketDatabase]:
    database = MarketDatabase()
    yield database
    database.close()


@settings(max_examples=40, deadline=None)
@given(TRADES, QUOTES)
def test_the_last_trade_and_quote_are_last_by_time_and_then_by_id(
    market: MarketDatabase, trades: list[dict[str, Any]], quotes: list[dict[str, Any]]
) -> None:
    market.fill(trades, quotes)
    wanted = []
    quoted = by_symbol(quotes)
    for key, rows in by_symbol(trades).items():
        last = max(rows, key=lambda one: (one["event_time"], one["trade_id"]))
        row = dict(zip(("exchange", "symbol"), key, strict=True)) | {"trade_time": last["event_time"]}
        row |= {name: last[name] for name in ("trade_id", "side", "price", "quantity")}
        there = max(quoted.get(key, []), key=lambda one: (one["receive_time"], one["quote_id"]), default=None)
        for name in ("quote_id", "bid_price", "bid_quantity", "ask_price", "ask_quantity"):
            row[name] = None if there is None else there[name]
        row["quote_time"] = None if there is None else there["receive_time"]
        both = there is not None and there["bid_price"] is not None and there["ask_price"] is not None
        row["mid"] = (there["bid_price"] + there["ask_price"]) / 2 if there is not None and both else None
        wanted.append(row)
    assert market.ask("SELECT * FROM latest_on(['A', 'B'])") == wanted


@settings(max_examples=40, deadline=None)
@given(TRADES, st.sampled_from(["quantity", "notional", "price"]), st.integers(1, 14))
def test_the_largest_trades_come_in_one_order(
    market: MarketDatabase, trades: list[dict[str, Any]], measure: str, count: int
) -> None:
    market.fill(trades)
    with localcontext(prec=60):  # Python's own 28 digits would round
        rows = [one | {"notional": one["price"] * one["quantity"]} for one in trades]
    names = ("exchange", "symbol", "trade_id", "event_time", "side", "price", "quantity", "notional")

    def place(one: dict[str, Any]) -> Any:
        value = one[measure]
        return value is None, -(value or 0), one["exchange"], one["symbol"], one["event_time"], one["trade_id"]

    wanted = [
        {"rank": rank} | {name: one[name] for name in names}
        for rank, one in enumerate(sorted(rows, key=place)[:count], 1)
    ]
    assert market.ask(f"SELECT * FROM top_trades(['A', 'B'], count := {count}, measure := '{measure}')") == wanted


def test_of_one_symbol_that_two_exchanges_have_each_has_a_row(market: MarketDatabase) -> None:
    market.fill([trade(1), trade(2, exchange="asx")])
    rows = market.ask("SELECT exchange, trade_id FROM latest_on('BTCUSDT')")
    assert rows == [{"exchange": "asx", "trade_id": 2}, {"exchange": "binance", "trade_id": 1}]
    assert market.ask("SELECT trade_id FROM latest_on('BTCUSDT', exchange := 'asx')") == [{"trade_id": 2}]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("top_trades('BTCUSDT', count := 0)", r"count of top_trades is 0; write a whole number from 1 to 1000000"),
        ("top_trades('BTCUSDT', measure := 'size')", r"measure of top_trades is 'size'; write one of 'quantity', 'no"),
        ("latest_on()", r"latest_on needs symbol, a symbol, or a list of them; it is latest_on\("),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(market: MarketDatabase, call: str, says: str) -> None:
    with pytest.raises(InvalidStatement, match=f"^{says}"):
        market.ask(f"SELECT * FROM {call}")
