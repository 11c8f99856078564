"""A whole K2 in one thread: fake log, catalog and clock; the real sink workers, codec, publisher, DuckDB and Parquet.

A schedule is a list of (action, number) pairs. Every action is defined in every state, so any part of a schedule is a
schedule too: that is what makes shortening a failing one easy.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from common.clock import ManualClock
from common.codec import Decoder, Encoder
from common.datasets import QUOTES, TRADES, Dataset
from common.errors import BrokerError, InvalidStatement, K2Error, LogTruncated, SnapshotExpired, Unavailable
from common.log import TopicInfo
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import EmbeddedRegistry
from flight_server.engine.errors import translated
from flight_server.storage.as_of import AsOfCut, condition_at, parse_as_of
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import Cut, Snapshot, TableCut, read_files
from flight_server.storage.tail import Publisher
from sink.commit_policy import CommitPolicy
from sink.consumer import Sources
from sink.worker import Passed, SinkWorker
from tests.simulation.parts import (
    SETTINGS,
    Counts,
    Crash,
    FilesGone,
    Letters,
    OpenQuery,
    Row,
    SealedDatabase,
    base_folder,
    columns_of,
    difference,
    grown_from,
    index_of,
    select_of,
    tuples_of,
)
from tests.simulation.subscribers import Subscribers
from tests.support.fake_log import FakeLog
from tests.support.fake_table import FakeStore, FakeTable, Fault
from tests.support.records import quote, trade

DATASETS: tuple[Dataset, ...] = (TRADES, QUOTES)
TOPICS: dict[str, Dataset] = {
    "market.crypto.trades.binance": TRADES,
    "market.crypto.quotes.binance": QUOTES,
    "market.crypto.trades.kraken": TRADES,
}
NAMES = tuple(TOPICS)
PARTITIONS, PARTITIONS_MAX = 2, 4
REGISTRY = EmbeddedRegistry()
ENCODERS = {name: Encoder(dataset, REGISTRY, topic=name) for name, dataset in TOPICS.items()}
QUERIES_MAX, CUTS_MAX = 5, 20

#: Of each dataset: of each partition, the usable records by offset.
Records = dict[str, dict[KafkaPartition, dict[int, int]]]


class World:
    """What the actions act upon, and the property that each answer is checked against."""

    def __init__(self) -> None:
        self.settings = SETTINGS
        self.folder = Path(tempfile.mkdtemp(dir=base_folder()))
        self.clock = ManualClock()
        self.log = FakeLog()
        self.stores = {dataset.name: FakeStore() for dataset in DATASETS}
        self.letters = Letters()
        self.records: Records = {dataset.name: {} for dataset in DATASETS}
        self.next_id = 1
        self.queries: list[OpenQuery] = []
        self.cuts: list[Cut] = []
        self.counts = Counts()
        self.subscribers = Subscribers(self)
        #: (dataset, snapshot) -> its files; those that were deleted.
        self.files_of: dict[tuple[str, int | None], set[Path]] = {}
        self.gone: set[Path] = set()
        self.catalog_says: dict[str, Snapshot] = {}
        self.taken: dict[str, dict[int, tuple[PartitionOffsets, PartitionOffsets]]] = {}
        self.broker_says: list[TopicInfo] | None = None
        for topic in NAMES:
            self.log.create(topic, PARTITIONS)
        self.sources = {dataset.name: Sources() for dataset in DATASETS}
        self.crash_at: int | None = None
        self.discover(0)
        self.sinks = {dataset.name: self._new_sink(dataset) for dataset in DATASETS}
        self.zombies: list[SinkWorker[int]] = []
        self._start_server()

    # -- actions on the log; `number` picks among what there is

    def produce(self, number: int) -> None:
        """Some records to one partition; about one in sixteen is broken. A topic that is gone is made anew."""
        topic = NAMES[number % len(NAMES)]
        if topic not in self.log.topics:
            self.log.create(topic, PARTITIONS)
        info = self.log.topics[topic]
        partition = number // len(NAMES) % info.partitions
        dataset, source = TOPICS[topic], KafkaPartition(self.log.cluster_id, info.topic_id, partition)
        for index in range(1 + number % 7):
            record = trade(self.next_id) if dataset is TRADES else quote(self.next_id)
            value = ENCODERS[topic].encode(record)
            broken = (number + index) % 16 == 0
            offset = self.log.append(topic, (None, value[:-1], b"")[number % 3] if broken else value, partition)
            if not broken:
                self.records[dataset.name].setdefault(source, {})[offset] = self.next_id
            self.next_id += 1

    def hole(self, number: int) -> None:
        """Offsets without records: a marker, an aborted transaction, or what the broker's compaction took."""
        if (info := self._topic(number)) is not None:
            self.log.hole(info.topic, number // len(NAMES) % info.partitions, 1 + number % 3)

    def grow_topic(self, number: int) -> None:
        info = self._topic(number)
        if info is not None and info.partitions < PARTITIONS_MAX:
            self.log.grow(info.topic, info.partitions + 1)

    def recreate_topic(self, number: int) -> None:
        self.log.create(NAMES[number % len(NAMES)], PARTITIONS)

    def delete_topic(self, number: int) -> None:
        if (info := self._topic(number)) is not None:
            self.log.delete(info.topic)

    def retention(self, number: int) -> None:
        """The broker forgets records that the table has; one time in four some that it does not have yet."""
        info = self._topic(number)
        if info is None:
            return
        partition = KafkaPartition(self.log.cluster_id, info.topic_id, number // len(NAMES) % info.partitions)
        committed = self._holds(TOPICS[info.topic]).get(partition)
        if committed is None:  # where a table begins behind a log's first records is told by the sink's own tests
            return
        ahead = number % 4 == 0
        end = self.log.end_offsets()[partition]
        start = self.log.start_offsets()[partition]
        until = min(end, committed + (1 + number % 5 if ahead else 0))
        if until > start:
            self.log.truncate(info.topic, until, partition.partition)

    def broker(self, number: int) -> None:
        """It does not answer for a while."""
        self.log.down = number % 3 == 0

    # -- actions on the sinks and the tables

    def discover(self, _number: int) -> None:
        """The sinks learn which topics there are."""
        for dataset in DATASETS:
            topics = {name: info for name, info in self.log.topics.items() if TOPICS[name] is dataset}
            if self.sources[dataset.name].topics != topics or not self.sources[dataset.name].cluster_id:
                self.sources[dataset.name] = Sources(self.log.cluster_id, topics)

    def sink_step(self, number: int) -> None:
        """One of them, or both; now and then so late that a commit is due by age."""
        self.clock.advance(0.3 * (number % 8))
        for dataset in DATASETS if number % 3 == 0 else [self._dataset(number)]:
            self._step(self.sinks[dataset.name])

    def zombie_step(self, number: int) -> None:
        """A worker that was thought dead goes on; there may be three."""
        if len(self.zombies) < 1 + number % 3:
            self.zombies.append(self._new_sink(self._dataset(number)))
        self.clock.advance(0.2 * (number % 8))
        self._step(self.zombies[number % len(self.zombies)])

    def crash_sink(self, number: int) -> None:
        """At one of the points between two steps, the next time a sink passes it; a new process takes over."""
        self.crash_at = number % len(Passed)

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
                self.refresh(1)
                self.query(number)

    # -- actions on the server

    def ask_catalog(self, number: int) -> None:
        """The catalog is asked for news; what it says arrives later, or never."""
        for dataset in DATASETS if number % 3 else [self._dataset(number)]:
            try:
                self.catalog_says[dataset.name] = self._newest(dataset)
            except K2Error:
                continue

    def hear_catalog(self, _number: int) -> None:
        """What it said is published; what cannot be is tried again, as flight_server.storage.lake does it."""
        says, self.catalog_says = self.catalog_says, {}
        if not says:
            return
        try:
            self.publisher.adopt(says)
        except K2Error:
            for name, snapshot in says.items():
                try:
                    self.publisher.adopt({name: snapshot})
                except K2Error:
                    self.catalog_says[name] = snapshot

    def ask_broker(self, number: int) -> None:
        """The broker is asked for its topics; now and then one of them is missing from its answer."""
        if not self.log.down:
            left_out = NAMES[number // 16 % len(NAMES)] if number % 16 == 0 else None
            self.broker_says = [info for name, info in self.log.topics.items() if name != left_out]

    def hear_broker(self, _number: int) -> None:
        if self.broker_says is not None:
            try:
                self.publisher.assign(self.log.cluster_id, self.broker_says)
                self.broker_says = None
            except K2Error:
                assert self.publisher.gap is not None

    def refresh(self, number: int) -> None:
        """Both are asked, and heard at once."""
        self.ask_catalog(number)
        self.ask_broker(1)
        self.hear_catalog(number)
        self.hear_broker(number)

    def tail_poll(self, _number: int) -> None:
        try:
            self.publisher.poll(0.0)
        except K2Error:
            assert self.publisher.gap is not None

    def hot_window(self, number: int) -> None:
        """Another server: one that keeps nothing, little or all of what was committed in memory."""
        self.settings = SETTINGS.model_copy(update={"hot_window_bytes": (0, 20_000, 1_000_000)[number % 3]})
        self.restart_server(number)

    def restart_server(self, _number: int) -> None:
        self._stop_server()
        self._start_server()

    # -- queries

    def open_query(self, number: int) -> None:
        """A transaction begins and its cut is read; the statement comes later, whatever happens between."""
        if len(self.queries) >= QUERIES_MAX:
            return
        query = self._begin()
        if query is None:
            self.counts.refused += 1
        else:
            self.queries.append(query)

    def open_stream(self, number: int) -> None:
        """The same, and the first rows of the result are read at once; the rest comes later."""
        query = self._begin()
        if query is None or len(self.queries) >= QUERIES_MAX:
            self._close(query)
            return
        query.streamed = self._dataset(number)
        try:
            with self._reading(query.cut, query.streamed):
                query.stream = query.cursor.execute(select_of(query.streamed)).to_arrow_reader(1_000)
                batch = next(iter(query.stream), None)
                query.first = [] if batch is None else tuples_of(batch)
        except FilesGone:
            self._close(query)
        else:
            self.queries.append(query)

    def finish_query(self, number: int) -> None:
        if self.queries:
            self._check(self.queries.pop(number % len(self.queries)), number)

    def query(self, number: int) -> None:
        query = self._begin()
        if query is None:
            self.counts.refused += 1
        else:
            self._check(query, number)

    def read_again_at(self, number: int) -> None:
        """A cut that an earlier result carried is read again (rule 9): the same rows, or a justified refusal."""
        query = self._begin() if self.cuts else None
        if query is None:
            return
        as_of = parse_as_of(self.cuts[number % len(self.cuts)].to_text())
        assert isinstance(as_of, AsOfCut)
        dataset = self._dataset(number)
        wanted, now = as_of.cut.tables[dataset.table], query.cut.tables[dataset.table]
        try:
            condition = condition_at(dataset.table, wanted, now, self.publisher.followed())
        except (Unavailable, SnapshotExpired) as refusal:
            self._check_refusal(refusal, wanted, now)
        else:
            try:
                with self._reading(query.cut, dataset):
                    rows = query.cursor.execute(f"{select_of(dataset)} WHERE {condition}").fetchall()
                self.compare(dataset, rows, wanted.offsets, as_of.cut)
                self.counts.read_again += 1
            except FilesGone:
                pass
        self._close(query)

    def changes_between(self, number: int) -> None:
        """The rows between two cuts that earlier results carried."""
        query = self._begin() if self.cuts else None
        if query is None:
            return
        dataset = self._dataset(number)
        low, high = (self.cuts[n % len(self.cuts)].tables[dataset.table] for n in (number, number // 7))
        now = query.cut.tables[dataset.table]
        try:
            select = self.publisher.changes(query.cursor, dataset.table, low, high)
        except InvalidStatement:
            assert not high.offsets.covers(low.offsets)
        except (Unavailable, SnapshotExpired):
            assert not (now.offsets.covers(low.offsets) and now.offsets.covers(high.offsets))
        else:
            try:
                self.check_between(query, dataset, select, low.offsets, high.offsets)
                self.counts.changes += 1
            except FilesGone:
                pass
        self._close(query)

    def subscribe(self, number: int) -> None:
        """A reader that goes along begins: from the beginning, from now, or from a cut of an earlier result."""
        self.subscribers.begin(self._dataset(number), number)

    def advance(self, number: int) -> None:
        """It reads on for a bounded stretch: each row exactly once, whatever happened since the last one."""
        self.subscribers.advance(number)

    def reconnect(self, number: int) -> None:
        """Its connection is lost, some batches perhaps with it; it goes on from the last that it has."""
        self.subscribers.reconnect(number)

    # -- the end

    def settle(self) -> None:
        """No more faults: everything is committed, the last answer is the whole log, and old cuts are readable."""
        self.log.down = False
        self.crash_at = None
        for store in self.stores.values():
            store.faults.clear()
            store.deliver_late()
        for _turn in range(200):
            for dataset in DATASETS:
                self._say_offsets(dataset)
            self._give_up_what_is_lost()
            self.clock.advance(10.0)
            self.discover(0)
            for sink in self.sinks.values():
                self._step(sink)
            self.refresh(1)
            self.tail_poll(0)
            ends = self.log.end_offsets()
            drained = all(sink.stats.drained(self._of(name, ends)) for name, sink in self.sinks.items())
            if drained and self.publisher.gap is None:
                break
        else:
            raise AssertionError("the sinks or the tail do not come to the end of the log")
        while self.queries:
            self._check(self.queries.pop(), 0)
        for _turn in range(3):
            self.refresh(1)
            self.tail_poll(0)
        before = self.counts.answered
        self.query(0)
        assert self.counts.answered == before + 1, f"the last query was refused: {self.publisher.gap}"
        last = self.cuts[-1]
        for dataset in DATASETS:
            cut = last.tables[dataset.table].offsets
            ends = self._of(dataset.name, self.log.end_offsets())
            assert cut.covers(ends), f"the tail of {dataset.table} is behind the log"
            self._check_table(dataset)
        for number in range(len(self.cuts)):
            self.read_again_at(number)
        self.subscribers.settle(last)

    def close(self) -> None:
        self._stop_server()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the property

    def _check(self, query: OpenQuery, number: int) -> None:
        """Each table's answer is, per partition, exactly the log's usable records below the cut, each once."""
        try:
            if query.streamed is not None:
                with self._reading(query.cut, query.streamed):
                    rows = [*(query.first or []), *(row for batch in query.stream for row in tuples_of(batch))]
                self.compare(query.streamed, rows, query.cut.tables[query.streamed.table].offsets, query.cut)
            else:
                for dataset in DATASETS:
                    with self._reading(query.cut, dataset):
                        self._ask(query, dataset, number)
            assert self.publisher.cut(query.cursor) == query.cut, "the transaction's cut has moved"
        except FilesGone:
            self.counts.expired += 1
        else:
            self.counts.answered += 1
            if len(self.cuts) < CUTS_MAX:
                self.cuts.append(query.cut)
            else:  # early ones stay as long as late ones do
                self.cuts[self.next_id % CUTS_MAX] = self.cuts[-1]
                self.cuts[-1] = query.cut
        self._close(query)

    def _ask(self, query: OpenQuery, dataset: Dataset, number: int) -> None:
        offsets = query.cut.tables[dataset.table].offsets
        select = select_of(dataset)
        if number % 4 == 1:  # a predicate that leaves out every file
            assert query.cursor.execute(f"{select} WHERE {dataset.id_column} < 0").fetchall() == []
        if number % 4 == 2:  # one that leaves out some
            least = self.next_id // 2
            rows = query.cursor.execute(f"{select} WHERE {dataset.id_column} >= {least}").fetchall()
            self.compare(dataset, rows, offsets, query.cut, least=least)
        if number % 4 in (0, 3):  # files chosen by their bounds, and what was committed lately out of memory
            least = number * 7 % (self.next_id + 1)
            seen = self.publisher.seen(query.cursor)
            chosen = self.publisher.select_where(seen, dataset.table, [Condition(dataset.id_column, ((least, None),))])
            if chosen is not None:
                where = f"WHERE {dataset.id_column} >= {least}"
                rows = query.cursor.execute(f"{columns_of(dataset)} FROM ({chosen}) {where}").fetchall()
                self.compare(dataset, rows, offsets, query.cut, least=least)
                self.counts.chosen += 1
        parts = self.publisher.parts(query.cursor, dataset.table, 2, rows_min=0) if number % 4 == 3 else []
        if parts:
            other = self.database.cursor()
            try:
                cursors = [*(other for _ in parts[:-1]), query.cursor]
                rows = [
                    row
                    for cursor, part in zip(cursors, parts, strict=True)
                    for row in cursor.execute(f"{columns_of(dataset)} FROM ({part})").fetchall()
                ]
            finally:
                other.close()
            self.counts.in_parts += 1
        else:
            rows = query.cursor.execute(select).fetchall()
        self.compare(dataset, rows, offsets, query.cut)

    def check_between(
        self, query: OpenQuery, dataset: Dataset, select: str, low: PartitionOffsets, high: PartitionOffsets
    ) -> None:
        with self._reading(query.cut, dataset):
            rows = query.cursor.execute(f"{columns_of(dataset)} FROM ({select})").fetchall()
        self.compare(dataset, rows, high, query.cut, low=low)

    def compare(
        self,
        dataset: Dataset,
        rows: list[Row],
        until: PartitionOffsets,
        cut: Cut,
        *,
        low: PartitionOffsets | None = None,
        least: int = 0,
    ) -> None:
        expected = [row for row in self.between(dataset, low, until) if row[3] >= least]
        assert sorted(rows) == expected, f"{dataset.table} {difference(rows, expected, cut)}"

    def between(self, dataset: Dataset, low: PartitionOffsets | None, until: PartitionOffsets) -> list[Row]:
        """The log's usable records with low <= offset < until, in order of position."""
        return sorted(
            (partition.topic_id[-8:], partition.partition, offset, number)
            for partition, records in self.records[dataset.name].items()
            if (end := until.next_offset(partition))
            for offset, number in records.items()
            if offset < end and (low is None or offset >= low.next_offset(partition))
        )

    def _check_table(self, dataset: Dataset) -> None:
        """What the sinks committed is, by itself, the log below the table's offsets."""
        store = self.stores[dataset.name]
        rows = [
            (row["_kafka_topic"], row["_kafka_partition"], row["_kafka_offset"], row[dataset.id_column])
            for row in store.rows()
        ]
        self.compare(dataset, rows, store.offsets, Cut({}))  # type: ignore[arg-type]

    def _check_refusal(self, refusal: K2Error, wanted: TableCut, now: TableCut) -> None:
        lacking = [p for p, until in sorted(wanted.offsets.items()) if now.offsets.next_offset(p) < until]
        assert lacking, f"refused without need: {refusal}"
        followed = lacking[0].topic_id in self.publisher.followed()
        assert isinstance(refusal, Unavailable) == followed, str(refusal)

    # -- inside

    def _begin(self) -> OpenQuery | None:
        """A transaction and its cut; None when the server refuses. As flight_server.engine does it."""
        if self.publisher.gap is not None:
            return None
        cursor = self.database.cursor()
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        return OpenQuery(cursor, self.publisher.cut(cursor))

    @staticmethod
    def _close(query: OpenQuery | None) -> None:
        if query is not None:
            query.cursor.close()

    def _reading(self, cut: Cut, dataset: Dataset) -> _Reading:
        return _Reading(self, dataset, cut.tables[dataset.table].snapshot_id)

    def _topic(self, number: int) -> TopicInfo | None:
        return self.log.topics.get(NAMES[number % len(NAMES)])

    @staticmethod
    def _dataset(number: int) -> Dataset:
        return DATASETS[number % len(DATASETS)]

    def _store(self, number: int) -> FakeStore:
        return self.stores[self._dataset(number).name]

    def _holds(self, dataset: Dataset) -> PartitionOffsets:
        try:
            return self.stores[dataset.name].offsets
        except K2Error:
            return PartitionOffsets()

    def _of(self, name: str, offsets: PartitionOffsets) -> PartitionOffsets:
        """Those of one dataset's topics that there are."""
        topics = {info.topic_id: topic for topic, info in self.log.topics.items()}
        return PartitionOffsets({p: n for p, n in offsets.items() if TOPICS[topics[p.topic_id]].name == name})

    def _say_offsets(self, dataset: Dataset) -> None:
        store = self.stores[dataset.name]
        try:
            _ = store.offsets
        except K2Error:
            store.say_offsets()

    def _give_up_what_is_lost(self) -> None:
        """A topic whose records are gone before the table had them stops the sink; an operator makes it anew."""
        starts = self.log.start_offsets()
        for topic, info in self.log.topics.items():
            held = self._holds(TOPICS[topic])
            if any(p.topic_id == info.topic_id and held.next_offset(p) < start for p, start in starts.items()):
                self.log.create(topic, PARTITIONS)

    def _delete(self, dataset: Dataset, numbers: Iterable[int]) -> None:
        for number in numbers:
            path = self._path(dataset, number)
            path.unlink(missing_ok=True)
            self.gone.add(path)

    def _step(self, worker: SinkWorker[int]) -> None:
        try:
            worker.step()
        except Crash:
            self.crashes_of(worker)
        except LogTruncated:
            assert self._something_is_lost(), "the sink misses records that the log has"
        except K2Error:
            pass

    def crashes_of(self, worker: SinkWorker[int]) -> None:
        self.counts.crashes += 1
        if worker in self.zombies:
            self.zombies.remove(worker)
        for name, sink in self.sinks.items():
            if sink is worker:
                self.sinks[name] = self._new_sink(next(d for d in DATASETS if d.name == name))

    def _something_is_lost(self) -> bool:
        """Some topic was cut off, made anew or is gone: then there may be positions that the log does not have."""
        known = {info for sources in self.sources.values() for info in sources.topics.values()}
        return any(self.log.start_offsets().values()) or known != set(self.log.topics.values())

    def _new_sink(self, dataset: Dataset) -> SinkWorker[int]:
        def hook(passed: Passed) -> None:
            if self.crash_at is not None and list(Passed)[self.crash_at] is passed:
                self.crash_at = None
                raise Crash

        return SinkWorker(
            dataset=dataset,
            sources=lambda: self.sources[dataset.name],
            confirm=self._confirm,
            reader=self.log.reader(),
            decoder=Decoder(dataset, REGISTRY),
            table=FakeTable(self.stores[dataset.name]),
            dead_letters=self.letters,
            policy=CommitPolicy(rows_max=10, bytes_max=1_000_000, age_ms_max=1_000),
            clock=self.clock,
            wait=self.clock.advance,
            poll_messages_max=16,
            hook=hook,
        )

    def _confirm(self, sources: Sources) -> bool:
        if self.log.down:
            raise BrokerError("the fake broker is down")
        return self.log.confirm(sources)

    def _path(self, dataset: Dataset, number: int) -> Path:
        return self.folder / f"{dataset.name}-{number}.parquet"

    def _newest(self, dataset: Dataset) -> Snapshot:
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
        names = tuple(str(path) for path in tables)
        columns = tuple(next(iter(tables.values())).column_names) if tables else ()
        return Snapshot(
            current.snapshot_id,
            read_files(names) if names else None,
            columns,
            offsets,
            names,
            sum(table.num_rows for table in tables.values()),
            index_of(
                dataset, {str(self._path(dataset, n)): (store.added_by[n], store.files[n]) for n in current.files}
            ),
            {},
            grown_from(store),
            self._taken_in(dataset),
        )

    def _taken_in(self, dataset: Dataset) -> dict[int, tuple[PartitionOffsets, PartitionOffsets]]:
        """As flight_server.storage.snapshots: of snapshots that only appended, as far as this server ever saw them."""
        kept = {snapshot.snapshot_id: snapshot for snapshot in self.stores[dataset.name].snapshots}
        known = self.taken.setdefault(dataset.name, {})
        for snapshot in kept.values():
            before = kept.get(snapshot.parent_id or 0)
            begin = PartitionOffsets() if snapshot.parent_id is None else before and before.offsets
            if snapshot.operation == "append" and begin is not None and snapshot.offsets is not None:
                known.setdefault(snapshot.snapshot_id, (begin, snapshot.offsets))
        return dict(known)

    def _start_server(self) -> None:
        self.database = SealedDatabase.take()
        self.reader = self.log.reader()
        self.publisher = Publisher(
            self.database, self.reader, REGISTRY, self.settings, self.clock, DATASETS, topic_ids=self._topic_ids
        )
        self.catalog_says, self.broker_says, self.taken = {}, None, {}
        self.refresh(1)
        self.tail_poll(0)
        self.subscribers.server_started()

    def _topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        if self.log.down:
            raise BrokerError("the fake broker is down")
        return {name: info.topic_id for name, info in self.log.topics.items() if name in set(names)}

    def _stop_server(self) -> None:
        """Readers' transactions end, as they do when a process does."""
        for query in self.queries:
            query.cursor.close()
        self.queries = []
        self.subscribers.server_stops()
        self.reader.close()
        self.database.give_back()


def _compaction(number: int) -> dict[str, Any]:
    """K2's own, or that of a foreign tool, which may or may not say that the rows are the same."""
    return {"carried": number % 3 != 0, "operation": "overwrite" if number % 4 == 0 else "replace"}


class _Reading:
    """What the engine raises within becomes FilesGone if files of the snapshot were deleted. Nothing else may be."""

    def __init__(self, world: World, dataset: Dataset, snapshot_id: int | None) -> None:
        self._world = world
        self._key = (dataset.name, snapshot_id)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (duckdb.Error, OSError)):
            ours = translated(error)
            lost = self._world.files_of.get(self._key, set()) & self._world.gone
            assert isinstance(ours, SnapshotExpired) and lost, f"the engine failed: {ours!r}"
            raise FilesGone from None
