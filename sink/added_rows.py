"""The rows that a table has taken in between two positions of the log, wherever they lie now.

Guarantee: exactly the rows of the table's newest loaded snapshot with low <= offset < high, per partition. The offsets
that the rows carry decide, and neither time nor the names of files: it holds whatever became of the files since, and
whichever snapshots expired. That little is read for it is another matter: a file that was there when the table stood
at `low` or before has no such row, so of the newest snapshot only those are read that came later; where that snapshot
is not known any more, those whose statistics reach up to `low`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
from pyiceberg.expressions import And, BooleanExpression, EqualTo, GreaterThanOrEqual, LessThan, Or
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import ManifestContent
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from common.iceberg import summary_entry, translated
from common.offsets import SUMMARY_KEY, PartitionOffsets, topic_short

#: PyIceberg's own typing knows only the arguments that its models are read from JSON with.
_IS: Any = EqualTo
_AT_LEAST: Any = GreaterThanOrEqual
_BELOW: Any = LessThan


def rows_between(
    table: Table, low: PartitionOffsets, high: PartitionOffsets, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """These columns of the rows, batch by batch, in no order. `high` must be taken in. Raises CatalogError."""
    wanted = _condition(low, high)
    snapshot = table.metadata.current_snapshot()
    if wanted is None or snapshot is None:
        return
    name = ".".join(table.name())
    with translated(f"read the new rows of {name}"):
        scan = table.scan(wanted, selected_fields=tuple(columns))
        later = _later_than(table, low)
        tasks = scan.plan_files() if later is None else _tasks(table, snapshot, later)
        reader = ArrowScan(table.metadata, table.io, scan.projection(), wanted)
        for task in tasks:
            yield from reader.to_record_batches([task])


def _condition(low: PartitionOffsets, high: PartitionOffsets) -> BooleanExpression | None:
    """The rows in [low, high); None when there can be none."""
    terms: list[BooleanExpression] = [
        And(
            _IS("_kafka_topic", topic_short(partition.topic_id)),
            _IS("_kafka_partition", partition.partition),
            _AT_LEAST("_kafka_offset", low.next_offset(partition)),
            _BELOW("_kafka_offset", until),
        )
        for partition, until in sorted(high.items())
        if low.next_offset(partition) < until
    ]
    return reduce(Or, terms) if terms else None


def _later_than(table: Table, low: PartitionOffsets) -> frozenset[int] | None:
    """The snapshots behind the newest one that had nothing beyond `low`; None when there is none that is kept."""
    later: set[int] = set()
    for snapshot in ancestors_of(table.metadata.current_snapshot(), table.metadata):
        text = summary_entry(snapshot, SUMMARY_KEY)
        if text is not None and low.covers(PartitionOffsets.from_text(text)):
            return frozenset(later)
        later.add(snapshot.snapshot_id)
        # A snapshot whose parent expired has none either, as PyIceberg has it; the table's first has the number 1.
        if snapshot.parent_snapshot_id is None and snapshot.sequence_number in (0, 1):
            return frozenset(later)
    return None


def _tasks(table: Table, snapshot: Snapshot, later: frozenset[int]) -> Iterable[FileScanTask]:
    """The files that came with these snapshots, out of the manifests that came with them."""
    manifests = snapshot.manifests(table.io)
    if any(manifest.content != ManifestContent.DATA for manifest in manifests):
        return table.scan(snapshot_id=snapshot.snapshot_id).plan_files()
    return [
        FileScanTask(entry.data_file)
        for manifest in manifests
        if manifest.added_snapshot_id in later
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        if entry.snapshot_id in later
    ]
