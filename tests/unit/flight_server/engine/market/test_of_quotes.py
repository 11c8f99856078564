"""Functions of quotes against plain Python with decimals and fractions, over nasty series."""

from __future__ import annotations

import itertools
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.market import EPOCH, MarketDatabase, at, by_symbol, quote_series, rounded, us_of
from tests.support.market_oracle import WIDTHS, held, in_range, start_of
from tests.support.records import quote

BASE_US = us_of(datetime(2024, 10, 4, tzinfo=EPOCH.tzinfo))


@st.composite
def asked(draw: st.DrawFn) -> tuple[list[dict[str, Any]], datetime | None, datetime | None, str | None, str]:
    width = draw(st.sampled_from([None, "1m", "45m", "1h", "1d", "1 month"]))
    spread_us = 4 * 86_400_000_000 if width not in ("1m", "45m") else 7_200_000_000
    quotes = draw(quote_series(base_us=BASE_US, spread_us=spread_us))
    bound = st.none() | st.integers(0, spread_us).map(lambda us: at(BASE_US + us))
    low, high = draw(bound), draw(bound)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return quotes, low, high, width, draw(st.sampled_from(["24/7", "ASX"]))


def call(name: str, case: Any) -> str:
    _, low, high, width, calendar = case
    bounds = ", ".join("NULL" if one is None else f"'{one.isoformat()}'" for one in (low, high))
    every = "NULL" if width is None else f"'{width}'"
    return f"SELECT * FROM {name}(['A', 'B'], {bounds}, {every}, calendar := '{calendar}')"


def timed(case: Any) -> dict[tuple[str, str], list[Any]]:
    """The quotes that are asked for, in their order, with their time."""
    quotes, low, high, _, calendar = case
    rows = [row | {"time": row["event_time"] or row["receive_time"]} for row in quotes]
    return {
        key: sorted(in_range(found, low, high, calendar, "time"), key=lambda row: (row["time"], row["quote_id"]))
        for key, found in by_symbol(rows).items()
    }


def held_values(case: Any, value: Any) -> Any:
    """((exchange, symbol, interval), values with two sides and their microseconds) for each interval with some."""
    _, _, high, width, calendar = case
    for key, rows in timed(case).items():
        events = [
            (row["time"], row["quote_id"], None if None in (row["bid_price"], row["ask_price"]) else value(row))
            for row in rows
        ]
        for start, found in held(events, high, None if width is None else WIDTHS[width], calendar).items():
            there = [(one, us) for one, us in found if one is not None]
            if there:
                yield dict(zip(("exchange", "symbol", "bar_start"), (*key, start), strict=True)), there


def average(values: Any) -> tuple[Decimal | None, int]:
    us = sum(us for _, us in values)
    return (rounded(sum(Fraction(value) * us for value, us in values), us) if us else None), us


@settings(max_examples=25, deadline=None)
@given(asked())
def test_spread(market: MarketDatabase, case: Any) -> None:
    market.fill(quotes=case[0])
    wanted = []
    for key, values in held_values(case, lambda row: row["ask_price"] - row["bid_price"]):
        spreads = [value for value, _ in values]
        mean, us = average(values)
        wanted.append(
            key
            | {"average": mean, "lowest": min(spreads), "highest": max(spreads), "last": spreads[-1]}
            | {"quote_count": len(spreads), "crossed_count": sum(one < 0 for one in spreads), "held_us": us}
        )
    assert market.ask(call("spread", case)) == wanted


@settings(max_examples=25, deadline=None)
@given(asked())
def test_mid(market: MarketDatabase, case: Any) -> None:
    market.fill(quotes=case[0])
    wanted = []
    for key, values in held_values(case, lambda row: (row["bid_price"] + row["ask_price"]) / 2):
        mids = [value for value, _ in values]
        mean, us = average(values)
        wanted.append(
            key
            | {"open": mids[0], "high": max(mids), "low": min(mids), "close": mids[-1]}
            | {"average": mean, "quote_count": len(mids), "held_us": us}
        )
    assert market.ask(call("mid", case)) == wanted


@settings(max_examples=25, deadline=None)
@given(asked())
def test_order_flow_imbalance(market: MarketDatabase, case: Any) -> None:
    market.fill(quotes=case[0])
    width, calendar = case[3:]
    flows: dict[Any, list[Decimal]] = {}
    for key, rows in timed(case).items():
        whole = [row for row in rows if None not in (row["bid_price"], row["ask_price"])]
        for old, new in itertools.pairwise(whole):
            start = None if width is None else start_of(new["time"], WIDTHS[width], calendar)
            flow = Decimal(0)
            if new["bid_price"] > old["bid_price"]:
                flow += new["bid_quantity"]
            elif new["bid_price"] == old["bid_price"]:
                flow += new["bid_quantity"] - old["bid_quantity"]
            else:
                flow -= old["bid_quantity"]
            if new["ask_price"] < old["ask_price"]:
                flow -= new["ask_quantity"]
            elif new["ask_price"] == old["ask_price"]:
                flow -= new["ask_quantity"] - old["ask_quantity"]
            else:
                flow += old["ask_quantity"]
            flows.setdefault((*key, start), []).append(flow)
    wanted = [
        dict(zip(("exchange", "symbol", "bar_start"), key, strict=True))
        | {"imbalance": sum(found), "change_count": len(found)}
        for key, found in flows.items()
    ]
    assert market.ask(call("order_flow_imbalance", case)) == wanted


def test_the_mid_of_a_query_has_every_digit(market: MarketDatabase) -> None:
    market.fill(quotes=[quote(1, bid_price=Decimal("1.00000001"), ask_price=Decimal("1.00000002"))])
    assert market.ask("SELECT mid(bid_price, ask_price) AS m FROM market.quotes") == [{"m": Decimal("1.000000015")}]
    assert market.ask("SELECT mid(bid_price, NULL) AS m FROM market.quotes") == [{"m": None}]


def test_a_quote_without_the_venues_time_is_there_once(market: MarketDatabase) -> None:
    moment = at(BASE_US)
    market.fill(quotes=[quote(1, symbol="A", receive_time=moment), quote(2, symbol="A", event_time=moment)])
    (found,) = market.ask("SELECT * FROM spread('A', NULL, '2024-10-05')")
    assert found["quote_count"] == 1  # the first held for no time
    (found,) = market.ask("SELECT * FROM order_flow_imbalance('A')")
    assert found["change_count"] == 1
