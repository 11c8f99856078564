"""A place with backups: what lies in it, and when it counts.

    files/FOLDER/NAME           files of tables under their own names, shared by all backups; FOLDER is the table's UUID
    manifests/ID.jsonl          every file of one backup with its size and sha256, a line each
    backups/ID.json             one backup's tables, and the sha256 of its manifest: what makes it one
    copied/ID-N.jsonl           what an unfinished backup has copied so far, in the same form
    running/ID.json             a backup or a pruning at work

A backup is there when `backups/ID.json` is, which is written last; before that there are only files that nothing lists.
Iceberg never writes a file a second time under its name, so one copy serves every backup that has it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from common.errors import K2Error, SettingsError
from sink.recovery.folders import Digest, FileGone, Folder, digest_of

FORMAT = 1
#: Table property: the backup that the table was restored from to another place.
RESTORED_KEY = "k2.restored"


@dataclass(frozen=True)
class FileEntry:
    """A file of a backup: `name` below its table's location, `folder` is what `folder_of` gives for the table."""

    folder: str
    name: str
    kind: str
    size: int
    sha256: str

    @property
    def key(self) -> str:
        """Where it lies in the place of the backups."""
        return f"files/{self.folder}/{self.name}"

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self.sha256)


@dataclass(frozen=True)
class TableEntry:
    """A table of a backup, as of one version of its metadata. `metadata` is that file's name below `location`."""

    name: str
    folder: str
    location: str
    metadata: str
    taken_us: int
    snapshot_id: int | None
    rows: int
    files: int
    nbytes: int


@dataclass(frozen=True)
class Backup:
    """What is to be known of a backup before its manifest is read."""

    id: str
    taken_us: int
    warehouse: str
    namespaces: Mapping[str, Mapping[str, str]]
    tables: tuple[TableEntry, ...]
    files: int
    nbytes: int
    nbytes_copied: int
    manifest_sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


class Archive:
    """The backups of one place."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def ids(self) -> list[str]:
        """The backups that are complete, the oldest first."""
        return sorted(_stem(name) for name, _ in self.folder.list("backups") if name.endswith(".json"))

    def backups(self) -> list[Backup]:
        """All of them, the oldest first. Raises K2Error when one cannot be read."""
        return [self.backup(each) for each in self.ids()]

    def backup(self, backup_id: str | None = None) -> Backup:
        """The backup of this id, the newest without one. Raises SettingsError when it is not there."""
        if backup_id is None:
            ids = self.ids()
            if not ids:
                raise SettingsError(f"there is no complete backup in {self.folder.location}; name another place")
            backup_id = ids[-1]
        name = f"backups/{backup_id}.json"
        try:
            content = self.folder.read(name)
        except FileGone:
            raise SettingsError(
                f"there is no backup {backup_id} in {self.folder.location}; `k2 backup list` shows those that are"
            ) from None
        try:
            tree = json.loads(content)
            if tree.pop("format") != FORMAT:
                raise ValueError("it is of another version of K2")
            tables = tuple(TableEntry(**table) for table in tree.pop("tables"))
            return Backup(tables=tables, **tree)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise K2Error(f"{self.folder.location}/{name} cannot be read ({error}); use another backup") from None

    def files(self, backup: Backup) -> list[FileEntry]:
        """The files of a backup, in the order in which they were listed. Raises K2Error when the list is damaged."""
        name = f"manifests/{backup.id}.jsonl"
        content = self.folder.read(name)
        if digest_of(content).sha256 != backup.manifest_sha256:
            raise K2Error(f"{self.folder.location}/{name} is damaged: its sha256 is another one; use another backup")
        return list(_entries(content))

    def publish(self, backup: Backup, files: Iterable[FileEntry]) -> Backup:
        """Make it a backup; as it was published."""
        content = _lines(files)
        self.folder.write(f"manifests/{backup.id}.jsonl", content)
        made = Backup(**{**_shallow(backup), "manifest_sha256": hashlib.sha256(content).hexdigest()})
        text = json.dumps(made.to_json(), indent=1, sort_keys=True) + "\n"
        self.folder.write(f"backups/{made.id}.json", text.encode())
        return made

    @staticmethod
    def id_of(name: str) -> str:
        """The backup that a file in `backups` or `manifests` is of."""
        return _stem(name)

    def unpublish(self, backup_id: str) -> None:
        """From here on it is none; its files are still there."""
        self.folder.delete(f"backups/{backup_id}.json")

    # -- what an unfinished backup leaves

    def known(self) -> dict[str, FileEntry]:
        """Key -> what is known to lie there: the newest backup's files, and what unfinished ones copied."""
        found: dict[str, FileEntry] = {}
        ids = self.ids()
        if ids:
            found = {file.key: file for file in self.files(self.backup(ids[-1]))}
        return found | self.copied()

    def copied(self) -> dict[str, FileEntry]:
        """What unfinished backups say that they copied."""
        found: dict[str, FileEntry] = {}
        for name, _ in self.folder.list("copied"):
            try:
                found |= {file.key: file for file in _entries(self.folder.read(name))}
            except FileGone:  # the backup was finished just now
                continue
        return found

    def note_copied(self, backup_id: str, number: int, files: Iterable[FileEntry]) -> str:
        """Write down what was copied, for a backup that goes on where this one may be interrupted."""
        name = f"copied/{backup_id}-{number}.jsonl"
        self.folder.write(name, _lines(files))
        return name

    def stored(self) -> dict[str, int]:
        """Key -> size of every file of tables that lies here."""
        return dict(self.folder.list("files"))

    def running(self) -> list[str]:
        """Backups and prunings that are at work, or were ended without a word."""
        return sorted(_stem(name) for name, _ in self.folder.list("running"))

    def begin(self, work_id: str) -> None:
        self.folder.write(f"running/{work_id}.json", b"{}\n")

    def end(self, work_id: str) -> None:
        self.folder.delete(f"running/{work_id}.json")


def folder_of(tree: Mapping[str, Any]) -> str:
    """Where the files of a table lie among its backups: by its UUID.

    A table that was restored to another place has the UUID and the file names of before, and manifests with other
    paths in them; so what it was restored from, and where it lies, are part of the name then.
    """
    uuid = str(tree["table-uuid"])
    restored = (tree.get("properties") or {}).get(RESTORED_KEY)
    if restored is None:
        return uuid
    made = hashlib.sha256(f"{restored} {tree['location']}".encode()).hexdigest()
    return f"{uuid}-{made[:8]}"


def new_id(now_us: int) -> str:
    """An id that sorts by time: 20260801T120000.123456Z-3f9a."""
    second = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    return f"{second:%Y%m%dT%H%M%S}.{now_us % 1_000_000:06d}Z-{secrets.token_hex(2)}"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _shallow(backup: Backup) -> dict[str, Any]:
    return {field.name: getattr(backup, field.name) for field in fields(backup)}


def _lines(files: Iterable[FileEntry]) -> bytes:
    return "".join(json.dumps(asdict(file), separators=(",", ":")) + "\n" for file in files).encode()


def _entries(content: bytes) -> Iterator[FileEntry]:
    try:
        for line in content.splitlines():
            yield FileEntry(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise K2Error(f"a list of files of a backup cannot be read ({error}); use another backup") from None
