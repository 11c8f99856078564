"""A table in memory that keeps the contract of sink.table: one writer per base, a history, answers that get lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import pyarrow as pa

from common.errors import CatalogError, CommitConflict, CommitStateUnknown
from common.offsets import PartitionOffsets


class Fault(Enum):
    """What the next commit meets."""

    CONFLICT = "another commit, that touches no offsets, is first"
    LOST_BEFORE = "the request is lost"
    LOST_AFTER = "the request lands, its answer is lost"
    LATE = "the request is held up and arrives when `deliver_late` is called"
    CATALOG_DOWN = "the catalog cannot be reached when asked for the offsets"


@dataclass(frozen=True)
class FakeSnapshot:
    snapshot_id: int
    offsets: PartitionOffsets | None
    commit_id: str | None
    files: tuple[int, ...]


class FakeStore:
    """The catalog and the warehouse: what outlives every writer."""

    def __init__(self) -> None:
        self.snapshots: list[FakeSnapshot] = []
        self.files: dict[int, pa.Table] = {}
        self.faults: deque[Fault] = deque()
        self._late: list[Callable[[], None]] = []
        self._files_written = 0

    @property
    def offsets(self) -> PartitionOffsets:
        """The newest snapshot's next offsets, or its nearest ancestor's that has them."""
        known = (snapshot.offsets for snapshot in reversed(self.snapshots) if snapshot.offsets is not None)
        return next(known, PartitionOffsets())

    def rows(self) -> list[dict[str, object]]:
        """All rows of the newest snapshot. A file that a snapshot needs and that is gone is a KeyError."""
        if not self.snapshots:
            return []
        return [row for number in self.snapshots[-1].files for row in self.files[number].to_pylist()]

    def maintain(self) -> None:
        """A snapshot of someone else's that touches neither rows nor offsets."""
        files = self.snapshots[-1].files if self.snapshots else ()
        self.snapshots.append(FakeSnapshot(len(self.snapshots) + 1, None, None, files))

    def deliver_late(self) -> None:
        """Requests that were held up arrive now, and are judged now."""
        while self._late:
            self._late.pop()()


class FakeTable:
    """One writer's handle, with its own, possibly old, view."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._view: int | None = None
        self._reload()

    @property
    def snapshot_id(self) -> int | None:
        return self._view

    def committed_offsets(self) -> PartitionOffsets:
        if self._store.faults and self._store.faults[0] is Fault.CATALOG_DOWN:
            self._store.faults.popleft()
            raise CatalogError("the fake catalog is down")
        self._reload()
        return self._store.offsets

    def write(self, rows: pa.Table) -> int:
        self._store._files_written += 1
        number = self._store._files_written
        self._store.files[number] = rows
        return number

    def commit(self, files: int, base: PartitionOffsets, to: PartitionOffsets, commit_id: str) -> int:
        store, view = self._store, self._view
        fault = store.faults.popleft() if store.faults and store.faults[0] is not Fault.CATALOG_DOWN else None
        if fault is Fault.CONFLICT:
            store.maintain()
        if fault is Fault.LOST_BEFORE:
            raise CommitStateUnknown("the request was lost")
        if fault is Fault.LATE:
            store._late.append(lambda: self._land(view, files, base, to, commit_id))
            raise CommitStateUnknown("no answer yet")
        if not self._land(view, files, base, to, commit_id):
            raise CommitConflict("another writer was first")
        if fault is Fault.LOST_AFTER:
            raise CommitStateUnknown("the answer was lost")
        self._reload()
        assert self._view is not None
        return self._view

    def landed(self, commit_id: str) -> bool:
        self._reload()
        return any(snapshot.commit_id == commit_id for snapshot in self._store.snapshots)

    def discard(self, files: int) -> None:
        self._store.files.pop(files, None)

    def _reload(self) -> None:
        self._view = self._store.snapshots[-1].snapshot_id if self._store.snapshots else None

    def _land(self, view: int | None, files: int, base: PartitionOffsets, to: PartitionOffsets, commit_id: str) -> bool:
        store = self._store
        newest = store.snapshots[-1].snapshot_id if store.snapshots else None
        stands = store.offsets
        if newest != view or any(stands.next_offset(p) != base.next_offset(p) for p in to):
            return False
        before = store.snapshots[-1].files if store.snapshots else ()
        store.snapshots.append(FakeSnapshot(len(store.snapshots) + 1, stands.advanced(to), commit_id, (*before, files)))
        return True
