"""The pure cores of the watchers: clock skew, leak score, samples for the log, echoes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.echoes import Echoes
from ingest.leak import LeakWatch
from ingest.sampling import Sampler
from ingest.skew import ClockSkew

T = 1_700_000_000_000_000


@given(
    offset_us=st.integers(-5_000_000, 5_000_000),
    ways=st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)), min_size=1, max_size=20),
)
def test_the_true_offset_lies_within_the_error(offset_us: int, ways: list[tuple[int, int]]) -> None:
    """Whatever the ways there and back take, as long as the clocks do not move."""
    skew, now_us = ClockSkew(), T
    for there_us, back_us in ways:
        venue_us = (now_us + there_us + offset_us) // 1_000 * 1_000
        assert not skew.sample(now_us, venue_us, now_us + there_us + back_us)
        now_us += 1_000_000
    assert skew.offset_us is not None
    assert skew.error_us is not None
    assert abs(skew.offset_us - offset_us) <= skew.error_us + 1_000
    assert skew.jumps == 0


def test_a_jump_of_two_seconds_is_seen_at_the_first_answer_and_what_was_known_is_void() -> None:
    skew = ClockSkew()
    assert skew.offset_us is None
    for number in range(5):
        skew.sample(T + number, T + number + 10_000, T + number + 20_000)
    assert skew.offset_us == 0
    assert skew.sample(T, T + 2_010_000, T + 20_000)
    assert (skew.offset_us, skew.jumps) == (2_000_000, 1)
    assert not skew.sample(T, T + 2_010_000, T + 20_000)


def test_a_question_across_a_jump_of_our_own_clock_is_not_counted() -> None:
    skew = ClockSkew()
    assert not skew.sample(T, T, T - 2_000_000)
    assert skew.offset_us is None


def test_a_latency_is_by_one_clock() -> None:
    skew = ClockSkew()
    assert skew.latency_us(T + 1_270_000, T) == -1_270_000
    skew.sample(T, T + 1_270_000, T)
    assert skew.latency_us(T + 1_270_000, T + 20_000) == 20_000


def test_a_straight_rise_is_a_leak_and_noise_or_a_plateau_is_none() -> None:
    def score(sizes: list[int]) -> float:
        leak = LeakWatch()
        for number, size in enumerate(sizes):
            leak.sample(10.0 * number, size)
        return leak.score

    rising = [200_000_000 + 400_000 * number for number in range(200)]  # 144 MB an hour
    assert score(rising) == 1.0
    assert 0.2 < score([200_000_000 + 100_000 * number for number in range(200)]) < 0.5
    assert score([200_000_000] * 200) == 0.0
    assert score([200_000_000 + (number % 2) * 30_000_000 for number in range(200)]) < 0.05
    assert score(rising[::-1]) == 0.0
    assert score(rising[:20]) == 0.0, "too few to say"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**12)), max_size=80))
def test_a_leak_score_is_always_between_0_and_1(samples: list[tuple[float, int]]) -> None:
    leak = LeakWatch()
    for now_s, size in samples:
        leak.sample(now_s, size)
    assert 0.0 <= leak.score <= 1.0


def test_the_first_of_a_kind_is_told_and_then_a_count_a_minute() -> None:
    sampler = Sampler()
    assert [sampler.take("a", now_s) for now_s in (0, 1, 2, 59.9)] == [1, 0, 0, 0]
    assert sampler.take("b", 3) == 1
    assert sampler.take("a", 60) == 4
    assert sampler.take("a", 61) == 0


def test_names_from_outside_do_not_fill_the_memory() -> None:
    sampler = Sampler()
    told = sum(sampler.take(f"kind {number}", 0.0) > 0 for number in range(10_000))
    assert told == 257
    assert len(sampler._told) == 257
    assert sampler.take("kind 9999", 60.0) == 10_000 - 256


def test_an_echo_is_what_was_remembered_and_nothing_else() -> None:
    echoes = Echoes(remembered=4)
    assert echoes.fresh([b"1", b"2"]) == [b"1", b"2"]
    echoes.remember([b"1", b"2"])
    assert echoes.fresh([b"2", b"3", b"1"]) == [b"3"]
    assert echoes.dropped == 2
    echoes.remember([b"3", b"4"])
    assert echoes.fresh([b"1", b"2", b"3", b"4"]) == []
    echoes.remember([b"5", b"6", b"7", b"8"])
    assert echoes.fresh([b"1"]) == [b"1"], "the oldest are forgotten"
    assert echoes.fresh([b"5"]) == []


@pytest.mark.parametrize("count", [1, 50])
def test_what_is_remembered_is_bounded(count: int) -> None:
    echoes = Echoes(remembered=10)
    for number in range(1_000):
        echoes.remember([b"%d" % (number * count + one) for one in range(count)])
    assert len(echoes._young) + len(echoes._old) <= 2 * (10 + count)
