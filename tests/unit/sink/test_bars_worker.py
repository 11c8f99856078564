"""Bars keep up with their trades, whatever becomes of the trades' files, and correct themselves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.datasets import BARS
from common.errors import CommitConflict, CommitStateUnknown
from common.iceberg import open_catalog
from common.settings import LakeSettings
from sink import layout
from sink.added_rows import rows_between
from sink.bars import TRADE_COLUMNS
from sink.bars_table import BarsTable, Change
from sink.bars_worker import BarsPassed
from tests.support.bars_bench import LATER_US, BarsBench, made
from tests.support.bars_oracle import oracle

SECONDS, DAYS = BARS["bars_1s"], BARS["bars_1d"]


@pytest.fixture
def bench(tmp_path: Path) -> BarsBench:
    return BarsBench(LakeSettings.load(data_dir=tmp_path / "lake"), bars=(SECONDS, DAYS))


def day(first_id: int, count: int = 8, *, from_s: float = 0.0) -> list[dict[str, object]]:
    return [made(i, at_s=from_s + (i - first_id) * 0.4, symbol="AB"[i % 2]) for i in range(first_id, first_id + count)]


def test_bars_follow_the_trades(bench: BarsBench) -> None:
    worker = bench.worker()
    assert worker.step() is False
    for number in range(3):
        bench.commit(day(number * 8, from_s=number * 2.0), partition=number % 2)
        assert worker.step() is False
        bench.assert_whole()
    assert {stats.behind for stats in worker.stats.values()} == {0}
    assert {stats.commits for stats in worker.stats.values()} == {3}


def test_a_late_trade_corrects_bars_that_were_written(bench: BarsBench) -> None:
    """Two days later, a trade that opens the first bar, and one of a second that had none."""
    bench.commit(day(10))
    bench.commit(day(20, from_s=2 * 86_400.0))
    bench.run(bench.worker())
    before = bench.rows(SECONDS)[0]
    bench.commit([made(2, at_s=0.0, symbol="A"), made(3, at_s=1_000.0, symbol="A", source="backfill")])
    bench.run(bench.worker())
    bench.assert_whole()
    after = bench.rows(SECONDS)[0]
    assert (before["first_trade_id"], after["first_trade_id"]) == (10, 2)
    assert after["trade_count"] == before["trade_count"] + 1


def test_a_step_takes_in_no_more_than_it_may(bench: BarsBench) -> None:
    bench.commit(day(0, 30))
    bench.commit(day(100, 30), partition=1)
    worker = bench.worker(trades_max=7)
    assert worker.step() is True
    assert sum(bench.table(SECONDS).committed_offsets().values()) == 7
    bench.run(worker)
    bench.assert_whole()
    assert worker.stats[SECONDS.table].commits == 9


def test_tables_that_stand_apart_come_together(bench: BarsBench) -> None:
    bench.commit(day(0))
    alone = BarsBench(bench.lake, bars=(DAYS,))
    alone.run(alone.worker())
    bench.commit(day(8))
    bench.run(bench.worker())
    bench.assert_whole()


@pytest.mark.parametrize("expires", [False, True], ids=["", "and snapshots expired"])
def test_files_that_were_compacted_in_between(bench: BarsBench, expires: bool) -> None:
    """The file of the compaction has trades that the bars have, and trades that they have not."""
    bench.commit(day(0))
    bench.run(bench.worker())
    bench.commit(day(8))
    bench.compact()
    bench.commit(day(16))
    if expires:
        bench.expire_trades()
    bench.run(bench.worker())
    bench.assert_whole()


def test_only_files_that_came_later_are_read(bench: BarsBench) -> None:
    for number in range(4):
        bench.commit(day(number * 8))
    half = bench.trades.committed_offsets()
    bench.commit(day(32))
    bench.trades.reload()
    table = bench.trades.iceberg_table
    for path in {task.file.file_path for task in table.scan("_kafka_offset < 32").plan_files()}:
        table.io.delete(path)
    rows = rows_between(table, half, bench.trades.committed_offsets(), ("trade_id",))
    assert sorted(i for batch in rows for i in batch["trade_id"].to_pylist()) == list(range(32, 40))


def test_of_a_compacted_file_only_row_groups_with_new_rows_are_read(
    bench: BarsBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time; of the others no more than where their rows were in the log."""
    monkeypatch.setattr(layout, "GROUP_ROWS", 4)
    for number in range(4):
        bench.commit(day(number * 8))
    most = bench.trades.committed_offsets()
    bench.commit(day(32))
    bench.compact()
    read: list[tuple[int, bool]] = []

    def noting(self: pq.ParquetFile, group: int, columns: list[str], **options: Any) -> pa.Table:
        read.append((group, "trade_id" in columns))
        return read_row_group(self, group, columns, **options)

    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noting)
    rows = list(rows_between(bench.trades.iceberg_table, most, bench.trades.committed_offsets(), TRADE_COLUMNS))
    assert all(tuple(batch.schema.names) == TRADE_COLUMNS for batch in rows)
    assert sorted(i for batch in rows for i in batch["trade_id"].to_pylist()) == list(range(32, 40))
    assert [group for group, whole in read if not whole] == list(range(10))
    assert 2 <= len([group for group, whole in read if whole]) < 10


def test_of_two_workers_one_lands(bench: BarsBench) -> None:
    """Both have read the same trades; the second finds the fence at each table, and is done."""
    bench.commit(day(0))
    second = bench.worker()

    def first_is_faster(passed: BarsPassed) -> None:
        if passed is BarsPassed.READ:
            bench.run(bench.worker())

    second._hook = first_is_faster
    bench.run(second)
    bench.assert_whole()
    assert {stats.conflicts for stats in second.stats.values()} == {1}
    assert {stats.commits for stats in second.stats.values()} == {0}
    assert len(bench.files(SECONDS)) == len(list((bench.lake.data_dir).rglob("bars_1s/data/**/*.parquet")))


@pytest.mark.parametrize("lands", [True, False])
def test_an_unknown_outcome_resolves_itself(bench: BarsBench, monkeypatch: pytest.MonkeyPatch, lands: bool) -> None:
    """The catalog gives no answer, whether it took the commit or not; the worker asks the table."""
    bench.commit(day(0))
    land, answers = BarsTable.land, itertools.count()

    def unheard(self: BarsTable, change: Change, commit_id: str) -> int:
        is_first = next(answers) == 0
        snapshot_id = land(self, change, commit_id) if lands or not is_first else 0
        if is_first:
            raise CommitStateUnknown("no answer")
        return snapshot_id

    monkeypatch.setattr(BarsTable, "land", unheard)
    worker = bench.worker()
    bench.run(worker)
    bench.assert_whole()
    assert {stats.commits for stats in worker.stats.values()} == {1}


def test_trades_that_were_rolled_back_are_waited_for(bench: BarsBench) -> None:
    bench.commit(day(0))
    first = bench.trades.snapshot_id
    again = day(8)
    bench.commit(again)
    bench.run(bench.worker())
    assert first is not None
    catalog_table = bench.trades.iceberg_table
    catalog_table.manage_snapshots().rollback_to_snapshot(first).commit()
    worker = bench.worker()
    assert worker.step() is False
    assert worker.stats[SECONDS.table].commits == 0
    del bench.sent[8:]
    bench.commit(again)
    bench.commit(day(16))
    bench.run(worker)
    bench.assert_whole()


def test_trades_that_leave_their_table_stay_in_their_bars(bench: BarsBench) -> None:
    bench.commit(day(0))
    bench.run(bench.worker())
    bench.trades.iceberg_table.refresh().delete("trade_id < 4")
    bench.commit(day(8))
    bench.run(bench.worker())
    bench.assert_whole()


def test_an_emptied_table_is_made_anew(bench: BarsBench) -> None:
    bench.commit(day(0))
    bench.run(bench.worker())
    table = bench.table(SECONDS)
    assert table.empty("made-anew") == len(oracle(bench.sent, SECONDS.width_us))
    assert bench.rows(SECONDS) == [] and not any(bench.table(SECONDS).committed_offsets().values())
    bench.run(bench.worker())
    bench.assert_whole()


def test_a_commit_made_for_a_table_that_was_emptied_does_not_land(bench: BarsBench) -> None:
    bench.commit(day(0))
    bench.run(bench.worker())
    table = bench.table(SECONDS)
    base = table.committed_offsets()
    bench.commit(day(8))
    change = table.prepare(bench.worker()._bars(base, base, SECONDS.width_us), base, bench.trades.committed_offsets())
    bench.table(SECONDS).empty("made-anew")
    with pytest.raises(CommitConflict):
        table.land(change, "late")


def test_replaced_files_go_when_their_snapshots_do(bench: BarsBench) -> None:
    """And those of a tag stay, with all that its snapshot has."""
    for number in range(3):
        bench.commit(day(number * 8, from_s=number * 1.0))
        bench.run(bench.worker())
    table = bench.table(SECONDS)
    assert len(list(bench.lake.data_dir.rglob("bars_1s/data/**/*.parquet"))) == 3
    assert table.expire(LATER_US) == 1
    assert len(list(bench.lake.data_dir.rglob("bars_1s/data/**/*.parquet"))) == 2
    bench.assert_whole()
    kept = bench.table(SECONDS).iceberg_table
    tagged = kept.metadata.snapshots[0].snapshot_id
    kept.manage_snapshots().create_tag(tagged, "kept").commit()
    for number in range(3, 8):
        bench.commit(day(number * 8, from_s=number * 1.0))
        bench.run(bench.worker())
    table = bench.table(SECONDS)
    assert table.expire(LATER_US) > 0
    catalog = open_catalog(bench.lake)
    assert catalog.load_table(SECONDS.table).scan(snapshot_id=tagged).to_arrow().num_rows > 0
    bench.assert_whole()


def test_many_commits_leave_few_manifests(bench: BarsBench) -> None:
    """Neither the commits nor the plan of a query grow with the number of commits."""
    small = BarsBench(bench.lake, bars=(SECONDS,))
    worker = small.worker()
    for number in range(45):
        small.commit([made(number, at_s=number * 1.0)])
        worker.step()
    snapshot = small.table(SECONDS).iceberg_table.metadata.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(small.trades.iceberg_table.io)) <= 20
    assert len(small.files(SECONDS)) == 1
    small.assert_whole()
