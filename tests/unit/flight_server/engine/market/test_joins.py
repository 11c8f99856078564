"""asof_quotes, window_quotes and markouts against plain Python, over nasty series and over a recorded feed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidStatement
from flight_server.engine.market import window_quotes
from flight_server.engine.rewrite import tables_of, tree_of
from tests.support.captured import recorded
from tests.support.market import EPOCH, MarketDatabase, at, by_symbol, quote_series, rounded, trade_series, us_of
from tests.support.records import quote, trade

Row = Mapping[str, Any]
BASE_US = us_of(datetime(2024, 8, 9, 10, tzinfo=EPOCH.tzinfo))
APART = timedelta(minutes=5)
_TRADE = ("exchange", "symbol", "trade_id", "event_time", "side", "price", "quantity")
_QUOTE = ("quote_id", "bid_price", "bid_quantity", "ask_price", "ask_quantity")
LENGTHS = {
    "1us": timedelta(microseconds=1),
    "3us": timedelta(microseconds=3),
    "5ms": timedelta(milliseconds=5),
    "1s": timedelta(seconds=1),
    "90s": timedelta(seconds=90),
    "1h": timedelta(hours=1),
}
NOTHING = {"0s": timedelta(0)}
ORDER = "ORDER BY exchange, symbol, event_time, trade_id"


@pytest.fixture(scope="module")
def market() -> Iterator[MarketDatabase]:
    database = MarketDatabase()
    yield database
    database.close()


# -- the oracle


def traded(row: Row, clock: str) -> datetime | None:
    if clock == "event":
        return row["event_time"]  # type: ignore[no-any-return]
    is_live = row["source"] != "backfill" and abs(row["receive_time"] - row["event_time"]) <= APART
    return row["receive_time"] if is_live else None


def quoted(quotes: Sequence[Row], trade: Row, clock: str) -> list[tuple[datetime, int, Row]]:
    """The quotes of the trade's symbol with their times, in order."""
    found = [
        (one[f"{clock}_time"], one["quote_id"], one)
        for one in quotes
        if (one["exchange"], one["symbol"]) == (trade["exchange"], trade["symbol"]) and one[f"{clock}_time"] is not None
    ]
    return sorted(found, key=lambda one: one[:2])


def standing(
    quotes: Sequence[tuple[datetime, int, Row]], moment: datetime | None, tolerance: timedelta, ties: str = "quote"
) -> int | None:
    """The place of the quote that stands at an instant."""
    if moment is None:
        return None
    before = [n for n, (time, _, _) in enumerate(quotes) if time < moment or (time == moment and ties == "quote")]
    return before[-1] if before and moment - quotes[before[-1]][0] <= tolerance else None


def mid(row: Row) -> Decimal | None:
    if row["bid_price"] is None or row["ask_price"] is None:
        return None
    total: Decimal = row["bid_price"] + row["ask_price"]
    return total / 2


def chosen(trades: Sequence[Row], low: datetime | None, high: datetime | None) -> list[Row]:
    return [
        one
        for rows in by_symbol(trades).values()
        for one in sorted(rows, key=lambda one: (one["event_time"], one["trade_id"]))
        if (low is None or low <= one["event_time"]) and (high is None or one["event_time"] < high)
    ]


def asof_rows(
    trades: Sequence[Row], quotes: Sequence[Row], tolerance: timedelta, ties: str, clock: str
) -> Iterator[dict[str, Any]]:
    for one in trades:
        near, moment = quoted(quotes, one, clock), traded(one, clock)
        place = standing(near, moment, tolerance, ties)
        row = {name: one[name] for name in (*_TRADE, "receive_time")}
        row |= dict.fromkeys((*_QUOTE, "quote_time", "quote_age_us", "mid"))
        if place is not None and moment is not None:
            time, _, found = near[place]
            row |= {name: found[name] for name in _QUOTE}
            row |= {"quote_time": time, "quote_age_us": us_of(moment) - us_of(time), "mid": mid(found)}
        yield row


def markout_rows(
    trades: Sequence[Row],
    quotes: Sequence[Row],
    horizons: Sequence[timedelta],
    tolerance: timedelta,
    ties: str,
    clock: str,
) -> Iterator[dict[str, Any]]:
    for one in trades:
        near, moment = quoted(quotes, one, clock), traded(one, clock)
        place = standing(near, moment, tolerance, ties)
        before = None if place is None else mid(near[place][2])
        sign = {"BUY": 1, "SELL": -1, "SELL_SHORT": -1}.get(one["side"])
        for horizon in sorted(set(horizons)):
            then = None if moment is None else moment + horizon
            there = standing(near, then, tolerance)
            after = None
            if there is not None and then is not None and there + 1 < len(near):
                after = mid(near[there][2]) if near[there + 1][0] - then <= tolerance else None
            yield {name: one[name] for name in _TRADE} | {
                "horizon_us": horizon // timedelta(microseconds=1),
                "mid": before,
                "later_mid": after,
                "mid_move": None if None in (sign, before, after) else sign * (after - before),  # type: ignore[operator]
                "markout": None if None in (sign, after) else sign * (after - one["price"]),  # type: ignore[operator]
            }


def window_rows(
    trades: Sequence[Row], quotes: Sequence[Row], before: timedelta, after: timedelta, clock: str
) -> Iterator[dict[str, Any]]:
    for one in trades:
        moment = traded(one, clock)
        inside = [
            found
            for time, _, found in quoted(quotes, one, clock)
            if moment is not None and moment - before <= time <= moment + after and mid(found) is not None
        ]
        spreads = [found["ask_price"] - found["bid_price"] for found in inside]
        mids = [middle for middle in map(mid, inside) if middle is not None]
        row = {name: one[name] for name in _TRADE} | {"quote_count": len(inside)}
        yield row | {
            "spread_min": min(spreads, default=None),
            "spread_avg": rounded(sum(spreads), len(spreads)) if spreads else None,
            "spread_max": max(spreads, default=None),
            "mid_first": mids[0] if mids else None,
            "mid_min": min(mids, default=None),
            "mid_avg": rounded(sum(mids), len(mids)) if mids else None,
            "mid_max": max(mids, default=None),
            "mid_last": mids[-1] if mids else None,
        }


# -- against it


@st.composite
def series(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]], datetime | None, datetime | None]:
    step_us = draw(st.sampled_from([1, 1_000, 1_000_000, 60_000_000]))
    spread_us = 12 * step_us
    trades = draw(trade_series(base_us=BASE_US, spread_us=spread_us, step_us=step_us))
    quotes = draw(st.just([]) | quote_series(base_us=BASE_US, spread_us=spread_us, step_us=step_us, count_max=16))
    for one in trades:
        change = draw(st.sampled_from([None, None, None, "backfill", "far", "history"]))
        if change == "far":
            one["receive_time"] = one["event_time"] + draw(st.sampled_from([-1, 1])) * (
                APART + timedelta(microseconds=draw(st.integers(0, 1)))
            )
        elif change is not None:
            one["source"] = change
    bound = st.none() | st.integers(0, 12).map(lambda steps: at(BASE_US + steps * step_us))
    low, high = draw(bound), draw(bound)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return trades, quotes, low, high


def bounds(low: datetime | None, high: datetime | None) -> str:
    return "['A', 'B'], " + ", ".join("NULL" if one is None else f"'{one.isoformat()}'" for one in (low, high))


CLOCKS, TIES = st.sampled_from(["receive", "event"]), st.sampled_from(["quote", "trade"])
LENGTH = st.sampled_from(sorted(LENGTHS))


@settings(max_examples=40, deadline=None)
@given(series(), st.sampled_from(sorted(LENGTHS | NOTHING)), TIES, CLOCKS)
def test_each_trade_has_the_quote_that_stood(
    market: MarketDatabase, case: Any, tolerance: str, ties: str, clock: str
) -> None:
    trades, quotes, low, high = case
    market.fill(trades, quotes)
    asked = f"tolerance := '{tolerance}', ties := '{ties}', clock := '{clock}'"
    found = market.ask(f"SELECT * FROM asof_quotes({bounds(low, high)}, {asked}) {ORDER}")
    length = (LENGTHS | NOTHING)[tolerance]
    assert found == list(asof_rows(chosen(trades, low, high), quotes, length, ties, clock))


@settings(max_examples=40, deadline=None)
@given(series(), st.lists(LENGTH, min_size=1, max_size=3), LENGTH, TIES, CLOCKS)
def test_markouts_are_those_of_plain_python(
    market: MarketDatabase, case: Any, horizons: list[str], tolerance: str, ties: str, clock: str
) -> None:
    trades, quotes, low, high = case
    market.fill(trades, quotes)
    asked = f"{horizons}, tolerance := '{tolerance}', ties := '{ties}', clock := '{clock}'"
    found = market.ask(f"SELECT * FROM markouts({bounds(low, high)}, {asked}) {ORDER}, horizon_us")
    lengths = [LENGTHS[one] for one in horizons]
    wanted = markout_rows(chosen(trades, low, high), quotes, lengths, LENGTHS[tolerance], ties, clock)
    assert found == list(wanted)


@settings(max_examples=40, deadline=None)
@given(series(), st.sampled_from(sorted(LENGTHS | NOTHING)), LENGTH, st.booleans(), CLOCKS, st.sampled_from([0, 32]))
def test_windows_have_all_quotes_around_each_trade(
    market: MarketDatabase, case: Any, one: str, other: str, turned: bool, clock: str, few: int
) -> None:
    """Whether windows with so many quotes are taken for such with few or with many."""
    trades, quotes, low, high = case
    market.fill(trades, quotes)
    before, after = (other, one) if turned else (one, other)
    asked = f"before := '{before}', after := '{after}', clock := '{clock}'"
    with mock.patch.object(window_quotes, "_FEW", few):
        found = market.ask(f"SELECT * FROM window_quotes({bounds(low, high)}, {asked}) {ORDER}")
    lengths = LENGTHS | NOTHING
    assert found == list(window_rows(chosen(trades, low, high), quotes, lengths[before], lengths[after], clock))


CALLS = {
    "asof_quotes": "asof_quotes(['A', 'B'], tolerance := '3us', ties := '{ties}')",
    "markouts": "markouts(['A', 'B'], horizons := ['1us', '3us'], tolerance := '1s', ties := '{ties}')",
    "window_quotes": "window_quotes(['A', 'B'], before := '3us', after := '1us')",
}


@settings(max_examples=15, deadline=None)
@given(series(), st.sampled_from(sorted(CALLS)), TIES, st.data())
def test_a_column_is_the_same_whichever_others_are_asked_for(
    market: MarketDatabase, case: Any, function: str, ties: str, data: st.DataObject
) -> None:
    """What nobody asks for is not computed."""
    trades, quotes, _, _ = case
    market.fill(trades, quotes)
    call = CALLS[function].format(ties=ties)
    whole = market.ask(f"SELECT * FROM {call}")
    chosen = data.draw(st.lists(st.sampled_from(sorted(whole[0])), min_size=1, max_size=3, unique=True))
    found = market.ask(f"SELECT {', '.join(f'w.{name}' for name in chosen)} FROM {call} w")
    wanted = [{name: row[name] for name in chosen} for row in whole]
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))


@pytest.mark.parametrize("function", sorted(CALLS))
def test_a_row_has_every_column_however_it_is_asked_for(market: MarketDatabase, function: str) -> None:
    market.fill([trade_at(BASE_US, symbol="A")], [quote_at(BASE_US + us, 5 + us, symbol="A") for us in (-1, 1, 2, 9)])
    call = CALLS[function].format(ties="quote")
    whole = market.ask(f"SELECT * FROM {call}")
    assert whole[0].values() and not any(value is None for value in whole[0].values())
    listed = ", ".join(whole[0])
    numbered = ", ".join(f"c{number}" for number in range(len(whole[0])))
    for sql, shown in (
        (f"SELECT w FROM {call} w", [{"w": row} for row in whole]),
        (f"SELECT {function} AS w FROM {call}", [{"w": row} for row in whole]),
        (f"SELECT {listed} FROM (FROM {call})", whole),
        (f"SELECT {numbered} FROM {call} AS w({numbered})",
         [dict(zip(numbered.split(", "), row.values(), strict=True)) for row in whole]),
    ):  # fmt: skip
        assert sorted(map(repr, market.ask(sql))) == sorted(map(repr, shown))


# -- one at a time


def quote_at(us: int, quote_id: int, bid: str = "99", ask: str = "101", **changes: Any) -> dict[str, Any]:
    return quote(quote_id, receive_time=at(us), bid_price=Decimal(bid), ask_price=Decimal(ask), **changes)


def trade_at(us: int, trade_id: int = 1, **changes: Any) -> dict[str, Any]:
    return trade(trade_id, event_time=at(us), receive_time=at(us), price=Decimal(100)) | changes


def test_of_quotes_at_the_trades_own_microsecond_the_one_with_the_highest_id_stands(market: MarketDatabase) -> None:
    market.fill([trade_at(BASE_US)], [quote_at(BASE_US, 9), quote_at(BASE_US, 10), quote_at(BASE_US - 1, 8)])

    def found(ties: str) -> Any:
        return market.ask(f"SELECT quote_id, quote_age_us FROM asof_quotes('BTCUSDT', ties := '{ties}')")

    assert found("quote") == [{"quote_id": 10, "quote_age_us": 0}]
    assert found("trade") == [{"quote_id": 8, "quote_age_us": 1}]


def test_a_trade_that_was_filled_in_later_has_no_quote_of_the_time_of_filling(market: MarketDatabase) -> None:
    market.fill([trade_at(BASE_US, source="backfill")], [quote_at(BASE_US - 1, 1, event_time=at(BASE_US - 1))])
    for clock, wanted in (("receive", None), ("event", 1)):
        assert market.ask(f"SELECT quote_id FROM asof_quotes('BTCUSDT', clock := '{clock}')") == [{"quote_id": wanted}]


def test_a_later_mid_is_unknown_until_a_quote_behind_it_is_there(market: MarketDatabase) -> None:
    quotes = [quote_at(BASE_US, 1), quote_at(BASE_US + 500_000, 2, "101", "103")]
    sql = "SELECT later_mid, mid_move, markout FROM markouts('BTCUSDT', horizons := '1s')"
    market.fill([trade_at(BASE_US, side="SELL")], quotes)
    assert market.ask(sql) == [{"later_mid": None, "mid_move": None, "markout": None}]
    market.fill([trade_at(BASE_US, side="SELL")], [*quotes, quote_at(BASE_US + 1_000_001, 3)])
    assert market.ask(sql) == [{"later_mid": Decimal(102), "mid_move": Decimal(-2), "markout": Decimal(-2)}]


@pytest.mark.parametrize("function", ["asof_quotes", "window_quotes", "markouts"])
def test_a_symbol_may_have_any_letters(market: MarketDatabase, function: str) -> None:
    market.fill([trade_at(BASE_US, symbol="{0}'{x}%s")], [quote_at(BASE_US, 1, symbol="{0}'{x}%s")])
    (row,) = market.ask(f"SELECT DISTINCT symbol FROM {function}('{{0}}''{{x}}%s')")
    assert row == {"symbol": "{0}'{x}%s"}


def test_both_ends_of_a_window_are_in_it(market: MarketDatabase) -> None:
    times = {1: -1_000_001, 2: -1_000_000, 3: -1_000_000, 4: 0, 5: 2_000_000, 6: 2_000_000, 7: 2_000_001}
    quotes = [quote_at(BASE_US + us, number, bid=str(number), ask=str(number)) for number, us in times.items()]
    market.fill([trade_at(BASE_US)], quotes)
    sql = "SELECT quote_count, mid_first, mid_last FROM window_quotes('BTCUSDT', before := '1s', after := '2s')"
    assert market.ask(sql) == [{"quote_count": 5, "mid_first": Decimal(2), "mid_last": Decimal(6)}]


def test_the_largest_prices_and_the_widest_spread_are_exact(market: MarketDatabase) -> None:
    most = Decimal("9999999999.99999999")
    quotes = [quote_at(BASE_US, n, str(-most), str(most)) for n in (1, 2)] + [
        quote_at(BASE_US, 3, str(most), str(most))
    ]
    market.fill([trade_at(BASE_US, price=-most)], quotes)
    (row,) = market.ask("SELECT mid, markout FROM markouts('BTCUSDT', horizons := '1us', tolerance := '0s')")
    assert row["mid"] == most
    (row,) = market.ask("SELECT spread_avg, spread_max, mid_max, mid_min FROM window_quotes('BTCUSDT')")
    assert row == {"spread_avg": None, "spread_max": 2 * most, "mid_max": most, "mid_min": Decimal(0)}


def test_bounds_may_lie_anywhere(market: MarketDatabase) -> None:
    market.fill([trade_at(BASE_US)], [quote_at(BASE_US, 1)])
    for function in ("asof_quotes", "window_quotes", "markouts"):
        (row,) = market.ask(f"SELECT count(*) AS n FROM {function}('BTCUSDT', '0001-01-01', '9999-12-31')")
        assert row["n"] == (3 if function == "markouts" else 1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("window_quotes('BTCUSDT', before := '0s', after := INTERVAL 0 SECOND)",
         r"window_quotes has a window of no length; write before, after or both, as in before := '1s'"),
        ("window_quotes('BTCUSDT', before := '1 month')",
         r"before of window_quotes is '1 month', and months differ; write a time of fixed length, as in '5s'"),
        ("asof_quotes('BTCUSDT', tolerance := '-1s')", r"tolerance of asof_quotes is '-1s'; write a number and a unit"),
        ("asof_quotes('BTCUSDT', tolerance := NULL)", r"tolerance of asof_quotes is NULL; write the age at which a "),
        ("asof_quotes('BTCUSDT', ties := 'both')", r"ties of asof_quotes is 'both'; write one of 'quote', 'trade'"),
        ("asof_quotes('BTCUSDT', clock := 'wall')", r"clock of asof_quotes is 'wall'; write one of 'receive', 'event'"),
        ("asof_quotes('BTCUSDT', '2024-01-02', '2024-01-01')", r"asof_quotes is from a time to an earlier one; write"),
        ("markouts('BTCUSDT', horizons := [])", r"horizons of markouts takes intervals of fixed length; write a list"),
        ("markouts('BTCUSDT', horizons := ['1s', '0s'])", r"horizons of markouts is '0s'; write one that is longer"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(market: MarketDatabase, call: str, says: str) -> None:
    with pytest.raises(InvalidStatement, match=f"^{says}") as raised:
        market.ask(f"SELECT * FROM {call}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("function", ["asof_quotes", "window_quotes", "markouts"])
@pytest.mark.parametrize(("clock", "before"), [("receive", "09:54:59"), ("event", "09:59:59")])
def test_files_are_chosen_by_symbol_and_time_on_both_sides(
    market: MarketDatabase, function: str, clock: str, before: str
) -> None:
    """Quotes from as early as matters: a second, and as far as the clocks may be apart."""
    length = "before" if function == "window_quotes" else "tolerance"
    call = (
        f"{function}('BTCUSDT', '2024-08-09T10:00:00Z', '2024-08-09T11:00:00Z', {length} := '1s', clock := '{clock}')"
    )
    tree = tree_of(market.expanded(f"SELECT * FROM {call}"), market.connection)
    found = {ref.name: {(one.column, one.sign): one.operands[0].sql for one in ref.asked} for ref in tables_of(tree)}
    assert found.keys() == {"trades", "quotes"}
    assert found["trades"].keys() == {("symbol", "="), ("event_time", ">="), ("event_time", "<")}
    time = f"{clock}_time"
    assert found["quotes"].keys() == {("symbol", "="), (time, ">="), (time, "<")}
    assert before in found["quotes"][time, ">="]


# -- against others, and on what was recorded


def test_polars_joins_the_same_quotes(market: MarketDatabase) -> None:
    """Quotes by the thousand, a tenth of them at the microsecond of another one."""
    trades = [trade_at(BASE_US + n * 7_919 % 100_000, n) for n in range(1, 1_001)]
    quotes = [quote_at(BASE_US + n * 104_729 % 1_000 * 90, n, str(n), str(n + 2)) for n in range(1, 2_001)]
    market.fill(trades, quotes)
    found = market.ask("SELECT trade_id, quote_id FROM asof_quotes('BTCUSDT', tolerance := '50us') ORDER BY trade_id")
    left = pl.DataFrame({"trade_id": [one["trade_id"] for one in trades], "t": [one["receive_time"] for one in trades]})
    right = pl.DataFrame(
        {"quote_id": [one["quote_id"] for one in quotes], "t": [one["receive_time"] for one in quotes]}
    )
    joined = left.sort("t").join_asof(
        right.sort("t", "quote_id"), on="t", strategy="backward", tolerance=timedelta(microseconds=50)
    )
    assert found == joined.sort("trade_id").select("trade_id", "quote_id").to_dicts()
    assert 0 < sum(row["quote_id"] is None for row in found) < len(found)


def test_on_the_recorded_feed(market: MarketDatabase, captures: dict[str, Path]) -> None:
    trades, quotes = recorded(captures["ethusdt_20240808.gz"], quotes_max=4_000)
    market.fill(trades, quotes)
    some = chosen(trades, None, None)[:: max(1, len(trades) // 40)]
    for function, wanted in (
        ("asof_quotes('ETHUSDT', tolerance := '2s')", asof_rows(some, quotes, LENGTHS["1s"] * 2, "quote", "receive")),
        ("markouts('ETHUSDT', horizons := '5ms')",
         markout_rows(some, quotes, [LENGTHS["5ms"]], LENGTHS["1h"], "quote", "receive")),
        ("window_quotes('ETHUSDT', before := '90s')",
         window_rows(some, quotes, LENGTHS["90s"], LENGTHS["1s"], "receive")),
    ):  # fmt: skip
        found = {row["trade_id"]: row for row in market.ask(f"SELECT * FROM {function}")}
        assert len(found) == len(trades)
        assert [found[one["trade_id"]] for one in some] == list(wanted)
