"""Watchers that run beside the feed: the exchange's clock, this process's memory, what the symbols are.

Each asks or looks from time to time, never fails, and leaves what it found where metrics and records take it from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from common.clock import Clock
from common.errors import FeedError
from common.memory import resident_bytes
from common.telemetry import get_logger
from ingest.leak import LeakWatch
from ingest.skew import ClockSkew

Sleep = Callable[[float], Awaitable[None]]
#: Asks the venue for its time, microseconds UTC. Raises FeedError.
AskTime = Callable[[], Awaitable[int]]

#: The first samples come quickly, so that there is a good one soon.
_FIRST_SAMPLES: Final = 3
_LOOK_S: Final = 1.0
#: Wall clock and monotonic clock drift apart by less than this in a second unless somebody sets the wall clock.
_LOCAL_JUMP_US: Final = 100_000
_MEMORY_EVERY_S: Final = 10.0
_LEAK_SCORE_TOLD: Final = 0.8


class ClockWatch:
    """Keeps the skew between the local clock and the venue's: asked every so often, and at once after a jump."""

    def __init__(
        self,
        ask: AskTime,
        *,
        every_s: float,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        found: Callable[[ClockSkew], None] = lambda skew: None,
    ) -> None:
        """`found` is told the skew after each answer."""
        self.skew = ClockSkew()
        self._found = found
        self.failures = 0
        self._ask = ask
        self._every_s = every_s
        self._clock = clock
        self._sleep = sleep
        self._log = get_logger("ingest")

    async def run(self) -> None:
        """Until cancelled."""
        for _ in range(_FIRST_SAMPLES):
            await self.look()
        while True:
            await self._until_due()
            await self.look()

    async def look(self) -> None:
        """Ask once."""
        sent_us = self._clock.now_us()
        try:
            venue_us = await self._ask()
        except FeedError as error:
            self.failures += 1
            self._log.debug("the venue did not tell its time", reason=str(error))
            return
        if self.skew.sample(sent_us, venue_us, self._clock.now_us()):
            self._log.warning("a clock jumped", offset_ms=(self.skew.offset_us or 0) / 1000)
        self._found(self.skew)

    async def _until_due(self) -> None:
        """Until the next question is due, or the local clock is seen to jump."""
        due_s = self._clock.monotonic_s() + self._every_s
        apart_us = self._clock.now_us() - self._clock.monotonic_s() * 1e6
        while (left_s := due_s - self._clock.monotonic_s()) > 0:
            await self._sleep(min(_LOOK_S, left_s))
            if abs(self._clock.now_us() - self._clock.monotonic_s() * 1e6 - apart_us) > _LOCAL_JUMP_US:
                return


class MemoryWatch:
    """Keeps the line through this process's resident size. Does nothing where the system does not tell it (macOS)."""

    def __init__(
        self, *, clock: Clock, sleep: Sleep = asyncio.sleep, rss_bytes: Callable[[], int | None] | None = None
    ) -> None:
        self.leak = LeakWatch()
        self.rss_bytes = 0
        self._clock = clock
        self._sleep = sleep
        self._read = rss_bytes or resident_bytes
        self._told = False
        self._log = get_logger("ingest")

    async def run(self) -> None:
        """Until cancelled, or the system does not tell."""
        while (rss_bytes := self._read()) is not None:
            self.rss_bytes = rss_bytes
            self.leak.sample(self._clock.monotonic_s(), rss_bytes)
            leaking = self.leak.score >= _LEAK_SCORE_TOLD
            if leaking and not self._told:
                self._log.warning(
                    "memory grows steadily",
                    rss_mb=round(rss_bytes / 1e6),
                    mb_per_hour=round(self.leak.slope_bytes_per_s * 3600 / 1e6),
                )
            self._told = leaking
            await self._sleep(_MEMORY_EVERY_S)
