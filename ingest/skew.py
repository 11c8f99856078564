"""How far the local clock and a venue's are apart, from questions for the venue's time. Pure: samples are handed in.

A question sent at t0 and answered at t1 (local) with the venue's time s says that the venue's clock is ahead by
s - (t0 + t1) / 2, give or take half the time between t0 and t1.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

#: Samples remembered. The one with the shortest way tells; clocks drift by some 20 us a second, so old ones must go.
_SAMPLES: Final = 8
#: The venue tells whole milliseconds.
_RESOLUTION_US: Final = 1_000


class _Sample(NamedTuple):
    offset_us: int
    error_us: int


class ClockSkew:
    """The venue's clock minus the local one. Unknown until the first sample."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)
        self.jumps = 0

    def sample(self, sent_us: int, venue_us: int, received_us: int) -> bool:
        """Take in one answer; True when it shows that one of the clocks jumped, which makes what was known void.

        One whose way took no time, or less, by a local clock that jumped meanwhile, is not counted.
        """
        if received_us < sent_us:
            return False
        one = _Sample(venue_us - (sent_us + received_us) // 2, (received_us - sent_us) // 2 + _RESOLUTION_US)
        jumped = any(abs(one.offset_us - other.offset_us) > one.error_us + other.error_us for other in self._samples)
        if jumped:
            self._samples.clear()
            self.jumps += 1
        self._samples.append(one)
        return jumped

    @property
    def offset_us(self) -> int | None:
        """The best guess; None when there is none."""
        return min(self._samples, key=lambda one: one.error_us).offset_us if self._samples else None

    @property
    def error_us(self) -> int | None:
        """How far off the guess may be."""
        return min(one.error_us for one in self._samples) if self._samples else None

    def latency_us(self, event_time_us: int, receive_time_us: int) -> int:
        """From the venue's event to its receipt, both by the venue's clock as far as the offset is known. May come out
        below 0 by the error of the offset; without an offset by as much as the clocks are apart.
        """
        return receive_time_us + (self.offset_us or 0) - event_time_us
