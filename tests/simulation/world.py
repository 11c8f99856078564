"""A whole K2 in one thread: fake log, catalog and clock; the real sink worker, codec, publisher and DuckDB.

A schedule is a list of (action, number) pairs. Every action is defined in every state, so any part of a schedule is a
schedule too: that is what makes shortening a failing one easy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from common.clock import ManualClock
from common.codec import Decoder, Encoder
from common.datasets import TRADES
from common.errors import CatalogError, K2Error, SnapshotExpired, Unavailable
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings
from flight_server.storage.as_of import condition_at
from flight_server.storage.database import Database
from flight_server.storage.read_view import Cut, Snapshot
from flight_server.storage.tail import Publisher
from sink.commit_policy import CommitPolicy
from sink.consumer import Sources
from sink.dead_letters import DeadLetter
from sink.worker import Passed, SinkWorker
from tests.support.fake_log import FakeLog
from tests.support.fake_table import FakeSnapshot, FakeStore, FakeTable, Fault
from tests.support.records import trade

TOPICS = ("market.crypto.trades.binance", "market.crypto.trades.kraken")
PARTITIONS = 2
SETTINGS = FlightSettings(threads=1, memory_bytes_max=256 * 1024**2)
REGISTRY = EmbeddedRegistry()
ENCODER = Encoder(TRADES, REGISTRY, topic=TOPICS[0])

Schedule = list[tuple[str, int]]


class Crash(Exception):
    """The sink's process is gone."""


class Letters:
    """The dead-letter topic: what was acknowledged there."""

    def __init__(self) -> None:
        self.written: list[DeadLetter] = []

    def write(self, letters: list[DeadLetter]) -> None:
        self.written += letters

    def close(self) -> None:
        pass


@dataclass
class OpenQuery:
    """A reader's transaction whose instant is fixed and whose statement has not run yet."""

    cursor: Any
    cut: Cut


class World:
    """What the actions act upon, and the property that each answer is checked against."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = FakeLog()
        self.store = FakeStore()
        self.letters = Letters()
        self.records: dict[KafkaPartition, dict[int, int]] = {}
        self.next_id = 1
        self.queries: list[OpenQuery] = []
        self.cuts: list[Cut] = []
        self.answered = self.refused = self.crashes = self.read_again = 0
        for topic in TOPICS:
            self.log.create(topic, PARTITIONS)
        self.sink = self._new_sink()
        self.zombie: SinkWorker[int] | None = None
        self.crash_at: int | None = None
        self._start_server()

    # -- actions; `number` picks among what there is

    def produce(self, number: int) -> None:
        """Some records to one partition; about one in eight is broken."""
        topic, partition = TOPICS[number % 2], number // 2 % PARTITIONS
        for index in range(1 + number % 7):
            broken = (number + index) % 8 == 0
            value = ENCODER.encode(trade(self.next_id))
            offset = self.log.append(topic, value[:-1] if broken else value, partition)
            if not broken:
                source = KafkaPartition(self.log.cluster_id, self.log.topics[topic].topic_id, partition)
                self.records.setdefault(source, {})[offset] = self.next_id
            self.next_id += 1

    def hole(self, number: int) -> None:
        self.log.hole(TOPICS[number % 2], number // 2 % PARTITIONS, 1 + number % 3)

    def sink_step(self, number: int) -> None:
        self.clock.advance(0.2 * (number % 8))
        self._step(self.sink)

    def zombie_step(self, number: int) -> None:
        """A worker that was thought dead goes on; the first call makes one."""
        if self.zombie is None:
            self.zombie = self._new_sink()
        self.clock.advance(0.2 * (number % 8))
        self._step(self.zombie)

    def crash_sink(self, number: int) -> None:
        """At one of the points between two steps, the next time the sink passes it; a new process takes over."""
        self.crash_at = number % len(Passed)

    def commit_fault(self, number: int) -> None:
        self.store.faults.append(list(Fault)[number % len(Fault)])

    def deliver_late(self, _number: int) -> None:
        self.store.deliver_late()

    def foreign_snapshot(self, _number: int) -> None:
        """Maintenance by another tool: the same rows, no entry of the offsets."""
        self.store.maintain()

    def rollback(self, number: int) -> None:
        """The table is set back to an older snapshot's rows and offsets."""
        if len(self.store.snapshots) > 1:
            old = self.store.snapshots[-1 - number % min(3, len(self.store.snapshots))]
            known = [s.offsets for s in self.store.snapshots[: old.snapshot_id] if s.offsets is not None]
            offsets = known[-1] if known else PartitionOffsets()
            self.store.snapshots.append(FakeSnapshot(len(self.store.snapshots) + 1, offsets, None, old.files))

    def recreate_topic(self, number: int) -> None:
        self.log.create(TOPICS[number % 2], PARTITIONS)

    def tail_poll(self, _number: int) -> None:
        try:
            self.publisher.poll(0.0)
        except K2Error:
            assert self.publisher.gap is not None

    def refresh(self, _number: int) -> None:
        """The catalog and the broker are asked for news."""
        self.publisher.adopt({TRADES.name: self._snapshot()})
        self.publisher.assign(self.log.cluster_id, self.log.topics.values())

    def restart_server(self, _number: int) -> None:
        for query in self.queries:
            query.cursor.close()
        self.queries = []
        self._stop_server()
        self._start_server()

    def open_query(self, _number: int) -> None:
        """A transaction begins and its cut is read; the statement comes later, whatever happens between."""
        if len(self.queries) < 4:
            cursor = self.database.cursor()
            cursor.execute("BEGIN")
            if self.publisher.gap is not None:
                self.refused += 1
                cursor.close()
                return
            self.queries.append(OpenQuery(cursor, self.publisher.cut(cursor)))

    def finish_query(self, number: int) -> None:
        if self.queries:
            self._check(self.queries.pop(number % len(self.queries)))

    def query(self, number: int) -> None:
        self.open_query(number)
        if self.queries:
            self._check(self.queries.pop())

    def read_again_at(self, number: int) -> None:
        """A cut that an earlier result carried is read again (rule 9): the same rows, or a justified refusal."""
        if not self.cuts or self.publisher.gap is not None:
            return
        cut = self.cuts[number % len(self.cuts)]
        wanted = TRADES.table, cut.tables[TRADES.table]
        cursor = self.database.cursor()
        cursor.execute("BEGIN")
        now = self.publisher.cut(cursor).tables[TRADES.table]
        try:
            condition = condition_at(*wanted, now, self.publisher.followed())
        except (Unavailable, SnapshotExpired) as refusal:
            assert not now.offsets.covers(wanted[1].offsets)
            lacking = [p for p, until in wanted[1].offsets.items() if now.offsets.next_offset(p) < until]
            gone = [p for p in lacking if p.topic_id not in self.publisher.followed()]
            assert isinstance(refusal, SnapshotExpired) == (min(lacking) in gone)
            cursor.close()
        else:
            self._check(OpenQuery(cursor, cut), f"WHERE {condition}")
            self.read_again += 1

    # -- the end

    def settle(self) -> None:
        """No more faults: everything is committed, the last answer is the whole log, and old cuts are readable."""
        self.store.faults.clear()
        self.store.deliver_late()
        self.crash_at = None
        for _turn in range(200):
            self.clock.advance(10.0)
            self._step(self.sink)
            self.refresh(0)
            self.tail_poll(0)
            if self.sink.stats.drained(self.log.end_offsets()) and self.publisher.gap is None:
                break
        else:
            raise AssertionError("the sink or the tail does not come to the end of the log")
        self.refresh(0)
        self.tail_poll(0)
        while self.queries:
            self._check(self.queries.pop())
        answered = self.answered
        self.query(0)
        assert self.answered == answered + 1, f"the last query was refused: {self.publisher.gap}"
        ends = self.log.end_offsets()
        cut = self.last_cut.tables[TRADES.table].offsets
        assert all(cut.next_offset(partition) >= end for partition, end in ends.items()), "the tail is behind the log"
        for number in range(len(self.cuts)):
            self.read_again_at(number)

    def close(self) -> None:
        self._stop_server()

    # -- inside

    def _check(self, query: OpenQuery, condition: str = "") -> None:
        """The property: the answer is, per partition, exactly the log's usable records below the cut, each once."""
        rows = query.cursor.execute(
            f"SELECT _kafka_topic, _kafka_partition, _kafka_offset, trade_id FROM market.trades {condition}"
        ).fetchall()
        query.cursor.execute("COMMIT")
        query.cursor.close()
        offsets = query.cut.tables[TRADES.table].offsets
        expected = sorted(
            (partition.topic_id[-8:], partition.partition, offset, trade_id)
            for partition, records in self.records.items()
            for offset, trade_id in records.items()
            if offset < offsets.next_offset(partition)
        )
        assert sorted(rows) == expected, _difference(rows, expected, query.cut)
        self.answered += 1
        self.last_cut = query.cut
        if not condition:
            self.cuts = [*self.cuts[-9:], query.cut]

    def _step(self, worker: SinkWorker[int]) -> None:
        try:
            worker.step()
        except Crash:
            self.crashes += 1
            if worker is self.zombie:
                self.zombie = None
            else:
                self.sink = self._new_sink()
        except CatalogError:
            pass

    def _new_sink(self) -> SinkWorker[int]:
        def hook(passed: Passed) -> None:
            if self.crash_at is not None and list(Passed)[self.crash_at] is passed:
                self.crash_at = None
                raise Crash

        return SinkWorker(
            dataset=TRADES,
            sources=self._sources,
            confirm=self._confirm,
            reader=self.log.reader(),
            decoder=Decoder(TRADES, REGISTRY),
            table=FakeTable(self.store),
            dead_letters=self.letters,
            policy=CommitPolicy(rows_max=20, bytes_max=1_000_000, age_ms_max=1_000),
            clock=self.clock,
            poll_messages_max=16,
            hook=hook,
        )

    def _sources(self) -> Sources:
        topics = self.log.topics
        if getattr(self, "_last_topics", None) != topics:
            self._last_topics = topics
            self._last_sources = Sources(self.log.cluster_id, topics)
        return self._last_sources

    def _confirm(self, sources: Sources) -> bool:
        return sources.topics == self.log.topics

    def _snapshot(self) -> Snapshot:
        """The newest snapshot, as the catalog would tell it; its files become tables of the database."""
        if not self.store.snapshots:
            return Snapshot()
        newest = self.store.snapshots[-1]
        cursor = self.database.cursor()
        for number in newest.files:
            if number not in self.loaded:
                cursor.register("sim_file", self.store.files[number])
                cursor.execute(f"CREATE TABLE k2.sim.f{number} AS SELECT * FROM sim_file")
                cursor.unregister("sim_file")
                self.loaded.add(number)
        cursor.close()
        files = " UNION ALL ".join(f"SELECT * FROM k2.sim.f{number}" for number in newest.files)
        columns = tuple(self.store.files[newest.files[0]].column_names) if newest.files else ()
        return Snapshot(newest.snapshot_id, f"({files})" if files else None, columns, self.store.offsets)

    def _start_server(self) -> None:
        self.database = Database(SETTINGS, None)
        self.loaded: set[int] = set()
        cursor = self.database.cursor()
        cursor.execute("CREATE SCHEMA k2.sim")
        cursor.close()
        self.reader = self.log.reader()
        self.publisher = Publisher(
            self.database, self.reader, REGISTRY, SETTINGS, self.clock, [TRADES], topic_ids=self._topic_ids
        )
        self.refresh(0)

    def _topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        return {name: info.topic_id for name, info in self.log.topics.items() if name in set(names)}

    def _stop_server(self) -> None:
        self.reader.close()
        self.database.close()


#: How often each action comes up.
WEIGHTS: dict[str, int] = {
    "produce": 20,
    "hole": 2,
    "sink_step": 16,
    "zombie_step": 4,
    "crash_sink": 3,
    "commit_fault": 4,
    "deliver_late": 3,
    "foreign_snapshot": 2,
    "rollback": 1,
    "recreate_topic": 1,
    "tail_poll": 16,
    "refresh": 8,
    "restart_server": 1,
    "open_query": 5,
    "finish_query": 4,
    "query": 6,
    "read_again_at": 4,
}


def schedule_of(seed: int, length: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)
    return [(name, rng.randrange(1_000)) for name in names]


def run(schedule: Schedule) -> World:
    """Play a schedule to its end. Raises AssertionError where the property does not hold."""
    world = World()
    try:
        for name, number in schedule:
            action: Callable[[int], None] = getattr(world, name)
            action(number)
        world.settle()
    finally:
        world.close()
    return world


def shortened(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """A part of a failing schedule that fails too, from which nothing more can be left out."""
    size = max(1, len(schedule) // 2)
    while True:
        start = 0
        while start < len(schedule):
            part = schedule[:start] + schedule[start + size :]
            if fails(part):
                schedule = part
            else:
                start += size
        if size == 1:
            return schedule
        size = max(1, size // 2)


def _difference(rows: list[Any], expected: list[Any], cut: Cut) -> str:
    missing = [row for row in expected if row not in rows]
    surplus = [row for row in rows if row not in expected]
    doubled = sorted({row for row in rows if rows.count(row) > 1})
    return f"at {cut.to_text()}: missing {missing[:5]}, not in the log {surplus[:5]}, more than once {doubled[:5]}"
