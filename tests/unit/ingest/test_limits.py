"""The rate limiter: no window ever holds more than it may, and nobody waits longer than that takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.limits import RateLimiter


def test_what_does_not_fit_is_told_when_to_come_again() -> None:
    limiter = RateLimiter(5, 1.0)
    assert [limiter.take(0.1 * number) for number in range(5)] == [0.0] * 5
    assert limiter.take(0.5) == pytest.approx(0.5)
    assert limiter.take(1.0) == 0.0
    assert limiter.take(1.0) == pytest.approx(0.1)


def test_a_weight_beyond_the_limit_waits_for_an_empty_window_only() -> None:
    limiter = RateLimiter(10, 60.0)
    assert limiter.take(0.0, 3) == 0.0
    assert limiter.take(1.0, 25) == pytest.approx(59.0)
    assert limiter.take(60.0, 25) == 0.0


def test_after_the_venue_said_stop_nothing_goes_before_its_time() -> None:
    limiter = RateLimiter(10, 60.0)
    limiter.hold(7.0)
    limiter.hold(3.0)
    assert limiter.take(2.0) == 5.0
    assert limiter.held_s(2.0) == 5.0
    assert limiter.take(7.0) == 0.0
    assert limiter.held_s(8.0) == 0.0


def test_what_others_used_counts_too() -> None:
    limiter = RateLimiter(100, 60.0)
    limiter.take(0.0, 10)
    limiter.observe(1.0, 90)
    assert limiter.used(1.0) == 90
    assert limiter.take(1.0, 20) == pytest.approx(59.0)  # the 10 leave at 60, which leaves 80
    limiter.observe(2.0, 5)
    assert limiter.used(2.0) == 90


@given(
    most=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=60),
)
def test_no_window_holds_more_than_it_may_and_the_wait_is_enough(most: int, steps: list[tuple[int, int]]) -> None:
    window = 20  # whole numbers, so that sums are exact
    limiter, now = RateLimiter(most, window), 0.0
    went: list[tuple[float, int]] = []
    for pause, weight in steps:
        now += pause
        wait = limiter.take(now, weight)
        assert 0 <= wait <= window
        if wait > 0:
            assert limiter.take(now + wait - 1, weight) > 0, "it could have gone earlier"
            now += wait
            assert limiter.take(now, weight) == 0
        went.append((now, weight))
    for end, _ in went:
        held = [weight for at, weight in went if end - window < at <= end]
        assert sum(held) <= most or len(held) == 1
