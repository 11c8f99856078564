"""A table in memory that keeps the contract of sink.table: one writer per base, a history, answers that get lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import pyarrow as pa

from common.errors import CatalogError, CommitConflict, CommitStateUnknown, K2Error
from common.offsets import PartitionOffsets
from common.schemas.arrow import further_fields


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
    parent_id: int | None = None
    #: Iceberg's word for what it did to the rows: append, replace (the layout alone) or overwrite (anything).
    operation: str = "append"
    #: The columns that the table had beyond those of its dataset, as the writer of this snapshot knew it.
    further: tuple[pa.Field, ...] = ()


class FakeStore:
    """The catalog and the warehouse: what outlives every writer.

    `snapshots` are those that are kept, as they were made; one of them is the current one. Each change of any kind
    makes another version, and a commit lands only on the version that its writer saw, as the catalog's compare-and-swap
    of the metadata location has it.
    """

    def __init__(self, schema: pa.Schema | None = None) -> None:
        """`schema` are the columns that the table is made with; None: those of its first file."""
        self._schema = schema
        #: Columns that the table got since (sink.evolution): a change of metadata alone, which makes no version.
        self.further: tuple[pa.Field, ...] = ()
        self.snapshots: list[FakeSnapshot] = []
        self.files: dict[int, pa.Table] = {}
        self.faults: deque[Fault] = deque()
        self.version = 0
        self._current_id: int | None = None
        self._late: list[Callable[[], None]] = []
        self._files_written = 0
        self._snapshots_made = 0
        #: What each snapshot has taken in, whether it says so or not.
        self._holds: dict[int, PartitionOffsets] = {}
        #: File -> the snapshot that added it; of every file that ever was part of one.
        self.added_by: dict[int, int] = {}

    @property
    def current(self) -> FakeSnapshot | None:
        return next((snapshot for snapshot in self.snapshots if snapshot.snapshot_id == self._current_id), None)

    def ancestors(self) -> Iterator[FakeSnapshot]:
        """The current snapshot and those before it, as far as they are kept."""
        kept = {snapshot.snapshot_id: snapshot for snapshot in self.snapshots}
        snapshot = self.current
        while snapshot is not None:
            yield snapshot
            snapshot = None if snapshot.parent_id is None else kept.get(snapshot.parent_id)

    @property
    def offsets(self) -> PartitionOffsets:
        """The current snapshot's next offsets, or its nearest ancestor's that has them. K2Error when nobody knows."""
        oldest = None
        for snapshot in self.ancestors():
            if snapshot.offsets is not None:
                return snapshot.offsets
            oldest = snapshot
        if oldest is not None and oldest.parent_id is not None:
            raise K2Error("no snapshot that is kept says which offsets it holds")
        return PartitionOffsets()

    def rows(self) -> list[dict[str, object]]:
        """All rows of the current snapshot. A file that a snapshot needs and that is gone is a KeyError."""
        files = () if self.current is None else self.current.files
        return [row for number in files for row in self.files[number].to_pylist()]

    def add(
        self,
        files: Sequence[int],
        offsets: PartitionOffsets | None,
        commit_id: str | None = None,
        operation: str = "append",
        further: tuple[pa.Field, ...] | None = None,
    ) -> FakeSnapshot:
        """A snapshot of these files on the current one. Without offsets of its own it holds what that one does.
        `further` are the columns that its writer knew beyond the dataset's; None: all that there are."""
        self._snapshots_made += 1
        known = self.further if further is None else further
        made = FakeSnapshot(self._snapshots_made, offsets, commit_id, tuple(files), self._current_id, operation, known)
        holds = self._holds.get(self._current_id, PartitionOffsets()) if self._current_id else PartitionOffsets()
        self._holds[made.snapshot_id] = holds if offsets is None else offsets
        self.added_by = dict.fromkeys(files, made.snapshot_id) | self.added_by
        self.snapshots.append(made)
        self._current_id = made.snapshot_id
        self.version += 1
        return made

    def put(self, rows: pa.Table) -> int:
        """A new data file; nothing refers to it yet. Columns that the table lacks are added to it first."""
        if self._schema is None:
            self._schema = rows.schema
        self.further += tuple(further_fields(pa.schema([*self._schema, *self.further]), rows.schema))
        self._files_written += 1
        self.files[self._files_written] = rows
        return self._files_written

    def maintain(self) -> None:
        """A snapshot of someone else's that touches neither rows nor offsets, and has no entry of them."""
        self.add(self.current.files if self.current else (), None, operation="replace")

    def compact(self, numbers: Sequence[int], *, carried: bool, operation: str = "replace") -> None:
        """These files of the current snapshot become one; `carried`: with the entry of the offsets, as K2 does it."""
        assert self.current is not None
        made = self.put(pa.concat_tables([self.files[number] for number in numbers], promote_options="default"))
        files = [number for number in self.current.files if number not in numbers]
        self.add((*files, made), self.offsets if carried else None, operation=operation)

    def roll_back(self, snapshot_id: int) -> None:
        """Make a snapshot that is kept the current one again."""
        assert any(snapshot.snapshot_id == snapshot_id for snapshot in self.snapshots)
        self._current_id = snapshot_id
        self.version += 1

    def expire(self, kept_min: int, *, foreign: bool = False) -> set[int]:
        """Let go of all but the newest snapshots, and delete the files that only they had; returns those.

        K2's own way keeps the nearest snapshot that has the offsets; a foreign tool does not.
        """
        keep = {snapshot.snapshot_id for snapshot in self.snapshots[-kept_min:]} | {self._current_id}
        if not foreign:
            for snapshot in self.ancestors():
                keep.add(snapshot.snapshot_id)
                if snapshot.offsets is not None:
                    break
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot.snapshot_id in keep]
        needed = {number for snapshot in self.snapshots for number in snapshot.files}
        gone = self.added_by.keys() & self.files.keys() - needed
        for number in gone:
            del self.files[number]
        self.version += 1
        return gone

    def say_offsets(self) -> None:
        """What an operator does who knows them: a snapshot that says what the current one holds."""
        if self._current_id is not None and self.current is not None:
            self.add(self.current.files, self._holds[self._current_id])

    def deliver_late(self) -> None:
        """Requests that were held up arrive now, and are judged now."""
        while self._late:
            self._late.pop()()


class FakeTable:
    """One writer's handle, with its own, possibly old, view."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._reload()

    @property
    def name(self) -> str:
        return "market.fake"

    @property
    def snapshot_id(self) -> int | None:
        return self._snapshot_id

    def committed_offsets(self) -> PartitionOffsets:
        if self._store.faults and self._store.faults[0] is Fault.CATALOG_DOWN:
            self._store.faults.popleft()
            raise CatalogError("the fake catalog is down")
        self._reload()
        return self._store.offsets

    def write(self, rows: pa.Table) -> int:
        made = self._store.put(rows)
        if len(rows.schema) > len(self._store._schema or ()):
            self._further = self._store.further
        return made

    def commit(
        self,
        files: int | Sequence[int],
        base: PartitionOffsets,
        to: PartitionOffsets,
        commit_id: str,
        *,
        replacing: Sequence[int] = (),
        manifests_written: Callable[[], None] = lambda: None,
    ) -> int:
        store = self._store
        added = (files,) if isinstance(files, int) else tuple(files)
        landing = _Landing(self._version, added, tuple(replacing), base, to, commit_id, self._further)
        manifests_written()
        fault = store.faults.popleft() if store.faults and store.faults[0] is not Fault.CATALOG_DOWN else None
        if fault is Fault.CONFLICT:
            store.maintain()
        if fault is Fault.LOST_BEFORE:
            raise CommitStateUnknown("the request was lost")
        if fault is Fault.LATE:
            store._late.append(lambda: landing.on(store))
            raise CommitStateUnknown("no answer yet")
        if not landing.on(store):
            raise CommitConflict("another writer was first")
        if fault is Fault.LOST_AFTER:
            raise CommitStateUnknown("the answer was lost")
        self._reload()
        assert self._snapshot_id is not None
        return self._snapshot_id

    def landed(self, commit_id: str) -> bool:
        self._reload()
        return any(snapshot.commit_id == commit_id for snapshot in self._store.ancestors())

    def discard(self, files: int | Sequence[int]) -> None:
        for number in (files,) if isinstance(files, int) else files:
            self._store.files.pop(number, None)

    def _reload(self) -> None:
        current = self._store.current
        self._version = self._store.version
        self._snapshot_id = None if current is None else current.snapshot_id
        self._files = () if current is None else current.files
        self._further = self._store.further


@dataclass(frozen=True)
class _Landing:
    """One commit, as its writer made it, on its way to the catalog."""

    version: int
    files: tuple[int, ...]
    replacing: tuple[int, ...]
    base: PartitionOffsets
    to: PartitionOffsets
    commit_id: str
    further: tuple[pa.Field, ...]

    def on(self, store: FakeStore) -> bool:
        """Whether it landed."""
        if store.version != self.version:
            return False
        stands = store.offsets
        if any(stands.next_offset(p) != self.base.next_offset(p) for p in self.to):
            return False
        before = () if store.current is None else store.current.files
        kept = [number for number in before if number not in self.replacing]
        operation = "overwrite" if self.replacing else "append"
        store.add((*kept, *self.files), stands.advanced(self.to), self.commit_id, operation, self.further)
        return True
