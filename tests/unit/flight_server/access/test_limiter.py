"""The limiter: what it allows in any stretch of time is bounded, and nobody waits longer than the policy says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from flight_server.access.limiter import LimitPolicy, LoginLimiter

POLICY = LimitPolicy(free=3, lock_s_first=1.0, lock_s_max=60.0, forgive_s=100.0)
ADA = ("name", "ada")
BOB = ("name", "bob")


def limiter(clock: ManualClock, policy: LimitPolicy = POLICY, *, keys_max: int = 10) -> LoginLimiter:
    return LoginLimiter(clock, {"name": policy, "peer": policy}, keys_max=keys_max)


def test_the_first_failures_are_free_and_then_the_wait_doubles() -> None:
    clock = ManualClock()
    limits = limiter(clock)
    waits = []
    for _ in range(12):
        limits.failed(ADA)
        waits.append(limits.wait_s(ADA))
        clock.advance(limits.wait_s(ADA) / 1_000_000)  # as good as no time, so that nothing is forgiven
    assert [round(wait, 3) for wait in waits] == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_lock_ends_by_time_and_touches_nobody_else() -> None:
    clock = ManualClock()
    limits = limiter(clock)
    for _ in range(5):
        limits.failed(ADA)
    assert (limits.wait_s(ADA), limits.wait_s(BOB), limits.wait_s(ADA, BOB)) == (2.0, 0.0, 2.0)
    clock.advance(1.5)
    assert limits.wait_s(ADA) == 0.5
    clock.advance(0.5)
    assert limits.wait_s(ADA) == 0.0


def test_success_forgets_the_name() -> None:
    limits = limiter(ManualClock())
    for _ in range(9):
        limits.failed(ADA, ("peer", "ada"))
    limits.succeeded(ADA)
    assert limits.wait_s(ADA) == 0.0
    assert limits.wait_s(("peer", "ada")) > 0
    limits.succeeded(BOB)


def test_time_forgives() -> None:
    clock = ManualClock()
    limits = limiter(clock)
    for _ in range(4):
        limits.failed(ADA)
    clock.advance(400.0)
    limits.failed(ADA)
    assert limits.wait_s(ADA) == 0.0
    for _ in range(2):
        limits.failed(ADA)
    assert limits.wait_s(ADA) == 0.0
    limits.failed(ADA)
    assert limits.wait_s(ADA) == 1.0


def test_memory_is_bounded() -> None:
    limits = limiter(ManualClock(), keys_max=10)
    for number in range(1_000):
        limits.failed(("name", str(number)), ("peer", str(number)))
        assert len(limits) <= 10


@given(
    st.integers(1, 5),
    st.floats(0.5, 5),
    st.floats(5, 100),
    st.floats(10, 300),
    st.lists(st.floats(0, 500), min_size=1, max_size=300),
)
def test_whoever_tries_as_often_as_allowed_fails_no_more_than_the_policy_says(
    free: int, first: float, longest: float, forgive: float, pauses: list[float]
) -> None:
    """An attacker with any rhythm: in all of the time, the free ones, those forgiven, and the steps of the doubling."""
    clock = ManualClock()
    policy = LimitPolicy(free, first, longest, forgive)
    limits = limiter(clock, policy)
    failures = 0
    for pause in pauses:
        clock.advance(pause)
        wait_s = limits.wait_s(ADA)
        assert 0 <= wait_s <= longest
        if wait_s == 0:
            limits.failed(ADA)
            failures += 1
    elapsed_s = clock.monotonic_s()
    # Beyond free + forgiven each failure locked for at least `first`; so the total cannot pass this.
    assert failures <= free + 1 + elapsed_s / forgive + elapsed_s / first


@given(st.lists(st.floats(0, 200), min_size=50, max_size=300))
def test_a_patient_attacker_gets_one_try_per_lock_in_the_long_run(pauses: list[float]) -> None:
    clock = ManualClock()
    policy = LimitPolicy(free=5, lock_s_first=1.0, lock_s_max=300.0, forgive_s=180.0)
    limits = limiter(clock, policy)
    failures = 0
    for pause in pauses:
        clock.advance(max(pause, limits.wait_s(ADA)))
        limits.failed(ADA)
        failures += 1
    steps = 10  # 1 s, 2 s, 4 s ... 300 s
    assert failures <= policy.free + steps + clock.monotonic_s() / policy.forgive_s + 1
