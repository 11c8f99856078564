"""Which files one version of a table consists of: everything that its metadata leads to, each once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.commits import HISTORY_KEY, HistoryList
from common.errors import K2Error
from sink.recovery.relocation import AvroFile, kind_of, relative

#: A manifest's entry of a file that the table no longer has.
_DELETED = 2

#: Kinds of files; those that manifests list are of the kinds that `relocation.kind_of` gives.
METADATA, MANIFEST_LIST, MANIFEST = "metadata", "manifest-list", "manifest"
HISTORY, STATISTICS = "history", "statistics"


@dataclass(frozen=True)
class TableFile:
    """One file of a table. `name` is its path below the table's location; `size` is None where only the store knows."""

    path: str
    name: str
    kind: str
    size: int | None = None


class ManifestEntries:
    """What is in the manifests that were asked for, each read once: they never change. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[TableFile, ...]] = {}
        self._lock = threading.Lock()

    def of(self, path: str, location: str, read: Callable[[str], bytes]) -> tuple[TableFile, ...]:
        """The live files of a manifest. Raises what `read` raises, and K2Error for a torn one."""
        with self._lock:
            known = self._known.get(path)
        if known is None:
            known = tuple(
                TableFile(
                    entry["data_file"]["file_path"],
                    relative(location, entry["data_file"]["file_path"]),
                    kind_of(entry["data_file"]),
                    entry["data_file"]["file_size_in_bytes"],
                )
                for entry in avro(path, read).records
                if entry["status"] != _DELETED
            )
            with self._lock:
                self._known[path] = known
        return known


def files_of(
    tree: Mapping[str, Any], read: Callable[[str], bytes], entries: ManifestEntries | None = None
) -> Iterator[TableFile]:
    """The files of every snapshot that this metadata keeps, and of the table's history; not the metadata file itself.

    What leads to other files comes before them. `read` gives a file's content by its path. Raises what it raises, and
    K2Error for a file that is torn or a table of a form that is not known.
    """
    location, entries, seen = tree["location"], entries or ManifestEntries(), set[str]()

    def once(path: str, kind: str, size: int | None = None) -> Iterator[TableFile]:
        if path not in seen:
            seen.add(path)
            yield TableFile(path, relative(location, path), kind, size)

    for snapshot in tree.get("snapshots") or []:
        if "manifest-list" not in snapshot:
            raise K2Error(f"the table at {location} has a snapshot without a manifest list, as format 1 once had them")
        yield from once(snapshot["manifest-list"], MANIFEST_LIST)
        for manifest in avro(snapshot["manifest-list"], read).records:
            path = manifest["manifest_path"]
            if path in seen:
                continue
            yield from once(path, MANIFEST, manifest["manifest_length"])
            for file in entries.of(path, location, read):
                yield from once(file.path, file.kind, file.size)
    for key in ("statistics", "partition-statistics"):
        for statistics in tree.get(key) or []:
            yield from once(statistics["statistics-path"], STATISTICS, statistics.get("file-size-in-bytes"))
    for recorded in HistoryList.from_text((tree.get("properties") or {}).get(HISTORY_KEY)).files:
        yield from once(f"{location.rstrip('/')}/history/{recorded.name}", HISTORY)


def avro(path: str, read: Callable[[str], bytes]) -> AvroFile:
    """A manifest or a manifest list. Raises what `read` raises, and K2Error when it is torn."""
    content = read(path)
    try:
        return AvroFile.read(content)
    except ValueError as error:
        raise K2Error(f"{path} is damaged: {error}; take it from a backup") from None


def current_snapshot(tree: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The snapshot that is the table's current one, None before the first."""
    current = tree.get("current-snapshot-id")
    return next((each for each in tree.get("snapshots") or [] if each["snapshot-id"] == current), None)
