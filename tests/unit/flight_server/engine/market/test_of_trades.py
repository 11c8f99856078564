"""Functions of trades against plain Python with decimals and fractions, over nasty series."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidStatement
from tests.support.market import EPOCH, MarketDatabase, at, by_symbol, rounded, trade_series, us_of
from tests.support.market_oracle import WIDTHS, bar_of, held, in_range, start_of
from tests.support.records import trade

BASE_US = us_of(datetime(2024, 10, 4, tzinfo=EPOCH.tzinfo))
Rows = list[dict[str, Any]]


@st.composite
def asked(draw: st.DrawFn) -> tuple[Rows, datetime | None, datetime | None, str | None, str]:
    """Trades of some days, and what is asked of them."""
    width = draw(st.sampled_from([None, "1m", "45m", "1h", "1d", "1w", "1 month"]))
    spread_us = 6 * 86_400_000_000 if width not in ("1m", "45m") else 7_200_000_000
    trades = draw(trade_series(base_us=BASE_US, spread_us=spread_us))
    bound = st.none() | st.integers(0, spread_us).map(lambda us: at(BASE_US + us))
    low, high = draw(bound), draw(bound)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return trades, low, high, width, draw(st.sampled_from(["24/7", "ASX"]))


def call(name: str, low: datetime | None, high: datetime | None, *more: str) -> str:
    bounds = ["NULL" if one is None else f"'{one.isoformat()}'" for one in (low, high)]
    symbols = "['A', 'B']"
    return f"SELECT * FROM {name}({', '.join([symbols, *bounds, *more])})"


def every(width: str | None, calendar: str) -> str:
    return f"every := {'NULL' if width is None else repr(width)}, calendar := '{calendar}'"


def groups(
    trades: Rows, low: datetime | None, high: datetime | None, width: str | None, calendar: str
) -> dict[tuple[str, str, datetime | None], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str, datetime | None], list[Mapping[str, Any]]] = {}
    for key, rows in by_symbol(trades).items():
        for row in sorted(in_range(rows, low, high, calendar, "event_time"), key=lambda row: row["event_time"]):
            start = None if width is None else start_of(row["event_time"], WIDTHS[width], calendar)
            found.setdefault((*key, start), []).append(row)
    return found


def named(key: tuple[str, str, datetime | None]) -> dict[str, Any]:
    return dict(zip(("exchange", "symbol", "bar_start"), key, strict=True))


def exact(number: Fraction) -> Decimal:
    """A number of at most 16 decimals."""
    return Decimal(int(number * 10**16)).scaleb(-16, Context(prec=80))


@settings(max_examples=25, deadline=None)
@given(asked())
def test_vwap_and_trade_count(market: MarketDatabase, case: Any) -> None:
    market.fill(case[0])
    wanted, counts = [], []
    for key, rows in groups(*case).items():
        bar = bar_of(rows)
        notional = sum((Fraction(row["price"]) * Fraction(row["quantity"]) for row in rows), Fraction(0))
        found = {name: bar[name] for name in ("vwap", "volume", "trade_count")}
        wanted.append(named(key) | found | {"notional": exact(notional)})
        counts.append(named(key) | {"trade_count": len(rows)})
    _, low, high, width, calendar = case
    assert market.ask(call("vwap", low, high, every(width, calendar))) == wanted
    assert market.ask(call("trade_count", low, high, every(width, calendar))) == counts


@settings(max_examples=25, deadline=None)
@given(asked())
def test_twap(market: MarketDatabase, case: Any) -> None:
    trades, low, high, width, calendar = case
    market.fill(trades)
    wanted = []
    for key, rows in by_symbol(trades).items():
        events = [
            (row["event_time"], row["trade_id"], row["price"])
            for row in in_range(rows, low, high, calendar, "event_time")
        ]
        for start, values in held(events, high, None if width is None else WIDTHS[width], calendar).items():
            us = sum(us for _, us in values)
            mean = rounded(sum(Fraction(price) * us for price, us in values), us) if us else None
            wanted.append(named((*key, start)) | {"twap": mean, "held_us": us})
    assert market.ask(call("twap", low, high, every(width, calendar))) == wanted


@settings(max_examples=25, deadline=None)
@given(asked())
def test_trade_imbalance(market: MarketDatabase, case: Any) -> None:
    market.fill(case[0])
    wanted = []
    for key, rows in groups(*case).items():
        bought = sum((row["quantity"] for row in rows if row["side"] == "BUY"), Decimal(0))
        sold = sum((row["quantity"] for row in rows if row["side"] in ("SELL", "SELL_SHORT")), Decimal(0))
        ratio = rounded(bought - sold, bought + sold) if bought + sold else None
        sides = {"buy_volume": bought, "sell_volume": sold, "trade_count": len(rows)}
        wanted.append(named(key) | {"imbalance": ratio} | sides)
    _, low, high, width, calendar = case
    assert market.ask(call("trade_imbalance", low, high, every(width, calendar))) == wanted


@settings(max_examples=25, deadline=None)
@given(asked(), st.sampled_from([("tick", "0.5"), ("tick", "0.00000003"), ("bins", "1"), ("bins", "7"), ("", "")]))
def test_volume_profile(market: MarketDatabase, case: Any, levels: tuple[str, str]) -> None:
    trades, low, high, _, calendar = case
    market.fill(trades)
    wanted = []
    for (exchange, symbol), rows in by_symbol(trades).items():
        inside = in_range(rows, low, high, calendar, "event_time")
        prices = [Fraction(row["price"]) for row in inside]
        found: dict[int, list[Mapping[str, Any]]] = {}
        for price, row in zip(prices, inside, strict=True):
            if levels[0] == "tick":
                step, base = Fraction(levels[1]), Fraction(0)
                level = price // step
            else:
                step, base = (max(prices) - min(prices)) / int(levels[1] or 50), min(prices)
                level = min((price - base) // step, int(levels[1] or 50) - 1) if step else 0
            found.setdefault(level, []).append(row)
        for level, there in sorted(found.items()):
            by_side = {"BUY": Decimal(0), "SELL": Decimal(0), "UNKNOWN": Decimal(0)}
            for row in there:
                by_side[row["side"].removesuffix("_SHORT")] += row["quantity"]
            wanted.append(
                {"exchange": exchange, "symbol": symbol}
                | {"price_from": rounded(base + level * step, 1), "price_to": rounded(base + (level + 1) * step, 1)}
                | {"volume": sum(by_side.values()), "buy_volume": by_side["BUY"], "sell_volume": by_side["SELL"]}
                | {"trade_count": len(there)}
            )
    of = f"{levels[0]} := {levels[1]}, " if levels[0] else ""
    assert market.ask(call("volume_profile", low, high, f"{of}calendar := '{calendar}'")) == wanted


@settings(max_examples=25, deadline=None)
@given(asked())
def test_realized_vol(market: MarketDatabase, case: Any) -> None:
    trades, low, high, width, calendar = case
    width = width or "1h"
    market.fill(trades)
    closes: dict[tuple[str, str], list[float]] = {}
    for (exchange, symbol, _), rows in sorted(groups(trades, low, high, width, calendar).items()):
        closes.setdefault((exchange, symbol), []).append(float(bar_of(rows)["close"]))
    found = market.ask(call("realized_vol", low, high, every(width, calendar)))
    assert [(row["exchange"], row["symbol"]) for row in found] == list(closes)
    for row, prices in zip(found, closes.values(), strict=True):
        steps = [math.log(after / before) for before, after in itertools.pairwise(prices)]
        assert row["return_count"] == len(steps)
        if not steps:
            assert row["realized_vol"] is None
        else:
            variance = math.fsum(step * step for step in steps)
            assert row["realized_variance"] == pytest.approx(variance, rel=1e-9, abs=1e-15)
            assert row["realized_vol"] == pytest.approx(math.sqrt(variance), rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(asked())
def test_drawdown(market: MarketDatabase, case: Any) -> None:
    trades, low, high, _, calendar = case
    market.fill(trades)
    wanted = []
    for (exchange, symbol), rows in by_symbol(trades).items():
        ordered = sorted(
            in_range(rows, low, high, calendar, "event_time"), key=lambda row: (row["event_time"], row["trade_id"])
        )
        peak, best = None, None
        for row in ordered:
            if peak is None or row["price"] > peak["price"]:
                peak = row
            depth = (Fraction(peak["price"]) - Fraction(row["price"])) / Fraction(peak["price"])
            if best is None or depth * 10**16 // 1 > best[0] * 10**16 // 1:
                best = depth, peak, row
        if best is not None:
            depth, peak, row = best
            wanted.append(
                {"exchange": exchange, "symbol": symbol, "drawdown": rounded(depth, 1), "peak_price": peak["price"]}
                | {"peak_time": peak["event_time"], "trough_price": row["price"], "trough_time": row["event_time"]}
            )
    assert market.ask(call("drawdown", low, high, f"calendar := '{calendar}'")) == wanted


@settings(max_examples=25, deadline=None)
@given(
    asked(),
    st.sampled_from([("tick_bars", 1), ("tick_bars", 3), ("volume_bars", "500000000"), ("volume_bars", "0.00000001")])
    | st.sampled_from([("dollar_bars", "5000000000000"), ("dollar_bars", "0.5")]),
)
def test_bars_by_size(market: MarketDatabase, case: Any, of: tuple[str, Any]) -> None:
    trades, low, high, _, calendar = case
    market.fill(trades)
    name, size = of
    wanted = []
    for (exchange, symbol), rows in by_symbol(trades).items():
        ordered = sorted(
            in_range(rows, low, high, calendar, "event_time"), key=lambda row: (row["event_time"], row["trade_id"])
        )
        reached, bars, ends = Fraction(0), [], []
        for row in ordered:
            amount = {
                "tick_bars": Fraction(1),
                "volume_bars": Fraction(row["quantity"]),
                "dollar_bars": Fraction(row["price"]) * Fraction(row["quantity"]),
            }[name]
            if not bars or reached // Fraction(size) > bars[-1][0]:
                bars.append((reached // Fraction(size), []))
                ends.append(reached)
            bars[-1][1].append(row)
            reached += amount
            ends[-1] = reached
        for number, ((multiple, inside), end) in enumerate(zip(bars, ends, strict=True), 1):
            wanted.append(
                {"exchange": exchange, "symbol": symbol, "bar_number": number}
                | {"open_time": inside[0]["event_time"], "close_time": inside[-1]["event_time"]}
                | bar_of(inside)
                | {"is_complete": end // Fraction(size) > multiple}
            )
    assert market.ask(call(name, low, high, f"size := {size}, calendar := '{calendar}'")) == wanted


def test_a_drawdown_is_from_the_highest_price_before_it(market: MarketDatabase) -> None:
    prices = (100, 120, 90, 130, 110, 60, 140)
    market.fill([trade(n, symbol="A", price=Decimal(price)) for n, price in enumerate(prices)])
    (found,) = market.ask("SELECT * FROM drawdown('A')")
    assert (found["peak_price"], found["trough_price"], found["drawdown"]) == (130, 60, Decimal("0.53846154"))


def test_the_aggregate_is_exact_where_a_double_is_not(market: MarketDatabase) -> None:
    rows = [(Decimal("9999999999.99999999"), Decimal("0.00000001")), (Decimal("0.00000001"), Decimal("999999999999"))]
    market.fill([trade(n, symbol="A", price=price, quantity=size) for n, (price, size) in enumerate(rows)])
    (found,) = market.ask("SELECT vwap(price, quantity) AS vwap FROM market.trades")
    notional = sum(Fraction(price) * Fraction(size) for price, size in rows)
    assert found["vwap"] == rounded(notional, sum(Fraction(size) for _, size in rows))
    assert market.ask("SELECT vwap(price, quantity) AS v FROM market.trades WHERE quantity < 0") == [{"v": None}]
    assert market.ask("SELECT vwap(NULL, quantity) AS v FROM market.trades") == [{"v": None}]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "volume_profile('A', tick := 0.5, bins := 3)",
            "^volume_profile takes a tick or a number of bins, and not both",
        ),
        ("volume_profile('A', tick := 0)", "^tick of volume_profile is 0; write a number above 0 and below 10"),
        ("volume_profile('A', tick := 0.000000001)", "^tick of volume_profile is 0.000000001; write it with at most 8"),
        ("volume_profile('A', bins := 0)", "^bins of volume_profile is 0; write a whole number from 1 to 100000"),
        ("dollar_bars('A', size := 'much')", "^size of dollar_bars is 'much'; write a number, as in 0.5"),
        ("tick_bars('A', size := 1.5)", "^size of tick_bars is '1.5'; write a whole number"),
        ("tick_bars('A')", "^tick_bars needs size, how many trades a bar has; it is tick_bars"),
        ("twap('A', '2020-01-01', '2024-01-01', '100ms')", "^twap would fill 1,262,304,002 intervals of 100ms; ask"),
    ],
)
def test_what_is_wrong_is_said(market: MarketDatabase, sql: str, says: str) -> None:
    with pytest.raises(InvalidStatement, match=says):
        market.expanded(f"SELECT * FROM {sql}")
