"""What every job of maintenance looks like: it tells its progress, stops between two steps when told to, and reports.

A job is a function `job(table, ..., progress=..., dry_run=...) -> Report`. What holds for each of them:

- It decides from values first (pure), and says no with `Refused` before anything is changed, not half-way.
- What it changes, it changes by single commits of the catalog, each complete in itself. Between two of them, and
  between any other two steps, it calls `progress`; a job that is to end raises `Interrupted` from there. Stopped there,
  or killed at any other moment, it leaves at most files that nothing refers to.
- A dry run does the same up to the first change, and reports what would be changed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from pyiceberg.table import Table

from common.errors import Interrupted


class MaintainedTable(Protocol):
    """A table as the jobs see it; `sink.table.IcebergTable` is one, `sink.maintenance.tables` opens any other."""

    @property
    def name(self) -> str:
        """With its namespace, `market.trades`."""
        ...

    @property
    def iceberg_table(self) -> Table:
        """PyIceberg's own object, as of the last load."""
        ...

    def reload(self) -> None:
        """Ask the catalog for the newest state. Raises CatalogError."""
        ...


class Progress(Protocol):
    """Who watches a job, and may end it: then both methods raise Interrupted, which the job lets pass."""

    def step(self, doing: str, total: int | None = None) -> None:
        """The job begins to do this; `total` is how many units it will take, None when nobody knows."""
        ...

    def advance(self, units: int = 1) -> None:
        """So many units more of the step are done."""
        ...


class Unwatched:
    """Nobody watches. `stop`, once set, ends the job at its next step."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop

    def step(self, doing: str, total: int | None = None) -> None:
        if self._stop is not None and self._stop.is_set():
            raise Interrupted(f"stopped before the next step ({doing}); nothing is half done, run it again to go on")

    def advance(self, units: int = 1) -> None:
        self.step("the same step's next part")


UNWATCHED = Unwatched()


@dataclass(frozen=True)
class Report:
    """What a job did, or with `dry_run` would have done, to one table. Subclasses add their counts and `to_text`.

    Counts are plural nouns, bytes are `nbytes` with what they are of in front.
    """

    job: ClassVar[str]

    table: str
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them, `job` first; the keys are stable."""
        return {"job": self.job} | {field.name: _json(getattr(self, field.name)) for field in fields(self)}

    def to_text(self) -> str:
        """The same for people, without the table's name. One line unless there is a list to show."""
        raise NotImplementedError


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_json(each) for each in value]
    if hasattr(value, "to_json"):
        return value.to_json()
    return value


def in_bytes(nbytes: int) -> str:
    """A number of bytes for people, `3.4 MB`."""
    value = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_time(seconds: float) -> str:
    """A duration for people, `90 s`, `15 m`, `24 h`, in the largest unit that it is a whole number of."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length:g} {unit}"
    return f"{seconds:g} s"
