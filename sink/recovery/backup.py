"""A backup of every table of the catalog: each as of one version of its metadata, whole, or no backup at all.

- Incremental: a file that an earlier backup has is not read again.
- Consistent: a table's version is asked for once, when its turn comes, and all that it leads to is copied. Should files
  of it expire meanwhile, the table is taken anew in its newest version; what was copied is kept.
- Derived tables come before `market.trades`. So what they hold of it is in the backup too, whatever was committed
  between their turns.
- Interrupted, it leaves nothing that counts as a backup, and a note of what it copied: the next one goes on from there.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

from pyiceberg.catalog import Catalog

from common.clock import Clock, SystemClock
from common.datasets import TRADES
from common.errors import CatalogError, K2Error, Refused
from common.iceberg import metadata_locations, open_catalog, translated
from common.settings import LakeSettings
from sink.maintenance.jobs import UNWATCHED, Progress, counted, in_bytes
from sink.recovery.archive import Archive, Backup, FileEntry, TableEntry, folder_of, new_id
from sink.recovery.folders import FileGone, Folder
from sink.recovery.parallel import each
from sink.recovery.relocation import metadata_tree, relative
from sink.recovery.table_files import METADATA, ManifestEntries, TableFile, current_snapshot, files_of

#: How often a table may lose files to an expiry while it is copied. Each time it has a newer version, and only what
#: that one has more is copied: an expiry a minute would have to win ten times in a row.
_ATTEMPTS_MAX = 10
#: After so many files, or bytes, what was copied is noted down: this much work an interruption costs at most.
_NOTED_FILES = 200
_NOTED_BYTES = 1024**3
#: Prefix of the names under which prunings are at work.
PRUNING = "prune-"


@dataclass(frozen=True)
class BackupReport:
    """What a backup took, or with `dry_run` would take. `files` and `nbytes` are all of its own, copied or shared."""

    location: str
    dry_run: bool
    id: str | None
    tables: tuple[TableEntry, ...]
    files: int
    nbytes: int
    files_copied: int
    nbytes_copied: int
    tables_taken_anew: int

    def to_json(self) -> dict[str, Any]:
        return {"job": "backup", **asdict(self)}

    def to_text(self) -> str:
        done = "would be copied" if self.dry_run else "copied"
        return (
            f"{self.id or 'a backup'} in {self.location}: {counted(len(self.tables), 'table')}, "
            f"{counted(sum(table.rows for table in self.tables), 'row')}, {counted(self.files, 'file')} of "
            f"{in_bytes(self.nbytes)}; {counted(self.files_copied, 'file')} of {in_bytes(self.nbytes_copied)} {done}"
        )


def back_up(
    lake: LakeSettings,
    archive: Archive,
    *,
    threads: int = 4,
    clock: Clock | None = None,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> BackupReport:
    """Take a backup of all tables. Blocks for as long as the copying takes.

    Raises Refused (a pruning is at work there), CatalogError (the lake or the place cannot be reached), K2Error (a
    table lacks a file, or has one that is torn), Interrupted.
    """
    clock = clock or SystemClock()
    run = _Run(lake, archive, new_id(clock.now_us()), clock, threads, progress, dry_run)
    if dry_run:
        return run.whole()
    archive.begin(run.id)
    try:
        pruning = [work for work in archive.running() if work.startswith(PRUNING)]
        if pruning:
            raise Refused(
                f"{archive.folder.location} is being pruned ({pruning[0]}), or a pruning was killed there: wait for "
                "its end, or finish it with `k2 backup prune --interrupted`"
            )
        return run.whole()
    finally:
        with contextlib.suppress(CatalogError):  # a mark that stays keeps prunings away until one is told to finish
            archive.end(run.id)


class _Run:
    """One backup."""

    def __init__(
        self,
        lake: LakeSettings,
        archive: Archive,
        backup_id: str,
        clock: Clock,
        threads: int,
        progress: Progress,
        dry_run: bool,
    ) -> None:
        self.id = backup_id
        self._lake = lake
        self._archive = archive
        self._clock = clock
        self._threads = threads
        self._progress = progress
        self._dry_run = dry_run
        self._catalog = open_catalog(lake)
        self._source = Folder(lake.resolved_warehouse, self._catalog.properties)
        self._entries = ManifestEntries()
        self._known: dict[str, FileEntry] = {}
        self._fresh: list[FileEntry] = []
        self._notes: list[str] = []
        self._copied = [0, 0]
        self._anew = 0

    def whole(self) -> BackupReport:
        taken_us = self._clock.now_us()
        self._progress.step("list the tables")
        namespaces, names = listed(self._catalog)
        stored = self._archive.stored()
        self._known = {key: file for key, file in self._archive.known().items() if stored.get(key) == file.size}
        tables: list[TableEntry] = []
        files: list[FileEntry] = []
        try:
            for name in names:
                taken = self._table(name)
                if taken is not None:
                    tables.append(taken[0])
                    files += taken[1]
        finally:
            self._note()
        nbytes = sum(file.size for file in files)
        if not self._dry_run:
            self._progress.step("make it a backup")
            warehouse = self._lake.resolved_warehouse
            backup = Backup(
                self.id, taken_us, warehouse, namespaces, tuple(tables), len(files), nbytes, self._copied[1], ""
            )
            self._archive.publish(backup, files)
            self._forget_notes()
        return BackupReport(
            self._archive.folder.location,
            self._dry_run,
            None if self._dry_run else self.id,
            tuple(tables),
            len(files),
            nbytes,
            self._copied[0],
            self._copied[1],
            self._anew,
        )

    def _table(self, name: str) -> tuple[TableEntry, list[FileEntry]] | None:
        """The table as it is now; None when it was dropped since the tables were listed."""
        at = location_of(self._catalog, name)
        for _ in range(_ATTEMPTS_MAX):
            if at is None:
                return None
            try:
                return self._version(name, at)
            except FileGone as gone:
                before, at = at, location_of(self._catalog, name)
                if at == before:
                    raise K2Error(
                        f"the table {name} cannot be backed up, a file that it needs is not there ({gone}); "
                        f"`k2 tables verify {name}` tells what it lacks"
                    ) from None
                self._anew += 1
        raise CatalogError(
            f"the table {name} lost files to an expiry {_ATTEMPTS_MAX} times while it was copied; try later"
        )

    def _version(self, name: str, metadata_location: str) -> tuple[TableEntry, list[FileEntry]]:
        """This version of the table, all of it copied. Raises FileGone when files of it expired."""
        taken_us = self._clock.now_us()
        self._progress.step(f"{name}: read the metadata")
        tree = tree_at(self._source, metadata_location)
        location = tree["location"]
        within = folder_of(tree)
        metadata = relative(location, metadata_location)
        wanted = [*files_of(tree, self._read, self._entries), TableFile(metadata_location, metadata, METADATA)]
        missing = [file for file in wanted if not self._has(within, file)]
        self._progress.step(f"{name}: copy", len(missing))
        if self._dry_run:
            return _entry(name, within, tree, metadata, taken_us, [self._assumed(within, file) for file in wanted])
        for copied in each(lambda file: self._copy(within, file), missing, threads=self._threads):
            self._known[copied.key] = copied
            self._fresh.append(copied)
            self._copied[0] += 1
            self._copied[1] += copied.size
            if len(self._fresh) >= _NOTED_FILES or sum(file.size for file in self._fresh) >= _NOTED_BYTES:
                self._note()
            self._progress.advance()
        return _entry(name, within, tree, metadata, taken_us, [self._known[_key(within, file)] for file in wanted])

    def _has(self, within: str, file: TableFile) -> bool:
        known = self._known.get(_key(within, file))
        if known is not None and file.size is not None and known.size != file.size:
            raise K2Error(
                f"{file.path} has {file.size:,} bytes by its manifest, and had {known.size:,} in an earlier backup: it "
                "was written a second time, which Iceberg never does; back up to another place and see who did it"
            )
        return known is not None

    def _copy(self, within: str, file: TableFile) -> FileEntry:
        folder, name = self._source.of(file.path)
        digest = self._archive.folder.copy(_key(within, file), folder, name)
        if file.size is not None and digest.size != file.size:
            raise K2Error(
                f"{file.path} is damaged: it has {digest.size:,} bytes and not {file.size:,}; restore it from a backup "
                "before the next one is taken"
            )
        return FileEntry(within, file.name, file.kind, *digest)

    def _assumed(self, within: str, file: TableFile) -> FileEntry:
        """For a dry run: the file as it would be in the backup, as far as that is known without reading it."""
        known = self._known.get(_key(within, file))
        if known is None:
            known = FileEntry(within, file.name, file.kind, file.size or 0, "")
            self._known[known.key] = known
            self._copied[0] += 1
            self._copied[1] += known.size
        return known

    def _read(self, path: str) -> bytes:
        folder, name = self._source.of(path)
        return folder.read(name)

    def _note(self) -> None:
        if self._fresh:
            self._notes.append(self._archive.note_copied(self.id, len(self._notes), self._fresh))
            self._fresh = []

    def _forget_notes(self) -> None:
        """What was copied is in the backup's own manifest now; so is what it took over from those that were ended."""
        at_work = set(self._archive.running()) - {self.id}
        for name, _ in self._archive.folder.list("copied"):
            if name.rpartition("/")[2].rpartition("-")[0] not in at_work:
                self._archive.folder.delete(name)


def listed(catalog: Catalog) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Namespace -> its properties, and the tables with their namespaces, `market.trades` last. Raises CatalogError."""
    with translated("list the tables of the catalog"):
        namespaces = {
            ".".join(name): dict(catalog.load_namespace_properties(name)) for name in catalog.list_namespaces()
        }
        names = [f"{namespace}.{name}" for namespace in namespaces for name in metadata_locations(catalog, namespace)]
    return namespaces, sorted(names, key=lambda name: (name == TRADES.table, name))


def location_of(catalog: Catalog, name: str) -> str | None:
    """Where the table's metadata is by now, None when there is no such table. Raises CatalogError."""
    namespace, _, table = name.rpartition(".")
    with translated(f"look up the table {name}"):
        found = metadata_locations(catalog, namespace)
        if table not in found:
            return None
        return found[table] or str(catalog.load_table(name).metadata_location)


def tree_at(folder: Folder, metadata_location: str) -> dict[str, Any]:
    """A table's metadata file. Raises FileGone, CatalogError, K2Error."""
    within, name = folder.of(metadata_location)
    try:
        return metadata_tree(within.read(name), name)
    except (ValueError, OSError, EOFError) as error:
        raise K2Error(
            f"{metadata_location} is damaged ({error}); `k2 tables recover` finds the newest version that is whole"
        ) from None


def _key(within: str, file: TableFile) -> str:
    return f"files/{within}/{file.name}"


def _entry(
    name: str, within: str, tree: dict[str, Any], metadata: str, taken_us: int, files: list[FileEntry]
) -> tuple[TableEntry, list[FileEntry]]:
    snapshot = current_snapshot(tree)
    rows = 0 if snapshot is None else int((snapshot.get("summary") or {}).get("total-records") or 0)
    entry = TableEntry(
        name,
        within,
        tree["location"],
        metadata,
        taken_us,
        None if snapshot is None else snapshot["snapshot-id"],
        rows,
        len(files),
        sum(file.size for file in files),
    )
    return entry, files
