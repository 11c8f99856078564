"""Session options: their names, their types, and which values they take. Pure."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

#: What an option's value may be on the wire; None sets it back to its default.
OptionValue = str | bool | int | float | list[str] | None

CATALOG = "k2"
MARKET = "market"
RESEARCH = "research"
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|min|m|h|)\s*")


class OptionError(Enum):
    """Why an option was not set; Flight's own three reasons."""

    INVALID_NAME = 1
    INVALID_VALUE = 2
    ERROR = 3


@dataclass(frozen=True)
class SessionOptions:
    """`schema` is where names without one are looked up, `as_of` what `AT` is to be for every table ("" is live),
    `statement_timeout_s` a bound below the server's own (None is the server's), `timezone` an IANA name."""

    catalog: str = CATALOG
    schema: str = MARKET
    as_of: str = ""
    statement_timeout_s: float | None = None
    timezone: str = "UTC"

    def values(self, *, timeout_s: float) -> dict[str, OptionValue]:
        """Every option as a client reads it back; `timeout_s` is the server's own."""
        return {
            "catalog": self.catalog,
            "schema": self.schema,
            "k2.as_of": self.as_of,
            "statement_timeout": timeout_s if self.statement_timeout_s is None else self.statement_timeout_s,
            "timezone": self.timezone,
        }

    def replaced_as_of(self, as_of: str) -> SessionOptions:
        """These options with another `as_of`."""
        return replace(self, as_of=as_of)

    def changed(
        self, options: Mapping[str, OptionValue], *, schemas: frozenset[str], timeout_s_max: float
    ) -> tuple[SessionOptions, dict[str, tuple[OptionError, str]]]:
        """These options with the given ones set, and why each other one was not."""
        changed, errors = self, {}
        for name, value in options.items():
            outcome = _set(changed, name, value, schemas, timeout_s_max)
            if isinstance(outcome, SessionOptions):
                changed = outcome
            else:
                errors[name] = outcome
        return changed, errors


def _set(
    options: SessionOptions, name: str, value: OptionValue, schemas: frozenset[str], timeout_s_max: float
) -> SessionOptions | tuple[OptionError, str]:
    default = SessionOptions()
    if name == "catalog":
        if value in (None, CATALOG):
            return replace(options, catalog=CATALOG)
        return OptionError.INVALID_VALUE, f"there is one catalog, {CATALOG}"
    if name == "schema":
        if value is None or (isinstance(value, str) and value in schemas):
            return replace(options, schema=default.schema if value is None else str(value))
        return OptionError.INVALID_VALUE, f"there are the schemas {', '.join(sorted(schemas))}"
    if name == "k2.as_of":
        if value is None or isinstance(value, str):
            return replace(options, as_of=value or "")
        return OptionError.INVALID_VALUE, "it takes a cut, a snapshot id or a time, as text"
    if name == "statement_timeout":
        seconds = _seconds(value)
        if value is not None and (seconds is None or not 0 < seconds <= timeout_s_max):
            return OptionError.INVALID_VALUE, f"it takes more than 0 and at most {timeout_s_max:g} seconds"
        return replace(options, statement_timeout_s=seconds)
    if name == "timezone":
        if value is None or (isinstance(value, str) and value in _zones()):
            return replace(options, timezone=default.timezone if value is None else str(value))
        return OptionError.INVALID_VALUE, "it takes a name of the IANA time zone database, as in 'Australia/Sydney'"
    return OptionError.INVALID_NAME, f"there are the options {', '.join(default.values(timeout_s=0))}"


def _seconds(value: OptionValue) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        return float(found["number"]) * _SECONDS[found["unit"]]
    return None


def _zones() -> set[str]:
    return zoneinfo.available_timezones()


def search_path(schema: str) -> str:
    """Where names without a schema are looked up: there, then in what is everybody's."""
    places = [schema, *(other for other in (MARKET, RESEARCH) if other != schema)]
    return ",".join(f"{CATALOG}.{place}" for place in places)
