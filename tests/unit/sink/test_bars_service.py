"""The thread of the bars: it ends with nothing left to take in, and holds up nobody when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from common.clock import SystemClock
from common.datasets import BARS
from common.errors import K2Error, Refused
from common.settings import LakeSettings
from sink.bars_rebuild import bars_named, check_complete, rebuild, update
from sink.bars_service import BarsService
from sink.bars_table import BarsTable
from tests.support.bars_bench import BarsBench, made

SECONDS, MINUTES = BARS["bars_1s"], BARS["bars_1m"]


@pytest.fixture
def bench(tmp_path: Path) -> BarsBench:
    bench = BarsBench(LakeSettings.load(data_dir=tmp_path / "lake"))
    bench.commit([made(i, at_s=i * 0.7) for i in range(12)])
    return bench


def test_a_stop_takes_in_what_is_there(bench: BarsBench) -> None:
    service = BarsService(bench.lake, SystemClock(), interval_ms=3_600_000)
    registry = CollectorRegistry()
    registry.register(service)
    service.start()
    assert service.stop(60)
    bench.assert_whole()
    assert registry.get_sample_value("k2_bars_behind", {"table": "market.bars_1m"}) == 0
    assert registry.get_sample_value("k2_bars_commits_total", {"table": "market.bars_1s"}) == 1


def test_one_whose_turn_it_is_not_leaves_the_bars_to_another(bench: BarsBench) -> None:
    service = BarsService(bench.lake, SystemClock(), interval_ms=3_600_000, is_ours=lambda: False)
    service.start()
    assert service.stop(60)
    assert service.stats() == {}


def test_a_catalog_that_does_not_answer_ends_nothing(bench: BarsBench) -> None:
    (bench.lake.data_dir / "catalog.db").write_bytes(b"no database" * 1_000)
    service = BarsService(bench.lake, SystemClock(), interval_ms=100)
    service.start()
    assert service.stop(60)
    assert service.stats() == {}


def test_bars_are_made_anew(bench: BarsBench) -> None:
    told: list[int] = []
    update(bench.lake, [SECONDS, MINUTES], lambda stats: told.append(sum(one.bars_written for one in stats.values())))
    rebuild(bench.lake, [MINUTES], lambda stats: None)
    assert told == [9]  # 8 seconds with trades, and their minute
    update(bench.lake, bench.bars, lambda stats: None)
    bench.assert_whole()
    assert len(BarsTable.open(bench.lake, MINUTES).iceberg_table.metadata.snapshots) == 3


def test_bars_of_trades_that_are_gone_are_not_made_anew(bench: BarsBench) -> None:
    """Also not after the snapshot that deleted them has expired."""
    update(bench.lake, [SECONDS], lambda stats: None)
    before = bench.rows(SECONDS)
    bench.trades.iceberg_table.refresh().delete("trade_id < 4")
    bench.commit([made(i, at_s=i * 0.7) for i in range(12, 14)])
    bench.expire_trades()
    with pytest.raises(Refused, match="would be without them"):
        rebuild(bench.lake, [SECONDS], lambda stats: None)
    assert bench.rows(SECONDS) == before
    rebuild(bench.lake, [SECONDS], lambda stats: None, without_deleted=True)
    assert sum(bar["trade_count"] for bar in bench.rows(SECONDS)) == 10


def test_a_compaction_is_no_loss(bench: BarsBench) -> None:
    bench.compact()
    bench.trades.reload()
    check_complete(bench.trades)


def test_a_table_that_is_none_is_named() -> None:
    assert bars_named(["market.bars_1m", "bars_1s"]) == [MINUTES, SECONDS]
    with pytest.raises(K2Error, match="there is no table of bars 'bars_5m'; there are bars_1s, bars_1m"):
        bars_named(["bars_5m"])
