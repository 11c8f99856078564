"""What an export is and how far it is, as one JSON file beside its data: written whole or not at all.

The manifest is the only thing that an export that goes on believes: a file that it does not name is not there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from clients.errors import ClientError
from clients.export.plan import Slice

#: Readers of folders of data leave out what begins with an underscore.
MANIFEST = "_k2_export.json"
_VERSION = 1


class ExportError(ClientError):
    """An export cannot be made, or is not what its manifest says."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="FAILED_PRECONDITION")


@dataclass(frozen=True)
class DataFile:
    """A file that is whole: its path below the export's folder with "/", and what it has."""

    path: str
    rows: int
    bytes: int
    sha256: str
    slice: int


@dataclass(frozen=True)
class Request:
    """What was asked for. Two runs are the same export when these are equal."""

    statement: str
    at: str | None
    format: str
    compression: str
    partition_by: tuple[str, ...]
    split_by: str | None
    slice_rows: int


@dataclass(frozen=True)
class Manifest:
    """`cut` is the instant that every row is of; None where the statement reads nothing that has one. `date_of` is the
    column whose day the partition column `date` is. `done` are the numbers of the slices whose files are there."""

    id: str
    request: Request
    cut: str | None
    schema: pa.Schema
    slices: tuple[Slice, ...]
    date_of: str | None = None
    whole_because: str | None = None
    """Why the result is one slice, where that is not for its size."""
    done: frozenset[int] = frozenset()
    files: tuple[DataFile, ...] = ()
    complete: bool = False
    created_at: str = ""
    finished_at: str | None = None

    @property
    def rows(self) -> int:
        """Of the files that are there."""
        return sum(each.rows for each in self.files)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.files)

    @property
    def rows_planned(self) -> int | None:
        rows = [each.rows for each in self.slices]
        return None if None in rows else sum(each for each in rows if each is not None)

    def with_slice(self, number: int, files: Sequence[DataFile]) -> Self:
        """The same, further by one slice."""
        return replace(self, done=self.done | {number}, files=(*self.files, *files))

    def save(self, folder: Path) -> None:
        """Atomically, and so that it outlives a crash of the machine. Raises OSError."""
        slices = [asdict(each) | {"done": number in self.done} for number, each in enumerate(self.slices)]
        told = {
            "version": _VERSION,
            "id": self.id,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "complete": self.complete,
            **asdict(self.request),
            "cut": self.cut,
            "date_of": self.date_of,
            "whole_because": self.whole_because,
            "rows": self.rows,
            "schema": [{"name": each.name, "type": str(each.type), "nullable": each.nullable} for each in self.schema],
            "arrow_schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "slices": slices,
            "files": [asdict(each) for each in sorted(self.files, key=lambda each: (each.slice, each.path))],
        }
        beside = folder / f".{MANIFEST}.new"
        with beside.open("w") as out:
            json.dump(told, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(folder / MANIFEST)
        sync_folder(folder)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The export in the folder; None where there is none. Raises ExportError for what is no manifest of ours."""
        path = folder / MANIFEST
        try:
            told: dict[str, Any] = json.loads(path.read_text())
            if told["version"] != _VERSION:
                raise ExportError(
                    f"{path} was written by another version of K2 (form {told['version']}); choose another folder"
                )
            given = {name: told[name] for name in Request.__dataclass_fields__}
            return cls(
                told["id"],
                Request(**{**given, "partition_by": tuple(given["partition_by"])}),
                told["cut"],
                pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["arrow_schema"]))),
                tuple(Slice(each["where"], each["rows"]) for each in told["slices"]),
                told["date_of"],
                told["whole_because"],
                frozenset(number for number, each in enumerate(told["slices"]) if each["done"]),
                tuple(DataFile(**each) for each in told["files"]),
                told["complete"],
                told["created_at"],
                told["finished_at"],
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException, OSError) as error:
            raise ExportError(
                f"{path} is not a manifest that k2 export wrote ({error}); choose another folder"
            ) from None


@dataclass(frozen=True)
class Verified:
    """What a verification read, and what it found wrong: a sentence each."""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    problems: tuple[str, ...] = field(default=())


def verify(folder: Path) -> Verified:
    """Every file of the export read again and held against its manifest. Raises ExportError where there is none."""
    manifest = Manifest.load(folder)
    if manifest is None:
        raise ExportError(f"there is no export in {folder} (no {MANIFEST}); give the folder that k2 export wrote")
    problems = [] if manifest.complete else [f"the export is not complete: {_progress(manifest)}"]
    problems += [problem for each in manifest.files for problem in _wrong(folder, each)]
    for number, planned in enumerate(manifest.slices):
        rows = sum(each.rows for each in manifest.files if each.slice == number)
        if number in manifest.done and planned.rows not in (None, rows):
            problems.append(f"slice {number} has {rows:,} rows and was planned with {planned.rows:,}")
    named = {each.path for each in manifest.files}
    strays = [path for path in data_files(folder) if path.relative_to(folder).as_posix() not in named]
    problems += [f"{path.relative_to(folder)} is not in the manifest" for path in strays]
    return Verified(len(manifest.files), manifest.rows, manifest.bytes, tuple(problems))


def data_files(folder: Path) -> Iterator[Path]:
    """The files of rows in the folder, whether or not a manifest names them."""
    for path in sorted(folder.rglob("part-*")):
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts):
            yield path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _progress(manifest: Manifest) -> str:
    return f"{len(manifest.done)} of {len(manifest.slices)} slices are there; run the same command again to go on"


def _wrong(folder: Path, file: DataFile) -> Iterator[str]:
    path = folder / file.path
    try:
        size = path.stat().st_size
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        yield f"{file.path} is gone"
        return
    except OSError as error:
        yield f"{file.path} cannot be read ({error.strerror})"
        return
    if size != file.bytes:
        yield f"{file.path} has {size:,} bytes and had {file.bytes:,}"
    elif digest != file.sha256:
        yield f"{file.path} has other bytes than were written (sha256 {digest[:12]}..., was {file.sha256[:12]}...)"
    elif path.suffix == ".parquet" and (rows := pq.read_metadata(path).num_rows) != file.rows:
        yield f"{file.path} has {rows:,} rows and had {file.rows:,}"
