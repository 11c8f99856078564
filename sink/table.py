"""The Iceberg table of a dataset: made, appended to exactly once, and asked how far it has taken in the log.

This and `sink.maintenance` are the sink's only homes of PyIceberg (0.12); what others need too is `common.iceberg`.

What holds (design rules 1 to 3):

- One snapshot carries data files and, in its summary, the next offset of every Kafka partition the table has taken in
  (`k2.offsets`) and the id of the commit (`k2.commit-id`). They land together or not at all.
- `commit` lands only on the offsets it was made for. PyIceberg's own retry of conflicting appends, which would land the
  same offsets twice, is off (`commit.retry.num-retries=0`): the catalog's compare-and-swap is the fence.
- After CommitConflict nothing of the attempt landed. After CommitStateUnknown nobody knows, and nothing is deleted.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationException,
)
from pyiceberg.expressions import AlwaysTrue, EqualTo
from pyiceberg.io import FileIO, load_file_io
from pyiceberg.io.pyarrow import pyarrow_to_schema
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionKey
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata, TableMetadataV2
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import IdentityTransform

from common.commits import DELETED_KEY
from common.datasets import Dataset
from common.errors import CommitConflict, CommitStateUnknown, K2Error
from common.iceberg import (
    MergingOverwrite,
    ThriftyTransaction,
    ensure_namespace,
    open_catalog,
    reason,
    summary_entry,
    translated,
)
from common.offsets import COMMIT_ID_KEY, SUMMARY_KEY, PartitionOffsets
from common.schemas.arrow import further_fields, table_schema
from common.settings import LakeSettings
from sink.added_rows import rows_between
from sink.evolution import with_columns
from sink.layout import GROUP_ROWS, DataFileWriter, by_partition, in_order, partition_spec, sort_columns
from sink.pool import give_back
from sink.recovery.lost import refuse_where_one_was

TABLE_PROPERTIES: Mapping[str, str] = {
    # The fence: a conflicting append must fail, not land a second time on the new base.
    "commit.retry.num-retries": "0",
    # Without merging, planning grows with every commit: 5 ms at 10 commits, 525 ms at 1,000; with it 15 ms at 600.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
    # 850 files. Each merge writes a manifest of up to this size anew; with Iceberg's 8 MB that were 13,000 entries, a
    # second of Python, every twenty commits.
    "commit.manifest.target-size-bytes": str(512 * 1024),
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
    "write.parquet.compression-codec": "zstd",
    # For tools that write besides K2, whose own writer is sink.layout.
    "write.parquet.row-group-limit": str(GROUP_ROWS),
    "write.target-file-size-bytes": str(512 * 1024 * 1024),
}
#: Arrow bytes in memory of one data file; a trade has 190, and about 8 in the file.
_FILE_BYTES_MAX = 2 * 1024**3
#: PyIceberg's own typing knows only the arguments that its models are read from JSON with.
_IS: Any = EqualTo


@dataclass(frozen=True)
class WrittenFiles:
    """Data files that lie in the warehouse and that no snapshot refers to yet."""

    data_files: tuple[DataFile, ...]
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of the Parquet files."""
        return sum(data_file.file_size_in_bytes for data_file in self.data_files)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(data_file.file_path for data_file in self.data_files)


class IcebergTable:
    """One dataset's table, seen through a catalog connection of its own. One thread at a time per object;
    any number of objects, threads and processes may work on one catalog.
    """

    def __init__(self, catalog: Catalog, dataset: Dataset, table: Table) -> None:
        self._catalog = catalog
        self._dataset = dataset
        self._table = table
        self._file_schema = table_schema(dataset.schema_name)

    @classmethod
    def open(cls, settings: LakeSettings, dataset: Dataset) -> Self:
        """The dataset's table, made when it is missing; one that was made for an earlier version of the schema gets the
        columns that it lacks. Raises SettingsError when that cannot be, CatalogError."""
        catalog = open_catalog(settings)
        with translated(f"open the table {dataset.table}"):
            ensure_namespace(catalog, dataset.namespace)
            try:
                table = catalog.load_table(dataset.table)
            except NoSuchTableError:
                table = _create(catalog, settings, dataset)
        opened = cls(catalog, dataset, table)
        opened._add_columns(opened._file_schema)
        return opened

    @property
    def name(self) -> str:
        return self._dataset.table

    @property
    def iceberg_table(self) -> Table:
        """PyIceberg's own object, for `sink.maintenance`; as of the last load."""
        return self._table

    @property
    def snapshot_id(self) -> int | None:
        """The newest snapshot as of the last load or commit; None before the first."""
        snapshot = self._table.metadata.current_snapshot()
        return None if snapshot is None else int(snapshot.snapshot_id)

    @property
    def rows(self) -> int:
        """Rows of the newest snapshot as of the last load or commit, by its summary."""
        snapshot = self._table.metadata.current_snapshot()
        return 0 if snapshot is None or snapshot.summary is None else int(snapshot.summary["total-records"] or 0)

    def reload(self) -> None:
        """Ask the catalog for the newest state. Raises CatalogError."""
        with translated(f"load the table {self.name}"):
            self._table = self._catalog.load_table(self.name)

    def committed_offsets(self) -> PartitionOffsets:
        """What the table has taken in, freshly loaded. Raises CatalogError; K2Error when the entry is unreadable."""
        self.reload()
        return offsets_of(self._table.metadata)

    def write(self, rows: pa.Table) -> WrittenFiles:
        """Sort the rows and write them as data files, at least one for each partition. Nothing refers to them until
        `commit`. Columns that the table lacks are added to it first (sink/evolution.py). Raises CatalogError; what was
        written by then is left behind as orphans."""
        try:
            return self._written(rows)
        finally:
            give_back()

    def commit(
        self,
        files: WrittenFiles,
        base: PartitionOffsets,
        to: PartitionOffsets,
        commit_id: str,
        *,
        replacing: Sequence[DataFile] = (),
        manifests_written: Callable[[], None] = lambda: None,
    ) -> int:
        """Make the files part of the table, and `to` its next offsets, in one snapshot; its id is returned.

        Files that they replace leave it in the same snapshot, which is said to have taken no row out.

        Lands only if, for every partition in `to`, the table still has taken in exactly what `base` says; the entries
        of all other partitions are carried forward. No files means a snapshot that moves the offsets only.
        `manifests_written` is called between the snapshot's files and the catalog's swap: tests crash there.

        Raises CommitConflict: another commit was first; nothing landed, the files may be used again or discarded.
        Raises CommitStateUnknown: the catalog did not answer; the files must stay, `landed(commit_id)` tells.
        """
        stands = offsets_of(self._table.metadata)
        for partition in to:
            if stands.next_offset(partition) != base.next_offset(partition):
                raise CommitConflict(
                    f"the table {self.name} has taken in {partition} up to {stands.next_offset(partition)}, "
                    f"not {base.next_offset(partition)}: another writer was first"
                )
        summary = {SUMMARY_KEY: stands.advanced(to).to_text(), COMMIT_ID_KEY: commit_id}
        if replacing:
            summary[DELETED_KEY] = PartitionOffsets().to_text()
        transaction = ThriftyTransaction(self._table)
        with translated(f"prepare a commit to {self.name}"):
            update = transaction.update_snapshot(snapshot_properties=summary)
            with MergingOverwrite.of(transaction, summary) if replacing else update.merge_append() as change:
                for data_file in replacing:
                    change.delete_data_file(data_file)
                for data_file in files.data_files:
                    change.append_data_file(data_file)
        manifests_written()
        return self.swap(transaction, commit_id)

    def swap(self, transaction: Transaction, commit_id: str) -> int:
        """Have the catalog take the transaction, on top of what was loaded or not at all; the new snapshot's id is
        returned. Raises CommitConflict and CommitStateUnknown as `commit`.
        """
        try:
            self._table = transaction.commit_transaction()
        except (CommitFailedException, ValidationException) as error:
            raise CommitConflict(f"another commit to {self.name} was first ({error})") from None
        except Exception as error:  # noqa: BLE001 - whatever else came from the catalog's client, the outcome is not known
            raise CommitStateUnknown(
                f"the catalog did not say whether commit {commit_id} to {self.name} landed ({reason(error)})"
            ) from None
        snapshot_id = self.snapshot_id
        assert snapshot_id is not None
        return snapshot_id

    def append(self, rows: pa.Table, base: PartitionOffsets, to: PartitionOffsets, commit_id: str) -> int:
        """`write` and `commit` in one; the files are discarded again when it is certain that they did not land."""
        files = self.write(rows)
        try:
            return self.commit(files, base, to, commit_id)
        except CommitConflict:
            self.discard(files)
            raise

    def landed(self, commit_id: str) -> bool:
        """Reload and look for the commit through the history that is kept. Raises CatalogError.

        False is final only for a commit whose base has meanwhile been passed: an answer that got lost may belong to a
        request that still arrives. It cannot then land twice, because every later commit moves the fence.
        """
        self.reload()
        metadata = self._table.metadata
        return any(summary_entry(snapshot, COMMIT_ID_KEY) == commit_id for snapshot in _history(metadata))

    def discard(self, files: WrittenFiles) -> None:
        """Remove data files of which it is certain that no snapshot refers to them. An orphan is harmless."""
        for path in files.paths:
            with contextlib.suppress(OSError):
                self._table.io.delete(path)

    def scan(self, columns: tuple[str, ...], *, exchange: str | None = None) -> Iterator[pa.RecordBatch]:
        """The newest loaded snapshot's rows, these columns only, batch by batch; with `exchange` only its own.

        Raises CatalogError.
        """
        rows = AlwaysTrue() if exchange is None else _IS("exchange", exchange)
        with translated(f"scan the table {self.name}"):
            yield from self._table.scan(rows, selected_fields=columns).to_arrow_batch_reader()

    def rows_between(
        self, low: PartitionOffsets, high: PartitionOffsets, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """What the newest loaded snapshot took in between these positions; see sink.added_rows."""
        return rows_between(self._table, low, high, columns)

    def _written(self, rows: pa.Table) -> WrittenFiles:
        if rows.num_rows == 0:
            return WrittenFiles((), 0)
        further = further_fields(self._file_schema, rows.schema)
        if further:
            self._add_columns(pa.schema(further))
        metadata = self._table.metadata
        order = sort_columns(metadata)
        written: list[DataFile] = []
        with translated(f"write data files of {self.name}"):
            for key, part in by_partition(rows.cast(pa.schema([*self._file_schema, *further])), metadata):
                for piece in _of_size(in_order(part, order)):
                    written.append(_write(self._table.io, metadata, piece, key))
        return WrittenFiles(tuple(written), rows.num_rows)

    def _add_columns(self, wanted: pa.Schema) -> None:
        """The table on disk must have the columns, by field id, that this version writes."""
        self._table = with_columns(self._table, self.name, wanted, lambda: self._catalog.load_table(self.name))


def offsets_of(metadata: TableMetadata) -> PartitionOffsets:
    """The next offsets of the newest snapshot; of its nearest ancestor that has them, when a foreign tool made it.

    No entry anywhere in a history that starts at the first snapshot means that nothing of any log was taken in.
    Raises K2Error when an entry is unreadable, or when the history is cut off before any entry was found.
    """
    oldest: Snapshot | None = None
    for snapshot in ancestors_of(metadata.current_snapshot(), metadata):
        text = summary_entry(snapshot, SUMMARY_KEY)
        if text is not None:
            return PartitionOffsets.from_text(text)
        oldest = snapshot
    if oldest is not None and (oldest.parent_snapshot_id is not None or oldest.sequence_number not in (0, 1)):
        raise K2Error(
            f"no snapshot that is kept of the table at {metadata.location} says which Kafka offsets it holds: those "
            f"with the entry {SUMMARY_KEY} were expired; writing to it could double rows, so it is refused"
        )
    return PartitionOffsets()


def _of_size(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in as few pieces as may be of `_FILE_BYTES_MAX` each, in order."""
    if rows.num_rows:
        rows_max = max(1, rows.num_rows * _FILE_BYTES_MAX // max(1, rows.nbytes))
        for first in range(0, rows.num_rows, rows_max):
            yield rows.slice(first, rows_max)


def _write(io: FileIO, metadata: TableMetadata, rows: pa.Table, key: PartitionKey | None) -> DataFile:
    writer = DataFileWriter(io, metadata, rows.schema, key)
    try:
        writer.write(rows)
        return writer.close()
    except BaseException:
        writer.abort()
        raise


def _create(catalog: Catalog, settings: LakeSettings, dataset: Dataset) -> Table:
    """Make the table with the field ids of the Avro schema.

    `Catalog.create_table` numbers the fields anew, so the first metadata file is written here and registered.
    """
    schema = pyarrow_to_schema(table_schema(dataset.schema_name))
    location = f"{settings.resolved_warehouse.rstrip('/')}/{dataset.namespace}/{dataset.name}"
    refuse_where_one_was(catalog, dataset.table, location)
    spec = partition_spec(schema, dataset, settings.symbol_buckets)
    order = [SortField(schema.find_field(column).field_id, IdentityTransform()) for column in dataset.sort_columns]
    metadata = TableMetadataV2.model_validate(
        {
            "location": location,
            "last-column-id": schema.highest_field_id,
            "schemas": [schema],
            "current-schema-id": schema.schema_id,
            "partition-specs": [spec],
            "default-spec-id": spec.spec_id,
            "last-partition-id": spec.last_assigned_field_id,
            "sort-orders": [SortOrder(*order, order_id=1)],
            "default-sort-order-id": 1,
            "properties": dict(TABLE_PROPERTIES),
        }
    )
    metadata_location = f"{location}/metadata/00000-{uuid.uuid4()}.metadata.json"
    io = load_file_io(catalog.properties, metadata_location)
    ToOutputFile.table_metadata(metadata, io.new_output(metadata_location))
    try:
        return catalog.register_table(dataset.table, metadata_location)
    except TableAlreadyExistsError:  # another process was first
        io.delete(metadata_location)
        return catalog.load_table(dataset.table)


def _history(metadata: TableMetadata) -> Iterator[Snapshot]:
    yield from ancestors_of(metadata.current_snapshot(), metadata)
