"""Sets of ids in little memory: one bit each where they are dense, two bytes each where they are not. Pure."""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap64

Ids = npt.NDArray[np.int64]
#: Both ends inclusive.
Range = tuple[int, int]

#: Ids that are looked at at once: at most 32 MB as an array, and 64 containers of the bitmap.
_WINDOW = 4 * 1024 * 1024


class IdSet:
    """Ids from 0 to 2**63 - 1, each once. What is added again is told."""

    def __init__(self) -> None:
        self._ids = BitMap64()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Ids) -> tuple[int, int | None]:
        """Add these, in any order; how many of them were there already, and the first of those (None: none was)."""
        new = BitMap64(array.array("Q", np.ascontiguousarray(ids, np.uint64).tobytes()))
        twice = len(ids) - len(new)
        first: int | None = None
        if twice:
            values, counts = np.unique(ids, return_counts=True)
            first = int(values[counts > 1][0])
        known = new & self._ids
        if known:
            # Those that are in the set and came more than once are counted as often as they came.
            twice += len(known)
            first = int(known.min()) if first is None else min(first, int(known.min()))
        self._ids |= new
        return twice, first

    def pack(self) -> None:
        """Take less memory where ids follow each other."""
        self._ids.run_optimize()

    def first(self) -> int | None:
        return int(self._ids.min()) if self._ids else None

    def last(self) -> int | None:
        return int(self._ids.max()) if self._ids else None

    def ranges(self) -> Iterator[Range]:
        """The ids as the fewest ranges, in order."""
        return joined(range_ for window in self._windows() for range_ in _runs(window))

    def holes(self, first: int, last: int) -> Iterator[Range]:
        """The ids from `first` to `last`, both inclusive, that are not in the set, as the fewest ranges, in order."""
        return without([(first, last)], self.ranges())

    def _windows(self) -> Iterator[BitMap64]:
        """The ids a window at a time; a window that would be empty costs nothing, however far apart the ids are."""
        at = self.first()
        last = self.last()
        while at is not None and last is not None:
            window = BitMap64(range(at, min(at + _WINDOW, last + 1)))
            yield self._ids & window
            at = at + _WINDOW
            at = int(self._ids.next_set_bit(at)) if at <= last else None


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges in order of their first id, with those that overlap or touch made one."""
    current: Range | None = None
    for first, last in ranges:
        if current is not None and first <= current[1] + 1:
            current = (current[0], max(current[1], last))
        else:
            if current is not None:
                yield current
            current = (first, last)
    if current is not None:
        yield current


def without(ranges: Iterable[Range], taken: Iterable[Range]) -> Iterator[Range]:
    """What is in the ranges and not in those taken out; both in order, none overlapping."""
    taking = iter(taken)
    cut = next(taking, None)
    for first, last in ranges:
        while cut is not None and cut[1] < first:
            cut = next(taking, None)
        while cut is not None and cut[0] <= last:
            if first < cut[0]:
                yield first, cut[0] - 1
            first = cut[1] + 1
            if cut[1] > last:  # it may reach into the next range
                break
            cut = next(taking, None)
        if first <= last:
            yield first, last


def _runs(ids: BitMap64) -> Iterator[Range]:
    """The ids of a window as ranges."""
    low, high = int(ids.min()), int(ids.max())
    if high - low + 1 == len(ids):
        yield low, high
        return
    values = np.frombuffer(ids.to_array(), np.uint64).astype(np.int64)
    ends = np.flatnonzero(np.diff(values) != 1)
    firsts = values[np.concatenate(([0], ends + 1))]
    lasts = values[np.concatenate((ends, [len(values) - 1]))]
    yield from zip(firsts.tolist(), lasts.tolist(), strict=True)
