"""What was published: by publication, each table's snapshot and what memory has; and what a transaction sees of it.

Guarantee: whatever a transaction sees, the answers here are about just that, however many publications came since; one
that is too old to be known is refused. The publisher's thread writes, any thread asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from common.datasets import Dataset, log_table
from common.errors import SnapshotExpired
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import table_schema
from flight_server.storage.bars_shown import BarsShown
from flight_server.storage.between_cuts import Choose, changes_sql, check_range
from flight_server.storage.database import Database
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import (
    Cut,
    CutOff,
    Seen,
    Snapshot,
    TableCut,
    Tail,
    chosen_sql,
    cut_offsets,
    is_empty,
    lean,
    parts_sql,
    readable,
    view_sql,
)

#: How many of the latest publications' snapshots are remembered for `cut`: at two a second more than an hour, far
#: beyond the longest statement.
_GENERATIONS_KEPT = 10_000
#: How many of them are remembered with the index of their files, and how many files these may have together: an entry
#: takes some 250 bytes. The newest one always has its index.
_INDEXES_KEPT, _INDEXED_FILES_MAX = 64, 100_000
#: More data files than these are left to the table's view, where they are read from Iceberg's manifests.
_CHOSEN_FILES_MAX = 64
#: The same in an object store, where the view of a large table fetches metadata and manifest list each time.
_CHOSEN_FILES_MAX_REMOTE = 1_000


@dataclass
class ShownTable:
    """A dataset's table with the columns that it was shown with."""

    dataset: Dataset
    #: By the columns that a snapshot has beyond the packaged schema: all columns that are shown with it, and their
    #: types. Only added to.
    shapes: dict[tuple[str, ...], dict[str, str]]

    def columns(self, snapshot: Snapshot) -> Mapping[str, str]:
        """The columns that are shown with a snapshot that was published, in order, and their types."""
        return self.shapes[tuple(field.name for field in snapshot.further)]

    def schema(self, snapshot: Snapshot) -> pa.Schema:
        """The same as Arrow has them."""
        return pa.schema([*table_schema(self.dataset.schema_name), *snapshot.further])


class Publications:
    """Thread-safe for who asks; one thread writes."""

    def __init__(
        self,
        database: Database,
        tables: Callable[[], Mapping[str, ShownTable]],
        followed: Callable[[], Set[str]],
        bars: BarsShown | None,
    ) -> None:
        """`tables` are those that there are now, by dataset; `followed` the ids of the topics that are."""
        self._database = database
        self._tables = tables
        self._followed = followed
        self._bars = bars
        #: The partitions' numbers in the database, and the dataset that each belongs to. Only added to.
        self.numbers: dict[KafkaPartition, int] = {}
        self.owners: dict[KafkaPartition, str] = {}
        #: The newest that was published; 0 before the first.
        self.generation = 0
        self._generations: dict[int, dict[str, Snapshot]] = {}
        #: Generations whose snapshots have their indexes, and how many files are indexed anew in each; oldest first.
        self._indexed: deque[tuple[int, int]] = deque()
        #: By table, the snapshot that lost its index last, and what was left of it: publications share them.
        self._lean: dict[str, tuple[Snapshot, Snapshot]] = {}
        #: By generation, each table's segments and from which offsets on they have all. Positions move within it.
        self._memory: dict[int, dict[str, Tail]] = {}
        #: The publication and positions that were asked for last, and what they mean.
        self._seen_last: tuple[object, Seen] | None = None

    # -- what a transaction sees, from any thread

    def begin(self, cursor: Any) -> Seen:
        """Open a read-only transaction on the cursor: what it sees. Raises SnapshotExpired as `cut`."""
        return self._seen_at(*self._database.begin(cursor))

    def seen(self, cursor: Any) -> Seen:
        """What the cursor's open transaction sees. Raises SnapshotExpired as `cut`."""
        return self._seen_at(*self._database.positions(cursor))

    def cut(self, cursor: Any) -> Cut:
        """The cut that the cursor's open transaction sees. Raises SnapshotExpired when it is too old to be named."""
        return self._cut_at(*self._database.positions(cursor))

    def parts(self, cursor: Any, table: str, count: int, *, rows_min: int) -> list[str]:
        """The table that the cursor's open transaction sees, as SELECTs of parts that have each row once.

        Only the last one must be read in that transaction. No parts when the table cannot be parted or has fewer rows.
        """
        generation, _ = self._database.positions(cursor)
        found = next((known for known in self._tables().values() if known.dataset.table == table), None)
        snapshot = None if found is None else self._generations.get(generation, {}).get(found.dataset.name)
        if found is None or snapshot is None or len(snapshot.files) < 2 or snapshot.rows < rows_min:
            return []
        columns = found.columns(snapshot)
        tail = view_sql(
            replace(snapshot, relation=None), self._memory[generation][found.dataset.name].segments, columns
        )
        return parts_sql(snapshot, tail, columns, count)

    def changes(self, cursor: Any, table: str, low: TableCut | None, high: TableCut | None) -> str:
        """The SELECT of a table's rows between two cuts, for the cursor's open transaction; see `check_range`."""
        now, snapshot, memory, columns = self._seen(cursor, table)
        return changes_sql(snapshot, memory, columns, *check_range(table, low, high, now, self._followed()))

    def stretch(self, cursor: Any, table: str, choose: Choose) -> tuple[TableCut, PartitionOffsets, str]:
        """What a reader that goes along with a table reads next, for the cursor's open transaction.

        `choose` is told where the table stands, and says from where to where to read; what it names need not be there.
        Returns where the table stands, what was chosen as the end, and the SELECT.
        """
        now, snapshot, memory, columns = self._seen(cursor, table)
        low, high = choose(now)
        return now, high, changes_sql(snapshot, memory, columns, low, high)

    def select_where(
        self, seen: Seen, table: str, conditions: Sequence[Condition], cut: CutOff | None = None
    ) -> str | None:
        """The SELECT of all rows that meet the conditions, and of others, of the table, for a transaction that sees
        this; None when the table's view is as good. Of files only those that can have such rows are read, and
        none whose rows are in memory. With `cut`, of a table of the log, of the rows below it only."""
        name = next(name for name, known in self._tables().items() if known.dataset.table == log_table(table))
        snapshot = self._generations.get(seen.generation, {}).get(name)
        if snapshot is None or snapshot.index is None:
            return None
        memory = self._memory[seen.generation][name]
        columns = self._tables()[name].columns(snapshot)
        files_max = _CHOSEN_FILES_MAX_REMOTE if snapshot.is_remote else _CHOSEN_FILES_MAX
        if self._bars is not None and table != log_table(table):
            of = table.rpartition(".")[2]
            return self._bars.select_where(seen.generation, of, snapshot, memory, conditions, files_max=files_max)
        is_empty = table in seen.empty
        return chosen_sql(snapshot, memory, columns, conditions, files_max=files_max, is_empty=is_empty, cut=cut)

    # -- the publisher's steps

    def open(self, snapshots: dict[str, Snapshot]) -> tuple[int, dict[str, Tail]]:
        """Begin the next publication: its number, and what memory has in it, to be filled. `close` makes it the newest
        one; one that is not closed was none."""
        generation = self.generation + 1
        self._generations[generation] = snapshots
        memory = self._memory[generation] = dict(self._memory.get(self.generation, {}))
        return generation, memory

    def close(self, generation: int, files_indexed: int) -> None:
        """It is published, with so many files indexed anew; what is too old is forgotten."""
        self.generation = generation
        self._generations.pop(generation - _GENERATIONS_KEPT, None)
        self._memory.pop(generation - _GENERATIONS_KEPT, None)
        self._indexed.append((generation, files_indexed))
        while len(self._indexed) > 1 and not self._within_indexed():
            self._forget_files(self._indexed.popleft()[0])

    def remember(self, name: str, tail: Tail) -> None:
        """What memory has of a dataset in the newest publication, where that became more."""
        self._memory[self.generation] = self._memory[self.generation] | {name: tail}

    # -- inside

    def _seen(self, cursor: Any, table: str) -> tuple[TableCut, Snapshot, Tail, Mapping[str, str]]:
        """Of one table, what the cursor's open transaction sees: its cut, its snapshot, its memory; and its columns."""
        name = next(name for name, known in self._tables().items() if known.dataset.table == table)
        generation, positions = self._database.positions(cursor)
        snapshots = self._generations.get(generation)
        if snapshots is None:
            raise SnapshotExpired("this transaction's view is too old to be read from; begin a new transaction")
        snapshot = snapshots.get(name)
        if snapshot is None:
            raise SnapshotExpired(f"the table {table} is newer than this transaction; begin a new transaction")
        position = PartitionOffsets(
            {
                partition: positions[number]
                for partition, number in list(self.numbers.items())
                if number in positions and self.owners[partition] == name
            }
        )
        memory = replace(self._memory[generation][name], position=position)
        now = TableCut(snapshot.snapshot_id, cut_offsets(snapshot, position))
        return now, readable(snapshot), memory, self._tables()[name].columns(snapshot)

    def _seen_at(self, generation: int, positions: Mapping[int, int]) -> Seen:
        key = (generation, tuple(positions.items()))
        known = self._seen_last
        if known is None or known[0] != key:
            cut = self._cut_at(generation, positions).to_text()
            known = self._seen_last = (key, Seen(generation, cut, self._empty_at(generation, positions)))
        return known[1]

    def _empty_at(self, generation: int, positions: Mapping[int, int]) -> Set[str]:
        """The tables of which memory has no row of its own at these positions; none where one is not known yet."""
        partitions = {number: partition for partition, number in list(self.numbers.items())}
        if not positions.keys() <= partitions.keys():
            return frozenset()
        memory = self._memory[generation]
        # Not of every table that there is: one may be newer than what is seen.
        reached: dict[str, dict[KafkaPartition, int]] = {name: {} for name in memory}
        for number, position in positions.items():
            reached[self.owners[partitions[number]]][partitions[number]] = position
        return frozenset(
            self._tables()[name].dataset.table for name, there in reached.items() if is_empty(memory[name], there)
        )

    def _cut_at(self, generation: int, positions: Mapping[int, int]) -> Cut:
        snapshots = self._generations.get(generation)
        if snapshots is None:
            raise SnapshotExpired("this transaction's view is too old to be named as a cut; begin a new transaction")
        tails: dict[str, dict[KafkaPartition, int]] = {name: {} for name in snapshots}
        for partition, number in list(self.numbers.items()):
            if number in positions:
                tails[self.owners[partition]][partition] = positions[number]
        return Cut(
            {
                self._tables()[name].dataset.table: TableCut(
                    snapshot.snapshot_id, cut_offsets(snapshot, PartitionOffsets(tails[name]))
                )
                for name, snapshot in snapshots.items()
            }
        )

    def _within_indexed(self) -> bool:
        return len(self._indexed) <= _INDEXES_KEPT and sum(files for _, files in self._indexed) <= _INDEXED_FILES_MAX

    def _forget_files(self, generation: int) -> None:
        if self._bars is not None:
            self._bars.forget(generation)
        snapshots = self._generations.get(generation)
        if snapshots is not None:
            self._generations[generation] = {name: self._leaned(name, snapshot) for name, snapshot in snapshots.items()}

    def _leaned(self, name: str, snapshot: Snapshot) -> Snapshot:
        known = self._lean.get(name)
        if known is None or known[0] is not snapshot:
            known = self._lean[name] = (snapshot, lean(snapshot))
        return known[1]
