"""Faults that a simulated venue inflicts on its clients, by a seeded plan. Pure: when, which, how much.

    FaultPlan.seeded(7, seconds=60, every_s=2)

The same seed gives the same plan. The simulator follows it from its first client on, and counts what it did.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.errors import SettingsError
from ingest.capture import CaptureFrame


class FaultKind(Enum):
    """What a venue, or the network before it, does wrong. What `size` means stands behind each."""

    CUT = "cut"  # one connection ends without a word; no size
    CUT_ALL = "cut_all"  # all of them do, at once
    STALL = "stall"  # one connection is open and silent for `size` seconds; what it misses meanwhile is not sent later
    HALF_FRAME = "half_frame"  # one connection ends in the middle of a frame
    DUPLICATE = "duplicate"  # the next `size` frames come twice on every connection
    REORDER = "reorder"  # the next `size` frames come out of order on every connection
    GAP = "gap"  # the next `size` trades are never sent; REST has them
    SHUTDOWN = "shutdown"  # serverShutdown on one connection, which is cut `size` seconds later if it is there still
    CLOCK_JUMP = "clock_jump"  # the venue's clock moves by `size` milliseconds
    REST_LIMIT = "rest_limit"  # REST answers 429 for `size` seconds


#: What a seeded plan draws from for each kind: the sizes.
_SIZES: Final[dict[FaultKind, tuple[int, ...]]] = {
    FaultKind.CUT: (0,),
    FaultKind.CUT_ALL: (0,),
    FaultKind.STALL: (1, 5, 30),
    FaultKind.HALF_FRAME: (0,),
    FaultKind.DUPLICATE: (1, 50, 500),
    FaultKind.REORDER: (2, 10, 50),
    FaultKind.GAP: (1, 50, 1_000),
    FaultKind.SHUTDOWN: (1, 5),
    FaultKind.CLOCK_JUMP: (-2_000, 2_000),
    FaultKind.REST_LIMIT: (1, 3),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, `at_s` seconds after the first client came. `share` in [0, 1) draws which connection it befalls."""

    at_s: float
    kind: FaultKind
    size: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults in the order of their time."""

    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> FaultPlan:
        return cls(tuple(sorted(faults, key=lambda fault: fault.at_s)))

    @classmethod
    def seeded(
        cls, seed: int, *, seconds: float, every_s: float, kinds: Sequence[FaultKind] = tuple(FaultKind)
    ) -> FaultPlan:
        """A fault every `every_s` seconds on average, each kind as often as the others, none of them missing when there
        is room for all. Raises SettingsError when the numbers make no plan.
        """
        if not seconds > 0 or not every_s > 0 or not kinds:
            raise SettingsError("a plan of faults needs a duration and a distance above 0, and a kind of fault")
        draw = random.Random(seed)
        count = max(1, int(seconds / every_s))
        bag: list[FaultKind] = []
        faults = []
        for number in range(count):
            if not bag:
                bag = list(kinds)
                draw.shuffle(bag)
            kind = bag.pop()
            at_s = (number + draw.random()) * every_s
            faults.append(Fault(at_s, kind, draw.choice(_SIZES[kind]), draw.random()))
        return cls.of(faults)


class Tamper:
    """What is done to the frames on their way to every client."""

    def __init__(self) -> None:
        self.trades_withheld = 0
        self._withhold = self._repeat = self._reorder = 0

    def take(self, fault: Fault) -> None:
        """Begin one of DUPLICATE, REORDER and GAP; others are none of its business."""
        if fault.kind is FaultKind.GAP:
            self._withhold += fault.size
        elif fault.kind is FaultKind.DUPLICATE:
            self._repeat += fault.size
        elif fault.kind is FaultKind.REORDER:
            self._reorder += fault.size

    def through(self, frames: Sequence[CaptureFrame]) -> Sequence[CaptureFrame]:
        """The frames as they are sent."""
        if self._withhold:
            frames = [frame for frame in frames if not self._withheld(frame)]
        if self._reorder:
            turned = min(self._reorder, len(frames))
            self._reorder -= turned
            frames = [*reversed(frames[:turned]), *frames[turned:]]
        if self._repeat:
            doubled = min(self._repeat, len(frames))
            self._repeat -= doubled
            frames = [*(frame for frame in frames[:doubled] for _ in range(2)), *frames[doubled:]]
        return frames

    def _withheld(self, frame: CaptureFrame) -> bool:
        if not self._withhold or not frame.stream.endswith("@trade"):
            return False
        self._withhold -= 1
        self.trades_withheld += 1
        return True
