"""A lake out of a backup: the same tables, at the old place or at another one, in a catalog that has none.

Each file is compared with its checksum on its way. Where a table comes to lie elsewhere, its metadata is moved
(sink.recovery.relocation); nothing else of it changes, so snapshot ids, tags, Kafka offsets and the history of commits
are what they were: the sink goes on from there, and a cut that was noted down is read again.

The tables are registered when all files of all tables are there; before that, nobody sees anything. Interrupted, it is
called again: files that are there already, with the right content, stay. A catalog with other tables is refused, and so
is a place with files of a table that the backup does not know: they may be newer than the backup.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import TableAlreadyExistsError

from common.errors import K2Error, Refused, Unsupported
from common.iceberg import open_catalog, translated
from common.settings import LakeSettings
from sink.maintenance.jobs import UNWATCHED, Progress, counted, in_bytes
from sink.recovery.archive import RESTORED_KEY, Archive, FileEntry, TableEntry
from sink.recovery.backup import listed, location_of
from sink.recovery.folders import FileGone, Folder, damaged, digest_of
from sink.recovery.parallel import each
from sink.recovery.relocation import (
    OUTSIDE,
    POSITION_DELETES,
    Move,
    metadata_tree,
    moved_manifest,
    moved_manifest_list,
    moved_metadata,
    moved_position_deletes,
    spelled,
)
from sink.recovery.table_files import MANIFEST, MANIFEST_LIST, METADATA

#: The kinds of file that hold paths, in the order in which their lengths are needed.
_WITH_PATHS = (POSITION_DELETES, MANIFEST, MANIFEST_LIST)


@dataclass(frozen=True)
class TableRestored:
    """One table of a restoration. `snapshot_id` and `rows` are those of the backup."""

    table: str
    location: str
    metadata_location: str
    snapshot_id: int | None
    rows: int
    moved: bool


@dataclass(frozen=True)
class RestoreReport:
    """What was restored, or with `dry_run` would be. `files_kept` were there already, whole."""

    backup: str
    warehouse: str
    dry_run: bool
    tables: tuple[TableRestored, ...]
    files: int
    nbytes: int
    files_kept: int

    def to_json(self) -> dict[str, Any]:
        return {"job": "restore", **asdict(self)}

    def to_text(self) -> str:
        done = "would be restored" if self.dry_run else "restored"
        kept = f", {counted(self.files_kept, 'file')} of it already there" if self.files_kept else ""
        return (
            f"{self.backup} {done} to {self.warehouse}: {counted(len(self.tables), 'table')}, "
            f"{counted(sum(table.rows for table in self.tables), 'row')}, {counted(self.files, 'file')} of "
            f"{in_bytes(self.nbytes)}{kept}"
        )


def restore(
    archive: Archive,
    lake: LakeSettings,
    *,
    backup_id: str | None = None,
    threads: int = 4,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> RestoreReport:
    """Restore a backup, the newest without an id, into the lake of these settings. Blocks for the whole of it.

    Raises Refused (the lake is not empty), SettingsError (no such backup), CatalogError, Interrupted, K2Error (the
    backup is damaged: nothing was registered).
    """
    backup = archive.backup(backup_id)
    files: dict[str, list[FileEntry]] = {}
    for file in archive.files(backup):
        files.setdefault(file.folder, []).append(file)
    catalog = open_catalog(lake)
    warehouse = Folder(lake.resolved_warehouse, catalog.properties)
    tables = [
        _Table(archive, backup.id, table, files[table.folder], backup.warehouse, warehouse, threads, progress)
        for table in backup.tables
    ]
    progress.step("look whether the lake is empty")
    _check_catalog(catalog, tables, lake)
    for table in tables:
        table.look()
    if not dry_run:
        for table in tables:
            table.bring()
        progress.step("register the tables")
        _register(catalog, backup.namespaces, tables)
    return RestoreReport(
        backup.id,
        warehouse.location,
        dry_run,
        tuple(table.report for table in tables),
        backup.files,
        backup.nbytes,
        sum(table.kept for table in tables),
    )


def _check_catalog(catalog: Catalog, tables: list[_Table], lake: LakeSettings) -> None:
    ours = {table.name: table.metadata_location for table in tables}
    for name in listed(catalog)[1]:
        if ours.get(name) != location_of(catalog, name):
            raise Refused(
                f"the catalog {lake.catalog_name} has the table {name} already, and only an empty lake is restored to; "
                "give another place with --data-dir or K2_LAKE_CATALOG_URI and K2_LAKE_WAREHOUSE"
            )


def _register(catalog: Catalog, namespaces: Mapping[str, Mapping[str, str]], tables: list[_Table]) -> None:
    with translated("register the restored tables"):
        for namespace, properties in namespaces.items():
            if not catalog.namespace_exists(namespace):
                catalog.create_namespace(namespace, dict(properties))
        for table in tables:
            try:
                found = catalog.register_table(table.name, table.metadata_location)
            except TableAlreadyExistsError:
                found = catalog.load_table(table.name)
            if found.metadata_location != table.metadata_location:
                raise Refused(
                    f"the table {table.name} was made by somebody else while it was restored; stop the services that "
                    "write to this lake, empty its catalog, and restore again: the files stay as they are"
                )
            current = found.metadata.current_snapshot_id
            if current != table.report.snapshot_id:
                raise K2Error(f"{table.name} was restored with the snapshot {current}: this is a defect of K2")


class _Table:
    """One table on its way back."""

    def __init__(
        self,
        archive: Archive,
        backup_id: str,
        entry: TableEntry,
        files: list[FileEntry],
        old_warehouse: str,
        warehouse: Folder,
        threads: int,
        progress: Progress,
    ) -> None:
        self.name = entry.name
        self.kept = 0
        self._archive = archive
        self._files = files
        self._move = Move(entry.location, new_location(entry, old_warehouse, warehouse.location))
        self._moves = not self._move.stays
        self._backup_id = backup_id
        self._folder = warehouse.at(self._move.new)
        self._threads = threads
        self._progress = progress
        self._metadata = entry.metadata
        made = uuid.uuid5(uuid.NAMESPACE_URL, f"{backup_id}/{entry.folder}/{self._move.new}")
        version = entry.metadata.rpartition("/")[2].partition("-")[0]
        self._made = f"metadata/{version if version.isdigit() else '00000'}-{made}.metadata.json"
        self.metadata_location = f"{self._move.new}/{self._made}"
        self.report = TableRestored(
            entry.name,
            self._move.new,
            self.metadata_location,
            entry.snapshot_id,
            entry.rows,
            self._moves,
        )
        #: New path -> the new size of files that hold paths.
        self._sizes: dict[str, int] = {}
        self._there: dict[str, int] = {}

    def look(self) -> None:
        """What is there already. Raises Refused for files that the backup does not know, or that cannot come here."""
        outside = [file.name for file in self._files if file.name.startswith(OUTSIDE)]
        if outside and not self._moves:
            raise Refused(
                f"{self.name} had {counted(len(outside), 'file')} outside of it, which come to lie inside of it; "
                "so restore to another place than where it was"
            )
        self._there = dict(self._folder.list())
        ours = {file.name for file in self._files} | {self._made}
        strange = sorted(self._there.keys() - ours)
        if strange:
            raise Refused(
                f"{self._folder.location} has files that are not in the backup ({counted(len(strange), 'file')}, such "
                f"as {strange[0]}): they may be newer; if only the catalog is lost use `k2 tables recover`, else "
                "restore to another place or move them away"
            )

    def bring(self) -> None:
        """All files, the metadata last."""
        changed = _WITH_PATHS if self._moves else ()
        plain = [file for file in self._files if file.kind not in (*changed, METADATA)]
        self._progress.step(f"{self.name}: copy", len(self._files))
        for kept in each(self._copy, plain, threads=self._threads):
            self.kept += kept
            self._progress.advance()
        for kind in changed:
            for file in self._files:
                if file.kind == kind:
                    self._write_moved(file, _MOVED[kind])
                    self._progress.advance()
        for file in self._files:
            if file.kind == METADATA and file.name == self._metadata:
                tree = metadata_tree(self._content(file), file.name)
                self._folder.write(self._made, moved_metadata(tree, self._move, {RESTORED_KEY: self._backup_id}))
                self._progress.advance()

    def _copy(self, file: FileEntry) -> bool:
        """Bring a file as it is; True when it was there."""
        if self._there.get(file.name) == file.size and self._is_whole(file):
            return True
        try:
            self._folder.copy(file.name, self._archive.folder, file.key, expected=file.digest)
        except FileGone as gone:
            raise _lacking(gone) from None
        return False

    def _is_whole(self, file: FileEntry) -> bool:
        try:
            return self._folder.digest(file.name) == file.digest
        except FileGone:
            return False

    def _write_moved(self, file: FileEntry, moved: Callable[[bytes, Move, Mapping[str, int]], bytes]) -> None:
        try:
            content = moved(self._content(file), self._move, self._sizes)
        except (ValueError, OSError) as error:
            raise Unsupported(
                f"{file.name} of {self.name} cannot be moved to another place ({error}); restore to where the table "
                f"was, {self._move.old}"
            ) from None
        self._folder.write(file.name, content)
        self._sizes[f"{self._move.new}/{file.name}"] = len(content)

    def _content(self, file: FileEntry) -> bytes:
        try:
            content = self._archive.folder.read(file.key)
        except FileGone as gone:
            raise _lacking(gone) from None
        found = digest_of(content)
        if found != file.digest:
            raise damaged(self._archive.folder, file.key, file.digest, found)
        return content


_MOVED: Mapping[str, Callable[[bytes, Move, Mapping[str, int]], bytes]] = {
    POSITION_DELETES: lambda content, move, _: moved_position_deletes(content, move),
    MANIFEST: moved_manifest,
    MANIFEST_LIST: moved_manifest_list,
}


def new_location(table: TableEntry, old_warehouse: str, warehouse: str) -> str:
    """Where a table of another warehouse lies in this one: at the same place below it."""
    base = spelled(old_warehouse).rstrip("/") + "/"
    location = spelled(table.location)
    if location.startswith(base):
        return f"{warehouse}/{location.removeprefix(base)}".rstrip("/")
    return f"{warehouse}/{table.name.replace('.', '/')}"


def _lacking(gone: FileGone) -> K2Error:
    return K2Error(f"the backup is damaged, a file of it is not there ({gone}); restore another one")
