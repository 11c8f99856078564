"""What connections are judged by: twins, echoes of pings, breakers, hosts, and how streams are spread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings import IngestSettings
from ingest.watch import Breaker, Decision, Hosts, decide, spread

SETTINGS = IngestSettings(stale_after_s=120, stale_beside_twin_after_s=10, ping_timeout_s=30, rotate_after_s=3600)


@pytest.mark.parametrize(
    ("outheard_s", "busy", "decision"),
    [
        (91.1, False, Decision.KEEP),
        (91.0, False, Decision.STALE),
        (91.0, True, Decision.KEEP),
        (None, False, Decision.KEEP),
    ],
)
def test_beside_a_twin_that_hears_a_silent_connection_is_stale_early(
    outheard_s: float | None, busy: bool, decision: Decision
) -> None:
    assert decide(now_s=101, opened_s=0, heard_s=90, busy=busy, settings=SETTINGS, outheard_s=outheard_s) is decision


@pytest.mark.parametrize(
    ("pinged_s", "busy", "decision"),
    [
        (70.1, False, Decision.KEEP),
        (70.0, False, Decision.SILENT),
        (70.0, True, Decision.KEEP),
        (None, False, Decision.KEEP),
    ],
)
def test_a_ping_without_its_echo_ends_a_connection(pinged_s: float | None, busy: bool, decision: Decision) -> None:
    assert decide(now_s=100, opened_s=0, heard_s=99, busy=busy, settings=SETTINGS, pinged_s=pinged_s) is decision


def test_a_breaker_opens_after_three_failures_and_lets_one_probe_through() -> None:
    breaker = Breaker()
    for number in range(3):
        assert breaker.enter(float(number))
        breaker.failed(float(number))
    assert breaker.is_open
    assert not breaker.enter(31.9)
    assert breaker.wait_s(12.0) == 20.0
    assert breaker.enter(32.0)
    assert not breaker.enter(33.0), "one probe at a time"
    breaker.failed(34.0)
    assert not breaker.enter(63.0)
    assert breaker.enter(64.0)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.enter(64.0)
    assert breaker.enter(64.0)


def test_a_probe_that_never_came_back_does_not_close_the_breaker_for_good() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(0.0)
    assert breaker.enter(30.0)
    assert not breaker.enter(59.0)
    assert breaker.enter(60.0)


def test_a_success_forgets_the_failures_before_it() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert not breaker.is_open


def test_hosts_take_turns_when_they_fail_and_stay_when_they_work() -> None:
    hosts = Hosts(["a", "b"])
    assert hosts.pick(0.0) == "a"
    hosts.failed("a", 0.0)
    assert hosts.pick(0.0) == "b"
    hosts.succeeded("b")
    assert hosts.pick(1.0) == "b"
    for _ in range(3):
        hosts.failed("b", 1.0)
    assert hosts.open_breakers == 1
    hosts.failed("a", 2.0)
    hosts.failed("a", 2.0)
    assert hosts.pick(2.0) is None
    assert hosts.wait_s(2.0) == 29.0
    assert hosts.pick(31.0) == "b"
    assert hosts.failures == 6


STREAMS = st.lists(st.integers(0, 40).map(str), unique=True, max_size=30)


@given(before=STREAMS, wanted=STREAMS, most=st.integers(1, 7))
def test_streams_are_spread_within_the_bound_and_none_moves(before: list[str], wanted: list[str], most: int) -> None:
    shards = spread((), before, most)
    after = spread(shards, wanted, most)
    flat = [stream for shard in after for stream in shard]
    assert sorted(flat) == sorted(wanted)
    assert all(len(shard) <= most for shard in after)
    for old, new in zip(shards, after, strict=False):
        assert [stream for stream in old if stream in wanted] == new[: len([s for s in old if s in wanted])]
