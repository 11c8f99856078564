"""Tags and rollbacks: what is refused, what comes again, and that nothing is half done."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.table import Transaction

from common.datasets import TRADES
from common.errors import CommitConflict, CommitStateUnknown, Refused, SnapshotNotFound
from common.iceberg import open_catalog
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance import refs
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.refs import Rollback, plan_rollback, rollback, tag, untag
from sink.maintenance.tables import AnyTable
from sink.table import IcebergTable
from tests.support.records import table_rows, trade
from tests.support.upkeep import P0, append, assert_whole, filled, stopped_everywhere, trade_ids, trades

LATER_US = 4_000_000_000_000_000
ALL = PartitionOffsets({P0: 0})


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


def snapshots(table: IcebergTable | AnyTable) -> list[int]:
    return [snapshot.snapshot_id for snapshot in table.iceberg_table.metadata.snapshots]


def test_a_tagged_snapshot_outlives_expiry_until_it_is_untagged(lake: LakeSettings) -> None:
    table = filled(lake, 4)
    first = snapshots(table)[0]
    report = tag(table, "audit", first)
    assert (report.snapshot_id, report.was_snapshot_id) == (first, None)
    assert expire(table, ExpiryPolicy(1, 0), LATER_US).snapshots_expired == 2
    table.reload()
    assert first in snapshots(table)
    assert untag(table, "audit").was_snapshot_id == first
    assert expire(table, ExpiryPolicy(1, 0), LATER_US).snapshots_expired == 1


def test_a_tag_is_on_the_current_snapshot_when_none_is_named_and_is_set_once(lake: LakeSettings) -> None:
    table = filled(lake, 2)
    newest = table.snapshot_id
    assert tag(trades(lake), "end-of-day").snapshot_id == newest
    again = tag(trades(lake), "end-of-day")
    assert (again.snapshot_id, again.was_snapshot_id) == (newest, newest)
    append(table, 6)
    with pytest.raises(Refused, match="end-of-day is already a tag of"):
        tag(trades(lake), "end-of-day")


@pytest.mark.parametrize("name", ["", "main", "a b", "-x", "a/b", "x" * 129])
def test_a_name_that_cannot_be_a_tag_is_refused(lake: LakeSettings, name: str) -> None:
    with pytest.raises(Refused, match="cannot be a tag"):
        tag(filled(lake, 1), name)


def test_what_is_not_there_cannot_be_tagged_or_untagged(lake: LakeSettings) -> None:
    table = IcebergTable.open(lake, TRADES)
    with pytest.raises(SnapshotNotFound, match="no snapshot yet"):
        tag(table, "audit")
    with pytest.raises(SnapshotNotFound, match="has no tag audit; it has none"):
        untag(table, "audit")
    filled(lake, 1)
    with pytest.raises(SnapshotNotFound, match="keeps no snapshot 12"):
        tag(table, "audit", 12)


def test_a_dry_run_leaves_the_table_as_it_is(lake: LakeSettings) -> None:
    table = filled(lake, 2)
    location = table.iceberg_table.metadata_location
    tag(table, "audit", dry_run=True)
    report = rollback(table, snapshot_id=snapshots(table)[0], log_starts=ALL, dry_run=True)
    assert report.offsets_read_again == 3
    table.reload()
    assert table.iceberg_table.metadata_location == location


def test_after_a_rollback_the_sink_goes_on_where_the_snapshot_was(lake: LakeSettings) -> None:
    table = filled(lake, 4)
    target = snapshots(table)[1]
    report = rollback(table, snapshot_id=target, log_starts=ALL)
    assert (report.rows, report.rows_now, report.offsets_read_again, report.offsets_lost) == (6, 12, 6, 0)
    fresh = IcebergTable.open(lake, TRADES)
    assert fresh.committed_offsets() == PartitionOffsets({P0: 6})
    assert trade_ids(lake) == list(range(6))
    append(fresh, 6, rows=6)
    assert trade_ids(lake) == list(range(12))
    assert_whole(fresh)


def test_a_rollback_to_a_time_goes_to_what_was_current_then(lake: LakeSettings) -> None:
    table = filled(lake, 3)
    kept = table.iceberg_table.metadata.snapshots
    plan = plan_rollback(table, time_ms=kept[1].timestamp_ms)
    assert plan.snapshot_id == kept[1].snapshot_id
    with pytest.raises(SnapshotNotFound, match="is not kept any more"):
        plan_rollback(table, time_ms=kept[0].timestamp_ms - 1)


def test_a_rollback_that_the_log_cannot_make_good_is_refused(lake: LakeSettings) -> None:
    table = filled(lake, 4)
    target = snapshots(table)[0]
    with pytest.raises(Refused, match="no longer has 2 offsets"):
        rollback(table, snapshot_id=target, log_starts=PartitionOffsets({P0: 5}))
    with pytest.raises(Refused, match="no longer has 9 offsets"):  # the topic is gone
        rollback(table, snapshot_id=target, log_starts=PartitionOffsets())
    with pytest.raises(Refused, match="cannot be asked"):
        rollback(table, snapshot_id=target, log_starts=None)
    assert trade_ids(lake) == list(range(12))
    report = rollback(table, snapshot_id=target, log_starts=PartitionOffsets({P0: 5}), force=True)
    assert (report.offsets_read_again, report.offsets_lost) == (7, 2)
    assert trade_ids(lake) == [0, 1, 2]


def test_a_rollback_that_moves_no_offsets_needs_no_log(lake: LakeSettings) -> None:
    table = filled(lake, 2)
    foreign = open_catalog(lake).load_table(TRADES.table)
    foreign.append(table_rows("trade", [trade(99)]))
    report = rollback(table, snapshot_id=snapshots(table)[1], log_starts=None)
    assert (report.offsets_read_again, report.offsets_lost) == (0, 0)
    assert trade_ids(lake) == list(range(6))


def test_what_the_table_does_not_come_from_is_no_way_back(lake: LakeSettings) -> None:
    table = filled(lake, 3)
    left = snapshots(table)[-1]
    with pytest.raises(Refused, match="is the current one"):
        rollback(table, snapshot_id=left, log_starts=ALL)
    rollback(table, snapshot_id=snapshots(table)[0], log_starts=ALL)
    with pytest.raises(Refused, match="does not come from"):
        rollback(table, snapshot_id=left, log_starts=ALL)
    with pytest.raises(SnapshotNotFound):
        rollback(table, snapshot_id=1, log_starts=ALL)


def test_a_users_table_goes_back_without_a_log(lake: LakeSettings) -> None:
    catalog = open_catalog(lake)
    catalog.create_namespace("research")
    rows = pa.table({"n": [1]})
    table = catalog.create_table("research.mine", rows.schema)
    for _ in range(4):
        table.append(rows)
    table.maintenance.expire_snapshots().by_id(table.metadata.snapshots[0].snapshot_id).commit()
    mine = AnyTable(catalog, table)
    mine.reload()
    report = rollback(mine, snapshot_id=snapshots(mine)[0], log_starts=None)
    assert (report.rows, report.rows_now) == (2, 4)


def test_which_offsets_are_lost() -> None:
    gone, short, whole = (KafkaPartition("cluster", topic, 0) for topic in ("gone", "short", "whole"))
    back = PartitionOffsets({gone: 10, short: 10, whole: 10})
    now = PartitionOffsets({gone: 15, short: 15, whole: 15})
    plan = Rollback(1, 2, 0, 0, 0, back, now)
    starts = PartitionOffsets({short: 12, whole: 10})
    assert plan.lost(starts) == {gone: 5, short: 2}
    assert plan.lost(PartitionOffsets({gone: 99, short: 99, whole: 3})) == {gone: 5, short: 5}


def test_a_conflict_is_tried_again_and_then_said(lake: LakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink commits each time that the rollback is about to."""
    table = filled(lake, 2)
    target = snapshots(table)[0]
    commit = Transaction.commit_transaction
    rival = IcebergTable.open(lake, TRADES)
    left = 100

    def raced(transaction: Transaction) -> object:
        nonlocal left
        if left:
            left -= 1
            with monkeypatch.context() as patched:
                patched.setattr(Transaction, "commit_transaction", commit)
                append(rival, rival.committed_offsets().next_offset(P0))
        return commit(transaction)

    monkeypatch.setattr(Transaction, "commit_transaction", raced)
    with pytest.raises(CommitConflict, match=f"others changed the table {refs.ATTEMPTS_MAX} times"):
        rollback(table, snapshot_id=target, log_starts=ALL)
    assert trade_ids(lake) == list(range(6 + refs.ATTEMPTS_MAX))
    left = 3
    report = rollback(table, snapshot_id=target, log_starts=ALL)
    assert report.offsets_read_again == refs.ATTEMPTS_MAX + 6, "it reports of the table that it rolled back"
    assert trade_ids(lake) == [0, 1, 2]


def test_an_answer_that_got_lost_is_said_and_the_same_call_finds_it_done(
    lake: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = filled(lake, 1)
    commit = Transaction.commit_transaction

    def lost(transaction: Transaction) -> object:
        commit(transaction)
        raise TimeoutError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "commit_transaction", lost)
        with pytest.raises(CommitStateUnknown, match="no answer"):
            tag(table, "audit")
    report = tag(table, "audit")
    assert report.was_snapshot_id == report.snapshot_id == table.snapshot_id


@pytest.mark.parametrize("dying", [False, True])
def test_an_end_at_any_step_leaves_the_table_as_it_was_or_as_it_shall_be(lake: LakeSettings, dying: bool) -> None:
    table = filled(lake, 3)
    target = snapshots(table)[0]
    ended = 0
    for ended in stopped_everywhere(
        lambda progress: rollback(table, snapshot_id=target, log_starts=ALL, progress=progress), dying=dying
    ):
        assert trade_ids(lake) == list(range(9)), ended
    assert ended > 0
    assert trade_ids(lake) == [0, 1, 2]
    assert_whole(table)
