"""A folder of files in a store that is local or speaks S3. A file is there whole or not at all.

The store is reached through PyIceberg's own file IO, with the catalog's properties, so that whatever holds the lake can
hold its backups. Names are relative to the folder and have `/` between their parts.

In an object store a file appears when its upload is complete. A local file is written beside its place, flushed to the
disk, and renamed. What an interruption leaves behind ends in `.k2-part`, and is never listed.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from pyiceberg.io.pyarrow import PyArrowFileIO

from common.errors import CatalogError, K2Error, SettingsError
from common.iceberg import reason
from sink.recovery.relocation import spelled

#: Read and written at a time: a request to an object store, and little beside what a row group takes.
_CHUNK_BYTES = 4 * 1024 * 1024
_PART = ".k2-part"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_SCHEMES = ("file://", "s3://", "s3a://", "s3n://", "gs://")


class Digest(NamedTuple):
    """What is known of a file's content."""

    size: int
    sha256: str


class FileGone(CatalogError):
    """The file is not in the store; it may have been there a moment ago."""


class Folder:
    """The folder at `location`: a path, or a URI such as s3://bucket/prefix. Thread-safe."""

    def __init__(self, location: str, properties: Mapping[str, str], io: PyArrowFileIO | None = None) -> None:
        """`io` is another folder's, whose connections are used again. Raises SettingsError for an unknown store."""
        location = spelled(location)
        if _SCHEME.match(location) is None:
            location = f"file://{Path(location).absolute()}"
        if not location.startswith(_SCHEMES):
            raise SettingsError(
                f"{location} is in no store that K2 knows; give a path or a URI like s3://bucket/prefix"
            )
        self.location = location.rstrip("/")
        self._properties = dict(properties)
        self._io = io or PyArrowFileIO(self._properties)
        scheme, netloc, _ = PyArrowFileIO.parse_location(self.location, self._properties)
        with _told(f"reach {self.location}"):
            self._store: FileSystem = self._io.fs_by_scheme(scheme, netloc)
        self._local = isinstance(self._store, LocalFileSystem)

    def at(self, location: str) -> Folder:
        """Another folder, reached in the same way."""
        return Folder(location, self._properties, self._io)

    def of(self, path: str) -> tuple[Folder, str]:
        """A file by its whole path: its folder, reached in the same way, and its name there."""
        parent, _, name = path.rpartition("/")
        return self.at(parent), name

    def read(self, name: str) -> bytes:
        """The file's content. Raises FileGone, CatalogError."""
        path = self._path(name)
        with _told(f"read {self.location}/{name}"), self._store.open_input_stream(path) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Make the file, or put this in the place of the one that is there. Raises CatalogError."""
        with _told(f"write {self.location}/{name}"), self._writing(name) as file:
            file.write(content)

    def copy(self, name: str, source: Folder, source_name: str, *, expected: Digest | None = None) -> Digest:
        """Make the file from another folder's; returns what was copied.

        With `expected`, nothing else becomes this file. Raises FileGone (the source), CatalogError, K2Error (damaged).
        """
        with _told(f"copy {source.location}/{source_name} to {self.location}/{name}"):
            with source._store.open_input_stream(source._path(source_name)) as stream, self._writing(name) as file:
                digest = _through(stream, file)
                if expected is not None and digest != expected:
                    raise damaged(source, source_name, expected, digest)
            return digest

    def digest(self, name: str) -> Digest:
        """Size and checksum of the file, which is read for it. Raises FileGone, CatalogError."""
        path = self._path(name)
        with _told(f"read {self.location}/{name}"), self._store.open_input_stream(path) as stream:
            return _through(stream, None)

    def list(self, under: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of every file below `under`, in no order; none when there is no such folder."""
        base = self._path(under) if under else self._path("").rstrip("/")
        selector = FileSelector(base, recursive=True, allow_not_found=True)
        with _told(f"list {self.location}/{under}"):
            found = self._store.get_file_info(selector)
        root = self._path("")
        for info in found:
            if info.type == FileType.File and not info.path.endswith(_PART):
                yield info.path.removeprefix(root), int(info.size)

    def exists(self, name: str) -> bool:
        with _told(f"look for {self.location}/{name}"):
            return bool(self._store.get_file_info(self._path(name)).type == FileType.File)

    def delete(self, name: str) -> None:
        """Remove the file; it is well when it is not there. Raises CatalogError."""
        with _told(f"delete {self.location}/{name}"), suppress(FileNotFoundError):
            self._store.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        """The name as the store's own path. A listing gives paths in the same form."""
        location = f"{self.location}/{name}"
        return str(PyArrowFileIO.parse_location(location, self._properties)[2]) if name else self._root()

    def _root(self) -> str:
        return str(PyArrowFileIO.parse_location(self.location, self._properties)[2]).rstrip("/") + "/"

    def _writing(self, name: str) -> _Writing:
        return _Writing(self._store, self._path(name), local=self._local)


class _Writing:
    """A file that is being written; what was not ended without an error does not become one."""

    def __init__(self, store: FileSystem, path: str, *, local: bool) -> None:
        self._store, self._path, self._local = store, path, local
        self._written = f"{path}.{uuid.uuid4().hex[:8]}{_PART}" if local else path
        self._stream: Any = None

    def __enter__(self) -> Any:
        if self._local:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._store.open_output_stream(self._written)
        return self._stream

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._stream.close()
            if kind is None and self._local:
                with Path(self._written).open("rb") as file:
                    os.fsync(file.fileno())
                self._store.move(self._written, self._path)
        except BaseException:
            self._remove()
            raise
        if kind is not None:
            self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self._store.delete_file(self._written)


def damaged(folder: Folder, name: str, expected: Digest, found: Digest) -> K2Error:
    """The error that says that a file is not what it was."""
    what = (
        f"has {found.size:,} bytes and not {expected.size:,}"
        if found.size != expected.size
        else f"has the sha256 {found.sha256[:12]}... and not {expected.sha256[:12]}..."
    )
    return K2Error(f"{folder.location}/{name} is damaged: it {what}; take another copy of it")


def digest_of(content: bytes) -> Digest:
    return Digest(len(content), hashlib.sha256(content).hexdigest())


def _through(stream: Any, file: Any) -> Digest:
    """Everything from the stream, into the file if there is one."""
    hashed, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        hashed.update(chunk)
        size += len(chunk)
        if file is not None:
            file.write(chunk)
    return Digest(size, hashed.hexdigest())


class _told:  # noqa: N801 - read as a phrase where it is used
    """The store's exceptions as CatalogError, those of a missing file as FileGone; ours pass."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, K2Error) or not isinstance(error, Exception):
            return
        missing = isinstance(error, FileNotFoundError) or "Path does not exist" in str(error)
        made = FileGone if missing else CatalogError
        raise made(f"could not {self._doing}: {reason(error)}") from None
