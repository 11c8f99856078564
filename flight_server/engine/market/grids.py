"""How time is divided into intervals: around the clock, or within the sessions of a calendar. Pure.

Guarantee: `start_of` and `starts` agree: the start of every instant is one of the starts, and instants of no session
have none. Intervals of a fixed length count from Monday, 2000-01-03, 00:00 UTC, as DuckDB's time_bucket does, so that
weeks begin on Mondays; calendar months from 2000-01.

Within sessions, intervals that are shorter than a day count from the open of the session, and the last one ends with
it; days, weeks and months are those of the calendar's zone, and have the trades of its sessions only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flight_server.engine.market.arguments import instant_sql
from flight_server.engine.market.widths import DAY_US, Width

_MONDAY_US = 946_857_600_000_000  # 2000-01-03T00:00:00Z
_MINUTE_US = 60_000_000


@dataclass(frozen=True)
class Calendar:
    """Sessions from `open_us` to `close_us` after local midnight, Mondays to Fridays; without `zone`: around the clock.
    `closed` is a macro that says of a local time whether its day is a holiday. Half days count as whole ones."""

    name: str
    zone: str = "UTC"
    open_us: int = 0
    close_us: int = DAY_US
    closed: str = ""

    @property
    def has_sessions(self) -> bool:
        return (self.open_us, self.close_us) != (0, DAY_US)

    def has_session_on(self, moment: str) -> str:
        """The condition that there is a session on the day of a local time, as SQL."""
        return f"isodow({moment}) <= 5" + (f" AND NOT {self.closed}({moment})" if self.closed else "")


#: ASX, normal trading and the closing single price auction, which is over by 16:12.
CALENDARS = {
    one.name: one
    for one in (
        Calendar("24/7"),
        Calendar("ASX", "Australia/Sydney", 10 * 60 * _MINUTE_US, (16 * 60 + 12) * _MINUTE_US, "k2_asx_closed"),
    )
}


@dataclass(frozen=True)
class Grid:
    """The intervals of one width in one calendar; without a width all time is one. Raises ValueError for a width that
    the calendar has no use for."""

    width: Width | None
    calendar: Calendar = CALENDARS["24/7"]

    def __post_init__(self) -> None:
        if self.width is None:
            return
        if self.calendar.has_sessions and self.width.us > DAY_US and self.width.us % DAY_US:
            raise ValueError(
                f"has intervals of {self.width}, and sessions of {self.calendar.name}; write less than a day, or whole "
                "days, weeks or months"
            )

    @property
    def resolution_us(self) -> int:
        """All starts and ends are multiples of this since 1970, UTC; 0 for none."""
        if self.calendar.has_sessions:
            return math.gcd(self._width.us, _MINUTE_US) if self._is_intraday else _MINUTE_US
        return 0 if self.width is None else math.gcd(self._width.us, DAY_US)

    def is_open(self, time: str) -> str:
        """The condition that an instant is in a session, as SQL. `time` is a column."""
        if not self.calendar.has_sessions:
            return "true"
        passed, local = self._passed(time), self._local(time)
        hours = f"{passed} >= {self.calendar.open_us} AND {passed} < {self.calendar.close_us}"
        return f"{self.calendar.has_session_on(local)} AND {hours}"

    def start_of(self, time: str) -> str:
        """The start of the interval that an instant is in, if it is in a session, as SQL; NULL without a width."""
        if self.width is None:
            return "CAST(NULL AS TIMESTAMPTZ)"
        if not self.calendar.has_sessions:
            if self.width.months:
                return _zoned(f"time_bucket({self._step}, timezone('UTC', {time}))", "UTC")
            return f"make_timestamptz(epoch_us({time}) - {_modulo(f'epoch_us({time}) - {_MONDAY_US}', self.width.us)})"
        day = f"date_trunc('day', {self._local(time)})"
        if not self._is_intraday:
            return _zoned(self._day_bucket(day), self.calendar.zone)
        since = f"({self._passed(time)} - {self.calendar.open_us})"
        start = f"{day} + to_microseconds({self.calendar.open_us} + {since} - {since} % {self.width.us})"
        return _zoned(start, self.calendar.zone)

    def pieces(self, begin: str, end: str) -> str:
        """An SQL list of the stretches {bar_start, begins, ends} of sessions, each in one interval and all apart, that
        may lie between two instants, both included, which are columns."""
        if self.calendar.has_sessions:
            return self._session_pieces(begin, end)
        if self.width is None:
            return f"[{{'bar_start': {self.start_of(begin)}, 'begins': {begin}, 'ends': {end}}}]"
        starts = self._starts(begin, end)
        after = (
            _zoned(f"timezone('UTC', start) + {self._step}", "UTC")
            if self.width.months
            else f"start + to_microseconds({self.width.us})"
        )
        return f"list_transform({starts}, lambda start: {{'bar_start': start, 'begins': start, 'ends': {after}}})"

    def starts(self, low: int | None, high: int | None) -> str:
        """An SQL list of the starts of all intervals from that of the instant `low` to the last that begins before
        `high`, in order. Without one: from the column `first_start`, to the column `last_start`.

        Only those in which a session is.
        """
        begin = "first_start" if low is None else instant_sql(low)
        # The last start that is wanted lies at or before this.
        end = "last_start" if high is None else instant_sql(high - 1)
        if self.calendar.has_sessions:
            return self._session_starts(begin, end, is_bounded=high is not None)
        return self._starts(begin, end)

    def _starts(self, begin: str, end: str) -> str:
        first, last = (self.start_of(one) for one in (begin, end))
        if self._width.months:
            local = f"generate_series(timezone('UTC', {first}), timezone('UTC', {last}), {self._step})"
            return f"list_transform({local}, lambda local: {_zoned('local', 'UTC')})"
        series = f"range(epoch_us({first}), epoch_us({last}) + 1, {self._width.us})"
        return f"list_transform({series}, lambda us: make_timestamptz(us))"

    @property
    def _width(self) -> Width:
        return self.width or Width()

    @property
    def _is_intraday(self) -> bool:
        return 0 < self._width.us < DAY_US

    @property
    def _step(self) -> str:
        return f"INTERVAL {self._width.months} MONTH"

    def _local(self, time: str) -> str:
        return f"timezone('{self.calendar.zone}', {time})"

    def _passed(self, time: str) -> str:
        """Microseconds since local midnight."""
        return f"(epoch_us({self._local(time)}) - epoch_us(date_trunc('day', {self._local(time)})))"

    def _day_bucket(self, day: str) -> str:
        """The local midnight at which the interval of a local midnight begins."""
        if self._width.months:
            return f"time_bucket({self._step}, {day})"
        return f"{day} - to_microseconds({_modulo(f'epoch_us({day}) - {_MONDAY_US}', self._width.us)})"

    def _days(self, begin: str, end: str) -> str:
        """The local midnights of all days with a session, from that of one instant to that of another."""
        zone = self.calendar.zone
        first, last = f"date_trunc('day', timezone('{zone}', {begin}))", f"timezone('{zone}', {end})"
        days = f"generate_series({first}, {last}, INTERVAL 1 DAY)"
        return f"list_filter({days}, lambda day: {self.calendar.has_session_on('day')})"

    def _at(self, us: object) -> str:
        """The instant so many microseconds after the local midnight `day`."""
        return _zoned(f"day + to_microseconds({us})", self.calendar.zone)

    def _session_starts(self, begin: str, end: str, *, is_bounded: bool) -> str:
        opens_us, closes_us = self.calendar.open_us, self.calendar.close_us
        if not is_bounded:
            end = f"greatest({begin}, {end})"  # the last interval may have begun before the first bound
        days = self._days(begin, end)
        if self._is_intraday:
            ends = self._at(f"least(us + {self._width.us}, {closes_us})")
            wanted = f"lambda us: {self._at('us')} <= {end} AND {ends} > {begin}"
            offsets = f"list_filter(range({opens_us}, {closes_us}, {self._width.us}), {wanted})"
            return (
                f"flatten(list_transform({days}, lambda day: list_transform({offsets}, lambda us: {self._at('us')})))"
            )
        # A day is there when some of its session lies between the bounds. `last_start` is a midnight, before its day.
        opened = f"{self._at(opens_us)} <= {end} AND " if is_bounded else ""
        some = f"list_filter({days}, lambda day: {opened}{self._at(closes_us)} > {begin})"
        starts = f"list_transform({some}, lambda day: {_zoned(self._day_bucket('day'), self.calendar.zone)})"
        return f"list_sort(list_distinct({starts}))"

    def _session_pieces(self, begin: str, end: str) -> str:
        opens_us, closes_us = self.calendar.open_us, self.calendar.close_us
        days = self._days(begin, end)
        if self._is_intraday:
            ends = self._at(f"least(us + {self._width.us}, {closes_us})")
            piece = f"{{'bar_start': {self._at('us')}, 'begins': {self._at('us')}, 'ends': {ends}}}"
            wanted = f"lambda us: {self._at('us')} <= {end} AND {ends} > {begin}"
            offsets = f"list_filter(range({opens_us}, {closes_us}, {self._width.us}), {wanted})"
            return f"flatten(list_transform({days}, lambda day: list_transform({offsets}, lambda us: {piece})))"
        start = "CAST(NULL AS TIMESTAMPTZ)"
        if self.width is not None:
            start = _zoned(self._day_bucket("day"), self.calendar.zone)
        piece = f"{{'bar_start': {start}, 'begins': {self._at(opens_us)}, 'ends': {self._at(closes_us)}}}"
        return f"list_transform({days}, lambda day: {piece})"


#: One interval, around the clock.
ALL_TIME = Grid(None)


def count_of(grid: Grid, low: int, high: int) -> int:
    """How many intervals lie between two instants, at most and nearly."""
    width = grid.width or Width(us=high - low + 1)
    return (high - low) // (width.us or width.months * 28 * DAY_US) + 2


def _zoned(local: str, zone: str) -> str:
    return f"timezone('{zone}', {local})"


def _modulo(dividend: str, divisor: int) -> str:
    """What is left of an integer above the multiple below it; DuckDB's % takes the sign of the dividend."""
    return f"(({dividend}) % {divisor} + {divisor}) % {divisor}"
