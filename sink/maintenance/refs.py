"""Tags, which expiry respects, and the way back: a table as one of its kept snapshots was.

A rollback moves the table's offsets back too, for they are the snapshot's. So the sink reads the log again from there
(design rule 1), and rows that were taken in since come back by themselves, each once; only what the log no longer holds
would be lost. Whether it does is the caller's to find out, and `rollback` refuses what it was not told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.table.update.snapshot import ManageSnapshots

from common.commit_files import CommitLog
from common.errors import CommitConflict, CommitStateUnknown, Refused, SnapshotNotFound
from common.iceberg import ThriftyTransaction, reason, summary_entry, translated
from common.offsets import SUMMARY_KEY, KafkaPartition, PartitionOffsets
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted

#: Commits that came first, before a job gives up. A sink that commits every second leaves far more room than that.
ATTEMPTS_MAX = 8
R = TypeVar("R", bound=Report)
_TAG_NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,127}")


@dataclass(frozen=True)
class TagReport(Report):
    """`snapshot_id` is what the tag refers to now, None when it is gone; `was_snapshot_id` what it did before."""

    job: ClassVar[str] = "tag"

    tag: str
    snapshot_id: int | None
    was_snapshot_id: int | None

    def to_text(self) -> str:
        would = "would be" if self.dry_run else "is"
        if self.snapshot_id is None:
            return f"the tag {self.tag} of snapshot {self.was_snapshot_id} {would} gone"
        if self.snapshot_id == self.was_snapshot_id:
            return f"the tag {self.tag} is on snapshot {self.snapshot_id} already"
        return f"snapshot {self.snapshot_id} {would} kept under the tag {self.tag}"


def tag(
    table: MaintainedTable,
    name: str,
    snapshot_id: int | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = UNWATCHED,
) -> TagReport:
    """Give a kept snapshot, the current one when None, a name under which it stays until `untag`.

    Raises Refused (a name that cannot be one, or that another snapshot has), SnapshotNotFound, CommitConflict,
    CatalogError.
    """
    if not _TAG_NAME.fullmatch(name) or name == MAIN_BRANCH:
        raise Refused(f"{name!r} cannot be a tag; use letters, digits, '.', '-' and '_', and not {MAIN_BRANCH}")

    def planned(metadata: TableMetadata) -> TagReport:
        wanted = metadata.current_snapshot_id if snapshot_id is None else snapshot_id
        if wanted is None:
            raise SnapshotNotFound(f"the table {table.name} has no snapshot yet, so there is nothing to tag")
        _kept(table.name, metadata, wanted)
        reference = metadata.refs.get(name)
        if reference is not None and reference.snapshot_id != wanted:
            kind = reference.snapshot_ref_type.value
            raise Refused(
                f"{name} is already a {kind} of {table.name}, on snapshot {reference.snapshot_id}; choose another "
                "name, or remove it first with untag"
            )
        return TagReport(table.name, dry_run, name, wanted, None if reference is None else reference.snapshot_id)

    def stage(refs: ManageSnapshots, report: TagReport) -> ManageSnapshots | None:
        if report.snapshot_id == report.was_snapshot_id or report.snapshot_id is None:
            return None
        return refs.create_tag(report.snapshot_id, name)

    return _committed(table, f"tag a snapshot of {table.name}", planned, stage, dry_run, progress)


def untag(table: MaintainedTable, name: str, *, dry_run: bool = False, progress: Progress = UNWATCHED) -> TagReport:
    """Take the name away; the snapshot expires with its like. Raises SnapshotNotFound when there is no such tag,
    CommitConflict, CatalogError.
    """

    def planned(metadata: TableMetadata) -> TagReport:
        tags = {key: r for key, r in metadata.refs.items() if r.snapshot_ref_type == SnapshotRefType.TAG}
        if name not in tags:
            there_are = f"its tags are {', '.join(sorted(tags))}" if tags else "it has none"
            raise SnapshotNotFound(f"the table {table.name} has no tag {name}; {there_are}")
        return TagReport(table.name, dry_run, name, None, tags[name].snapshot_id)

    return _committed(
        table, f"untag a snapshot of {table.name}", planned, lambda refs, _: refs.remove_tag(name), dry_run, progress
    )


# -- rollback


@dataclass(frozen=True)
class Rollback:
    """Where a rollback would lead: what the table says of itself now, and what it would say then.

    `back` are the partitions whose next offset would be lower, with it; `log_starts` is to be asked about these.
    """

    snapshot_id: int
    from_snapshot_id: int
    committed_ms: int
    rows: int | None
    rows_now: int | None
    back: PartitionOffsets
    now: PartitionOffsets

    def lost(self, log_starts: PartitionOffsets) -> Mapping[KafkaPartition, int]:
        """How many offsets of each partition the sink could not read again: the log begins behind them, or is gone.

        A partition that `log_starts` does not name is gone.
        """
        lost = {}
        for partition, to in self.back.items():
            upper = self.now.next_offset(partition)
            begins = log_starts.get(partition, upper)
            if begins > to:
                lost[partition] = min(begins, upper) - to
        return lost


@dataclass(frozen=True)
class RollbackReport(Report):
    """`offsets_read_again` is how many offsets the sink reads again, `offsets_lost` of how many the rows are gone."""

    job: ClassVar[str] = "rollback"

    snapshot_id: int
    from_snapshot_id: int
    rows: int | None
    rows_now: int | None
    offsets_read_again: int
    offsets_lost: int

    def to_text(self) -> str:
        text = (
            f"{'would go' if self.dry_run else 'went'} back from snapshot {self.from_snapshot_id} "
            f"({_number(self.rows_now)} rows) to {self.snapshot_id} ({_number(self.rows)} rows)"
        )
        if self.offsets_read_again:
            text += (
                f"; the sink reads {counted(self.offsets_read_again, 'offset')} of the log again, each row comes once"
            )
        if self.offsets_lost:
            text += f"; the rows of {counted(self.offsets_lost, 'offset')} are lost"
        return text


def plan_rollback(table: MaintainedTable, *, snapshot_id: int | None = None, time_ms: int | None = None) -> Rollback:
    """What a rollback to this snapshot, or to the one that was current at this time, would mean; freshly loaded.

    Raises SnapshotNotFound when it is not kept, Refused when the table does not come from it, when it is the current
    one, or when nobody knows its offsets, CatalogError.
    """
    with translated(f"plan a rollback of {table.name}"):
        table.reload()
        return _planned(table, snapshot_id, time_ms)


def rollback(
    table: MaintainedTable,
    *,
    snapshot_id: int,
    log_starts: PartitionOffsets | None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = UNWATCHED,
) -> RollbackReport:
    """Make a kept ancestor the current snapshot again, in one commit.

    `log_starts`: the first offset that the log holds of each partition of today's topics; None: the broker could not
    be asked. Raises Refused when rows would be lost, or when it cannot be told, unless `force`; else as
    `plan_rollback`, and CommitConflict when others changed the table all the time.
    """

    def planned(_: TableMetadata) -> RollbackReport:
        plan = _planned(table, snapshot_id, None)
        again = sum(plan.now.next_offset(p) - to for p, to in plan.back.items())
        lost = {} if log_starts is None else plan.lost(log_starts)
        if not force and again and log_starts is None:
            raise Refused(
                f"{table.name} would go back by {counted(again, 'offset')} of the log, and the broker cannot be asked "
                "whether it still has them; make it reachable, or give --force"
            )
        if not force and lost:
            partition, count = next(iter(sorted(lost.items())))
            raise Refused(
                f"the log no longer has {counted(sum(lost.values()), 'offset')} that {table.name} would have to read "
                f"again ({count:,} of topic {partition.topic_id} [{partition.partition}]), so their rows would be "
                "lost; give --force if they may be"
            )
        return RollbackReport(
            table.name,
            dry_run,
            plan.snapshot_id,
            plan.from_snapshot_id,
            plan.rows,
            plan.rows_now,
            again - sum(lost.values()),
            sum(lost.values()),
        )

    return _committed(
        table,
        f"roll back {table.name}",
        planned,
        lambda refs, report: refs.set_current_snapshot(snapshot_id=report.snapshot_id),
        dry_run,
        progress,
    )


def _planned(table: MaintainedTable, snapshot_id: int | None, time_ms: int | None) -> Rollback:
    metadata = table.iceberg_table.metadata
    current = metadata.current_snapshot()
    if current is None:
        raise SnapshotNotFound(f"the table {table.name} has no snapshot yet, so there is no way back")
    ancestors = list(ancestors_of(current, metadata))
    if snapshot_id is None:
        assert time_ms is not None
        found = next((one for one in ancestors if one.timestamp_ms <= time_ms), None)
        if found is None:
            raise SnapshotNotFound(
                f"the snapshot that {table.name} had then is not kept any more; it can still be read with AT, but not "
                "be gone back to"
            )
        snapshot_id = found.snapshot_id
    target = _kept(table.name, metadata, snapshot_id)
    if target.snapshot_id == current.snapshot_id:
        raise Refused(f"snapshot {snapshot_id} is the current one of {table.name} already")
    if all(one.snapshot_id != snapshot_id for one in ancestors):
        raise Refused(f"the current snapshot of {table.name} does not come from {snapshot_id}, so that is no way back")
    log = CommitLog()
    log.update(table.iceberg_table)
    if all(summary_entry(one, SUMMARY_KEY) is None for one in metadata.snapshots):  # a table that no log feeds
        nothing = PartitionOffsets()
        return Rollback(
            snapshot_id, current.snapshot_id, target.timestamp_ms, _rows(target), _rows(current), nothing, nothing
        )
    now, then = (_offsets(log, one) for one in (current.snapshot_id, snapshot_id))
    if now is None or then is None:
        raise Refused(
            f"nobody knows any more which Kafka offsets snapshot {snapshot_id} of {table.name} holds, so the sink "
            "would not know where to go on"
        )
    back = PartitionOffsets({p: then.next_offset(p) for p, n in now.items() if then.next_offset(p) < n})
    return Rollback(snapshot_id, current.snapshot_id, target.timestamp_ms, _rows(target), _rows(current), back, now)


# -- what all of them share


def _committed(
    table: MaintainedTable,
    doing: str,
    planned: Callable[[TableMetadata], R],
    stage: Callable[[ManageSnapshots, R], ManageSnapshots | None],
    dry_run: bool,
    progress: Progress,
) -> R:
    """Load, plan, commit; anew from the start, a bounded number of times, when another commit was first.

    What is asked for is a state, so after CommitStateUnknown the same call again finds it reached, or reaches it.
    """
    with translated(doing):
        for _attempt in range(ATTEMPTS_MAX):
            progress.step("load the table")
            table.reload()
            report = planned(table.iceberg_table.metadata)
            transaction = ThriftyTransaction(table.iceberg_table)
            staged = stage(ManageSnapshots(transaction), report)
            if staged is None or dry_run:
                return report
            progress.step("commit")
            try:
                staged.commit()
                transaction.commit_transaction()
            except CommitFailedException:
                continue
            except Exception as error:  # noqa: BLE001 - whatever else came from the catalog's client, nobody knows
                raise CommitStateUnknown(
                    f"the catalog did not say whether it did {doing} ({reason(error)}); nothing is half done, run it "
                    "again"
                ) from None
            table.reload()
            return report
    raise CommitConflict(
        f"could not {doing}: others changed the table {ATTEMPTS_MAX} times in the meantime; nothing was changed, "
        "try again"
    )


def _offsets(log: CommitLog, snapshot_id: int) -> PartitionOffsets | None:
    commit = log.by_id(snapshot_id)
    return None if commit is None else commit.offsets


def _kept(name: str, metadata: TableMetadata, snapshot_id: int) -> Snapshot:
    found = metadata.snapshot_by_id(snapshot_id)
    if found is None:
        raise SnapshotNotFound(
            f"the table {name} keeps no snapshot {snapshot_id}; k2 tables history {name} lists what it keeps"
        )
    return found


def _rows(snapshot: Snapshot) -> int | None:
    text = None if snapshot.summary is None else snapshot.summary.get("total-records")
    return None if text is None else int(text)


def _number(count: int | None) -> str:
    return "an unknown number of" if count is None else f"{count:,}"
