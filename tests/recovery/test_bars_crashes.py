"""A crash between every two steps of the bars: after the restart every bar is what all of the trades make."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.datasets import BARS
from common.settings import LakeSettings
from sink.bars_worker import BarsPassed
from tests.support.bars_bench import BarsBench, made

TWO = (BARS["bars_1s"], BARS["bars_1m"])


@pytest.mark.parametrize("occurrence", [1, 2])
@pytest.mark.parametrize("point", list(BarsPassed), ids=lambda point: point.name.lower())
def test_a_crash_at_any_point_neither_loses_nor_doubles(tmp_path: Path, point: BarsPassed, occurrence: int) -> None:
    bench = BarsBench(LakeSettings.load(data_dir=tmp_path), bars=TWO)
    bench.commit([made(i, at_s=i * 0.3) for i in range(9)])
    if point is BarsPassed.READ and occurrence == 2:
        bench.run(bench.worker())
        bench.commit([made(i, at_s=i * 0.2) for i in range(9, 15)])
        occurrence = 1
    bench.crash_at = {point: occurrence}
    assert bench.run_with_crashes() == 1
    bench.assert_whole()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_schedule_of_commits_crashes_compactions_and_expiries(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    bench = BarsBench(LakeSettings.load(data_dir=folder), bars=TWO)
    worker = bench.worker(trades_max=data.draw(st.integers(3, 40)))
    doing = st.sampled_from(["commit", "late", "step", "crash", "compact", "expire", "second worker"])
    for _ in range(data.draw(st.integers(3, 9))):
        match data.draw(doing):
            case "commit" | "late" as kind:
                first = len(bench.sent)
                begin_s = data.draw(st.integers(0, 100_000)) if kind == "late" else 90_000 + first
                count = data.draw(st.integers(1, 6))
                trades = [made(first + i, at_s=begin_s + i * 0.4, symbol="AB"[i % 2]) for i in range(count)]
                bench.commit(trades, partition=data.draw(st.integers(0, 1)))
            case "step":
                worker.step()
            case "crash":
                bench.crash_at = {data.draw(st.sampled_from(list(BarsPassed))): data.draw(st.integers(1, 2))}
                bench.run_with_crashes()
                bench.crash_at = {}
            case "compact" if bench.sent:
                bench.compact()
            case "expire":
                bench.expire_trades()
            case "second worker":
                bench.worker().step()
    bench.run(worker)
    bench.assert_whole()
