"""A lost catalog made again from the warehouse alone: each table's newest whole version is found and registered.

The catalog of Iceberg holds one thing for each table: where its newest metadata file is. When it is lost, that file is
still there, among older ones and ones that lost a race (sink.recovery.versions tells them apart). What is taken is
whole: its JSON, the manifests of its current snapshot, and every file that these list are there.

A version holds rows and Kafka offsets together. So whichever is taken, the sink goes on from it exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import TableAlreadyExistsError

from common.errors import K2Error, Refused, SettingsError
from common.iceberg import ensure_namespace, open_catalog, translated
from common.settings import LakeSettings
from sink.maintenance.jobs import UNWATCHED, Progress, Report, counted
from sink.recovery.backup import listed
from sink.recovery.folders import FileGone, Folder
from sink.recovery.relocation import metadata_tree, spelled
from sink.recovery.table_files import current_snapshot, files_of
from sink.recovery.versions import Version, candidates, file_name

_METADATA = re.compile(r"(?P<table>.+)/metadata/[^/]+\.metadata\.json(\.gz)?")
#: What the flight server appends to the folder of a users' table, so that a table made anew has another folder.
_USERS_TABLE = re.compile(r"(research/.+)-[0-9a-f]{12}")


@dataclass(frozen=True)
class RecoverReport(Report):
    """A table that was registered, or with `dry_run` would be. `left_out` says what was found beside it."""

    job: ClassVar[str] = "recover"

    metadata_location: str
    uuid: str
    snapshot_id: int | None
    rows: int
    updated_ms: int
    versions: int
    left_out: tuple[str, ...]

    def to_text(self) -> str:
        would = "would be " if self.dry_run else ""
        said = (
            f"{would}registered with {file_name(self.metadata_location)}, {counted(self.rows, 'row')}, the newest of "
            f"{counted(self.versions, 'version')}"
        )
        return "\n".join([said, *(f"  left out: {each}" for each in self.left_out)])


def recover(
    lake: LakeSettings,
    names: Sequence[str] = (),
    *,
    uuid: str | None = None,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> list[RecoverReport]:
    """Register the tables of the warehouse that the catalog does not have: those of these names, or all.

    `uuid`: which one, where a folder has the metadata of two. Nothing is registered unless all of them can be.
    Raises Refused (the catalog still has one that is named; no version is whole), SettingsError (no such table in
    the warehouse), CatalogError, Interrupted.
    """
    if uuid is not None and len(names) != 1:
        raise SettingsError("a UUID says which one of a single table is meant; name that table too")
    catalog = open_catalog(lake)
    warehouse = Folder(lake.resolved_warehouse, catalog.properties)
    progress.step("list the tables of the catalog")
    there = set(listed(catalog)[1])
    for name in names:
        if name in there:
            raise Refused(
                f"the catalog {lake.catalog_name} has the table {name}, so it is not lost; to go back to an older "
                f"state of it use `k2 tables rollback {name}`"
            )
    progress.step("list the files of the warehouse")
    present = {name for name, _ in warehouse.list()}
    found = _found(present, progress, warehouse)
    for name in names:
        if name not in found:
            raise SettingsError(f"the warehouse {warehouse.location} has no table {name}; it has {_list(found)}")
    wanted = [name for name in sorted(found) if name in names or (not names and name not in there)]
    reports = []
    for name in wanted:
        progress.step(f"{name}: look for the newest whole version", len(found[name].versions))
        reports.append(_chosen(name, found[name], warehouse, present, uuid, progress, dry_run=dry_run))
    if not dry_run:
        for report in reports:
            progress.step(f"{report.table}: register")
            _register(catalog, report)
    return reports


@dataclass
class _Found:
    """What the folders of one table's name hold: file names below the warehouse, and what is not to be used."""

    versions: dict[str, Version]
    left_out: list[str]


def _found(present: set[str], progress: Progress, warehouse: Folder) -> dict[str, _Found]:
    """Table -> its metadata files, read."""
    files = sorted(name for name in present if _METADATA.fullmatch(name))
    progress.step("read the metadata", len(files))
    found: dict[str, _Found] = {}
    for path in files:
        match = _METADATA.fullmatch(path)
        assert match is not None
        users = _USERS_TABLE.fullmatch(match["table"])
        name = (match["table"] if users is None else users[1]).replace("/", ".")
        if "." in name:
            table = found.setdefault(name, _Found({}, []))
            _read(path, f"{warehouse.location}/{match['table']}", table, warehouse)
        progress.advance()
    return found


def _read(path: str, location: str, table: _Found, warehouse: Folder) -> None:
    try:
        tree = metadata_tree(warehouse.read(path), path)
    except FileGone:
        return
    except (ValueError, OSError, EOFError) as error:
        table.left_out.append(f"{path} is torn ({error})")
        return
    if spelled(tree["location"]).rstrip("/") != location:
        table.left_out.append(f"{path} is of a table at {tree['location']}: a copy, whose files lie elsewhere")
        return
    # Of all the snapshots of a hundred versions nothing is needed but what is current.
    current = current_snapshot(tree)
    table.versions[path] = Version(
        path, {**tree, "snapshots": [] if current is None else [current], "snapshot-log": []}
    )


def _chosen(
    name: str,
    found: _Found,
    warehouse: Folder,
    present: set[str],
    uuid: str | None,
    progress: Progress,
    *,
    dry_run: bool,
) -> RecoverReport:
    """The newest whole version. Raises Refused when there is none, or when it is not clear of which table."""
    left_out = list(found.left_out)
    versions = _of_one(name, [version for version in found.versions.values() if uuid in (None, version.uuid)], left_out)
    tried = candidates(versions)
    for version in tried:
        lacking = _lacking(version, warehouse, present)
        progress.advance()
        if lacking is not None:
            left_out.append(f"{version.name} {lacking}")
            continue
        passed = {sentence.partition(" ")[0] for sentence in left_out} | {version.name, *_before(version)}
        for other in tried:
            if other.name not in passed:
                left_out.append(f"{other.name} was written at the same time, and only one of them was the table's")
        return _report(name, version, warehouse, len(versions), left_out, dry_run=dry_run)
    raise Refused(
        f"no version of {name} is whole, so nothing is registered ({'; '.join(left_out) or 'it has no metadata'}); "
        "restore it from a backup, or name the other tables to recover them without it"
    )


def _of_one(name: str, versions: list[Version], left_out: list[str]) -> list[Version]:
    """The versions of one table, where several had the name one after the other: of the one that changed last.

    Raises Refused when two had the same folder too: so it looks when a sink began anew after the catalog was lost.
    """
    folders: dict[str, set[str]] = {}
    for version in versions:
        folders.setdefault(version.name.rpartition("/metadata/")[0], set()).add(version.uuid)
    if any(len(uuids) > 1 for uuids in folders.values()):
        uuids = sorted({version.uuid for version in versions})
        raise Refused(
            f"{name} was made more than once in one folder, as by a sink that began anew without its catalog; choose "
            f"which one is meant with --uuid: {', or '.join(_described(each, versions) for each in uuids)}"
        )
    if len(folders) < 2:
        return versions
    last = max(versions, key=lambda version: version.updated_ms)
    left_out += [
        f"{folder} has an older table of that name ({next(iter(uuids))})"
        for folder, uuids in sorted(folders.items())
        if last.uuid not in uuids
    ]
    return [version for version in versions if version.uuid == last.uuid]


def _before(version: Version) -> set[str]:
    folder = version.name.rpartition("/")[0]
    return {f"{folder}/{name}" for name in version.before}


def _lacking(version: Version, warehouse: Folder, present: set[str]) -> str | None:
    """What keeps this version's current snapshot from being read; None when nothing does."""
    base = warehouse.location + "/"

    def read(path: str) -> bytes:
        folder, name = warehouse.of(path)
        return folder.read(name)

    def is_there(path: str) -> bool:
        if spelled(path).startswith(base):
            return spelled(path).removeprefix(base) in present
        folder, name = warehouse.of(path)
        return folder.exists(name)

    try:
        missing = [file.path for file in files_of(version.tree, read) if not is_there(file.path)]
    except K2Error as error:
        return f"is newer, and cannot be read ({error})"
    if missing:
        return f"is newer, and lacks {counted(len(missing), 'file')}, such as {file_name(missing[0])}"
    return None


def _described(uuid: str, versions: Sequence[Version]) -> str:
    version = candidates([version for version in versions if version.uuid == uuid])[0]
    return f"{uuid} with {counted(_rows(version.tree), 'row')} in {version.name}"


def _report(
    name: str, version: Version, warehouse: Folder, versions: int, left_out: Sequence[str], *, dry_run: bool
) -> RecoverReport:
    current = current_snapshot(version.tree)
    return RecoverReport(
        name,
        dry_run,
        f"{warehouse.location}/{version.name}",
        version.uuid,
        None if current is None else int(current["snapshot-id"]),
        _rows(version.tree),
        version.updated_ms,
        versions,
        tuple(left_out),
    )


def _rows(tree: Mapping[str, object]) -> int:
    current = current_snapshot(tree)
    return 0 if current is None else int((current.get("summary") or {}).get("total-records") or 0)


def _register(catalog: Catalog, report: RecoverReport) -> None:
    with translated(f"register {report.table}"):
        ensure_namespace(catalog, report.table.rpartition(".")[0])
        try:
            catalog.register_table(report.table, report.metadata_location)
        except TableAlreadyExistsError:
            raise Refused(
                f"the table {report.table} was made by somebody else meanwhile; stop the services that write to this "
                "lake, take it out of the catalog, and recover again"
            ) from None


def _list(found: Mapping[str, object]) -> str:
    return ", ".join(sorted(found)) or "none at all"
