"""Files in a table's folder that nothing refers to: found, noted, and deleted when they have been so for long enough.

No file goes that anybody can still want. It goes when it is older than the grace time, and an earlier run, at least
the grace time ago, found it referred to by nothing, and nothing refers to it now. The first protects what is written
and not committed yet: by a sink, a compaction, an expiry that writes its history. The second protects readers: a data
file may be old when the last snapshot that had it expires, and a query, a pinned view or a ticket of a flight server
may go on reading it for a while after that.

What a run finds it notes in the folder `orphans` under the table's location, so that whoever runs next knows since
when. What a run with a shorter grace time noted, one with a longer one keeps. A note that is lost, or that cannot be
read, only makes its files wait anew. A run may be stopped or killed at any moment: the files that it has deleted were
to go, the others stay noted.
"""

from __future__ import annotations

import io
import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table

from common.errors import Refused
from common.iceberg import metadata_locations, reason, translated
from sink.maintenance.files import FileStore, References, StoredFile
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted, in_bytes, in_time

#: A day is far longer than any commit takes, any ticket lives, and any catalog should be away.
GRACE_S = 24 * 3600.0
#: So many paths are looked up at once; before so many are deleted the table is loaded again.
_AT_ONCE = 1_000
_EXAMPLES_MAX = 20
T = TypeVar("T")
_FOLDER = "orphans"
_NOTES = pa.schema([pa.field("path", pa.string(), False), pa.field("noted_us", pa.int64(), False)])


@dataclass(frozen=True)
class Orphan:
    """A file that nothing refers to; `noted_us` is when a run first saw that."""

    file: StoredFile
    noted_us: int

    def is_due(self, grace_us: int, now_us: int) -> bool:
        """True when it may be deleted. Pure."""
        return now_us - self.noted_us >= grace_us


@dataclass(frozen=True)
class OrphansReport(Report):
    """`files` are those that nothing refers to and that are older than the grace time, `files_due` those of them that
    may go, `files_young` those that nothing refers to yet or any more. `next_due_us` is when the next one may go.
    """

    job: ClassVar[str] = "orphans"

    files_listed: int
    files: int
    files_nbytes: int
    files_due: int
    files_due_nbytes: int
    files_deleted: int
    files_deleted_nbytes: int
    files_left: int
    files_left_reason: str | None
    files_young: int
    next_due_us: int | None
    grace_s: float
    paths: tuple[str, ...]

    def to_text(self) -> str:
        if not self.files:
            return f"nothing lies unused among {counted(self.files_listed, 'file')}"
        text = (
            f"{counted(self.files, 'file')} of {self.files_listed:,} ({in_bytes(self.files_nbytes)}) "
            f"{'is' if self.files == 1 else 'are'} referred to by nothing"
        )
        if self.files_deleted:
            text += f", {self.files_deleted:,} ({in_bytes(self.files_deleted_nbytes)}) deleted"
        elif self.files_due:
            text += f", {self.files_due:,} ({in_bytes(self.files_due_nbytes)}) may go: --delete deletes them"
        if self.files_left:
            text += f", {self.files_left:,} could not be deleted ({self.files_left_reason})"
        if self.files > self.files_due:
            wait = f"have not been so for {in_time(self.grace_s)} yet"
            text += f", {self.files - self.files_due:,} {wait}" + (
                " and are not noted, this being a dry run" if self.dry_run else " and are noted"
            )
        return text


def remove_orphans(
    table: MaintainedTable,
    *,
    now_us: int,
    grace_s: float = GRACE_S,
    delete: bool = False,
    dry_run: bool = False,
    progress: Progress = UNWATCHED,
) -> OrphansReport:
    """Find and note what nothing refers to; with `delete`, delete what has been so for the grace time.

    A dry run neither notes nor deletes. Raises Refused when another table's files are in the same folder,
    CatalogError, K2Error for a history that cannot be read.
    """
    with translated(f"look for orphans of {table.name}"):
        job = _Search(table, int(grace_s * 1_000_000), now_us, progress)
        found = job.find()
        if not dry_run:
            progress.step("note what was found")
            job.note(found)
        due = [orphan for orphan in found if orphan.is_due(job.grace_us, now_us)]
        report = job.report(found, due, dry_run)
        return job.delete(due, report) if delete and not dry_run else report


class _Search:
    """One run over one table."""

    def __init__(self, table: MaintainedTable, grace_us: int, now_us: int, progress: Progress) -> None:
        self.grace_us = grace_us
        self._table = table
        self._now_us = now_us
        self._progress = progress
        progress.step("load the table")
        table.reload()
        metadata = table.iceberg_table.metadata
        self._store = FileStore(table.iceberg_table.io, metadata.location)
        self._notes = _Notes(table.iceberg_table, self._store)
        _check_alone(table, self._store)
        self._references = References(self._store)
        self._listed = 0
        self._young = 0
        #: Younger than this run's grace time, and noted by one with a shorter one.
        self._younger: list[Orphan] = []

    def find(self) -> list[Orphan]:
        """What nothing refers to and is older than the grace time, with when that was noted."""
        self._references.add(self._table.iceberg_table, self._progress)
        self._progress.step("list files", None)
        found: list[StoredFile] = []
        young: list[StoredFile] = []
        for batch in _batches(self._store.files(), _AT_ONCE):
            self._listed += len(batch)
            files = self._unreferred([file for file in batch if not self._notes.is_note(file)])
            old = [file for file in files if self._now_us - file.modified_us >= self.grace_us]
            young += [file for file in files if self._now_us - file.modified_us < self.grace_us]
            found += old
            self._progress.advance(len(batch))
        # What was committed while the files were listed is referred to by now.
        self._table.reload()
        self._references.add(self._table.iceberg_table, self._progress)
        noted = self._notes.read()
        self._young = len(young)
        noted_young = self._unreferred([file for file in young if file.path in noted])
        self._younger = [Orphan(file, noted[file.path]) for file in noted_young]
        return [Orphan(file, noted.get(file.path, self._now_us)) for file in self._unreferred(found)]

    def note(self, found: Sequence[Orphan]) -> None:
        self._notes.write([*found, *self._younger], self._now_us)

    def report(self, found: Sequence[Orphan], due: Sequence[Orphan], dry_run: bool) -> OrphansReport:
        dues = [orphan.noted_us + self.grace_us for orphan in found if not orphan.is_due(self.grace_us, self._now_us)]
        return OrphansReport(
            self._table.name,
            dry_run,
            files_listed=self._listed,
            files=len(found),
            files_nbytes=_nbytes(found),
            files_due=len(due),
            files_due_nbytes=_nbytes(due),
            files_deleted=0,
            files_deleted_nbytes=0,
            files_left=0,
            files_left_reason=None,
            files_young=self._young,
            next_due_us=min(dues, default=None),
            grace_s=self.grace_us / 1_000_000,
            paths=tuple(orphan.file.path for orphan in (due or found)[:_EXAMPLES_MAX]),
        )

    def delete(self, due: Sequence[Orphan], report: OrphansReport) -> OrphansReport:
        """Delete them one by one, asking the table again before every batch; a file that is gone already counts."""
        self._progress.step("delete files", len(due))
        for batch in _batches(due, _AT_ONCE):
            self._table.reload()
            self._references.add(self._table.iceberg_table)
            for file in self._unreferred([orphan.file for orphan in batch]):
                self._progress.advance()
                try:
                    self._store.delete(file)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    report = replace(report, files_left=report.files_left + 1, files_left_reason=reason(error))
                    continue
                report = replace(
                    report,
                    files_deleted=report.files_deleted + 1,
                    files_deleted_nbytes=report.files_deleted_nbytes + file.nbytes,
                )
        return report

    def _unreferred(self, files: Sequence[StoredFile]) -> list[StoredFile]:
        held = self._references.paths.holds([file.path for file in files])
        return [file for file, is_held in zip(files, held, strict=True) if not is_held]


class _Notes:
    """What earlier runs found, in the table's folder `orphans`. The newest file that can be read counts."""

    def __init__(self, table: Table, store: FileStore) -> None:
        self._io = table.io
        self._store = store
        self._location = f"{table.metadata.location.rstrip('/')}/{_FOLDER}"
        self._prefix = f"{store.root.rstrip('/')}/{_FOLDER}/"
        self._files: list[StoredFile] = []

    def is_note(self, file: StoredFile) -> bool:
        """True for a file of the notes; it is remembered, for `read` and `write`."""
        if not file.path.startswith(self._prefix):
            return False
        self._files.append(file)
        return True

    def read(self) -> dict[str, int]:
        """Path -> when it was first found, of the newest notes."""
        for file in sorted(self._files, key=lambda file: file.path, reverse=True):
            try:
                with self._io.new_input(self._location + "/" + file.path.removeprefix(self._prefix)).open() as stream:
                    rows = pq.read_table(stream, schema=_NOTES)
            except (FileNotFoundError, pa.ArrowInvalid):  # another run replaced it, or was killed while it wrote it
                continue
            return dict(zip(rows["path"].to_pylist(), rows["noted_us"].to_pylist(), strict=True))
        return {}

    def write(self, found: Sequence[Orphan], now_us: int) -> None:
        """These in the place of all earlier ones."""
        if found:
            buffer = io.BytesIO()
            columns = [[orphan.file.path for orphan in found], [orphan.noted_us for orphan in found]]
            rows = pa.table(columns, schema=_NOTES)
            pq.write_table(rows, buffer, compression="zstd")
            name = f"{now_us:020d}-{uuid.uuid4().hex[:8]}.parquet"
            with self._io.new_output(f"{self._location}/{name}").create() as stream:
                stream.write(buffer.getvalue())
        for file in self._files:
            try:
                self._store.delete(file)
            except FileNotFoundError:  # by another run
                continue


def _check_alone(table: MaintainedTable, store: FileStore) -> None:
    """Raises Refused when another table of the catalog has its metadata in this one's folder, or the reverse."""
    root = f"{store.root.rstrip('/')}/"
    catalog = table.iceberg_table.catalog
    for namespace in catalog.list_namespaces():
        for name, location in metadata_locations(catalog, ".".join(namespace)).items():
            other = ".".join((*namespace, name))
            if other == table.name:
                continue
            path = store.key(location or catalog.load_table(other).metadata_location)
            theirs = f"{path.rpartition('/metadata/')[0]}/"
            if theirs.startswith(root) or root.startswith(theirs):
                raise Refused(
                    f"the tables {table.name} and {other} share the folder {store.root}: what one of them does not "
                    "refer to may be the other's, so nothing is deleted there"
                )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _nbytes(orphans: Sequence[Orphan]) -> int:
    return sum(orphan.file.nbytes for orphan in orphans)
