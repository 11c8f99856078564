"""Old days go, whole files of them, and what went is declared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.spec import UpdateSpec

from common.commit_files import losses_of
from common.commits import DELETED_KEY
from common.errors import Interrupted, Overtaken, Refused
from common.offsets import SUMMARY_KEY, KafkaPartition, PartitionOffsets
from sink.maintenance import retention
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.jobs import Unwatched
from sink.maintenance.retention import RetentionPolicy, delete_old, deleted_from, first_day_kept
from tests.support.lake_tables import PARTITION, Filled, trades_of
from tests.support.records import EPOCH

KEEP_2 = RetentionPolicy("event_time", 2)


def at_us(day: int, hour: float = 12) -> int:
    return int((EPOCH + timedelta(days=day, hours=hour)).timestamp()) * 1_000_000


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    """Ten trades of each of five days; a day's ids and offsets are tens."""
    one = Filled(tmp_path)
    for day in range(5):
        one.append(10, day=day)
    return one


def test_whole_days_are_kept_beside_the_one_that_runs() -> None:
    day = datetime(2024, 8, 9, tzinfo=UTC)
    assert first_day_kept(KEEP_2, at_us(5, 0)) == day + timedelta(days=3)
    assert first_day_kept(KEEP_2, at_us(6, 0) - 1) == day + timedelta(days=3)
    assert first_day_kept(KEEP_2, at_us(6, 0)) == day + timedelta(days=4)


@pytest.mark.parametrize(("now", "first_id"), [(2, 0), (3, 10), (4, 20), (5, 30), (30, 50)])
def test_what_is_older_goes_and_the_rest_stays(filled: Filled, now: int, first_id: int) -> None:
    offsets = filled.table.committed_offsets()
    report = delete_old(filled.table, KEEP_2, at_us(now))
    assert filled.ids() == list(range(first_id, 50))
    assert (report.rows, report.files) == (first_id, first_id // 10)
    assert filled.table.committed_offsets() == offsets
    snapshot = filled.table.iceberg_table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    if first_id:
        assert snapshot.summary.operation is Operation.DELETE
        assert snapshot.summary[DELETED_KEY] == PartitionOffsets({PARTITION: 0}).to_text() == report.deleted_from
        assert snapshot.summary[SUMMARY_KEY] == offsets.to_text()
        assert snapshot.summary["total-records"] == str(50 - first_id)
    else:
        assert snapshot.summary.operation is Operation.APPEND
        assert report.to_text() == "nothing is older than 2024-08-09"
    assert delete_old(filled.table, KEEP_2, at_us(now)).files == 0


def test_it_says_from_which_offset_on_rows_are_gone(tmp_path: Path) -> None:
    """The old day's rows came later in the log than the young day's, as with a backfill."""
    filled = Filled(tmp_path)
    filled.append(10, day=9)
    filled.append(10, day=0)
    delete_old(filled.table, KEEP_2, at_us(9))
    (loss,) = losses_of(filled.table.iceberg_table.metadata, [], filled.table.snapshot_id)
    assert loss.deleted_from == PartitionOffsets({PARTITION: 10})
    assert not loss.touches(PartitionOffsets({PARTITION: 10}))
    assert loss.touches(PartitionOffsets({PARTITION: 11}))
    assert filled.ids() == list(range(10))


def test_a_file_that_reaches_into_a_young_day_stays_whole(tmp_path: Path) -> None:
    """As in a table that was made before partitions."""
    filled = Filled(tmp_path)
    with filled.table.iceberg_table.transaction() as transaction:
        UpdateSpec(transaction).remove_field("event_time_day").commit()
    filled.table.reload()
    filled.append_rows(pa.concat_tables([trades_of(0, 5, day=0), trades_of(5, 5, day=1)]))
    filled.append_rows(pa.concat_tables([trades_of(10, 5, day=1), trades_of(15, 5, day=4)]))
    assert delete_old(filled.table, KEEP_2, at_us(4)).rows == 10
    assert filled.ids() == list(range(10, 20))


def test_a_dry_run_deletes_nothing(filled: Filled) -> None:
    report = delete_old(filled.table, KEEP_2, at_us(4), dry_run=True)
    assert report.to_text().startswith("20 rows in 2 files (")
    assert report.to_text().endswith("from before 2024-08-11 would be deleted")
    assert filled.ids() == list(range(50))


def test_readers_of_older_snapshots_and_files_on_disk_stay(filled: Filled) -> None:
    pinned, stored = filled.table.snapshot_id, filled.stored()
    delete_old(filled.table, KEEP_2, at_us(30))
    assert filled.ids() == []
    assert filled.ids(pinned) == list(range(50))
    assert filled.stored() == stored
    filled.append(3, day=30)
    assert filled.ids() == [50, 51, 52]


def test_a_compaction_that_is_at_work_on_what_goes_makes_it_yield(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(5):
        filled.append(10, day=day)
    other, planned = filled.other(), retention.live_files

    def late(table: object) -> object:
        found = planned(table)  # type: ignore[arg-type]
        compact(other, CompactionPolicy(), at_us(30))
        return found

    monkeypatch.setattr(retention, "live_files", late)
    with pytest.raises(Overtaken, match="another job was first"):
        delete_old(filled.table, KEEP_2, at_us(4))
    monkeypatch.undo()
    assert filled.ids() == list(range(100))
    delete_old(filled.table, KEEP_2, at_us(4))
    assert filled.ids() == [*range(20, 50), *range(70, 100)]


def test_stopped_at_any_step_it_is_done_or_not_begun(tmp_path: Path) -> None:
    for at in range(1, 20):

        class Stopping(Unwatched):
            left = at

            def step(self, doing: str, total: int | None = None) -> None:
                self.left -= 1
                if self.left == 0:
                    raise Interrupted("stopped")

        filled = Filled(tmp_path / str(at))
        filled.append(5, day=0)
        try:
            delete_old(filled.table, KEEP_2, at_us(9), progress=Stopping())
        except Interrupted:
            assert filled.ids() == list(range(5))
        else:
            assert filled.ids() == []
            assert at > 3
            return
    pytest.fail("it never ended")


def test_a_table_without_the_column_is_refused(filled: Filled) -> None:
    with pytest.raises(Refused, match=r"market\.trades has no column quote_time"):
        delete_old(filled.table, RetentionPolicy("quote_time", 1), at_us(4))


# -- what is said of what is gone


def partition(topic: str, number: int) -> KafkaPartition:
    return KafkaPartition("c", f"{topic}-id-{topic * 5}", number)


@given(
    st.dictionaries(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), st.integers(1, 100), min_size=1).map(
        lambda found: PartitionOffsets({partition(*key): n for key, n in found.items()})
    ),
    st.lists(st.tuples(st.sampled_from("abz"), st.integers(0, 3), st.integers(0, 99)), max_size=20),
)
def test_no_lost_row_is_left_unsaid(stands: PartitionOffsets, gone: list[tuple[str, int, int]]) -> None:
    short = {name: partition(name, 0).topic_id[-8:] for name in "abz"}
    said = deleted_from([(short[topic], number, offset) for topic, number, offset in gone], stands)
    for topic, number, offset in gone:
        where = partition(topic, number)
        if where in stands:
            assert said[where] <= offset
        else:
            assert all(said[each] == 0 for each in stands)
    if gone and all(partition(topic, number) in stands for topic, number, _ in gone):
        assert said == PartitionOffsets(
            {where: min(o for t, n, o in gone if partition(t, n) == where) for where in said}
        )
