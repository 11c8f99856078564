"""Under the schedules of the simulation: a subscription gives the log behind its start, each row once and in order, and
k2_changes the rows between any two cuts; whatever is appended, committed, reset, recreated or lost meanwhile.

K2_SIMULATION_SCHEDULES and K2_SIMULATION_SEED as in test_simulation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pytest

from common.datasets import TRADES
from common.errors import InvalidStatement, SnapshotExpired, Unavailable
from common.offsets import PartitionOffsets
from common.settings import FlightSettings
from flight_server.engine.admission import Admission
from flight_server.engine.cursors import CursorPool
from flight_server.engine.rewrite import tree_of
from flight_server.engine.subscriptions import Followed, Subscription
from flight_server.storage.read_view import Cut, TableCut
from tests.simulation.world import WEIGHTS, Schedule, World, shortened

SCHEDULES = int(os.environ.get("K2_SIMULATION_SCHEDULES", "60"))
FIRST_SEED = int(os.environ.get("K2_SIMULATION_SEED", "1"))
LENGTH = 80
_PER_TEST = 10
TABLE = TRADES.table
QUERY = "SELECT _kafka_topic AS t, _kafka_partition, _kafka_offset, trade_id FROM market.trades WHERE trade_id % 3 <> 0"
#: Small, so that most subscriptions come to their rows in several stretches.
SETTINGS = FlightSettings(threads=1, memory_bytes_max=256 * 1024**2, batch_rows_max=4)
LIVE_WEIGHTS = WEIGHTS | {"subscribe": 2, "advance": 14, "reconnect": 3, "changes": 6}
Row = tuple[str, int, int, int]


class PublishedLake:
    """As much of the lake as a subscription needs, over a world's publisher."""

    def __init__(self, world: World) -> None:
        self.world = world

    def cursor(self) -> Any:
        return self.world.database.cursor()

    def check_ready(self) -> None:
        if self.world.publisher.gap is not None:
            raise self.world.publisher.gap

    def stretch(self, cursor: Any, table: str, choose: Any) -> tuple[TableCut, PartitionOffsets, str]:
        self.check_ready()
        return self.world.publisher.stretch(cursor, table, choose)

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


@dataclass
class Reader:
    """A subscriber: where it began, what it was given, and how far it was after each batch."""

    start: PartitionOffsets
    subscription: Subscription
    rows: list[Row] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)


class LiveWorld(World):
    """A world with subscribers in it."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.given = self.compared = self.reconnects = 0
        super().__init__()
        with duckdb.connect() as parser:
            self._tree = tree_of(QUERY, parser)
            shape = self.database.cursor()
            self._schema = shape.execute(f"{QUERY} LIMIT 0").to_arrow_table().schema
            shape.close()

    def subscribe(self, number: int) -> None:
        """From the beginning, from now, or from an earlier cut."""
        if len(self.readers) >= 3 or self.publisher.gap is not None:
            return
        start = TableCut(None, PartitionOffsets())
        if number % 3 == 1:
            cursor = self.database.cursor()
            start = self.publisher.cut(cursor).tables[TABLE]
            cursor.close()
        elif number % 3 == 2 and self.cuts:
            start = self.cuts[number % len(self.cuts)].tables[TABLE]
        reader = Reader(start.offsets, self._subscription(start))
        reader.marks.append((reader.subscription.cut, 0))
        self.readers.append(reader)

    def advance(self, number: int) -> None:
        if self.readers:
            self._read(self.readers[number % len(self.readers)])

    def reconnect(self, number: int) -> None:
        """The connection is lost, some batches perhaps with it; the reader goes on from the last that it has."""
        if self.readers:
            self._go_on(self.readers[number % len(self.readers)], number)

    def changes(self, number: int) -> None:
        """k2_changes between two cuts that were seen, or up to now: what lies between, or a justified refusal."""
        if not self.cuts or self.publisher.gap is not None:
            return
        low = self.cuts[number % len(self.cuts)].tables[TABLE] if number % 5 else None
        high = self.cuts[number // 7 % len(self.cuts)].tables[TABLE] if number % 2 else None
        cursor = self.database.cursor()
        cursor.execute("BEGIN")
        now = self.publisher.cut(cursor).tables[TABLE]
        start = PartitionOffsets() if low is None else low.offsets
        end = (now if high is None else high).offsets
        try:
            select = self.publisher.changes(cursor, TABLE, low, high)
        except (Unavailable, SnapshotExpired):
            assert not now.offsets.covers(start.advanced(end))
        except InvalidStatement:
            assert not end.covers(start)
        else:
            columns = "_kafka_topic, _kafka_partition, _kafka_offset, trade_id"
            found = cursor.execute(f"SELECT {columns} FROM ({select})").fetchall()
            assert sorted(found) == self._between(start, end)
            self.compared += 1
        cursor.close()

    def restart_server(self, number: int) -> None:
        super().restart_server(number)
        for reader in self.readers:
            self._go_on(reader, 0)

    def settle(self) -> None:
        super().settle()
        end = self.last_cut.tables[TABLE].offsets
        for reader in self.readers:
            while self._read(reader):
                pass
            at = self._at(reader)
            assert at.covers(end), "a subscriber is behind the log"
            self.given += len(reader.rows)

    def _read(self, reader: Reader) -> bool:
        if isinstance(self.publisher.gap, Unavailable):  # the server has not come up yet: nobody can be connected
            return False
        batch = reader.subscription.advance()
        if batch is None:
            return False
        assert batch.num_rows <= SETTINGS.batch_rows_max
        reader.rows += [tuple(row.values()) for row in batch.to_pylist()]
        reader.marks.append((reader.subscription.cut, len(reader.rows)))
        self._compare(reader)
        return True

    def _go_on(self, reader: Reader, lost: int) -> None:
        kept = max(1, len(reader.marks) - lost % 4)
        reader.marks = reader.marks[:kept]
        cut, count = reader.marks[-1]
        reader.rows = reader.rows[:count]
        reader.subscription.close()
        reader.subscription = self._subscription(Cut.from_text(cut).tables[TABLE])
        self.reconnects += 1

    def _compare(self, reader: Reader) -> None:
        wanted = [row for row in self._between(reader.start, self._at(reader)) if row[3] % 3]
        assert sorted(reader.rows) == wanted
        for partition in {row[:2] for row in reader.rows}:
            offsets = [row[2] for row in reader.rows if row[:2] == partition]
            assert offsets == sorted(offsets), f"{partition}: not in order"

    def _between(self, start: PartitionOffsets, end: PartitionOffsets) -> list[Row]:
        return sorted(
            (partition.topic_id[-8:], partition.partition, offset, trade_id)
            for partition, records in self.records.items()
            for offset, trade_id in records.items()
            if start.next_offset(partition) <= offset < end.next_offset(partition)
        )

    def _at(self, reader: Reader) -> PartitionOffsets:
        return Cut.from_text(reader.subscription.cut).tables[TABLE].offsets

    def _subscription(self, start: TableCut) -> Subscription:
        lake: Any = PublishedLake(self)
        return Subscription(
            Followed(self._tree, TABLE, (), self._schema),
            start,
            lake=lake,
            cursors=CursorPool(lake.cursor),
            admission=Admission(count_max=4, wait_s_max=1.0),
            settings=SETTINGS,
            clock=self.clock,
            is_gone=lambda: False,
            on_end=lambda status, rows, size: None,
        )


def schedule_of(seed: int) -> Schedule:
    rng = random.Random(seed)
    names = rng.choices(list(LIVE_WEIGHTS), list(LIVE_WEIGHTS.values()), k=LENGTH)
    return [(name, rng.randrange(1_000)) for name in names]


def run(schedule: Schedule) -> LiveWorld:
    world = LiveWorld()
    try:
        for name, number in schedule:
            action: Callable[[int], None] = getattr(world, name)
            action(number)
        world.settle()
    finally:
        world.close()
    return world


def _fails(schedule: Schedule) -> bool:
    try:
        run(schedule)
    except Exception:  # noqa: BLE001  (any failure counts while a schedule is being shortened)
        return True
    return False


@pytest.mark.parametrize("first_seed", range(FIRST_SEED, FIRST_SEED + SCHEDULES, _PER_TEST))
def test_a_subscriber_has_the_log_behind_its_start(first_seed: int) -> None:
    given = compared = reconnects = 0
    for seed in range(first_seed, min(first_seed + _PER_TEST, FIRST_SEED + SCHEDULES)):
        schedule = schedule_of(seed)
        try:
            world = run(schedule)
            given, compared = given + world.given, compared + world.compared
            reconnects += world.reconnects
        except Exception as error:  # noqa: BLE001  (whatever it is, the seed must be told)
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\nshortened: {shortened(schedule, _fails)}")
    assert given > _PER_TEST, "the subscribers were given next to nothing"
    assert compared > _PER_TEST, "next to no changes were asked for"
    assert reconnects > 1, "next to no connection was lost"


def test_a_doubled_row_is_noticed() -> None:
    """The property can fail: a reader that goes on from before its last batch, and keeps that, has rows twice."""
    world = LiveWorld()
    try:
        for number in range(6):
            world.produce(number)
        world.refresh(0)
        world.tail_poll(0)
        world.subscribe(0)
        reader = world.readers[0]
        while not reader.rows:
            world.advance(0)
        reader.subscription = world._subscription(TableCut(None, PartitionOffsets()))
        with pytest.raises(AssertionError):
            while True:
                world.advance(0)
    finally:
        world.close()
