"""Subscribers in a world: the engine's own subscriptions, lost and gone on with at any moment, on any server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import duckdb
import pyarrow as pa

from common.datasets import Dataset
from common.errors import SnapshotExpired
from common.offsets import PartitionOffsets
from common.schemas.arrow import table_schema
from flight_server.engine.admission import Admission
from flight_server.engine.cursors import CursorPool
from flight_server.engine.rewrite import Tree, tree_of
from flight_server.engine.subscriptions import Followed, Subscription
from flight_server.storage.read_view import Cut, TableCut
from tests.simulation.parts import DATASETS, NUMBER_COLUMNS, SETTINGS, Row

if TYPE_CHECKING:
    from tests.simulation.world import World

_READERS_MAX = 3


class PublishedLake:
    """As much of the lake as a subscription needs, over a world's publisher."""

    def __init__(self, world: World) -> None:
        self.world = world

    def cursor(self) -> Any:
        return self.world.server.database.cursor()

    def check_ready(self) -> None:
        if self.world.server.publisher.gap is not None:
            raise self.world.server.publisher.gap

    def stretch(self, cursor: Any, table: str, choose: Any) -> tuple[TableCut, PartitionOffsets, str]:
        self.check_ready()
        return self.world.server.publisher.published.stretch(cursor, table, choose)

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


@dataclass
class Reader:
    """A subscriber: where it began, what it was given, and how far it was after each batch."""

    dataset: Dataset
    start: PartitionOffsets
    subscription: Subscription
    rows: list[Row] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)


class Subscribers:
    """Those of one world."""

    _asked: ClassVar[dict[str, tuple[Tree, pa.Schema]]] = {}

    def __init__(self, world: World) -> None:
        self._world = world
        self._readers: list[Reader] = []
        self._cursors: CursorPool | None = None

    # -- actions

    def subscribe(self, number: int) -> None:
        """A reader that goes along begins: from the beginning, from now, or from a cut of an earlier result."""
        server, cuts = self._world.server, self._world.queries.cuts
        shown = [dataset for dataset in DATASETS if dataset in server.datasets]
        dataset = shown[number % len(shown)]
        if len(self._readers) >= _READERS_MAX or server.publisher.gap is not None:
            return
        start = TableCut(None, PartitionOffsets())
        if number % 3 == 1:
            cursor = server.database.cursor()
            start = server.publisher.published.cut(cursor).tables[dataset.table]
            cursor.close()
        elif number % 3 == 2 and cuts:
            start = cuts[number % len(cuts)].tables.get(dataset.table, start)
        reader = Reader(dataset, start.offsets, self._subscription(dataset, start))
        reader.marks.append((reader.subscription.cut, 0))
        self._readers.append(reader)

    def advance(self, number: int) -> None:
        """It reads on for a bounded stretch: each row exactly once, whatever happened since the last one."""
        if self._readers:
            self.read(self._readers[number % len(self._readers)])

    def reconnect(self, number: int) -> None:
        """Its connection is lost, some batches perhaps with it; it goes on from the last that it has."""
        if self._readers:
            self._go_on(self._readers[number % len(self._readers)], number)

    def settle(self, last: Cut) -> None:
        """Each comes to the end of the log."""
        for reader in self._readers:
            if reader.dataset not in self._world.server.datasets:
                continue  # its topic went before anything of it was committed
            while self.read(reader):
                pass
            assert self._at(reader).covers(last.tables[reader.dataset.table].offsets), "a subscriber is behind the log"

    def server_stops(self) -> None:
        if self._cursors is not None:
            self._cursors.close()

    def server_started(self) -> None:
        self._cursors = CursorPool(self._world.server.database.cursor)
        for reader in self._readers:
            self._go_on(reader, 0)

    # -- inside

    def read(self, reader: Reader) -> bool:
        """One stretch; False when there was nothing to be had."""
        server = self._world.server
        if server.publisher.gap is not None or reader.dataset not in server.datasets:
            return False
        try:
            batch = reader.subscription.advance()
        except SnapshotExpired:
            assert self._world.tables.gone, "no file was deleted"
            self._go_on(reader, 0)
            return False
        if batch is None:
            return False
        reader.rows += [tuple(row.values()) for row in batch.to_pylist()]
        reader.marks.append((reader.subscription.cut, len(reader.rows)))
        self._compare(reader)
        self._world.counts.subscribed += 1
        return True

    def _go_on(self, reader: Reader, lost: int) -> None:
        kept = max(1, len(reader.marks) - lost % 4)
        reader.marks = reader.marks[:kept]
        cut, count = reader.marks[-1]
        reader.rows = reader.rows[:count]
        reader.subscription.close()
        reader.subscription = self._subscription(reader.dataset, Cut.from_text(cut).tables[reader.dataset.table])
        self._world.counts.reconnects += 1

    def _compare(self, reader: Reader) -> None:
        rows = self._world.truth.between(reader.dataset, reader.start, self._at(reader))
        wanted = [row for row in rows if row[3] % 3]
        assert sorted(reader.rows) == wanted, f"a subscriber of {reader.dataset.table} was not given each row once"
        for partition in {row[:2] for row in reader.rows}:
            offsets = [row[2] for row in reader.rows if row[:2] == partition]
            assert offsets == sorted(offsets), f"{partition}: not in order"

    @staticmethod
    def _at(reader: Reader) -> PartitionOffsets:
        return Cut.from_text(reader.subscription.cut).tables[reader.dataset.table].offsets

    def _followed(self, dataset: Dataset) -> Followed:
        if dataset.name not in self._asked:
            number = NUMBER_COLUMNS[dataset.name]
            text = (
                f"SELECT _kafka_topic AS t, _kafka_partition, _kafka_offset, {number} FROM {dataset.table} "
                f"WHERE {number} % 3 <> 0"
            )
            columns = table_schema(dataset.schema_name)
            names = {"t": "_kafka_topic"} | {n: n for n in ("_kafka_partition", "_kafka_offset", number)}
            schema = pa.schema([pa.field(name, columns.field(column).type) for name, column in names.items()])
            with duckdb.connect() as parser:
                self._asked[dataset.name] = tree_of(text, parser), schema
        tree, schema = self._asked[dataset.name]
        return Followed(tree, dataset.table, (), schema)

    def _subscription(self, dataset: Dataset, start: TableCut) -> Subscription:
        assert self._cursors is not None
        lake: Any = PublishedLake(self._world)
        return Subscription(
            self._followed(dataset),
            start,
            lake=lake,
            cursors=self._cursors,
            admission=Admission(count_max=4, wait_s_max=1.0),
            settings=SETTINGS,
            clock=self._world.clock,
            is_gone=lambda: False,
            on_end=lambda status, rows, size: None,
        )
