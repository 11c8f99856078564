"""How long an interval of time is, read from text. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_US["w"] = 7 * _US["d"]
DAY_US, WEEK_US = _US["d"], _US["w"]
_MONTHS = {"mon": 1, "q": 3, "y": 12}
_UNITS = {
    "us": "us microsecond microseconds",
    "ms": "ms msec millisecond milliseconds",
    "s": "s sec secs second seconds",
    "m": "m min mins minute minutes",
    "h": "h hr hrs hour hours",
    "d": "d day days",
    "w": "w week weeks",
    "mon": "mo mon mons month months",
    "q": "q quarter quarters",
    "y": "y yr year years",
}
_UNIT_OF = {word: unit for unit, words in _UNITS.items() for word in words.split()}
_PART = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]+)")
#: As DuckDB writes the part of an INTERVAL that is below a day.
_CLOCK = re.compile(r"\s*(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d(?:\.\d{1,6})?)\s*$")


@dataclass(frozen=True)
class Width:
    """An interval: whole calendar months, or microseconds; never both, and never nothing."""

    months: int = 0
    us: int = 0

    def __str__(self) -> str:
        if self.months:
            return f"{self.months} month{'s' * (self.months > 1)}"
        for unit in ("w", "d", "h", "m", "s", "ms"):
            if self.us % _US[unit] == 0:
                return f"{self.us // _US[unit]}{unit}"
        return f"{self.us}us"


def width_of(text: str) -> Width:
    """The interval that a text says: 100ms, 5m, 1 hour 30 minutes, 1 month, 01:30:00. Raises ValueError, whose text
    goes on from "the interval "."""
    months, us, at = 0, Decimal(0), 0
    while at < len(text.rstrip()):
        if (clock := _CLOCK.match(text, at)) is not None:
            us += (int(clock["h"]) * 3_600 + int(clock["m"]) * 60 + Decimal(clock["s"])) * 1_000_000
            break
        part = _PART.match(text, at)
        unit = None if part is None else _UNIT_OF.get(_folded(part["unit"]))
        if part is None or unit is None:
            raise ValueError(
                f"is {text[:40]!r}; write a number and a unit, as in '100ms', '5m', '1h', '1d' or '1 month'"
            )
        number = Decimal(part["number"])
        if unit in _MONTHS:
            if number % 1:
                raise ValueError(f"is {text[:40]!r}; months come whole")
            months += int(number) * _MONTHS[unit]
        else:
            us += number * _US[unit]
        at = part.end()
    if months and us:
        raise ValueError(f"is {text[:40]!r}; write months or a time of fixed length, and not both")
    if us % 1 or not (months or us):
        raise ValueError(f"is {text[:40]!r}; write one that is longer than nothing, as in '1m'")
    if months > 1_200 or us > 36_500 * DAY_US:
        raise ValueError(f"is {text[:40]!r}; the longest is a hundred years")
    return Width(months, int(us))


def _folded(unit: str) -> str:
    """A unit without case; `M`, which is a minute to some and a month to others, is none."""
    return unit if unit == "M" else unit.lower()
