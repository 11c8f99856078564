"""A set of ids says what came twice and what is missing, as Python's own set would."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.maintenance import ids as ids_module
from sink.maintenance.ids import IdSet, Range, joined, without

#: Ids near each other, far apart, at the edges of the bitmap's containers, and the last one that there is.
IDS = st.one_of(st.integers(0, 40), st.integers(65_530, 65_545), st.integers(2**40, 2**40 + 10), st.just(2**63 - 1))
BATCHES = st.lists(st.lists(IDS, max_size=30), max_size=6)
FEW = st.sets(st.integers(0, 40))


def filled(*batches: list[int]) -> IdSet:
    ids = IdSet()
    for batch in batches:
        ids.add(np.array(batch, np.int64))
    return ids


def ranges_of(ids: set[int]) -> list[Range]:
    return list(joined((i, i) for i in sorted(ids)))


def within(ranges: list[Range]) -> set[int]:
    return {i for first, last in ranges for i in range(first, last + 1)}


@given(BATCHES)
def test_what_is_added_twice_is_told(batches: list[list[int]]) -> None:
    ids, known = IdSet(), set[int]()
    for batch in batches:
        twice, first = ids.add(np.array(batch, np.int64))
        again = [value for index, value in enumerate(batch) if value in known or value in batch[:index]]
        assert (twice, first) == (len(again), min(again, default=None))
        known |= set(batch)
        ids.pack()
    assert len(ids) == len(known)
    assert (ids.first(), ids.last()) == (min(known, default=None), max(known, default=None))


@given(BATCHES, st.sampled_from([3, 64, 4 * 1024 * 1024]))
def test_ranges_are_the_ids(batches: list[list[int]], window: int) -> None:
    known = {value for batch in batches for value in batch}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ids_module, "_WINDOW", window)
        ranges = list(filled(*batches).ranges())
    assert within(ranges) == known
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(ranges))


@given(FEW, st.integers(0, 40), st.integers(0, 40))
def test_holes_are_what_is_missing_between(known: set[int], first: int, last: int) -> None:
    holes = list(filled(list(known)).holes(first, last))
    assert holes == ranges_of(set(range(first, last + 1)) - known)


@given(FEW, FEW)
def test_what_is_taken_out_of_ranges_is_gone(ids: set[int], taken: set[int]) -> None:
    assert list(without(ranges_of(ids), ranges_of(taken))) == ranges_of(ids - taken)


def test_ids_that_lie_far_apart_cost_nothing_between() -> None:
    ids = filled([0, 2**62])
    assert list(ids.holes(0, 2**62)) == [(1, 2**62 - 1)]
