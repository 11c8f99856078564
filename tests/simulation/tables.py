"""The tables of a world: what other tools and operators do to them, and what the catalog says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.datasets import GAP_EVENTS, QUOTES, SHED, TRADES, Bars, Dataset
from common.errors import K2Error
from common.offsets import PartitionOffsets
from common.schemas.arrow import field_id, table_schema
from flight_server.storage.read_view import Cut, Snapshot, listed, read_files
from tests.simulation.parts import BARS_KEPT, DATASETS, NUMBER_COLUMNS, grown_from, index_of
from tests.support.bars_oracle import in_order
from tests.support.fake_table import FakeStore, Fault

if TYPE_CHECKING:
    from tests.simulation.world import World

TABLES: tuple[Dataset, ...] = (*DATASETS, *BARS_KEPT)
#: How often something is done to each of them.
_DRAWN = (TRADES, QUOTES, TRADES, BARS_KEPT[0], QUOTES, GAP_EVENTS, TRADES, BARS_KEPT[1], QUOTES, SHED, TRADES)
#: What of each table is in the index of its files; of the others the number of its records.
_INDEXED = {bars.name: ("bar_start",) for bars in BARS_KEPT} | {TRADES.name: ("trade_id", "event_time")}


class Tables:
    """`number` picks among what there is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.stores = {dataset.name: FakeStore(table_schema(dataset.schema_name)) for dataset in TABLES}
        #: (dataset, snapshot) -> its files; those that were deleted.
        self.files_of: dict[tuple[str, int | None], set[Path]] = {}
        self.gone: set[Path] = set()
        self._further: dict[tuple[str, int | None], tuple[str, ...]] = {}
        self._taken: dict[str, dict[int, tuple[PartitionOffsets, PartitionOffsets]]] = {}

    # -- actions

    def commit_fault(self, number: int) -> None:
        self._store(number).faults.append(list(Fault)[number // 2 % len(Fault)])

    def deliver_late(self, number: int) -> None:
        self._store(number).deliver_late()

    def foreign_snapshot(self, number: int) -> None:
        """Maintenance by another tool: the same rows, no entry of the offsets."""
        self._store(number).maintain()

    def compact(self, number: int) -> None:
        """Some files become one; K2 itself carries the entry of the offsets forward, a foreign tool does not."""
        store = self._store(number)
        if store.current is None or len(store.current.files) < 2:
            return
        files = store.current.files
        first = number % (len(files) - 1)
        with contextlib.suppress(K2Error):  # of an entry that is lost: nobody can carry it forward
            store.compact(files[first : first + 2 + number % 5], **_compaction(number))

    def rewrite(self, number: int) -> None:
        """A tool makes one file of all, and deletes at once what nothing refers to any more."""
        store = self._store(number)
        if store.current is not None and store.current.files:
            with contextlib.suppress(K2Error):
                store.compact(store.current.files, **_compaction(number))
                self._delete(self._dataset(number), store.expire(1))

    def expire(self, number: int) -> None:
        """Old snapshots go, with the files that only they had; a pinned reader may still need them."""
        self._delete(self._dataset(number), self._store(number).expire(1 + number % 3))

    def foreign_expiry(self, number: int) -> None:
        """The same by a tool that does not know which snapshot says what the table holds."""
        self._delete(self._dataset(number), self._store(number).expire(1, foreign=True))

    def operator(self, number: int) -> None:
        """Somebody looks after a table of which nobody knows any more what it holds."""
        self._say_offsets(self._dataset(number))

    def rollback(self, number: int) -> None:
        """The table is set back to an older snapshot that is kept; every other time a reader comes before the sink."""
        store = self._store(number)
        others = [snapshot.snapshot_id for snapshot in store.snapshots if snapshot is not store.current]
        if others:
            store.roll_back(others[-1 - number % min(4, len(others))])
            if number // 2 % 2:
                self._world.server.refresh(1)
                self._world.queries.query(number)

    # -- the end

    def settle(self) -> None:
        """No more faults."""
        for store in self.stores.values():
            store.faults.clear()
            store.deliver_late()

    def say_offsets(self) -> None:
        for dataset in TABLES:
            self._say_offsets(dataset)

    def check(self, dataset: Dataset) -> None:
        """What the workers committed is, by itself, the log below the table's offsets."""
        store, truth = self.stores[dataset.name], self._world.truth
        if isinstance(dataset, Bars):
            rows = pa.Table.from_pylist(store.rows(), schema=table_schema("bar"))
            assert in_order(rows) == truth.bars(dataset, store.offsets), f"{dataset.table} has other bars"
            return
        number = NUMBER_COLUMNS[dataset.name]
        places = [
            (row["_kafka_topic"], row["_kafka_partition"], row["_kafka_offset"], row[number]) for row in store.rows()
        ]
        truth.compare(dataset, places, store.offsets, Cut({}))  # type: ignore[arg-type]

    # -- what others ask

    def holds(self, dataset: Dataset) -> PartitionOffsets:
        try:
            return self.stores[dataset.name].offsets
        except K2Error:
            return PartitionOffsets()

    def empty(self, bars: Bars) -> None:
        """As sink.bars_table: every bar goes, and the table has taken in nothing."""
        if self.stores[bars.name].current is not None:
            self.stores[bars.name].add((), PartitionOffsets(), "made-anew", "overwrite")

    def newest(self, dataset: Dataset) -> Snapshot:
        """The current snapshot, as the catalog would tell it. K2Error when nobody knows what it holds."""
        store = self.stores[dataset.name]
        current, offsets = store.current, store.offsets
        if current is None:
            return Snapshot()
        tables = {self._path(dataset, number): store.files[number] for number in current.files}
        for path, table in tables.items():
            if not path.exists():
                pq.write_table(table, path, compression="none")
        self.files_of[dataset.name, current.snapshot_id] = set(tables)
        self._further[dataset.name, current.snapshot_id] = tuple(field.name for field in current.further)
        names = tuple(str(path) for path in tables)
        schema = pa.schema([*table_schema(dataset.schema_name), *current.further])
        ids = {field.name: field_id(field) for field in schema} if store.further else {}
        types = self._world.server.database.column_types(schema) if ids or not names else {}
        nothing = f"(SELECT {listed(types, ())} WHERE false)"
        files = {str(self._path(dataset, n)): (store.added_by[n], store.files[n]) for n in current.files}
        return Snapshot(
            current.snapshot_id,
            read_files(names, ids, types) if names else nothing,  # type: ignore[arg-type]
            tuple(schema.names),
            offsets,
            () if ids else names,
            sum(table.num_rows for table in tables.values()),
            index_of(_INDEXED.get(dataset.name) or (NUMBER_COLUMNS[dataset.name],), files),
            ids,  # type: ignore[arg-type]
            grown_from(store),
            self._taken_in(dataset),
            further=current.further,
        )

    def further_of(self, dataset: Dataset, snapshot_id: int | None) -> tuple[str, ...]:
        """The columns that a table had beyond those of its dataset in a snapshot that a server was told of."""
        return self._further.get((dataset.name, snapshot_id), ())

    def server_started(self) -> None:
        """It knows only what it sees from now on."""
        self._taken = {}

    def lost(self, names: Sequence[str], snapshot_id: int | None) -> set[Path]:
        """Deleted files: of the first of these tables at this snapshot, of the others at any."""
        first, *others = names
        needed = set(self.files_of.get((first, snapshot_id), ()))
        for (name, _), files in self.files_of.items():
            if name in others:
                needed |= files
        return needed & self.gone

    # -- inside

    @staticmethod
    def _dataset(number: int) -> Dataset:
        return _DRAWN[number % len(_DRAWN)]

    def _store(self, number: int) -> FakeStore:
        return self.stores[self._dataset(number).name]

    def _say_offsets(self, dataset: Dataset) -> None:
        store = self.stores[dataset.name]
        try:
            _ = store.offsets
        except K2Error:
            store.say_offsets()

    def _delete(self, dataset: Dataset, numbers: Iterable[int]) -> None:
        for number in numbers:
            path = self._path(dataset, number)
            path.unlink(missing_ok=True)
            self.gone.add(path)

    def _path(self, dataset: Dataset, number: int) -> Path:
        return self._world.folder / f"{dataset.name}-{number}.parquet"

    def _taken_in(self, dataset: Dataset) -> dict[int, tuple[PartitionOffsets, PartitionOffsets]]:
        """As flight_server.storage.snapshots: of snapshots that only appended, as far as this server ever saw them."""
        kept = {snapshot.snapshot_id: snapshot for snapshot in self.stores[dataset.name].snapshots}
        known = self._taken.setdefault(dataset.name, {})
        for snapshot in kept.values():
            before = kept.get(snapshot.parent_id or 0)
            begin = PartitionOffsets() if snapshot.parent_id is None else before and before.offsets
            if snapshot.operation == "append" and begin is not None and snapshot.offsets is not None:
                known.setdefault(snapshot.snapshot_id, (begin, snapshot.offsets))
        return dict(known)


def _compaction(number: int) -> dict[str, Any]:
    """K2's own, or that of a foreign tool, which may or may not say that the rows are the same."""
    return {"carried": number % 3 != 0, "operation": "overwrite" if number % 4 == 0 else "replace"}
