"""One snapshot in which data files give way to others, or to none, or are listed otherwise.

Guarantee: the snapshot takes out exactly the files that it was given and puts in exactly those, in one commit, or
nothing happens. It carries the table's Kafka offsets forward unchanged, and says in `k2.deleted-from` from which
offsets on rows are gone with it (decision 0014): `{}` when the same rows lie in other files.

What another writer commits in between is kept: the commit is tried again on the newest state as long as every file that
is to go is still there. When one is not, another job was first, and this one yields (`Overtaken`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
)
from pyiceberg.table import Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import (
    Operation,
    Snapshot,
    SnapshotSummaryCollector,
    Summary,
    ancestors_of,
    update_snapshot_summaries,
)
from pyiceberg.table.update.snapshot import _MergeAppendFiles

from common.commits import DELETED_KEY
from common.errors import CommitConflict, CommitStateUnknown, Overtaken, Refused
from common.iceberg import ThriftyTransaction, reason, summary_entry, translated
from common.offsets import SUMMARY_KEY, PartitionOffsets
from sink.maintenance.jobs import MaintainedTable

#: A sink commits once a second and a commit takes some 40 ms: nine in ten attempts land at once.
_ATTEMPTS_MAX = 20


@dataclass(frozen=True)
class LiveFile:
    """A data file of the current snapshot, and when it came in: its data sequence number, and the snapshot's id."""

    file: DataFile
    sequence_number: int
    snapshot_id: int | None

    @property
    def path(self) -> str:
        return str(self.file.file_path)

    @property
    def partition(self) -> tuple[int, tuple[Any, ...]]:
        """The spec's id, and the values of its fields."""
        return int(self.file.spec_id), tuple(self.file.partition[n] for n in range(len(self.file.partition)))


def live_files(table: MaintainedTable) -> list[LiveFile]:
    """The data files of the table's newest snapshot as of its last load. Raises CatalogError.

    Raises Refused when a foreign tool deleted rows by delete files: K2 writes none, and does not read them here.
    """
    iceberg = table.iceberg_table
    snapshot = iceberg.metadata.current_snapshot()
    if snapshot is None:
        return []
    with translated(f"read the manifests of {table.name}"):
        return [
            LiveFile(entry.data_file, int(entry.sequence_number or 0), entry.snapshot_id)
            for manifest in data_manifests(table.name, snapshot, iceberg.io)
            for entry in manifest.fetch_manifest_entry(iceberg.io, discard_deleted=True)
        ]


def data_manifests(name: str, snapshot: Snapshot, io: FileIO) -> list[ManifestFile]:
    """The snapshot's manifests. Raises Refused when one of them lists delete files, and what the file store raises."""
    manifests = snapshot.manifests(io)
    if any(manifest.content != ManifestContent.DATA for manifest in manifests):
        raise Refused(
            f"the table {name} has delete files, which K2 never writes: let the tool that made them rewrite its data "
            "files first, and run this again"
        )
    return list(manifests)


def replace_files(
    table: MaintainedTable,
    gone: Collection[str],
    added: Sequence[DataFile],
    *,
    operation: Operation = Operation.REPLACE,
    deleted_from: PartitionOffsets | None = None,
    properties: Mapping[str, str] | None = None,
) -> int:
    """Commit that the files of these paths are gone, and these added; returns the new snapshot's id.

    `deleted_from` is for each Kafka partition the lowest offset of rows that are not there any more, None for none.
    `properties` are further entries of the snapshot's summary.

    Raises Overtaken, or CommitConflict when others committed at the same moment again and again: nothing landed, the
    added files may be deleted. Raises CommitStateUnknown: nobody knows, and they must stay.
    """
    wanted = frozenset(gone)
    return _land(
        table,
        f"replace {len(wanted)} data files of {table.name}",
        lambda transaction, summary: _Replacement(
            operation, transaction, table, wanted, added, {**(properties or {}), **summary}
        ),
        deleted_from,
    )


#: Gives, for the entries of one partition spec, the entries of each new manifest.
Arrange = Callable[[list[ManifestEntry]], Iterable[list[ManifestEntry]]]


def rewrite_listing(table: MaintainedTable, arrange: Arrange) -> int:
    """Commit that the same files are listed in other manifests; returns the new snapshot's id. Raises as above."""
    return _land(
        table,
        f"rewrite the manifests of {table.name}",
        lambda transaction, summary: _Listing(transaction, table, arrange, summary),
        None,
    )


def _land(
    table: MaintainedTable,
    doing: str,
    producer_of: Callable[[Transaction, Mapping[str, str]], _Producer],
    deleted_from: PartitionOffsets | None,
) -> int:
    marks = {DELETED_KEY: (deleted_from or PartitionOffsets()).to_text()}
    for _attempt in range(_ATTEMPTS_MAX):
        table.reload()
        metadata = table.iceberg_table.metadata
        transaction = ThriftyTransaction(table.iceberg_table)
        with translated(doing):
            producer = producer_of(transaction, {**marks, **_carried(metadata)})
            try:
                producer.commit()
            except BaseException:
                producer._clean_all_uncommitted()
                raise
        try:
            transaction.commit_transaction()
        except (CommitFailedException, ValidationException):
            continue  # PyIceberg has removed the manifests that it wrote for this attempt
        except Exception as error:  # noqa: BLE001 - whatever else the catalog's client raised, the outcome is not known
            if _landed(table, producer.snapshot_id):
                return producer.snapshot_id
            raise CommitStateUnknown(
                f"the catalog did not say whether it could {doing} ({reason(error)}); the next run will see"
            ) from None
        table.reload()
        return producer.snapshot_id
    raise CommitConflict(f"could not {doing}: others committed {_ATTEMPTS_MAX} times in between; run it again later")


def _landed(table: MaintainedTable, snapshot_id: int) -> bool:
    table.reload()
    return table.iceberg_table.metadata.snapshot_by_id(snapshot_id) is not None


def _carried(metadata: TableMetadata) -> dict[str, str]:
    """The offsets of the nearest snapshot that has them, as they are; none for a table that is of no log."""
    for snapshot in ancestors_of(metadata.current_snapshot(), metadata):
        text = summary_entry(snapshot, SUMMARY_KEY)
        if text is not None:
            return {SUMMARY_KEY: text}
    return {}


class _Producer(_MergeAppendFiles):
    """A snapshot of maintenance. PyIceberg has no `replace` to make, so its summary is made as that of an overwrite."""

    def __init__(
        self, operation: Operation, transaction: Transaction, table: MaintainedTable, summary: Mapping[str, str]
    ) -> None:
        super().__init__(operation, transaction, table.iceberg_table.io, snapshot_properties=dict(summary))
        self._name = table.name

    def _summary(self, snapshot_properties: dict[str, str] = {}) -> Summary:  # noqa: B006 - PyIceberg's own signature
        metadata = self._transaction.table_metadata
        specs, schema = metadata.specs(), metadata.schema()
        collector = SnapshotSummaryCollector()
        for file in self._added_data_files:
            collector.add_file(file, schema=schema, partition_spec=specs[file.spec_id])
        for file in self._deleted_data_files:
            collector.remove_file(file, schema=schema, partition_spec=specs[file.spec_id])
        before = metadata.current_snapshot()
        counted = update_snapshot_summaries(
            Summary(operation=Operation.OVERWRITE, **collector.build(), **snapshot_properties),
            None if before is None or before.summary is None else before.summary.additional_properties,
        )
        return Summary(operation=self._operation, **counted.additional_properties)

    def _parent(self) -> list[ManifestFile]:
        parent = self._transaction.table_metadata.current_snapshot()
        return [] if parent is None else data_manifests(self._name, parent, self._io)

    def _written(self, spec_id: int, entries: Iterable[ManifestEntry]) -> ManifestFile:
        with self.new_manifest_writer(self.spec(spec_id)) as writer:
            for entry in entries:
                writer.add_entry(entry)
        return writer.to_manifest_file()


class _Replacement(_Producer):
    def __init__(
        self,
        operation: Operation,
        transaction: Transaction,
        table: MaintainedTable,
        gone: frozenset[str],
        added: Sequence[DataFile],
        summary: Mapping[str, str],
    ) -> None:
        super().__init__(operation, transaction, table, summary)
        self._gone = gone
        self._added_data_files = list(added)

    def _manifests(self) -> list[ManifestFile]:
        """The added files first, as PyIceberg has it; then what is deleted; then what stays, as few manifests anew as
        may be."""
        kept: list[ManifestFile] = []
        deleted: dict[int, list[ManifestEntry]] = {}
        for manifest in self._parent():
            if not (manifest.has_added_files() or manifest.has_existing_files()):
                continue  # it says what an earlier snapshot took out
            entries = self.fetch_manifest_entry(manifest)
            out = [entry for entry in entries if entry.data_file.file_path in self._gone]
            if not out:
                kept.append(manifest)
                continue
            deleted.setdefault(manifest.partition_spec_id, []).extend(
                _entry(ManifestEntryStatus.DELETED, entry, self.snapshot_id) for entry in out
            )
            stay = [
                _entry(ManifestEntryStatus.EXISTING, entry, entry.snapshot_id)
                for entry in entries
                if entry.data_file.file_path not in self._gone
            ]
            if stay:
                kept.append(self._written(manifest.partition_spec_id, stay))
        found = {entry.data_file for entries in deleted.values() for entry in entries}
        if len(found) < len(self._gone):
            raise Overtaken(
                f"{len(self._gone) - len(found)} of {len(self._gone)} data files of {self._name} that were to be "
                "replaced are not there any more: another job was first, and this one leaves them be"
            )
        self._deleted_data_files = found
        added: dict[int, list[ManifestEntry]] = {}
        for file in self._added_data_files:
            added.setdefault(file.spec_id, []).append(
                ManifestEntry.from_args(
                    status=ManifestEntryStatus.ADDED,
                    snapshot_id=self.snapshot_id,
                    sequence_number=None,
                    file_sequence_number=None,
                    data_file=file,
                )
            )
        changes = [self._written(spec_id, entries) for each in (added, deleted) for spec_id, entries in each.items()]
        return self._process_manifests(changes + kept) if changes else kept


class _Listing(_Producer):
    def __init__(
        self,
        transaction: Transaction,
        table: MaintainedTable,
        arrange: Arrange,
        summary: Mapping[str, str],
    ) -> None:
        super().__init__(Operation.REPLACE, transaction, table, summary)
        self._arrange = arrange

    def _manifests(self) -> list[ManifestFile]:
        by_spec: dict[int, list[ManifestEntry]] = {}
        for manifest in self._parent():
            by_spec.setdefault(manifest.partition_spec_id, []).extend(
                _entry(ManifestEntryStatus.EXISTING, entry, entry.snapshot_id)
                for entry in self.fetch_manifest_entry(manifest)
            )
        return [
            self._written(spec_id, entries) for spec_id, found in by_spec.items() for entries in self._arrange(found)
        ]


def _entry(status: ManifestEntryStatus, entry: ManifestEntry, snapshot_id: int | None) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )


@contextlib.contextmanager
def given_up(io: FileIO, written: list[DataFile]) -> Iterator[None]:
    """Delete the files in `written` when it is certain that they did not land; an orphan is harmless."""
    try:
        yield
    except CommitStateUnknown:
        raise
    except BaseException:
        for file in written:
            with contextlib.suppress(Exception):
                io.delete(file.file_path)
        raise
