"""When to commit: the first bound that is reached decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings import SinkSettings
from sink.commit_policy import CommitPolicy

POLICY = CommitPolicy(rows_max=100, bytes_max=10_000, age_ms_max=500)


@pytest.mark.parametrize(
    ("rows", "nbytes", "age_s", "due"),
    [
        (1, 1, 0.0, False),
        (99, 9_999, 0.499, False),
        (100, 1, 0.0, True),
        (1, 10_000, 0.0, True),
        (1, 1, 0.5, True),
        (0, 0, 0.5, True),  # only broken messages are held: their offsets too must move in time
    ],
)
def test_the_first_bound_reached_makes_a_commit_due(rows: int, nbytes: int, age_s: float, due: bool) -> None:
    assert POLICY.is_due(rows=rows, nbytes=nbytes, oldest_s=7.0, now_s=7.0 + age_s) is due


@given(now_s=st.floats(0, 1e9))
def test_nothing_held_is_never_due(now_s: float) -> None:
    assert not POLICY.is_due(rows=0, nbytes=0, oldest_s=None, now_s=now_s)


@given(oldest_s=st.floats(0, 1e6), age_s=st.floats(0, 1e3), idle_s=st.floats(0, 10))
def test_a_poll_never_waits_past_the_age_bound(oldest_s: float, age_s: float, idle_s: float) -> None:
    now_s = oldest_s + age_s
    wait_s = POLICY.wait_s(oldest_s=oldest_s, now_s=now_s, idle_s=idle_s)
    assert 0 <= wait_s <= idle_s
    if wait_s < idle_s:
        assert POLICY.is_due(rows=1, nbytes=1, oldest_s=oldest_s, now_s=now_s + wait_s + 1e-6)


def test_with_nothing_held_a_poll_waits_the_idle_time() -> None:
    assert POLICY.wait_s(oldest_s=None, now_s=3.0, idle_s=0.1) == 0.1


def test_the_bounds_are_the_settings() -> None:
    settings = SinkSettings(commit_rows_max=5, commit_bytes_max=2048, commit_age_ms_max=20)
    assert CommitPolicy.from_settings(settings) == CommitPolicy(5, 2048, 20)
