"""Frames that another connection brought already, told by their bytes, before anything is made of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Frames remembered at least; twice as many at most, some 200 bytes each. At 20,000 frames a second the connections may
#: be 0.4 s apart; what comes later is dropped by the ledger, at the price of its parse.
_REMEMBERED: Final = 8_192


class Echoes:
    """The last frames that were taken in. An echo is a frame that equals one of them, byte for byte.

    A venue sends every subscriber of a stream the same bytes, so nearly all that a second connection brings is told
    here, for 0.1 us a frame instead of the 2 us of a parse. Where it does not, nothing is lost: the ledger decides.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self.dropped = 0

    def fresh(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """The frames that are no echoes, in their order."""
        young, old = self._young, self._old
        if young.isdisjoint(frames) and old.isdisjoint(frames):
            return frames
        left = [frame for frame in frames if frame not in young and frame not in old]
        self.dropped += len(frames) - len(left)
        return left

    def remember(self, frames: Sequence[bytes]) -> None:
        """Frames that were taken in. Only those: whatever else a frame does must happen for each connection."""
        self._young.update(frames)
        if len(self._young) >= self._remembered:
            self._old, self._young = self._young, set()
