"""What market functions take: kinds of arguments, and how a constant becomes a value of each. Pure.

Each `value` raises ValueError with what is wrong and what to write instead, which goes on from the argument's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from flight_server.engine.market.widths import Width, width_of
from flight_server.storage.read_view import literal

#: No time at all, as text or as DuckDB writes an INTERVAL of nothing.
_NOTHING = re.compile(r"\s*(?:0+(?:\.0+)?\s*[A-Za-z]+|0?0:00:00(?:\.0+)?)\s*")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Constant:
    """An argument that was computed: its type in SQL, its text, and the items of a list."""

    sql_type: str
    text: str
    items: tuple[str, ...] | None = None


class Kind(Protocol):
    """`sql_type` is what clients are asked for where a parameter stands, and any other that can be read is taken, too;
    `stand_in` stands for a parameter whose value is not known yet."""

    @property
    def sql_type(self) -> str: ...
    @property
    def stand_in(self) -> Any: ...
    def value(self, given: Constant) -> Any: ...


@dataclass(frozen=True)
class Symbols:
    """One symbol or a list of them, as a tuple."""

    sql_type: str = "VARCHAR"
    stand_in: tuple[str, ...] = ("",)

    def value(self, given: Constant) -> tuple[str, ...]:
        found = (given.text,) if given.items is None else tuple(dict.fromkeys(given.items))
        if not found or not all(found):
            raise ValueError("has no symbol in it; write one, or a list of them, as in ['BTCUSDT', 'ETHUSDT']")
        return found


@dataclass(frozen=True)
class Time:
    """An instant; a date, which has no zone, is a naive datetime at its midnight."""

    sql_type: str = "TIMESTAMP WITH TIME ZONE"
    stand_in: None = None

    def value(self, given: Constant) -> datetime:
        text = given.text.strip()
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"is {text[:40]!r}; write a time, as in '2024-08-09T10:00:00Z', or a date") from None
        if found.tzinfo is None and (len(text) > 10 or given.sql_type.startswith("TIMESTAMP")):
            raise ValueError(
                f"is {text[:40]!r}, a time without a zone; write its zone, as in '2024-08-09T10:00:00Z' or "
                "'2024-08-09T20:00:00+10:00'"
            )
        return found


@dataclass(frozen=True)
class Interval:
    """A Width of at least `us_min` microseconds."""

    us_min: int = 100_000
    sql_type: str = "VARCHAR"
    stand_in: Width = Width(us=60_000_000)  # noqa: RUF009  (a frozen value)

    def value(self, given: Constant) -> Width:
        found = width_of(given.text)
        if not found.months and found.us < self.us_min:
            raise ValueError(f"is {given.text[:40]!r}; the shortest is {Width(us=self.us_min)}")
        return found


@dataclass(frozen=True)
class Length:
    """A Width of fixed length, from nothing or from `us_min` microseconds on."""

    us_min: int = 0
    sql_type: str = "INTERVAL"
    stand_in: Width = Width(us=1_000_000)  # noqa: RUF009  (a frozen value)

    def value(self, given: Constant) -> Width:
        found = Width() if _NOTHING.fullmatch(given.text) else width_of(given.text)
        if found.months:
            raise ValueError(f"is {given.text[:40]!r}, and months differ; write a time of fixed length, as in '5s'")
        if found.us < self.us_min:
            raise ValueError(f"is {given.text[:40]!r}; the shortest is {Width(us=self.us_min)}")
        return found


@dataclass(frozen=True)
class Intervals:
    """A tuple of Widths of fixed length, from one interval or a list of them."""

    sql_type: str = "VARCHAR[]"
    stand_in: tuple[Width, ...] = (Width(us=1_000_000),)

    def value(self, given: Constant) -> tuple[Width, ...]:
        found = tuple(map(width_of, (given.text,) if given.items is None else given.items))
        if not found or any(width.months for width in found):
            raise ValueError("takes intervals of fixed length; write a list, as in ['1s', '5s', '60s']")
        return found


@dataclass(frozen=True)
class Number:
    """A Decimal above zero with at most 8 decimals."""

    sql_type: str = "DECIMAL(28,8)"
    stand_in: Decimal = Decimal(1)

    def value(self, given: Constant) -> Decimal:
        try:
            found = Decimal(given.text)
        except InvalidOperation:
            raise ValueError(f"is {given.text[:40]!r}; write a number, as in 0.5") from None
        if not found.is_finite() or found <= 0 or found >= Decimal(10) ** 20:
            raise ValueError(f"is {given.text[:40]}; write a number above 0 and below 10^20")
        if found != found.quantize(Decimal("0.00000001")):
            raise ValueError(f"is {given.text[:40]}; write it with at most 8 decimals")
        return found


@dataclass(frozen=True)
class Integer:
    """A whole number from 1 to `most`."""

    most: int = 2**31
    sql_type: str = "BIGINT"
    stand_in: int = 1

    def value(self, given: Constant) -> int:
        try:
            found = int(given.text)
        except ValueError:
            raise ValueError(f"is {given.text[:40]!r}; write a whole number") from None
        if not 1 <= found <= self.most:
            raise ValueError(f"is {found}; write a whole number from 1 to {self.most}")
        return found


@dataclass(frozen=True)
class Word:
    """One of some words. The SELECT may depend on which it is, so that a parameter stands for the first of them until
    it is known."""

    choices: tuple[str, ...]
    sql_type: str = "VARCHAR"

    @property
    def stand_in(self) -> str:
        return self.choices[0]

    def value(self, given: Constant) -> str:
        for choice in self.choices:
            if given.text.casefold() == choice.casefold():
                return choice
        raise ValueError(f"is {given.text[:40]!r}; write one of {', '.join(map(repr, self.choices))}")


@dataclass(frozen=True)
class Text:
    """Any text."""

    sql_type: str = "VARCHAR"
    stand_in: None = None

    def value(self, given: Constant) -> str:
        return given.text


#: The default of an argument that has to be given.
REQUIRED: Any = object()


@dataclass(frozen=True)
class Taken:
    """An argument that a function takes. `also` are other names of it; those that are keywords need quotes in SQL."""

    name: str
    kind: Kind
    help: str
    default: Any = REQUIRED
    also: tuple[str, ...] = ()

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Call:
    """One call: the values of all arguments by name, the names of the tables of market that there are, and the names,
    lower case, among which are all columns of its result that the statement asks for; None: it may ask for any."""

    values: Mapping[str, Any]
    tables: frozenset[str] = field(default_factory=frozenset)
    named: frozenset[str] | None = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def asks_for(self, *columns: str) -> bool:
        """Whether the statement may ask for one of these columns of the result."""
        return self.named is None or not self.named.isdisjoint(columns)

    def instant_us(self, name: str, zone: str = "UTC") -> int | None:
        """A time in microseconds since 1970; a date is midnight in the zone. None for no bound."""
        found: datetime | None = self.values[name]
        if found is None:
            return None
        if found.tzinfo is None:
            found = found.replace(tzinfo=ZoneInfo(zone))
        passed = found - EPOCH
        return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds

    def relation(self, table: str) -> str:
        """A table of market, as of the call's instant if it has one."""
        as_of = self.values.get("as_of")
        return f"k2.market.{table}" + (f" AT (VERSION => {literal(as_of)})" if as_of else "")


def instant_sql(us: int) -> str:
    """An instant as a constant that compares with a column of times, in whatever zone the session is."""
    return f"TIMESTAMPTZ '{(EPOCH + timedelta(microseconds=us)).isoformat(' ')}'"
