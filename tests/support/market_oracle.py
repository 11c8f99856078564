"""Market functions by plain Python: intervals, sessions, and the pieces of time that lie in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from tests.support.market import EPOCH, rounded

MONDAY = datetime(2000, 1, 3, tzinfo=EPOCH.tzinfo)
SYDNEY = ZoneInfo("Australia/Sydney")
OPEN, CLOSE = time(10), time(16, 12)
#: Holidays of ASX in the years that tests ask of; Labour Day, in October, is none.
ASX_HOLIDAYS = {
    *(date(2024, 12, 25), date(2024, 12, 26), date(2025, 1, 1), date(2025, 1, 27)),
    *(
        date(2025, 4, 18),
        date(2025, 4, 21),
        date(2025, 4, 25),
        date(2025, 6, 9),
        date(2025, 12, 25),
        date(2025, 12, 26),
    ),
}
WIDTHS = {
    "100ms": timedelta(milliseconds=100),
    "1s": timedelta(seconds=1),
    "7s": timedelta(seconds=7),
    "1m": timedelta(minutes=1),
    "45m": timedelta(minutes=45),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "1w": timedelta(weeks=1),
    "1 month": 1,
    "3 months": 3,
}


def start_of(moment: datetime, width: timedelta | int, calendar: str) -> datetime | None:
    """The start of the interval of an instant, one step at a time in local time."""
    zone = SYDNEY if calendar == "ASX" else EPOCH.tzinfo
    local = moment.astimezone(zone).replace(tzinfo=None)
    if calendar == "ASX" and not (has_session(local.date()) and OPEN <= local.time() < CLOSE):
        return None
    if isinstance(width, int):
        months = (local.year * 12 + local.month - 1) // width * width
        start = datetime(months // 12, months % 12 + 1, 1)
    else:
        intraday = calendar == "ASX" and width < timedelta(days=1)
        origin = datetime.combine(local.date(), OPEN) if intraday else MONDAY.replace(tzinfo=None)
        start = origin + (local - origin) // width * width
    return start.replace(tzinfo=zone).astimezone(EPOCH.tzinfo)


def has_session(day: date) -> bool:
    return day.weekday() < 5 and day not in ASX_HOLIDAYS


def bar_of(trades: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ordered = sorted(trades, key=lambda one: (one["event_time"], one["trade_id"]))
    volume = sum((one["quantity"] for one in trades), Decimal(0))
    notional = sum((Fraction(one["price"]) * Fraction(one["quantity"]) for one in trades), Fraction(0))
    return {
        "open": ordered[0]["price"],
        "high": max(one["price"] for one in trades),
        "low": min(one["price"] for one in trades),
        "close": ordered[-1]["price"],
        "volume": volume,
        "vwap": rounded(notional, volume) if volume else None,
        "trade_count": len(trades),
    }


def in_range(
    rows: Sequence[Mapping[str, Any]], low: datetime | None, high: datetime | None, calendar: str, column: str
) -> list[Mapping[str, Any]]:
    """The rows of a range, in sessions."""
    return [
        row
        for row in rows
        if (low is None or low <= row[column])
        and (high is None or row[column] < high)
        and start_of(row[column], timedelta(days=1), calendar) is not None
    ]


def pieces(
    begin: datetime, end: datetime, width: timedelta | int | None, calendar: str
) -> Iterator[tuple[datetime | None, timedelta]]:
    """(interval, how long of it lies between the two instants) for each stretch of session in one interval."""
    if calendar == "24/7" and width is None:
        yield None, end - begin
        return
    if calendar == "24/7":
        assert width is not None
        moment = start_of(begin, width, calendar)
        assert moment is not None
        while moment < end:
            after = _after(moment, width)
            yield moment, min(after, end) - max(moment, begin)
            moment = after
        return
    day = begin.astimezone(SYDNEY).date()
    while day <= end.astimezone(SYDNEY).date():
        opens, closes = (datetime.combine(day, one, SYDNEY) for one in (OPEN, CLOSE))
        day += timedelta(days=1)
        if not has_session(opens.date()):
            continue
        step = width if isinstance(width, timedelta) and width < timedelta(days=1) else closes - opens
        moment = opens
        while moment < closes:
            after = min(moment + step, closes)
            if max(moment, begin) < min(after, end):
                start = None if width is None else start_of(moment, width, calendar)
                yield start, min(after, end).astimezone(EPOCH.tzinfo) - max(moment, begin).astimezone(EPOCH.tzinfo)
            moment = after


def _after(start: datetime, width: timedelta | int) -> datetime:
    if isinstance(width, timedelta):
        return start + width
    months = start.year * 12 + start.month - 1 + width
    return start.replace(year=months // 12, month=months % 12 + 1)


def held(
    events: Sequence[tuple[datetime, int, Any]],
    high: datetime | None,
    width: timedelta | int | None,
    calendar: str,
) -> dict[datetime | None, list[tuple[Any, int]]]:
    """For each interval the values that held in it, in order, with for how many microseconds."""
    ordered = sorted(events, key=lambda one: one[:2])
    found: dict[datetime | None, list[tuple[Any, int]]] = {}
    for place, (begin, _, value) in enumerate(ordered):
        is_last = place + 1 == len(ordered)
        end = (high or begin) if is_last else ordered[place + 1][0]
        if begin < end:
            for start, length in pieces(begin, end, width, calendar):
                found.setdefault(start, []).append((value, length // timedelta(microseconds=1)))
        elif is_last:
            start = None if width is None else start_of(begin, width, calendar)
            found.setdefault(start, []).append((value, 0))
    return dict(sorted(found.items(), key=lambda one: one[0] or EPOCH))
