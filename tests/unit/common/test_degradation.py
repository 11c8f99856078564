"""The levels of load: each rises by its trigger, falls by rest alone, and no load makes it flap."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.degradation import Degradation, Level, Triggers

TRIGGERS = Triggers((100, 500, 1_000, 5_000), (70, 80, 90, 95), rise_after_s=5.0, recover_after_s=30.0)
AT_ONCE = Triggers((100, 500, 1_000, 5_000), (70, 80, 90, 95))
#: A load: lag, memory, and seconds to the next one.
_loads = st.tuples(
    st.one_of(st.integers(0, 6_000), st.sampled_from([0, 49, 50, 99, 100, 250, 500, 999, 1_000, 2_500, 5_000])),
    st.one_of(st.integers(0, 100), st.sampled_from([0, 62, 63, 69, 70, 80, 90, 95])),
    st.sampled_from([0.0, 0.02, 1.0, 4.9, 5.0, 29.9, 30.0, 31.0, 100.0]),
)


def levels(loads: list[tuple[int, int, float]], triggers: Triggers = TRIGGERS) -> list[tuple[float, Level]]:
    """(when, level) behind each load."""
    state, now_s, found = Degradation(triggers), 0.0, []
    for lag, memory, then_s in loads:
        before = state.level
        assert state.observe(lag, memory, now_s) == (state.level is not before)
        found.append((now_s, state.level))
        now_s += then_s
    return found


@pytest.mark.parametrize(
    ("lag", "memory", "level"),
    [
        (99, 69, Level.NORMAL),
        (100, 0, Level.SOFT),
        (0, 70, Level.SOFT),
        (500, 70, Level.GRACEFUL),
        (0, 80, Level.GRACEFUL),
        (1_000, 0, Level.AGGRESSIVE),
        (100, 94, Level.AGGRESSIVE),
        (5_000, 0, Level.CIRCUIT_BREAK),
        (0, 95, Level.CIRCUIT_BREAK),
    ],
)
def test_a_level_begins_at_lag_or_memory(lag: int, memory: int, level: Level) -> None:
    assert levels([(lag, memory, 0)], AT_ONCE) == [(0.0, level)]
    assert [found for _, found in levels([(lag, memory, 4.9), (lag, memory, 0.1), (lag, memory, 0)])] == [
        Level.NORMAL,
        Level.NORMAL,
        level,
    ]


def test_a_burst_is_no_load() -> None:
    burst = [(5_000, 99, 4.9), (99, 0, 0.1), (5_000, 99, 4.9), (0, 0, 1.0)]
    assert {level for _, level in levels(burst * 5)} == {Level.NORMAL}


def test_it_goes_back_one_level_at_a_time_after_rest_below_its_share() -> None:
    risen = [(1_000, 0, 1.0)]
    held = levels([*risen, *[(500, 0, 30.0)] * 4], AT_ONCE)
    assert {level for _, level in held} == {Level.AGGRESSIVE}, "half of the lag holds it"
    held = levels([(0, 90, 1.0), *[(0, 81, 30.0)] * 4], AT_ONCE)
    assert {level for _, level in held} == {Level.AGGRESSIVE}, "and nine tenths of the memory"
    back = levels([*risen, *[(0, 0, 10.0)] * 11], AT_ONCE)
    assert [(now_s, level) for (_, before), (now_s, level) in pairwise(back) if level is not before] == [
        (31.0, Level.GRACEFUL),
        (61.0, Level.SOFT),
        (91.0, Level.NORMAL),
    ]


def test_what_comes_back_before_the_rest_is_over_begins_it_again() -> None:
    loads = [(100, 0, 1.0), (0, 0, 29.0), (50, 0, 1.0), (0, 0, 29.0), (0, 0, 1.0), (0, 0, 1.0)]
    assert [level for _, level in levels(loads, AT_ONCE)] == [Level.SOFT] * 5 + [Level.NORMAL]


@given(st.lists(_loads, max_size=60))
def test_no_load_makes_it_flap(loads: list[tuple[int, int, float]]) -> None:
    found = levels(loads)
    changes = [(now_s, level - before) for (_, before), (now_s, level) in pairwise(found) if level is not before]
    assert all(step == -1 for _, step in changes if step < 0), "down one at a time"
    for (before_s, _), (now_s, step) in pairwise([(found[0][0] if found else 0.0, 0), *changes]):
        if step < 0:
            assert now_s - before_s >= TRIGGERS.recover_after_s, "and never sooner than the rest after any change"


@given(st.lists(st.tuples(_loads, st.integers(0, 3_000), st.integers(0, 40)), max_size=60))
def test_more_load_is_never_a_lower_level(loads: list[tuple[tuple[int, int, float], int, int]]) -> None:
    less = levels([load for load, _, _ in loads])
    more = levels([(lag + lag_more, memory + memory_more, s) for (lag, memory, s), lag_more, memory_more in loads])
    assert all(low <= high for (_, low), (_, high) in zip(less, more, strict=True))


@given(st.lists(_loads, max_size=40))
def test_rest_always_brings_it_back(loads: list[tuple[int, int, float]]) -> None:
    assert levels([*loads, *[(0, 0, 10.0)] * 14])[-1][1] is Level.NORMAL


@given(st.lists(_loads, min_size=1, max_size=40))
def test_load_that_stays_is_answered_in_time(loads: list[tuple[int, int, float]]) -> None:
    lag, memory, _ = loads[-1]
    assert levels([*loads, (lag, memory, 5.0), (lag, memory, 0.0)])[-1][1] >= TRIGGERS.level(lag, memory)
