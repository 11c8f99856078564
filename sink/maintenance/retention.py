"""Days that are older than a table's retention are deleted, whole data files at a time.

Guarantee: a file goes only when every row of it is of a day that is past retention; nothing is rewritten, so rows of a
file that reaches into younger days stay until all of it is old. The snapshot (Iceberg's `delete`) says in
`k2.deleted-from` the lowest Kafka offset of each partition of which rows are gone, read off the rows themselves. So an
instant that would need one of them is refused from then on, not answered with what is left (decision 0014). The data
files themselves are deleted as any file that nothing refers to: after expiry and the grace time of the orphans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.conversions import from_bytes
from pyiceberg.schema import Schema
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import PrimitiveType

from common.errors import Refused
from common.iceberg import translated
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from common.schemas.arrow import AUDIT_COLUMNS
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted, in_bytes
from sink.maintenance.replace import LiveFile, live_files, replace_files
from sink.table import offsets_of


@dataclass(frozen=True)
class RetentionPolicy:
    """Rows stay for `days` whole days after their own, by the UTC day of `column`."""

    column: str
    days: int


@dataclass(frozen=True)
class RetentionReport(Report):
    """What was deleted; `before` is the first day that is kept."""

    job: ClassVar[str] = "retention"

    before: str = ""
    files: int = 0
    rows: int = 0
    files_nbytes: int = 0
    deleted_from: str = "{}"

    def to_text(self) -> str:
        if not self.files:
            return f"nothing is older than {self.before}"
        would = "would be deleted" if self.dry_run else "deleted"
        rows = f"{counted(self.rows, 'row')} in {counted(self.files, 'file')} ({in_bytes(self.files_nbytes)})"
        return f"{rows} from before {self.before} {would}"


def first_day_kept(policy: RetentionPolicy, now_us: int) -> datetime:
    """The midnight, UTC, before which everything is past retention. Pure."""
    today = datetime.fromtimestamp(now_us / 1e6, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=policy.days)


def past_retention(files: Sequence[LiveFile], schema: Schema, column: str, before: datetime) -> list[LiveFile]:
    """The files whose rows all lie before this time; one that does not say up to when its rows reach stays. Pure."""
    field = schema.find_field(column)
    kind = cast(PrimitiveType, field.field_type)
    before_us = int(before.timestamp()) * 1_000_000
    found = []
    for live in files:
        bound = (live.file.upper_bounds or {}).get(field.field_id)
        nulls = (live.file.null_value_counts or {}).get(field.field_id, 0 if field.required else None)
        if bound is not None and nulls == 0 and int(from_bytes(kind, bound)) < before_us:
            found.append(live)
    return found


def delete_old(
    table: MaintainedTable,
    policy: RetentionPolicy,
    now_us: int,
    *,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> RetentionReport:
    """Delete what is past retention as of now, by one commit.

    Raises Refused (a table without the column, or with delete files), Interrupted, Overtaken when another job replaced
    a file meanwhile, CommitConflict, CatalogError: nothing has changed then. Raises CommitStateUnknown.
    """
    progress.step(f"load {table.name}")
    table.reload()
    metadata = table.iceberg_table.metadata
    if policy.column not in metadata.schema().column_names:
        raise Refused(f"the table {table.name} has no column {policy.column} to tell the age of its rows by")
    before = first_day_kept(policy, now_us)
    old = past_retention(live_files(table), metadata.schema(), policy.column, before)
    gone = PartitionOffsets()
    if old:
        progress.step(f"read the offsets of {len(old)} files of {table.name}", len(old))
        gone = deleted_from(_positions(table, old, progress), offsets_of(metadata))
        if not dry_run:
            progress.step(f"delete {len(old)} files of {table.name}")
            replace_files(table, [live.path for live in old], [], operation=Operation.DELETE, deleted_from=gone)
    return RetentionReport(
        table.name,
        dry_run,
        before=before.date().isoformat(),
        files=len(old),
        rows=sum(live.file.record_count for live in old),
        files_nbytes=sum(live.file.file_size_in_bytes for live in old),
        deleted_from=gone.to_text(),
    )


def deleted_from(lowest: Iterable[tuple[str, int, int]], stands: PartitionOffsets) -> PartitionOffsets:
    """Of each Kafka partition the lowest of these (short topic id, partition, offset). Pure.

    Rows carry the short form of their topic's id. Where it is that of several topics, all of them count. A row that is
    of no topic that the table has taken in counts for all partitions from their beginning: that refuses too much.
    """
    by_short: dict[tuple[str, int], list[KafkaPartition]] = {}
    for partition in stands:
        by_short.setdefault((topic_short(partition.topic_id), partition.partition), []).append(partition)
    found: dict[KafkaPartition, int] = {}
    for short, number, offset in lowest:
        named = by_short.get((short, number))
        for partition in named or stands:
            found[partition] = min(found.get(partition, offset), offset if named else 0)
    return PartitionOffsets(found)


def _positions(table: MaintainedTable, files: Sequence[LiveFile], progress: Progress) -> list[tuple[str, int, int]]:
    """Of each file, the lowest offset of each partition that it has rows of."""
    io = table.iceberg_table.io
    topic, partition, offset = AUDIT_COLUMNS
    found: list[tuple[str, int, int]] = []
    for live in files:
        with translated(f"read the offsets of {table.name}"), io.new_input(live.path).open() as stream:
            rows: pa.Table = pq.ParquetFile(stream).read(columns=list(AUDIT_COLUMNS))
        lowest = rows.group_by([topic, partition]).aggregate([(offset, "min")])
        found += zip(
            lowest[topic].to_pylist(),
            lowest[partition].to_pylist(),
            lowest[f"{offset}_min"].to_pylist(),
            strict=True,
        )
        progress.advance()
    return found
