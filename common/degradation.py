"""How much a part takes on under load: five levels, with hysteresis. Pure.

Guarantee: of two parts of which one never has less load than the other, it is never at a lower level; a level is left
only after the load was below what holds it for the whole of `recover_after_s`, one level at a time, so that no load,
whatever it does, makes more than one step down in that time; and a load that stays away brings it back to NORMAL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Level(IntEnum):
    """What each part does at a level is its own; the higher, the less."""

    NORMAL = 0
    SOFT = 1
    GRACEFUL = 2
    AGGRESSIVE = 3
    CIRCUIT_BREAK = 4


@dataclass(frozen=True)
class Triggers:
    """What each level above NORMAL begins at, in the order of the levels: lag and memory, in whatever unit they are
    given to `observe`. It begins when either was there for `rise_after_s`, and is held until both are below their share
    of it.
    """

    lag: tuple[float, float, float, float]
    memory: tuple[float, float, float, float]
    rise_after_s: float = 0.0
    recover_after_s: float = 30.0
    lag_recovered_share: float = 0.5
    memory_recovered_share: float = 0.9

    def level(self, lag: float, memory: float) -> Level:
        """The level that begins at this load."""
        return max((level for level in Level if self._is_at(level, lag, memory, 1.0, 1.0)), default=Level.NORMAL)

    def holds(self, level: Level, lag: float, memory: float) -> bool:
        """Whether this load holds the level."""
        return self._is_at(level, lag, memory, self.lag_recovered_share, self.memory_recovered_share)

    def _is_at(self, level: Level, lag: float, memory: float, lag_share: float, memory_share: float) -> bool:
        if level is Level.NORMAL:
            return False
        return lag >= lag_share * self.lag[level - 1] or memory >= memory_share * self.memory[level - 1]


@dataclass
class Degradation:
    """The level of one part. One thread at a time; the times it is given never go back."""

    triggers: Triggers
    level: Level = Level.NORMAL
    #: Since when the load was continuously at each level's begin.
    _at_since_s: dict[Level, float] = field(default_factory=dict)
    #: Since when nothing holds the level.
    _calm_since_s: float | None = None

    def observe(self, lag: float, memory: float, now_s: float) -> bool:
        """Take in the load as of now; True when the level changed."""
        before, found = self.level, self.triggers.level(lag, memory)
        self._at_since_s = {
            level: self._at_since_s.get(level, now_s) for level in Level if Level.NORMAL < level <= found
        }
        risen = max(
            (level for level, since_s in self._at_since_s.items() if now_s - since_s >= self.triggers.rise_after_s),
            default=Level.NORMAL,
        )
        if risen > self.level:
            self.level, self._calm_since_s = risen, None
        elif self.level is Level.NORMAL or self.triggers.holds(self.level, lag, memory):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= self.triggers.recover_after_s:
            self.level, self._calm_since_s = Level(self.level - 1), now_s
        return self.level is not before
