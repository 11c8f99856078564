"""What the sink does less of under load, least important first. Pure.

Guarantee: nothing of the log is left out. What waits stays in the log and is read later from where its table stands;
the trades wait last and go on first. At no level does everything wait for good, whatever the figures say.

    SOFT             bars wait
    GRACEFUL         depth, book snapshots and aggregate trades wait
    AGGRESSIVE       quotes wait
    CIRCUIT_BREAK    all wait; every `load_recover_after_s` a little is read of what waits at no level before this

Two loads bring these levels. One is how many records of the trades wait in the log: then others wait, so that trades
catch up; it never brings CIRCUIT_BREAK, since a log that is not read only grows. The other is this process's memory:
then commits are smaller too, a half, a quarter, an eighth and a sixteenth, and nothing is read while files are written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from common.datasets import AGG_TRADES, BOOK_SNAPSHOTS, DEPTH, QUOTES
from common.degradation import Degradation, Level, Triggers
from common.errors import SettingsError
from common.offsets import PartitionOffsets
from common.settings import SinkSettings

#: From which level on a dataset waits; any other does at CIRCUIT_BREAK.
_WAITS_FROM: Final[Mapping[str, Level]] = {
    DEPTH.name: Level.GRACEFUL,
    BOOK_SNAPSHOTS.name: Level.GRACEFUL,
    AGG_TRADES.name: Level.GRACEFUL,
    QUOTES.name: Level.AGGRESSIVE,
}
_NEVER: Final = (math.inf, math.inf, math.inf, math.inf)


@dataclass(frozen=True)
class Allowance:
    """What the worker of one dataset may do: read at all, hold so much of a full commit, read on while it writes."""

    reads: bool = True
    commit_share: float = 1.0
    reads_on: bool = True


#: What a worker may without load.
FULL: Final = Allowance()


def allowance(dataset: str, *, behind: Level, memory: Level, trying: bool = False) -> Allowance:
    """What is allowed at the levels of the two loads; while `trying`, CIRCUIT_BREAK is as the level before it."""
    level = max(behind, memory)
    if trying:
        level = min(level, Level.AGGRESSIVE)
    return Allowance(
        reads=level < _WAITS_FROM.get(dataset, Level.CIRCUIT_BREAK),
        commit_share=0.5**memory,
        reads_on=memory is Level.NORMAL,
    )


def records_behind(ends: PartitionOffsets, read: PartitionOffsets, rows_held: int) -> int:
    """How many records of the partitions that are read are in no table yet, transactions' marks among them."""
    return sum(max(0, ends.next_offset(partition) - offset) for partition, offset in read.items()) + rows_held


def load_triggers(settings: SinkSettings) -> tuple[Triggers, Triggers]:
    """The settings' levels, of records behind and of memory. Raises SettingsError where one begins before another."""
    for name in ("load_records_behind", "load_memory_percent"):
        values = list(getattr(settings, name))
        if values != sorted(values) or values[0] <= 0:
            raise SettingsError(
                f"K2_SINK_{name.upper()} is {values}; give {len(values)} numbers above 0, none below the one before it"
            )
    times = {"rise_after_s": settings.load_after_s, "recover_after_s": settings.load_recover_after_s}
    soft, graceful, aggressive = settings.load_records_behind
    return (
        Triggers((soft, graceful, aggressive, math.inf), _NEVER, **times),
        Triggers(_NEVER, settings.load_memory_percent, **times),
    )


class SinkLoad:
    """The load of one sink and what its workers may. One thread observes; `allowance` may be asked from any."""

    def __init__(self, settings: SinkSettings) -> None:
        """Raises SettingsError for levels that do not rise."""
        behind, memory = load_triggers(settings)
        self._behind, self._memory = Degradation(behind), Degradation(memory)
        self._try_every_s = settings.load_recover_after_s
        #: Since when all waits, and how much was read when it was last tried; None while that is not so.
        self._waiting_since_s: float | None = None
        self._tried_at_rows: int | None = None
        self._levels = (Level.NORMAL, Level.NORMAL, False)

    @property
    def level(self) -> Level:
        behind, memory, _ = self._levels
        return max(behind, memory)

    @property
    def memory_level(self) -> Level:
        return self._levels[1]

    def allowance(self, dataset: str) -> Allowance:
        """What the dataset's worker may do now."""
        behind, memory, trying = self._levels
        return allowance(dataset, behind=behind, memory=memory, trying=trying)

    def observe(self, *, records_behind: int, memory_percent: float, rows_read: int, now_s: float) -> bool:
        """Take in the load, and how much all workers have read since start; True when the level changed."""
        before = self.level
        self._behind.observe(records_behind, 0, now_s)
        self._memory.observe(0, memory_percent, now_s)
        self._try_now_and_then(rows_read, now_s)
        self._levels = (self._behind.level, self._memory.level, self._tried_at_rows is not None)
        return self.level is not before

    def _try_now_and_then(self, rows_read: int, now_s: float) -> None:
        """Memory that does not go down, because others have it or an allocator keeps it, must not stop the sink for
        good: a little is read, and then nothing again for a while."""
        if self._memory.level is not Level.CIRCUIT_BREAK:
            self._waiting_since_s = self._tried_at_rows = None
        elif self._tried_at_rows is not None:
            if rows_read > self._tried_at_rows:
                self._waiting_since_s, self._tried_at_rows = now_s, None
        elif self._waiting_since_s is None:
            self._waiting_since_s = now_s
        elif now_s - self._waiting_since_s >= self._try_every_s:
            self._tried_at_rows = rows_read
