"""Looks for gaps while the feed runs: what the ledger misses, into the gaps, into records that wait for the log."""

from __future__ import annotations

from collections import deque
from typing import Final

from common.clock import Clock
from common.telemetry import get_logger
from ingest.gaps import Gap, GapBook, GapState, Key, Severity
from ingest.ledger import IdRange, Ledger

_SAYS: Final = {
    GapState.OPEN: "trades are missing",
    GapState.PARTLY_FILLED: "a part of the missing trades came",
    GapState.FILLED: "the missing trades came",
    GapState.LOST: "missing trades are lost",
}


class GapWatch:
    """Ledger and gaps of one ingest, on one clock. One thread at a time; nothing here blocks.

    `untold` are the gaps that entered a state which is not in the log yet, oldest first: whoever has them in the log
    takes them out. Until then a checkpoint would say too much.
    """

    def __init__(self, ledger: Ledger, gaps: GapBook, clock: Clock) -> None:
        self.ledger = ledger
        self.gaps = gaps
        self.untold: deque[Gap] = deque()
        self._clock = clock
        self._log = get_logger("ingest")
        self.lost_ids = 0
        self.backfilled_ids = 0

    def look(self) -> None:
        """Compare ledger and gaps where that can find something: a few microseconds when nothing came out of turn."""
        now_s = self._clock.monotonic_s()
        keys = self.ledger.take_disturbed()
        keys.update(self.gaps.due(now_s))
        for key in sorted(keys):
            for gap in self.gaps.observe(key, self.ledger.gaps(*key), now_s, self._clock.now_us()):
                self._tell(gap)

    def lose(self, gap: Gap, reason: str) -> None:
        """What is missing of the gap cannot be had any more."""
        self.look()
        lost = self.gaps.lose(gap.key, gap.first_id, self.ledger.gaps(*gap.key), reason, self._clock.now_us())
        if lost is not None:
            self.lost_ids += lost.missing_ids
            self._tell(lost)

    def about_to_fill(self, key: Key, brought: IdRange) -> None:
        """The backfill has the trades of these ids: what is missing among them is a gap from now on, however short."""
        now_s, now_us = self._clock.monotonic_s(), self._clock.now_us()
        for gap in self.gaps.observe(key, self.ledger.gaps(*key), now_s, now_us, brought):
            self._tell(gap)

    def backfilled(self, key: Key, trade_id: int) -> None:
        """A trade that the backfill brought was taken."""
        self.gaps.backfilled(key, trade_id)
        self.backfilled_ids += 1

    def missing(self, gap: Gap) -> list[IdRange]:
        """What is missing of the gap now, in order."""
        return [
            IdRange(max(first, gap.first_id), min(last, gap.last_id))
            for first, last in self.ledger.gaps(*gap.key)
            if first <= gap.last_id and last >= gap.first_id
        ]

    @property
    def oldest_age_s(self) -> float:
        """How long ago the oldest gap that is not closed was seen; 0 without any."""
        oldest_us = min((gap.opened_time_us for gap in self.gaps.open_gaps()), default=None)
        return 0.0 if oldest_us is None else max(0.0, (self._clock.now_us() - oldest_us) / 1e6)

    def _tell(self, gap: Gap) -> None:
        self.untold.append(gap)
        is_bad = not gap.is_closed and gap.severity is not Severity.WARNING
        say = self._log.error if gap.state is GapState.LOST or is_bad else self._log.warning
        if gap.state in (GapState.FILLED, GapState.PARTLY_FILLED):
            say = self._log.info
        say(
            _SAYS[gap.state],
            symbol=gap.symbol,
            first_id=gap.first_id,
            last_id=gap.last_id,
            missing=gap.missing_ids,
            severity=gap.severity.value,
            closed_by=gap.closed_by,
            reason=gap.reason,
        )
