"""ohlcv against plain Python: intervals, calendars and fills over nasty series; K2's own bars give the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import BARS
from common.errors import InvalidStatement
from flight_server.storage.asx_days import CLOSED
from tests.support.market import EPOCH, MarketDatabase, at, by_symbol, rounded, trade_series, us_of
from tests.support.market_oracle import ASX_HOLIDAYS, SYDNEY, WIDTHS, bar_of, in_range, start_of
from tests.support.records import trade

#: 2024-10-04T00:00Z is a Friday; on the 6th clocks go forward in Sydney.
BASE_US = us_of(datetime(2024, 10, 4, tzinfo=EPOCH.tzinfo))


@pytest.fixture(scope="module")
def with_bars() -> Iterator[MarketDatabase]:
    database = MarketDatabase(("trades", "quotes", *BARS))
    yield database
    database.close()


# -- the oracle


def bars(
    trades: Sequence[Mapping[str, Any]],
    low: datetime | None,
    high: datetime | None,
    width: timedelta | int,
    fill: str,
    calendar: str,
) -> list[dict[str, Any]]:
    found = []
    for (exchange, symbol), rows in by_symbol(trades).items():
        intervals: dict[datetime, list[Mapping[str, Any]]] = {}
        for row in in_range(rows, low, high, calendar, "event_time"):
            start = start_of(row["event_time"], width, calendar)
            assert start is not None
            intervals.setdefault(start, []).append(row)
        if not intervals:
            continue
        made = {start: bar_of(inside) for start, inside in sorted(intervals.items())}
        if fill != "none":
            made = filled(made, low, high, width, fill, calendar)
        found += [{"exchange": exchange, "symbol": symbol, "bar_start": start} | bar for start, bar in made.items()]
    return found


def filled(
    made: dict[datetime, dict[str, Any]],
    low: datetime | None,
    high: datetime | None,
    width: timedelta | int,
    fill: str,
    calendar: str,
) -> dict[datetime, dict[str, Any]]:
    # Every start is that of some instant on a fine enough walk through the range.
    fine = timedelta(hours=1)
    if isinstance(width, timedelta) and width < timedelta(days=1):
        fine = min(width, timedelta(minutes=1))
    moment = min(made) if low is None else low
    last = max(made) if high is None else high - timedelta(microseconds=1)
    starts = set(made)
    while moment <= last:
        start = start_of(moment, width, calendar)
        if start is not None:
            starts.add(start)
        moment += fine
    if (start := start_of(last, width, calendar)) is not None:
        starts.add(start)
    rows = sorted(starts)
    traded = [place for place, start in enumerate(rows) if start in made]
    found = {}
    for place, start in enumerate(rows):
        before = max((one for one in traded if one < place), default=None)
        behind = min((one for one in traded if one > place), default=None)
        price = None
        if fill == "previous" and before is not None:
            price = made[rows[before]]["close"]
        if fill == "linear" and before is not None and behind is not None:
            first, second = Fraction(made[rows[before]]["close"]), Fraction(made[rows[behind]]["open"])
            price = rounded(first + (second - first) * (place - before) / (behind - before), 1)
        empty = dict.fromkeys(("open", "high", "low", "close"), price)
        found[start] = made.get(start) or empty | {"volume": Decimal(0), "vwap": None, "trade_count": 0}
    return found


# -- against it


@st.composite
def asked(draw: st.DrawFn) -> tuple[list[dict[str, Any]], datetime | None, datetime | None, str, str, str]:
    width = draw(st.sampled_from(list(WIDTHS)))
    calendar = draw(st.sampled_from(["24/7", "ASX"]))
    length = WIDTHS[width] if isinstance(WIDTHS[width], timedelta) else timedelta(days=60)
    assert isinstance(length, timedelta)
    spread_us = min(12 * length, timedelta(days=200)) // timedelta(microseconds=1)
    base_us = BASE_US + draw(st.sampled_from([0, 3_600_000_000 * 4]))
    trades = draw(trade_series(base_us=base_us, spread_us=spread_us))
    bound = st.none() | st.integers(0, spread_us).map(lambda us: at(base_us + us))
    low, high = draw(bound), draw(bound)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return trades, low, high, width, draw(st.sampled_from(["none", "null", "previous", "linear"])), calendar


def sql(low: datetime | None, high: datetime | None, width: str, fill: str, calendar: str, symbols: str = "") -> str:
    bounds = ", ".join("NULL" if one is None else f"'{one.isoformat()}'" for one in (low, high))
    return f"SELECT * FROM ohlcv({symbols or ['A', 'B']}, {bounds}, '{width}', '{fill}', calendar := '{calendar}')"


@settings(max_examples=50, deadline=None)
@given(asked())
def test_bars_are_those_of_plain_python(market: MarketDatabase, case: Any) -> None:
    trades, low, high, width, fill, calendar = case
    market.fill(trades)
    found = market.ask(sql(low, high, width, fill, calendar))
    assert found == bars(trades, low, high, WIDTHS[width], fill, calendar)


@settings(max_examples=25, deadline=None)
@given(
    trade_series(base_us=BASE_US, spread_us=172_800_000_000, step_us=500_000, count_max=16),
    st.sampled_from(["1s", "2s", "1m", "90s", "1h", "4h", "1d", "1w", "1 month"]),
    st.sampled_from(["24/7", "ASX"]),
    st.sampled_from(["none", "previous"]),
    st.tuples(*[st.none() | st.integers(0, 48).map(lambda hour: at(BASE_US + hour * 3_600_000_000))] * 2),
)
def test_out_of_kept_bars_they_are_the_same(
    market: MarketDatabase, with_bars: MarketDatabase, trades: Any, width: str, calendar: str, fill: str, bounds: Any
) -> None:
    low, high = sorted(bounds) if None not in bounds else bounds
    if fill != "none" and width.endswith("s"):
        fill = "none"  # two days of seconds
    for database in (market, with_bars):
        database.fill(trades)
    statement = sql(low, high, width, fill, calendar)
    assert "market.bars_" in with_bars.expanded(statement)
    assert "market.trades" not in with_bars.expanded(statement)
    assert with_bars.ask(statement) == market.ask(statement)


@pytest.mark.parametrize(
    ("width", "low", "calendar", "table"),
    [
        ("1d", "2024-10-04", "24/7", "bars_1d"),
        ("1w", "2024-10-04", "24/7", "bars_1d"),
        ("1 month", "2024-10-04", "24/7", "bars_1d"),
        ("1d", "2024-10-04T05:00Z", "24/7", "bars_1h"),
        ("1d", "2024-10-04T05:30Z", "24/7", "bars_1m"),
        ("90m", "2024-10-04", "24/7", "bars_1m"),
        ("7s", "2024-10-04", "24/7", "bars_1s"),
        ("1m", "2024-10-04T00:00:00.1Z", "24/7", "trades"),
        ("100ms", "2024-10-04", "24/7", "trades"),
        ("1500ms", "2024-10-04", "24/7", "trades"),
        ("1d", "2024-10-04", "ASX", "bars_1m"),
        ("1h", "2024-10-04", "ASX", "bars_1m"),
    ],
)
def test_the_coarsest_bars_that_fit_are_read(
    with_bars: MarketDatabase, width: str, low: str, calendar: str, table: str
) -> None:
    found = with_bars.expanded(f"SELECT * FROM ohlcv('A', '{low}', NULL, '{width}', calendar := '{calendar}')")
    assert f"FROM k2.market.{table} WHERE" in found


def test_of_equal_times_the_lower_id_opens_and_the_higher_closes(market: MarketDatabase) -> None:
    moment = at(BASE_US)
    market.fill([trade(n, symbol="A", event_time=moment, price=Decimal(n)) for n in (20, 3, 100)])
    (bar,) = market.ask("SELECT * FROM ohlcv('A', every := '1m')")
    assert (bar["open"], bar["close"]) == (Decimal(3), Decimal(100))


def test_more_than_can_be_filled_is_refused(market: MarketDatabase) -> None:
    with pytest.raises(InvalidStatement, match=r"^ohlcv would fill 18,144,002 intervals of 100ms; ask for"):
        market.expanded("SELECT * FROM ohlcv('A', '2024-01-01', '2024-01-22', '100ms', 'null')")


def test_dates_are_midnights_of_the_calendar(market: MarketDatabase) -> None:
    trades = [trade(n, symbol="A", event_time=datetime(2024, 10, 3 + n, 1, tzinfo=EPOCH.tzinfo)) for n in range(3)]
    market.fill(trades)
    found = market.ask("SELECT * FROM ohlcv('A', '2024-10-04', '2024-10-05', '1d', calendar := 'ASX')")
    assert [bar["bar_start"] for bar in found] == [datetime(2024, 10, 4, tzinfo=SYDNEY)]
    assert found[0]["trade_count"] == 1


@pytest.mark.parametrize("calendar", ["24/7", "ASX"])
@pytest.mark.parametrize("every", ["1h", "1d", "1w", "1 month"])
def test_a_fill_has_the_interval_that_begins_before_its_range(
    market: MarketDatabase, every: str, calendar: str
) -> None:
    moment = at(BASE_US + 1_800_000_000)
    market.fill([trade(1, symbol="A", event_time=moment)])
    (bar,) = market.ask(sql(moment, None, every, "null", calendar))
    assert bar["trade_count"] == 1
    assert bar["bar_start"] < moment


def test_a_holiday_has_no_session(market: MarketDatabase) -> None:
    """Good Friday and Easter Monday of 2025; ANZAC Day, that Friday, too. Trades on such days are none of ASX's."""
    noon = [datetime(2025, 4, day, 12, tzinfo=SYDNEY) for day in (17, 18, 21, 22, 24, 25, 28)]
    market.fill([trade(number, symbol="A", event_time=moment) for number, moment in enumerate(noon)])
    found = market.ask("SELECT * FROM ohlcv('A', '2025-04-17', '2025-04-29', '1d', 'null', calendar := 'ASX')")
    assert [(bar["bar_start"].astimezone(SYDNEY).day, bar["trade_count"]) for bar in found] == [
        (17, 1), (22, 1), (23, 0), (24, 1), (28, 1),
    ]  # fmt: skip
    (held,) = market.ask("SELECT held_us FROM twap('A', '2025-04-17', '2025-04-22', calendar := 'ASX')")
    assert held["held_us"] == (4 * 60 + 12) * 60_000_000, "from noon to the close of the 17th, and no time of Easter"


def test_the_days_that_are_kept_are_weekdays_of_whole_years() -> None:
    years = [line.split(": ") for line in CLOSED.split("\n") if line]
    assert [int(year) for year, _ in years] == list(range(2000, 2000 + len(years)))
    days = [date.fromisoformat(f"{year}-{day}") for year, found in years for day in found.split()]
    assert days == sorted(set(days))
    assert all(day.weekday() < 5 for day in days)
    assert {day for day in days if day.year == 2025} == {day for day in ASX_HOLIDAYS if day.year == 2025}
