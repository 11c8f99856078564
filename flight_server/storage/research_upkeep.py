"""Upkeep of research tables: old snapshots expire with the next commit, files that nobody can reach go an hour later.

A file is deleted only when no snapshot that was kept reaches it, and only after every reader that could have begun with
one that reached it has ended. What is to go is remembered by the server that made it so; if that ends before, the files
stay, which costs space and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Set
from dataclasses import dataclass

from pyiceberg.io import FileIO
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update.snapshot import ExpireSnapshots

from common.clock import Clock
from common.iceberg import reason
from common.telemetry import get_logger

#: Longer than any statement may run and any ticket lives.
KEEP_UNREACHABLE_S = 3_600.0
#: Table property: how many snapshots are kept. A table without it, of another tool, is left alone.
SNAPSHOTS_KEPT_KEY = "k2.snapshots-kept"
#: Each snapshot makes every commit dearer: 17 ms with few, 35 with 100, 150 with 1,000.
SNAPSHOTS_KEPT = 100
#: Snapshots expire so many at a time.
_AT_ONCE = 20


def expire(transaction: Transaction, metadata: TableMetadata) -> Set[int]:
    """Stage the expiry of the oldest snapshots beyond those kept, if it is worth it; returns their ids.

    `metadata` is the table's as committed; what a branch or tag refers to stays.
    """
    kept = int(metadata.properties.get(SNAPSHOTS_KEPT_KEY, 0))
    if not kept or len(metadata.snapshots) < kept + _AT_ONCE:
        return frozenset()
    oldest_first = sorted(metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)
    referred = {reference.snapshot_id for reference in metadata.refs.values()}
    going = {snapshot.snapshot_id for snapshot in oldest_first[:-kept]} - referred
    ExpireSnapshots(transaction).by_ids(sorted(going)).commit()
    return frozenset(going)


@dataclass(frozen=True)
class _Unreachable:
    due_s: float
    metadata: TableMetadata
    gone: Set[int]
    io: FileIO
    metadata_location: str | None


class Unreachable:
    """What is to be deleted, and when. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = get_logger("flight_server.storage")
        self._lock = threading.Lock()
        self._waiting: list[_Unreachable] = []

    def expired(self, metadata: TableMetadata, gone: Set[int], io: FileIO) -> None:
        """These snapshots of a table whose metadata was this are gone, by a commit that has landed."""
        if gone:
            self._wait(_Unreachable(self._due_s(), metadata, gone, io, None))

    def dropped(self, metadata: TableMetadata, metadata_location: str, io: FileIO) -> None:
        """The whole table is out of the catalog."""
        gone = frozenset(snapshot.snapshot_id for snapshot in metadata.snapshots)
        self._wait(_Unreachable(self._due_s(), metadata, gone, io, metadata_location))

    def sweep(self) -> int:
        """Delete what is due; returns how many files that were. What the store does not delete stays behind."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            due = [entry for entry in self._waiting if entry.due_s <= now_s]
            self._waiting = [entry for entry in self._waiting if entry.due_s > now_s]
        deleted = 0
        for entry in due:
            try:
                paths = _paths(entry)
            except Exception as error:  # noqa: BLE001  (file stores raise without a common base; orphans are harmless)
                self._log.warning("files that nobody reaches were left behind", reason=reason(error))
                continue
            for path in paths:
                try:
                    entry.io.delete(path)
                    deleted += 1
                except Exception as error:  # noqa: BLE001  (as above)
                    self._log.warning("a file that nobody reaches was left behind", path=path, reason=reason(error))
        return deleted

    def _due_s(self) -> float:
        return self._clock.monotonic_s() + KEEP_UNREACHABLE_S

    def _wait(self, entry: _Unreachable) -> None:
        with self._lock:
            self._waiting.append(entry)


def _paths(entry: _Unreachable) -> list[str]:
    """The files that are reached from snapshots that are gone and from none that was kept.

    Later snapshots reach no more of them: they begin with what the newest one that was kept has.
    """
    io = entry.io
    gone = [snapshot for snapshot in entry.metadata.snapshots if snapshot.snapshot_id in entry.gone]
    kept = [snapshot for snapshot in entry.metadata.snapshots if snapshot.snapshot_id not in entry.gone]
    held = {manifest.manifest_path: manifest for snapshot in kept for manifest in snapshot.manifests(io)}
    left = {
        manifest.manifest_path: manifest
        for snapshot in gone
        for manifest in snapshot.manifests(io)
        if manifest.manifest_path not in held
    }
    paths = [snapshot.manifest_list for snapshot in gone]
    if left:
        still = _data_files(held, io)
        paths += sorted(_data_files(left, io) - still) + sorted(left)
    if entry.metadata_location is not None:
        paths += [logged.metadata_file for logged in entry.metadata.metadata_log] + [entry.metadata_location]
    return paths


def _data_files(manifests: dict[str, ManifestFile], io: FileIO) -> set[str]:
    return {
        entry.data_file.file_path
        for manifest in manifests.values()
        for entry in manifest.fetch_manifest_entry(io, discard_deleted=True)
    }
