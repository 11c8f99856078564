"""A table is rolled back while a sink works on it: every row comes back, once, and none that the log lacks is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from common.datasets import TRADES
from common.errors import Refused
from common.settings import LakeSettings
from sink.maintenance.refs import rollback
from sink.maintenance.verify import verify
from sink.table import IcebergTable
from tests.support.fake_log import FakeLog
from tests.support.records import trade
from tests.support.sink_bench import ENCODER, TOPIC, SinkBench
from tests.support.upkeep import trade_ids

SENT = 36


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def bench(lake: LakeSettings) -> SinkBench:
    log = FakeLog()
    log.create(TOPIC, partitions=2)
    for trade_id in range(SENT):
        log.append(TOPIC, ENCODER.encode(trade(trade_id)), trade_id % 2)
    return SinkBench(log, lambda: IcebergTable.open(lake, TRADES))


def first_snapshot(table: IcebergTable) -> int:
    table.reload()
    return table.iceberg_table.metadata.snapshots[0].snapshot_id


@pytest.mark.parametrize("steps", [8, 9, 10, 11, 12])
def test_a_sink_that_holds_rows_goes_on_where_the_table_is(lake: LakeSettings, bench: SinkBench, steps: int) -> None:
    worker, table = bench.worker(), IcebergTable.open(lake, TRADES)
    for _ in range(steps):
        worker.step()
    target = first_snapshot(table)
    report = rollback(table, snapshot_id=target, log_starts=bench.log.start_offsets())
    assert report.offsets_read_again > 0
    bench.log.append(TOPIC, ENCODER.encode(trade(SENT)))
    bench.run(worker)
    assert Counter(trade_ids(lake)) == Counter(range(SENT + 1))
    assert verify(table).is_clean


def test_a_new_sink_reads_what_was_rolled_back(lake: LakeSettings, bench: SinkBench) -> None:
    bench.run(bench.worker())
    table = IcebergTable.open(lake, TRADES)
    target = first_snapshot(table)
    rollback(table, snapshot_id=target, log_starts=bench.log.start_offsets())
    assert len(trade_ids(lake)) < SENT
    bench.run(bench.worker())
    assert Counter(trade_ids(lake)) == Counter(range(SENT))
    assert verify(table).is_clean


def test_a_topic_that_was_made_anew_is_no_way_back(lake: LakeSettings, bench: SinkBench) -> None:
    bench.run(bench.worker())
    bench.log.create(TOPIC, partitions=2)
    table = IcebergTable.open(lake, TRADES)
    target = first_snapshot(table)
    with pytest.raises(Refused, match="the log no longer has"):
        rollback(table, snapshot_id=target, log_starts=bench.log.start_offsets())
    assert Counter(trade_ids(lake)) == Counter(range(SENT))
