"""Plans of faults are their seed's; what is done to frames is counted out exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from ingest.capture import CaptureFrame
from ingest.faults import Fault, FaultKind, FaultPlan, Tamper

KINDS = ("trade", "bookTicker")
FRAMES = [CaptureFrame(0, f"btcusdt@{KINDS[number % 2]}", b"%d" % number) for number in range(20)]


@given(st.integers(0, 1_000))
def test_the_same_seed_gives_the_same_plan_and_every_kind_comes(seed: int) -> None:
    plan = FaultPlan.seeded(seed, seconds=60, every_s=2)
    assert plan == FaultPlan.seeded(seed, seconds=60, every_s=2)
    assert len(plan.faults) == 30
    counts = [sum(fault.kind is kind for fault in plan.faults) for kind in FaultKind]
    assert counts == [3] * len(FaultKind)
    times = [fault.at_s for fault in plan.faults]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 60
    assert plan != FaultPlan.seeded(seed + 1, seconds=60, every_s=2)


@pytest.mark.parametrize(
    ("seconds", "every_s", "kinds"), [(0, 1, tuple(FaultKind)), (1, 0, tuple(FaultKind)), (1, 1, ())]
)
def test_numbers_that_make_no_plan_are_refused(seconds: float, every_s: float, kinds: tuple[FaultKind, ...]) -> None:
    with pytest.raises(SettingsError, match="a plan of faults needs"):
        FaultPlan.seeded(1, seconds=seconds, every_s=every_s, kinds=kinds)


def test_frames_pass_as_they_are_without_faults() -> None:
    assert Tamper().through(FRAMES) is FRAMES


def test_a_gap_takes_the_next_trades_and_no_other_frame_over_several_writes() -> None:
    tamper = Tamper()
    tamper.take(Fault(0, FaultKind.GAP, 13))
    left = [*tamper.through(FRAMES), *tamper.through(FRAMES)]
    assert tamper.trades_withheld == 13
    trades = [int(frame.frame) for frame in left if frame.stream.endswith("@trade")]
    assert trades == [6, 8, 10, 12, 14, 16, 18]
    assert sum(frame.stream.endswith("@bookTicker") for frame in left) == 20
    assert tamper.through(FRAMES) == FRAMES


def test_frames_are_doubled_and_turned_round_as_often_as_was_said() -> None:
    tamper = Tamper()
    tamper.take(Fault(0, FaultKind.DUPLICATE, 2))
    assert [frame.frame for frame in tamper.through(FRAMES[:3])] == [b"0", b"0", b"1", b"1", b"2"]
    tamper.take(Fault(0, FaultKind.REORDER, 3))
    assert [frame.frame for frame in tamper.through(FRAMES[:2])] == [b"1", b"0"]
    assert [frame.frame for frame in tamper.through(FRAMES[:2])] == [b"0", b"1"]
    assert tamper.through(FRAMES) == FRAMES
