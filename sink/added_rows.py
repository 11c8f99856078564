"""The rows that a table has taken in between two positions of the log, wherever they lie now.

Guarantee: exactly the rows of the table's newest loaded snapshot with low <= offset < high, per partition. The offsets
that the rows carry decide, and neither time nor the names of files: it holds whatever became of the files since, and
whichever snapshots expired. That little is read for it is another matter: a file that was there when the table stood
at `low` or before has no such row, so of the newest snapshot only those are read that came later; where that snapshot
is not known any more, those whose statistics reach up to `low`.

What came later may be a file that compaction made of a whole day. Files are therefore read a row group at a time, and
of one without such rows no more than the positions: PyIceberg's scan reads two million rows ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.expressions import And, BooleanExpression, EqualTo, GreaterThanOrEqual, LessThan, Or
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import DataFile, ManifestContent
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from common.errors import CatalogError
from common.iceberg import summary_entry, translated
from common.offsets import SUMMARY_KEY, PartitionOffsets, topic_short

#: PyIceberg's own typing knows only the arguments that its models are read from JSON with.
_IS: Any = EqualTo
_AT_LEAST: Any = GreaterThanOrEqual
_BELOW: Any = LessThan
#: Where a row was in the log.
_POSITION = ("_kafka_topic", "_kafka_partition", "_kafka_offset")
_FIELD_ID = b"PARQUET:field_id"


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
            if task.delete_files:  # another tool's; PyIceberg knows what they mean
                yield from reader.to_record_batches([task])
            else:
                yield from _rows(table, task.file, low, high, columns)


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


def _rows(
    table: Table, data_file: DataFile, low: PartitionOffsets, high: PartitionOffsets, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The file's rows in [low, high), these columns of them by their field ids."""
    with table.io.new_input(data_file.file_path).open() as stream:
        file = pq.ParquetFile(stream, pre_buffer=True)
        position, wanted = (_names(file.schema_arrow, table, chosen) for chosen in (_POSITION, columns))
        for group in range(file.num_row_groups):
            is_within = _within(file.read_row_group(group, position, use_threads=False).select(position), low, high)
            if pc.any(is_within).as_py():
                rows = file.read_row_group(group, wanted, use_threads=False).select(wanted).filter(is_within)
                yield from rows.rename_columns(list(columns)).to_batches()


def _names(schema: pa.Schema, table: Table, columns: Sequence[str]) -> list[str]:
    """What columns of the table are called in a file of this schema. Raises CatalogError."""
    names = {int((field.metadata or {}).get(_FIELD_ID, 0)): field.name for field in schema}
    ids = {column: table.schema().find_field(column).field_id for column in columns}
    if missing := [column for column, field_id in ids.items() if field_id not in names]:
        raise CatalogError(
            f"a data file does not say which of its columns are {', '.join(missing)}; K2 did not write it"
        )
    return [names[field_id] for field_id in ids.values()]


def _within(position: pa.Table, low: PartitionOffsets, high: PartitionOffsets) -> pa.ChunkedArray:
    """Which rows, of which these are topic, partition and offset, are in [low, high)."""
    topic, number, offset = position.columns
    terms = [
        reduce(
            pc.and_,
            (
                pc.equal(topic, topic_short(partition.topic_id)),
                pc.equal(number, partition.partition),
                pc.greater_equal(offset, low.next_offset(partition)),
                pc.less(offset, until),
            ),
        )
        for partition, until in high.items()
        if low.next_offset(partition) < until
    ]
    return reduce(pc.or_, terms)


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
