"""Whether a table is what it says: its files are there, its counts add up, each row is in it once.

What is looked at, of the current snapshot unless said otherwise:

- every manifest list, manifest and data file of every snapshot that is kept is there, with the size that was recorded;
- rows, files and bytes of the manifests add up to what the snapshot's summary says;
- the rows of each file are as many as the manifest says;
- each Kafka offset is there once, and none at or behind the next offset that the snapshot says it has taken in;
- each id of a venue (trades, quotes) is there once within (exchange, symbol).

Offsets without a row are counted and reported, not found fault with: a log has records that are no rows (dead letters,
the markers of transactions). Trade ids that are missing are found fault with where no recorded gap (`ops.gap_events`)
covers them.

Nothing is changed. Memory grows by one bit a row, or two bytes where ids are sparse, not by files or columns: rows are
read batch by batch, in one pass, and only the columns that are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import ManifestContent
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from common.commit_files import CommitLog
from common.commits import Loss
from common.datasets import DATASETS, GAP_EVENTS
from common.errors import K2Error
from common.iceberg import reason, summary_entry, translated
from common.offsets import PartitionOffsets
from sink.maintenance.files import FileStore, hash_of, live_entries, manifests_of
from sink.maintenance.ids import Range, joined
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted, in_bytes
from sink.maintenance.verify_rows import Findings, Gaps, Key, SeenRows
from sink.table import offsets_of

_SIZES_AT_ONCE = 500
_BATCH_ROWS = 262_144
_GAP_COLUMNS = ("exchange", "symbol", "first_id", "last_id")


@dataclass(frozen=True)
class VerifyReport(Report):
    """`findings` are what is wrong, a line each, the first thousand of `findings_found`; `remarks` what is worth
    knowing and not wrong. `offsets_without_row` and `ids_missing` count the holes in the offsets and in the trade ids,
    `ids_unrecorded` those of the latter that no recorded gap covers.
    """

    job: ClassVar[str] = "verify"

    snapshot_id: int | None
    snapshots: int
    files: int
    files_nbytes: int
    rows: int
    rows_read: int
    kafka_partitions: int
    offsets_without_row: int
    keys: int
    ids_missing: int
    ids_unrecorded: int
    findings_found: int
    findings: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        return self.findings_found == 0

    def to_text(self) -> str:
        read = f", {self.rows_read:,} read" if self.rows_read else ""
        verdict = "nothing wrong" if self.is_clean else counted(self.findings_found, "finding")
        lines = [
            f"{verdict}: {counted(self.files, 'file')} ({in_bytes(self.files_nbytes)}) of "
            f"{counted(self.snapshots, 'snapshot')}, {counted(self.rows, 'row')}{read}"
        ]
        lines += [f"WRONG: {finding}" for finding in self.findings]
        if self.findings_found > len(self.findings):
            lines.append(f"WRONG: {self.findings_found - len(self.findings):,} more of these")
        return "\n".join([*lines, *self.remarks])


def verify(
    table: MaintainedTable, *, quick: bool = False, deep: bool = False, progress: Progress = UNWATCHED
) -> VerifyReport:
    """The table as it is now. `quick` reads no rows; `deep` reads every column of every row and compares each file's
    footer with its manifest. Raises CatalogError when catalog or store do not answer, Refused.
    """
    with translated(f"verify {table.name}"):
        progress.step("load the table")
        table.reload()
        return _Verification(table.name, table.iceberg_table, progress).run(quick=quick, deep=deep)


class _Verification:
    """One run over one state of one table."""

    def __init__(self, name: str, table: Table, progress: Progress) -> None:
        self._name = name
        self._table = table
        self._progress = progress
        self._store = FileStore(table.io, table.metadata.location)
        self._findings = Findings()
        self._remarks: list[str] = []
        self._dataset = next((dataset for dataset in DATASETS.values() if dataset.table == name), None)
        self._has_deletes = False
        self._files = 0
        self._nbytes = 0

    def run(self, *, quick: bool, deep: bool) -> VerifyReport:
        metadata = self._table.metadata
        current = metadata.current_snapshot()
        self._check_files()
        files = [] if current is None else self._current_files(current)
        offsets = self._offsets() if self._dataset is not None and current is not None else PartitionOffsets()
        rows = SeenRows(self._dataset, offsets, self._findings)
        if current is not None and files is not None:
            self._check_counts(current, files)
            if not quick:
                self._check_rows(files, rows, deep)
        self._remarks += rows.remarks(self._deletions(), self._gaps)
        return VerifyReport(
            self._name,
            dry_run=False,
            snapshot_id=metadata.current_snapshot_id,
            snapshots=len(metadata.snapshots),
            files=self._files,
            files_nbytes=self._nbytes,
            rows=sum(file.rows for file in files or ()),
            rows_read=rows.read,
            kafka_partitions=len(offsets),
            offsets_without_row=rows.offsets_without_row,
            keys=len(rows.ids),
            ids_missing=rows.ids_missing,
            ids_unrecorded=rows.ids_unrecorded,
            findings_found=self._findings.found,
            findings=tuple(self._findings.lines),
            remarks=tuple(self._remarks),
        )

    # -- files

    def _check_files(self) -> None:
        """Everything that the kept snapshots refer to is there, each file looked at once."""
        snapshots = self._table.metadata.snapshots
        seen: set[int] = set()
        waiting: list[tuple[str, int]] = []
        self._progress.step("check files", len(snapshots))
        for snapshot in snapshots:
            for path, nbytes in self._referred(snapshot, seen):
                waiting.append((path, nbytes))
                if len(waiting) >= _SIZES_AT_ONCE:
                    self._check_sizes(waiting)
            self._check_sizes(waiting)
            self._progress.advance()

    def _referred(self, snapshot: Snapshot, seen: set[int]) -> Iterator[tuple[str, int]]:
        """The files of a snapshot that were not seen before, with their sizes."""
        try:
            manifests = manifests_of(snapshot, self._table.io)
        except Exception as error:  # noqa: BLE001  (missing, torn, or no manifest list at all: whatever, it is a finding)
            self._findings.add(f"the manifest list of snapshot {snapshot.snapshot_id} cannot be read ({reason(error)})")
            return
        for manifest in manifests:
            if _is_new(manifest.manifest_path, seen):
                yield manifest.manifest_path, manifest.manifest_length
                try:
                    entries = live_entries(manifest, self._table.io)
                except Exception as error:  # noqa: BLE001  (as above)
                    self._findings.add(f"the manifest {manifest.manifest_path} cannot be read ({reason(error)})")
                    continue
                for entry in entries:
                    file = entry.data_file
                    if _is_new(file.file_path, seen):
                        self._files += 1
                        self._nbytes += file.file_size_in_bytes
                        yield file.file_path, file.file_size_in_bytes

    def _check_sizes(self, waiting: list[tuple[str, int]]) -> None:
        sizes = self._store.sizes([path for path, _ in waiting])
        for (path, recorded), size in zip(waiting, sizes, strict=True):
            if size is None:
                self._findings.add(f"the file {path} is missing")
            elif size != recorded:
                self._findings.add(f"the file {path} has {size:,} bytes, not {recorded:,} as recorded")
        waiting.clear()

    def _current_files(self, current: Snapshot) -> list[_File] | None:
        """The files of rows of the current snapshot; None when that cannot be told."""
        files = []
        try:
            for manifest in manifests_of(current, self._table.io):
                if manifest.content == ManifestContent.DATA:
                    for entry in live_entries(manifest, self._table.io):
                        files.append(_File(entry.data_file.file_path, entry.data_file.record_count))
                else:
                    self._has_deletes = True
        except Exception as error:  # noqa: BLE001  (it is a finding already, with its path)
            self._remarks.append(f"rows were not looked at, because not all manifests can be read ({reason(error)})")
            return None
        return files

    def _check_counts(self, current: Snapshot, files: list[_File]) -> None:
        paths = {hash_of(self._store.key(file.path)) for file in files}
        if len(paths) < len(files):
            self._findings.add(f"{counted(len(files) - len(paths), 'file')} of the current snapshot are listed twice")
        actual = {
            "total-records": sum(file.rows for file in files),
            "total-data-files": len(files),
        }
        for entry, count in actual.items():
            said = summary_entry(current, entry)
            if said is not None and int(said) != count:
                self._findings.add(f"the manifests have {entry} {count:,}, the snapshot's summary says {int(said):,}")

    def _offsets(self) -> PartitionOffsets:
        try:
            return offsets_of(self._table.metadata)
        except K2Error as error:
            self._findings.add(str(error))
            return PartitionOffsets()

    # -- rows

    def _check_rows(self, files: list[_File], rows: SeenRows, deep: bool) -> None:
        reads = deep or bool(rows.columns)
        self._progress.step("read rows" if reads else "read footers", sum(file.rows for file in files))
        for file in files:
            try:
                for batch in self._batches(file, None if deep else rows.columns):
                    if not self._has_deletes:
                        rows.add(batch)
                    self._progress.advance(batch.num_rows)
                rows.end_file()
            except K2Error:
                raise
            except Exception as error:  # noqa: BLE001  (missing, torn, or no Parquet at all: whatever, it is a finding)
                self._findings.add(f"the file {file.path} cannot be read ({reason(error)})")
            if not reads:
                self._progress.advance(file.rows)
        if self._has_deletes and rows.columns:
            self._check_rows_behind_deletes(rows)

    def _batches(self, file: _File, columns: tuple[str, ...] | None) -> Iterator[pa.RecordBatch]:
        """The rows of a file, deleted ones included: these columns, all when None."""
        with self._table.io.new_input(file.path).open() as stream:
            parquet = pq.ParquetFile(stream)
            if parquet.metadata.num_rows != file.rows:
                self._findings.add(
                    f"the file {file.path} has {parquet.metadata.num_rows:,} rows, not {file.rows:,} as recorded"
                )
            if columns is None or columns:
                yield from parquet.iter_batches(_BATCH_ROWS, columns=None if columns is None else list(columns))

    def _check_rows_behind_deletes(self, rows: SeenRows) -> None:
        """The rows that delete files leave, as PyIceberg reads them: a file's rows at a time."""
        self._remarks.append("there are delete files: rows were read through them")
        schema = self._table.schema().select(*rows.columns)
        scan = ArrowScan(self._table.metadata, self._table.io, schema, AlwaysTrue())
        self._progress.step("read rows behind deletes", None)
        for task in self._table.scan(selected_fields=rows.columns).plan_files():
            for batch in scan.to_record_batches([task]):
                rows.add(batch)
                self._progress.advance(batch.num_rows)
            rows.end_file()

    def _deletions(self) -> list[Loss]:
        log = CommitLog()
        log.update(self._table)
        return log.losses(self._table.metadata.current_snapshot_id)

    def _gaps(self) -> Gaps | None:
        """The gaps that were ever recorded, in whatever state they are now; None without the table.

        Read behind the rows: a gap is recorded a moment after it is seen.
        """
        try:
            events = self._table.catalog.load_table(GAP_EVENTS.table)
        except NoSuchTableError:
            return None
        found: dict[Key, list[Range]] = {}
        for batch in events.scan(selected_fields=_GAP_COLUMNS).to_arrow_batch_reader():
            for exchange, symbol, first, last in zip(*(c.to_pylist() for c in batch.select(_GAP_COLUMNS)), strict=True):
                found.setdefault((exchange, symbol), []).append((first, last))
        return {key: list(joined(sorted(ranges))) for key, ranges in found.items()}


class _File(NamedTuple):
    path: str
    rows: int


def _is_new(path: str, seen: set[int]) -> bool:
    before = len(seen)
    seen.add(hash_of(path))
    return len(seen) > before
