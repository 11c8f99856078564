"""Time as a value that is handed in, so that no core reads a clock of its own and no test sleeps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Wall time and elapsed time. `now_us` may jump (NTP); `monotonic_s` never goes back."""

    def now_us(self) -> int:
        """Microseconds since the Unix epoch, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; only differences mean something."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        return time.monotonic()


@dataclass
class ManualClock:
    """A clock that moves only when told to; for tests and simulation."""

    time_us: int = 1_700_000_000_000_000
    elapsed_s: float = 0.0

    def now_us(self) -> int:
        return self.time_us

    def monotonic_s(self) -> float:
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds
        self.time_us += round(seconds * 1_000_000)
