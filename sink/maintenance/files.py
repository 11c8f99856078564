"""Which files a table refers to, and which lie in its folder. What is remembered of a file is 8 bytes.

Paths are compared as the file store sees them (`file:///a` is `/a`, `s3a://` is `s3://`) and remembered as a hash. Two
paths of one hash, once in some 10**8 tables of a million files, make a file count as referred to that is not: it stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem
from pyiceberg.io import FileIO
from pyiceberg.io.fsspec import FsspecFileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestEntry, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from common.commit_files import history_folder
from common.commits import HISTORY_KEY, HistoryList
from common.errors import Refused
from sink.maintenance.jobs import UNWATCHED, Progress

Hashes = npt.NDArray[np.uint64]

#: Hashes that wait to be sorted in: 8 MB.
_LOOSE = 1_000_000


@dataclass(frozen=True)
class StoredFile:
    """A file of the store. `path` is as the store has it, without the scheme; times are microseconds UTC."""

    path: str
    nbytes: int
    modified_us: int


class FileStore:
    """The store behind a table's FileIO, as far as Iceberg's FileIO does not reach: sizes and listings."""

    def __init__(self, io: FileIO, location: str) -> None:
        """Raises Refused for a FileIO that cannot list."""
        self._io = io
        self._location = location
        scheme, netloc, self.root = PyArrowFileIO.parse_location(location, io.properties)
        self._system: FileSystem
        if isinstance(io, PyArrowFileIO):
            self._system = io.fs_by_scheme(scheme, netloc)
        elif isinstance(io, FsspecFileIO):
            self._system = PyFileSystem(FSSpecHandler(io.get_fs(scheme, netloc)))
        else:
            raise Refused(
                f"the files of {location} are reached through {type(io).__name__}, which cannot list them; set the "
                "catalog property py-io-impl to PyIceberg's pyarrow or fsspec FileIO"
            )

    def key(self, path: str) -> str:
        """A path of the metadata as the store has it."""
        return str(PyArrowFileIO.parse_location(path, self._io.properties)[2])

    def files(self) -> Iterator[StoredFile]:
        """All files below the location, folder by folder; memory is that of the largest folder's names."""
        folders = [self.root]
        while folders:
            for info in self._system.get_file_info(FileSelector(folders.pop(), allow_not_found=True)):
                if info.type == FileType.Directory:
                    folders.append(info.path)
                elif info.type == FileType.File:
                    yield StoredFile(info.path, int(info.size), int(info.mtime_ns or 0) // 1000)

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """The size of each of these files (paths of the metadata); None for one that is not there."""
        infos: list[FileInfo] = self._system.get_file_info([self.key(path) for path in paths])
        return [int(info.size) if info.type == FileType.File else None for info in infos]

    def delete(self, stored: StoredFile) -> None:
        """Raises what the store raises, FileNotFoundError among it."""
        self._system.delete_file(stored.path)


def hash_of(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


class PathSet:
    """Paths as hashes, 8 bytes each."""

    def __init__(self) -> None:
        self._sorted: Hashes = np.empty(0, np.uint64)
        self._loose: list[int] = []

    def __len__(self) -> int:
        self._settle()
        return len(self._sorted)

    def add(self, key: str) -> None:
        self._loose.append(hash_of(key))
        if len(self._loose) >= _LOOSE:
            self._settle()

    def holds(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For each of the paths whether it is in the set."""
        self._settle()
        wanted = np.array([hash_of(key) for key in keys], np.uint64)
        if not len(self._sorted):
            return np.zeros(len(wanted), np.bool_)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.asarray(self._sorted[at] == wanted)

    def _settle(self) -> None:
        if self._loose:
            self._sorted = np.unique(np.concatenate([self._sorted, np.array(self._loose, np.uint64)]))
            self._loose = []


class References:
    """Every file that a state of a table refers to; states can be added as the table moves on, each costs what is new.

    That is: its metadata file and those of its metadata log, its statistics, the history files that it lists, and of
    each snapshot it keeps the manifest list, the manifests, and the files that are live in them.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._snapshots: set[int] = set()
        self._manifests: set[int] = set()
        self.paths = PathSet()

    def add(self, table: Table, progress: Progress = UNWATCHED) -> None:
        """Take up what this state refers to. Raises what the file store raises."""
        metadata = table.metadata
        for path in _of_metadata(table.metadata_location, metadata):
            self._note(path)
        fresh = [snapshot for snapshot in metadata.snapshots if snapshot.snapshot_id not in self._snapshots]
        progress.step("read manifests", len(fresh))
        for snapshot in fresh:
            self._note(snapshot.manifest_list)
            for manifest in manifests_of(snapshot, table.io):
                self._add_manifest(manifest, table.io)
            self._snapshots.add(snapshot.snapshot_id)
            progress.advance()

    def _add_manifest(self, manifest: ManifestFile, io: FileIO) -> None:
        key = self._store.key(manifest.manifest_path)
        if hash_of(key) in self._manifests:
            return
        for entry in live_entries(manifest, io):
            self._note(entry.data_file.file_path)
        self._manifests.add(hash_of(key))
        self.paths.add(key)

    def _note(self, path: str) -> None:
        self.paths.add(self._store.key(path))


def manifests_of(snapshot: Snapshot, io: FileIO) -> list[ManifestFile]:
    return snapshot.manifests(io) if snapshot.manifest_list else []


def live_entries(manifest: ManifestFile, io: FileIO) -> list[ManifestEntry]:
    """The files, of data or of deletes, that the manifest adds or keeps."""
    return list(manifest.fetch_manifest_entry(io, discard_deleted=True))


def _of_metadata(metadata_location: str, metadata: TableMetadata) -> Iterable[str]:
    yield metadata_location
    yield from (logged.metadata_file for logged in metadata.metadata_log)
    yield from (one.statistics_path for one in metadata.statistics)
    yield from (one.statistics_path for one in metadata.partition_statistics)
    folder = history_folder(metadata)
    yield from (f"{folder}/{f.name}" for f in HistoryList.from_text(metadata.properties.get(HISTORY_KEY)).files)
