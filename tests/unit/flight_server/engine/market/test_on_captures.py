"""The market functions on two minutes of a recorded feed, whose clock is over a second behind the venue's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from test_of_quotes import average, held_values
from test_ohlcv import bars

from common.datasets import BARS
from tests.support.captured import recorded
from tests.support.market import EPOCH, MarketDatabase, rounded
from tests.support.market_oracle import WIDTHS, bar_of, held

LOW = datetime(2024, 8, 9, tzinfo=EPOCH.tzinfo)
HIGH = LOW + timedelta(minutes=4)
#: Two minutes: 4,609 trades and 18,255 quotes.
LINES = 24_000
RANGE = f"'BTCUSDT', '{LOW.isoformat()}', '{HIGH.isoformat()}'"
Feed = tuple[MarketDatabase, list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def feed(captures: dict[str, Path]) -> Iterator[Feed]:
    """The database with bars, the trades and the quotes in it, read off the file with nothing of K2."""
    trades, quotes = recorded(captures["btcusdt_20240809.gz"], lines=LINES)
    database = MarketDatabase(("trades", "quotes", *BARS))
    database.fill(trades, quotes)
    yield database, trades, quotes
    database.close()


@pytest.mark.parametrize(
    ("every", "fill"), [("100ms", "none"), ("1s", "previous"), ("7s", "linear"), ("1m", "null"), ("1d", "none")]
)
def test_bars(feed: Feed, every: str, fill: str) -> None:
    market, trades, _ = feed
    assert market.ask(f"SELECT * FROM ohlcv({RANGE}, '{every}', '{fill}')") == bars(
        trades, LOW, HIGH, WIDTHS[every], fill, "24/7"
    )


def test_averages(feed: Feed) -> None:
    market, trades, _ = feed
    (whole,) = market.ask(f"SELECT * FROM vwap({RANGE})")
    bar = bar_of(trades)
    assert {name: whole[name] for name in ("vwap", "volume", "trade_count")} == {
        name: bar[name] for name in ("vwap", "volume", "trade_count")
    }
    assert market.ask("SELECT vwap(price, quantity) AS v FROM market.trades") == [{"v": bar["vwap"]}]
    events = [(row["event_time"], row["trade_id"], row["price"]) for row in trades]
    wanted = [(start, average(values)[0]) for start, values in held(events, HIGH, timedelta(minutes=1), "24/7").items()]
    assert [(row["bar_start"], row["twap"]) for row in market.ask(f"SELECT * FROM twap({RANGE}, '1m')")] == wanted


def test_flow_and_profile(feed: Feed) -> None:
    market, trades, _ = feed
    bought, sold = (sum(row["quantity"] for row in trades if row["side"] == side) for side in ("BUY", "SELL"))
    (flow,) = market.ask(f"SELECT * FROM trade_imbalance({RANGE})")
    assert (flow["buy_volume"], flow["sell_volume"]) == (bought, sold)
    assert flow["imbalance"] == rounded(bought - sold, bought + sold)
    levels: dict[Decimal, Decimal] = {}
    for row in trades:
        level = row["price"] // Decimal("12.5") * Decimal("12.5")
        levels[level] = levels.get(level, Decimal(0)) + row["quantity"]
    found = market.ask(f"SELECT * FROM volume_profile({RANGE}, tick := 12.5)")
    assert [(row["price_from"], row["volume"]) for row in found] == sorted(levels.items())


def test_bars_by_size_have_every_trade_once(feed: Feed) -> None:
    market, trades, _ = feed
    ordered = sorted(trades, key=lambda row: (row["event_time"], row["trade_id"]))
    found = market.ask(f"SELECT * FROM tick_bars({RANGE}, 1000)")
    for number, row in enumerate(found):
        inside = ordered[number * 1_000 : (number + 1) * 1_000]
        assert {name: row[name] for name in bar_of(inside)} == bar_of(inside)
        assert row["is_complete"] == (len(inside) == 1_000)
    for name, size in (("volume_bars", 7), ("dollar_bars", 500_000)):
        found = market.ask(f"SELECT * FROM {name}({RANGE}, {size})")
        assert sum(row["trade_count"] for row in found) == len(trades)
        assert sum(row["volume"] for row in found) == sum(row["quantity"] for row in trades)
        assert all(row["is_complete"] for row in found[:-1])


def test_spread_and_mid(feed: Feed) -> None:
    market, _, quotes = feed
    case = (quotes, LOW, HIGH, "1m", "24/7")
    wanted = []
    for key, values in held_values(case, lambda row: row["ask_price"] - row["bid_price"]):
        mean, us = average(values)
        wanted.append((key["bar_start"], mean, max(value for value, _ in values), len(values), us))
    names = ("bar_start", "average", "highest", "quote_count", "held_us")
    found = market.ask(f"SELECT * FROM spread({RANGE}, '1m')")
    assert [tuple(row[name] for name in names) for row in found] == wanted
    mids = [
        (key["bar_start"], values[0][0], values[-1][0], average(values)[0])
        for key, values in held_values(case, lambda row: (row["bid_price"] + row["ask_price"]) / 2)
    ]
    names = ("bar_start", "open", "close", "average")
    assert [tuple(row[name] for name in names) for row in market.ask(f"SELECT * FROM mid({RANGE}, '1m')")] == mids


def test_the_deepest_fall(feed: Feed) -> None:
    market, trades, _ = feed
    peak, deepest = Decimal(0), Fraction(0)
    for row in sorted(trades, key=lambda row: (row["event_time"], row["trade_id"])):
        peak = max(peak, row["price"])
        deepest = max(deepest, (Fraction(peak) - Fraction(row["price"])) / Fraction(peak))
    (found,) = market.ask(f"SELECT * FROM drawdown({RANGE})")
    assert found["drawdown"] == rounded(deepest, 1)
    assert found["peak_time"] < found["trough_time"]
