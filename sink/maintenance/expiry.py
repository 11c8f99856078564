"""Upkeep of the tables: old snapshots expire, because each one kept makes every commit dearer.

Nothing is lost by it. What a snapshot was (when it was current, which offsets it had taken in) is written to the
table's history first, and the metadata commit that expires it is the one that lists the history's files
(common.commit_files): both happen or neither. The tables are append-only, so each data file of an expired snapshot
belongs to the newest one too; no data file is deleted here, so a reader that has loaded an expired snapshot goes on
reading it. And an old instant does not need its old snapshot: rows carry their Kafka offset, so a cut can be read again
from any newer snapshot (design rule 9).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.table.update.snapshot import ExpireSnapshots

from common.commit_files import record
from common.commits import HISTORY_KEY
from common.errors import CommitConflict
from common.iceberg import ThriftyTransaction, summary_entry, translated
from common.offsets import SUMMARY_KEY
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted


@dataclass(frozen=True)
class ExpiryPolicy:
    """Keeps the newest `snapshots_kept_min` snapshots, and all younger than `age_us_min` (microseconds).

    Whoever has loaded the table's metadata reads any snapshot in it, one that expired since too: files stay far longer.
    So the age only has to be longer than the time from the catalog's answer to the loaded metadata. Each snapshot that
    is kept makes every commit dearer: after 1,000 commits, 38 ms of CPU with 120 of them and 18 with ten.
    """

    snapshots_kept_min: int
    age_us_min: int = 10 * 1_000_000


def snapshots_to_expire(metadata: TableMetadata, policy: ExpiryPolicy, now_us: int) -> Set[int]:
    """The ids of the snapshots that may go. Pure.

    Always kept, whatever the policy: every snapshot that a branch or tag refers to, the newest included, and the newest
    that says which Kafka offsets the table holds, should a foreign tool have made newer ones without that entry.
    """
    newest_first = sorted(
        metadata.snapshots, key=lambda snapshot: (snapshot.timestamp_ms, snapshot.sequence_number or 0)
    )
    newest_first.reverse()
    kept = {snapshot.snapshot_id for snapshot in newest_first[: policy.snapshots_kept_min]}
    kept |= {
        snapshot.snapshot_id for snapshot in newest_first if now_us - snapshot.timestamp_ms * 1000 < policy.age_us_min
    }
    kept |= {reference.snapshot_id for reference in metadata.refs.values()}
    for snapshot in ancestors_of(metadata.current_snapshot(), metadata):
        kept.add(snapshot.snapshot_id)
        if summary_entry(snapshot, SUMMARY_KEY) is not None:
            break
    return {snapshot.snapshot_id for snapshot in newest_first} - kept


def expire_snapshots(table: MaintainedTable, policy: ExpiryPolicy, now_us: int) -> int:
    """Record all commits and expire what the policy lets go, as of the table's last load; returns how many went.

    0 when another writer committed at the same moment: the next round will do it. Raises CatalogError; then some files
    may be left that nothing refers to, and whether the snapshots went is not known: the next round finds out.
    """
    iceberg_table = table.iceberg_table
    expiring = snapshots_to_expire(iceberg_table.metadata, policy, now_us)
    if not expiring:
        return 0
    with translated(f"expire snapshots of {table.name}"):
        recorded = record(iceberg_table)
        transaction = ThriftyTransaction(iceberg_table)
        try:
            if recorded is not None:
                transaction.set_properties({HISTORY_KEY: recorded.property_text})
            ExpireSnapshots(transaction).by_ids(sorted(expiring)).commit()
            transaction.commit_transaction()
        except (CommitFailedException, ValueError):  # ValueError: another writer has expired some of them
            if recorded is not None:
                recorded.discard()
            table.reload()
            return 0
        if recorded is not None:
            recorded.landed()
    return len(expiring)


#: Commits that came first, before `expire` gives up.
_ATTEMPTS_MAX = 8


@dataclass(frozen=True)
class ExpireReport(Report):
    """Snapshots that went, and those that are kept; their files stay until they are orphans of some age."""

    job: ClassVar[str] = "expire"

    snapshots_expired: int
    snapshots_kept: int

    def to_text(self) -> str:
        would = "would expire" if self.dry_run else "expired"
        return f"{counted(self.snapshots_expired, 'snapshot')} {would}, {self.snapshots_kept:,} kept"


def expire(
    table: MaintainedTable,
    policy: ExpiryPolicy,
    now_us: int,
    *,
    dry_run: bool = False,
    progress: Progress = UNWATCHED,
) -> ExpireReport:
    """Expire what the policy lets go, also when others commit at the same time. Raises CatalogError, and CommitConflict
    when others changed the table all the time.
    """
    expired = 0
    for _attempt in range(_ATTEMPTS_MAX):
        progress.step("load the table")
        table.reload()
        metadata = table.iceberg_table.metadata
        going = snapshots_to_expire(metadata, policy, now_us)
        if not going or dry_run:
            expired += len(going)
            return ExpireReport(table.name, dry_run, expired, len(metadata.snapshots) - len(going))
        progress.step("record the history and expire", len(going))
        expired += expire_snapshots(table, policy, now_us)
    raise CommitConflict(
        f"could not expire snapshots of {table.name}: others changed the table {_ATTEMPTS_MAX} times in the meantime; "
        "try again"
    )
