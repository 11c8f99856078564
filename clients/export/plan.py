"""Pure: how a result is cut into slices, each of which can be asked for again and is then the same rows.

A slice is the statement behind a condition on its own columns. Ranges of values, not files or endpoints: those are
others after a restart or a compaction, the rows at a cut that have a value are not. The rows of each slice are counted
when it is planned, so that what is read later can be held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any, Protocol

import pyarrow as pa

#: Where the time of a row is, the best first; other times of a result come after these.
TIME_COLUMNS = ("event_time", "receive_time", "bar_start", "committed_at")
#: The day of a row, where the result has no column of that name.
DATE = "date"
#: So many values of the finest level go into one slice: slices differ in size by no more than a part in so many.
_BUCKETS_PER_SLICE, _BUCKETS_MAX = 16, 4_096
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Slice:
    """`where` is None for the whole result in one; `rows` None where nobody has counted them."""

    where: str | None
    rows: int | None


class Level(Protocol):
    """What rows are told apart by."""

    @property
    def expression(self) -> str:
        """Its value, in SQL."""
        ...

    def between(self, first: Any, last: Any) -> str:
        """The condition for the values from `first` to `last`, both inclusive and neither None."""
        ...

    def is_null(self) -> str: ...


@dataclass(frozen=True)
class ColumnLevel:
    """The values of a column themselves."""

    name: str

    @property
    def expression(self) -> str:
        return identifier(self.name)

    def between(self, first: Any, last: Any) -> str:
        if first == last:
            return f"{self.expression} = {literal(first)}"
        return f"{self.expression} >= {literal(first)} AND {self.expression} <= {literal(last)}"

    def is_null(self) -> str:
        return f"{self.expression} IS NULL"


@dataclass(frozen=True)
class DayLevel:
    """The day, in UTC, of a column of times."""

    name: str
    has_zone: bool

    @property
    def expression(self) -> str:
        return f"CAST({identifier(self.name)} AS DATE)"

    def between(self, first: date, last: date) -> str:
        begin, end = (datetime(day.year, day.month, day.day) for day in (first, last + timedelta(days=1)))
        return _from_until(self.name, *(literal(_zoned(each) if self.has_zone else each) for each in (begin, end)))

    def is_null(self) -> str:
        return f"{identifier(self.name)} IS NULL"


@dataclass(frozen=True)
class RangeLevel:
    """Which of the equal ranges of a column a value is in. `least` is the column's least value, as an integer: of a
    time its microseconds since 1970."""

    name: str
    least: int
    width: int
    kind: pa.DataType

    @property
    def expression(self) -> str:
        column = identifier(self.name)
        value = f"epoch_us({column})" if pa.types.is_timestamp(self.kind) else f"{column}::HUGEINT"
        return f"({value} - ({self.least})) // {self.width}"

    def between(self, first: Any, last: Any) -> str:
        begin, end = (self.least + int(number) * self.width for number in (first, last + 1))
        return _from_until(self.name, self._text(begin), self._text(end))

    def is_null(self) -> str:
        return f"{identifier(self.name)} IS NULL"

    def _text(self, value: int) -> str:
        if not pa.types.is_timestamp(self.kind):
            return str(value)
        time = _EPOCH + timedelta(microseconds=value)
        return literal(time if self.kind.tz is not None else time.replace(tzinfo=None))


def time_columns(schema: pa.Schema) -> list[str]:
    """The columns of times, the one that says most of a row's time first."""
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    return sorted(_once(schema, times), key=lambda name: TIME_COLUMNS.index(name) if name in TIME_COLUMNS else 99)


def split_candidates(schema: pa.Schema) -> list[str]:
    """Columns that slices may be ranges of: times before integers."""
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    return time_columns(schema) + _once(schema, integers)


def range_level(name: str, kind: pa.DataType, least: int, greatest: int, slices: int) -> RangeLevel:
    """Ranges of a column that are fine enough to make so many slices of about the same size."""
    buckets = min(_BUCKETS_MAX, slices * _BUCKETS_PER_SLICE)
    return RangeLevel(name, least, max(1, -(-(greatest - least + 1) // buckets)), kind)


def slices_of(levels: Sequence[Level], counts: Sequence[tuple[tuple[Any, ...], int]], rows_max: int) -> list[Slice]:
    """Slices that together have each counted row once, of at most `rows_max` rows where values can be told apart.

    `counts` has the number of rows of each combination of the levels' values, ordered by the values, NULLs last.
    """
    return list(_slices(levels, counts, rows_max, 0, ()))


def _slices(
    levels: Sequence[Level],
    counts: Sequence[tuple[tuple[Any, ...], int]],
    rows_max: int,
    depth: int,
    within: tuple[str, ...],
) -> Iterator[Slice]:
    level = levels[depth]
    open_: list[tuple[Any, int]] = []  # neighbouring values that are to be one slice

    def closed() -> Iterator[Slice]:
        if open_:
            where = level.between(open_[0][0], open_[-1][0])
            yield Slice(" AND ".join((*within, where)), sum(rows for _, rows in open_))
            open_.clear()

    for value, group in _grouped(counts, depth):
        rows = sum(count for _, count in group)
        can_be_split = rows > rows_max and depth + 1 < len(levels)
        if value is None or can_be_split or sum(each for _, each in open_) + rows > rows_max:
            yield from closed()
        if can_be_split:
            where = level.is_null() if value is None else level.between(value, value)
            yield from _slices(levels, group, rows_max, depth + 1, (*within, where))
        elif value is None:
            yield Slice(" AND ".join((*within, level.is_null())), rows)
        else:
            open_.append((value, rows))
    yield from closed()


def _grouped(
    counts: Sequence[tuple[tuple[Any, ...], int]], depth: int
) -> Iterator[tuple[Any, list[tuple[tuple[Any, ...], int]]]]:
    key: Callable[[tuple[tuple[Any, ...], int]], Any] = lambda entry: entry[0][depth]  # noqa: E731
    return ((value, list(group)) for value, group in groupby(counts, key))


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A value of a result as SQL that is that value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return str(value) if isinstance(value, int) else f"{value:f}"
    if isinstance(value, datetime):
        zoned = value.tzinfo is not None
        text = (value.astimezone(UTC) if zoned else value).isoformat(" ", timespec="microseconds")
        return f"{'TIMESTAMPTZ' if zoned else 'TIMESTAMP'} '{text}'"
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    return "'" + str(value).replace("'", "''") + "'"


def _from_until(name: str, begin: str, end: str) -> str:
    return f"{identifier(name)} >= {begin} AND {identifier(name)} < {end}"


def _zoned(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC)


def _once(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Those that name one column only."""
    return [name for name in names if schema.names.count(name) == 1]
