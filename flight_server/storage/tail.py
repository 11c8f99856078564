"""The publisher: reads the log behind the newest snapshot and publishes rows, positions and views as one state.

It is the only writer of `market` and `tail`. `poll` and `adopt` each end in one transaction, so a reader sees the
log's prefix at one position and the snapshot that goes with it, or the state before. Not thread-safe: one thread
calls everything but what others may ask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from common.clock import Clock
from common.codec import Decoder
from common.datasets import TRADES, Bars, Dataset
from common.errors import K2Error, TailGap, Unavailable
from common.log import LogReader, TopicInfo, joined
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from common.registry import SchemaRegistry
from common.schemas.arrow import joined_rows, table_schema
from common.settings import FlightSettings
from common.telemetry import get_logger
from flight_server.storage.bars_shown import BarsShown
from flight_server.storage.database import Database
from flight_server.storage.latencies import Latencies
from flight_server.storage.publications import Publications, ShownTable
from flight_server.storage.read_view import (
    Segment,
    Snapshot,
    Tail,
    check_reach,
    cut_offsets,
    merged_first,
    remembered,
    rows_beyond,
    view_sql,
)

#: A segment that is as large as this part of the hot window is not filled further, so that it can be forgotten.
_SEGMENTS_PER_WINDOW = 16
#: Messages read into one publication at most: twice this, which takes 50 ms.
_MESSAGES_PER_POLL = 10_000


@dataclass
class _Table(ShownTable):
    """One dataset as it is published now. `tail.segments[-1]` is the open segment, in the view and taking rows."""

    decoder: Decoder
    snapshot: Snapshot
    tail: Tail
    records_refused: int = 0


@dataclass(frozen=True)
class _Publication:
    """What is to be published of a table: a snapshot, the segments that stay, from where on they hold all rows."""

    snapshot: Snapshot
    segments: Sequence[Segment]
    base: PartitionOffsets


class Publisher:
    """Keeps `market.*` equal to snapshot + tail.

    `starting` until each table's snapshot was adopted and the tail first reached the log's end; then each publication
    is exact, and as new as the log.
    """

    def __init__(
        self,
        database: Database,
        reader: LogReader,
        registry: SchemaRegistry,
        settings: FlightSettings,
        clock: Clock,
        datasets: Sequence[Dataset],
        *,
        topic_ids: Callable[[Iterable[str]], Mapping[str, str]],
        bars: Sequence[Bars] = (),
    ) -> None:
        """`topic_ids` asks the broker for topics' ids as they are now (KafkaLog.topic_ids). `bars` need the trades."""
        self._database = database
        self._registry = registry
        self._topic_ids = topic_ids
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._log = get_logger("flight_server.storage")
        self._tables: dict[str, _Table] = {}
        self._topics: dict[str, TopicInfo] = {}
        self._cluster_id = ""
        self._segment_numbers = itertools.count()
        self._gap: K2Error | None = Unavailable(
            "the server is starting: the tail has not reached the end of the log yet"
        )
        self._must_reset = False
        #: The next publication is not before this moment of the clock.
        self._due_s = clock.monotonic_s()
        #: Tables of which no snapshot was given yet: without it, rows of topics that are gone would be missing.
        self._unknown = {dataset.name for dataset in datasets}
        #: When the newest rows had been read of the log.
        self._read_us = 0
        self.latencies = Latencies()
        for dataset in datasets:
            self._tables[dataset.name] = self._new_table(dataset)
        #: Another number whenever a table is shown with other columns.
        self.shapes_version = 0
        #: The tables of bars, which are views over the trades too.
        self._bars = BarsShown(database, bars, self._tables[TRADES.name].columns(Snapshot())) if bars else None
        #: What a transaction sees; for any thread.
        self.published = Publications(database, lambda: self._tables, self.followed, self._bars)
        self._publish({name: _Publication(table.snapshot, (), table.tail.base) for name, table in self._tables.items()})

    # -- what others may ask, from any thread

    @property
    def gap(self) -> K2Error | None:
        """Why `market.*` cannot be answered exactly now; None when it can."""
        return self._gap

    @property
    def bars(self) -> BarsShown | None:
        """The tables of bars; None where none are shown."""
        return self._bars

    def followed(self) -> Set[str]:
        """The ids of the topics that are followed."""
        return {info.topic_id for info in list(self._topics.values())}

    def has_come_to(self, name: str, wanted: PartitionOffsets) -> bool:
        """Whether every new transaction sees a dataset's table up to these offsets, in the topics that are followed."""
        table = self._tables[name]
        has, followed = cut_offsets(table.snapshot, table.tail.position), self.followed()
        return all(has.next_offset(p) >= until for p, until in wanted.items() if p.topic_id in followed)

    def tail_rows(self) -> dict[str, int]:
        """Rows held beyond the snapshot, by dataset; where a segment is beyond it in part, by its offsets at most."""
        return {
            name: sum(rows_beyond(t.snapshot, segment) for segment in t.tail.segments)
            for name, t in list(self._tables.items())
        }

    def memory_rows(self) -> dict[str, int]:
        """Rows held in memory, those of the hot window included, by dataset."""
        return {name: sum(segment.rows for segment in t.tail.segments) for name, t in list(self._tables.items())}

    def records_refused(self) -> dict[str, int]:
        """Messages read that are no records (the sink dead-letters the same ones), by dataset."""
        return {name: table.records_refused for name, table in list(self._tables.items())}

    def snapshots(self) -> dict[str, Snapshot]:
        """The snapshot each table is published with."""
        return {name: table.snapshot for name, table in list(self._tables.items())}

    def schema(self, name: str) -> pa.Schema:
        """The columns that a dataset's table is shown with now."""
        table = self._tables[name]
        return table.schema(table.snapshot)

    # -- the publisher thread's steps

    def add(self, dataset: Dataset, snapshot: Snapshot) -> None:
        """Show a further table from now on, as of this snapshot; its topics come with the next `assign`."""
        added = self._new_table(dataset)
        before = self._tables
        self._tables = {**before, dataset.name: added}
        try:
            self._publish({dataset.name: _Publication(snapshot, (), added.tail.base)})
        except BaseException:
            self._tables = before
            raise

    def assign(self, cluster_id: str, topics: Iterable[TopicInfo]) -> None:
        """Follow these topics; what is new is read from where its table's snapshot ends.

        A topic made anew under its old name makes every tail start again, and what the old one had beyond the snapshot
        is gone: the log no longer has it, and the sink drops it too.
        """
        wanted = {info.topic: info for info in topics}
        self._cluster_id = cluster_id
        if wanted == self._topics:
            return
        before, self._topics = self._topics, wanted
        try:
            self._follow(before)
        except BaseException as error:
            # Half done is not done: the topics are new again the next time, and the tail starts again until then.
            self._topics = before
            self._gap = TailGap(f"the topics are being taken up ({_reason(error)}); try again")
            self._must_reset = True
            raise

    def _follow(self, before: Mapping[str, TopicInfo]) -> None:
        anew = [topic for topic, info in self._topics.items() if before.get(topic, info).topic_id != info.topic_id]
        for name, table in self._tables.items():
            # Also one that was followed before, when the tail started again in between: it is new to the tail.
            fresh = {
                partition: table.snapshot.offsets.next_offset(partition)
                for partition in self._partitions_of(table)
                if partition not in table.tail.position
            }
            if not fresh:
                continue
            numbers, owners = self.published.numbers, self.published.owners
            changed = [(numbers[p], offset) for p, offset in fresh.items() if p in numbers]
            unnumbered = [p for p in fresh if p not in numbers]
            added = [(len(numbers) + index, fresh[p]) for index, p in enumerate(unnumbered)]
            with self._database.publication():
                self._database.set_positions(self.published.generation, changed, added)
            for partition, (number, _offset) in zip(unnumbered, added, strict=True):
                owners[partition] = name
                numbers[partition] = number
            table.tail = replace(
                table.tail, base=table.tail.base.advanced(fresh), position=table.tail.position.advanced(fresh)
            )
            self.published.remember(name, remembered(table.snapshot, table.tail))
        if anew:
            self._log.warning("topics were made anew and are read as new sources", topics=anew)
            self._gap = TailGap(f"the topic {anew[0]} was made anew and is being read from its beginning; try again")
            self.reset()
        else:
            self._assign_reader()

    def adopt(self, snapshots: Mapping[str, Snapshot]) -> None:
        """Publish each table with its newer snapshot and forget the tail rows that it has (rule 7).

        A snapshot that ends before the tail begins (the table was rolled back) makes the tail start again from there;
        until it has caught up, `gap` says so.
        """
        if self._bars is not None:
            self._bars.learn(snapshots)
        changed = {
            name: snapshot
            for name, snapshot in snapshots.items()
            if name in self._tables
            and (
                snapshot.snapshot_id != self._tables[name].snapshot.snapshot_id
                or snapshot.relation != self._tables[name].snapshot.relation
            )
        }
        if not changed:
            self._unknown -= snapshots.keys()
            if self._bars is not None and self._bars.has_news(self._trades_end()):
                self._publish({})
            return
        published: dict[str, _Publication] = {}
        for name, snapshot in changed.items():
            table = self._tables[name]
            try:
                check_reach(snapshot, table.tail, table=table.dataset.table)
            except TailGap as gap:
                self._gap, self._must_reset = gap, True
            published[name] = self._kept(table, snapshot)
        if self._must_reset:
            self.reset(changed)
        else:
            self._publish(self._within_window(published))
        self._unknown -= snapshots.keys()

    def _kept(self, table: _Table, snapshot: Snapshot) -> _Publication:
        """What stays in memory with this snapshot: all while the table only grew, for then memory and files agree."""
        segments = [segment for segment in table.tail.segments if segment.rows]
        before = table.snapshot.snapshot_id
        if self._settings.hot_window_bytes and (before == snapshot.snapshot_id or before in snapshot.grown_from):
            return _Publication(snapshot, segments, table.tail.base)
        ends = {partition: snapshot.offsets.next_offset(partition) for partition in table.tail.base}
        kept = [segment for segment in segments if not segment.below(snapshot.offsets)]
        return _Publication(snapshot, kept, table.tail.base.advanced(ends))

    def _within_window(self, published: Mapping[str, _Publication]) -> Mapping[str, _Publication]:
        """Without the oldest segments below their snapshot's end, until the window's bytes hold all that stays."""
        within = dict(published)
        others = [table.tail.segments for name, table in self._tables.items() if name not in published]
        size = sum(s.nbytes for segments in [*(p.segments for p in published.values()), *others] for s in segments)
        for name in sorted(published, key=lambda name: -sum(s.nbytes for s in published[name].segments)):
            one = within[name]
            while (
                size > self._settings.hot_window_bytes and one.segments and one.segments[0].below(one.snapshot.offsets)
            ):
                gone, *left = one.segments
                size -= gone.nbytes
                one = _Publication(one.snapshot, left, one.base.advanced(gone.next))
            within[name] = one
        return within

    def reset(self, newer: Mapping[str, Snapshot] | None = None) -> None:
        """Start every tail again from where its table's snapshot ends: the published one, or the one in `newer`."""
        self._must_reset = True
        snapshots = {name: (newer or {}).get(name, table.snapshot) for name, table in self._tables.items()}
        for name, table in self._tables.items():
            start = PartitionOffsets({p: snapshots[name].offsets.next_offset(p) for p in self._partitions_of(table)})
            table.tail = replace(table.tail, base=start, position=start)
        self._publish(
            {name: _Publication(snapshot, (), self._tables[name].tail.base) for name, snapshot in snapshots.items()},
            all_positions=True,
        )
        self._assign_reader()
        self._must_reset = False

    def poll(self, timeout_s: float) -> int:
        """Read what arrived and publish it, at most once in `tail_publish_ms`; returns the rows published.

        Whatever is raised, the next call starts the tail again from the snapshots' ends, and until it has caught up
        `gap` says so. Raises BrokerError (LogTruncated when retention was faster than the sink), TailGap when a topic
        was made anew, and Unavailable when the tail is full.
        """
        if self._must_reset:
            self.reset()
        if self._is_full():
            raise Unavailable(
                f"the tail holds {self._settings.tail_rows_max} rows and waits for the sink to commit; check the sink"
            )
        try:
            published = self._append(*self._gather(timeout_s))
        except BaseException as error:
            # What was read and not published is gone from the reader: only a new start has no hole.
            self._gap = TailGap(f"the tail is being read again from the snapshot's end ({_reason(error)}); try again")
            self._must_reset = True
            raise
        if self._gap is not None and not self._unknown and self._reader.at_end():
            self._gap = None
        return published

    # -- inside

    def _is_full(self) -> bool:
        """Whether the tail holds too many rows. What is in memory is counted first: it has no offsets to compare."""
        rows_max = self._settings.tail_rows_max
        return sum(self.memory_rows().values()) >= rows_max and sum(self.tail_rows().values()) >= rows_max

    def _new_table(self, dataset: Dataset) -> _Table:
        columns = self._database.column_types(table_schema(dataset.schema_name))
        return _Table(dataset, {(): columns}, Decoder(dataset, self._registry), Snapshot(), Tail())

    def _gather(self, timeout_s: float) -> tuple[dict[str, list[pa.RecordBatch]], dict[KafkaPartition, int]]:
        """Decoded batches by dataset, and behind which offset the last row of each partition ends: of what comes within
        `timeout_s`, and what else comes until a publication is due.

        One costs 5 ms of a core, whatever it holds, and so they are `tail_publish_ms` apart. A row that comes after a
        silence is not waited with.
        """
        batches = self._reader.poll(_MESSAGES_PER_POLL, timeout_s)
        left_s = self._due_s - self._clock.monotonic_s()
        if batches and left_s > 0:
            batches += self._reader.poll(_MESSAGES_PER_POLL, left_s, fill=True)
        self._due_s = self._clock.monotonic_s() + self._settings.tail_publish_ms / 1000
        self._read_us = self._clock.now_us()
        gathered: dict[str, list[pa.RecordBatch]] = {}
        ends: dict[KafkaPartition, int] = {}
        for batch in joined(batches):
            partition = KafkaPartition(batch.cluster_id, batch.topic_id, batch.partitions[0])
            table = self._tables[self.published.owners[partition]]
            decoded = table.decoder.decode(batch)
            table.records_refused += len(decoded.errors)
            gathered.setdefault(table.dataset.name, []).append(decoded.record_batch)
            partitions, offsets = (
                decoded.record_batch.column(name).to_numpy() for name in ("_kafka_partition", "_kafka_offset")
            )
            for number in set(batch.partitions):
                if len(of_one := offsets[partitions == number]):
                    ends[KafkaPartition(batch.cluster_id, batch.topic_id, number)] = int(of_one.max()) + 1
        return gathered, ends

    def _append(self, gathered: Mapping[str, Sequence[pa.RecordBatch]], ends: Mapping[KafkaPartition, int]) -> int:
        positions = self._reader.positions()
        moved = {name: self._moved(table, positions) for name, table in self._tables.items()}
        if not gathered and not any(moved.values()):
            return 0
        self._confirm_topics({partition.topic_id for pairs in moved.values() for partition in pairs})
        self._widen_memory()
        tails: dict[str, Tail] = {}
        rows_of: dict[str, pa.Table] = {}
        for name, table in self._tables.items():
            rows = self._beyond_snapshot(table, gathered.get(name, ()))
            if rows is not None:
                rows_of[name] = rows
            tails[name] = self._advanced(table, rows, moved[name], ends)
        self._database.append(
            {self._tables[name].tail.segments[-1].relation: rows for name, rows in rows_of.items()},
            {self.published.numbers[p]: next_offset for pairs in moved.values() for p, next_offset in pairs.items()},
        )
        for name, tail in tails.items():
            self._tables[name].tail = tail
        self.latencies.note(rows_of.values(), read_us=self._read_us, now_us=self._clock.now_us())
        return sum(rows.num_rows for rows in rows_of.values())

    def _widen_memory(self) -> None:
        """Where rows came that have further columns, a segment that has them takes these and all later ones. They are
        shown once the table has the columns too."""
        grown = {
            name: _Publication(table.snapshot, [s for s in table.tail.segments if s.rows], table.tail.base)
            for name, table in self._tables.items()
            if table.tail.segments and table.tail.segments[-1].columns != tuple(table.decoder.schema.names)
        }
        if grown:
            self._publish(grown)

    def _confirm_topics(self, read: Set[str]) -> None:
        """Raise TailGap unless what was read, of topics of these ids, was read of the topics as they are known here.

        Kafka serves fetches by name, so of a topic made anew the new records come under the old one's positions. Ids
        never come back: the same id after the read means the same topic during it.
        """
        known = {topic: info.topic_id for topic, info in self._topics.items() if info.topic_id in read}
        if len(known) < len(read) or self._topic_ids(known) != known:
            raise TailGap("a topic was made anew or deleted; the tail is being read again, try again")

    def _moved(self, table: _Table, positions: PartitionOffsets) -> dict[KafkaPartition, int]:
        return {
            p: positions[p]
            for p in positions
            if self.published.owners[p] == table.dataset.name and positions[p] != table.tail.position.get(p)
        }

    def _beyond_snapshot(self, table: _Table, batches: Sequence[pa.RecordBatch]) -> pa.Table | None:
        """The rows at or above the published snapshot's end; it has the others (the tail was behind the sink)."""
        rows = [batch for batch in batches if batch.num_rows]
        if not rows:
            return None
        joined = joined_rows(rows, table.decoder.schema)
        for partition, position in table.tail.position.items():
            committed = table.snapshot.offsets.next_offset(partition)
            if position < committed:
                here = pc.and_(
                    pc.equal(joined.column("_kafka_topic"), topic_short(partition.topic_id)),
                    pc.equal(joined.column("_kafka_partition"), partition.partition),
                )
                below = pc.less(joined.column("_kafka_offset"), committed)
                joined = joined.filter(pc.invert(pc.and_(here, below)))
        return joined if joined.num_rows else None

    def _advanced(
        self,
        table: _Table,
        rows: pa.Table | None,
        moved: Mapping[KafkaPartition, int],
        ends: Mapping[KafkaPartition, int],
    ) -> Tail:
        # Below the snapshot's end rows are thrown away while the tail is behind it: memory begins behind them.
        skipped = {
            partition: min(position, table.snapshot.offsets.next_offset(partition))
            for partition, position in moved.items()
            if table.tail.position.next_offset(partition) < table.snapshot.offsets.next_offset(partition)
        }
        tail = replace(table.tail, position=table.tail.position.advanced(moved), base=table.tail.base.advanced(skipped))
        if rows is None:
            return tail
        opened = tail.segments[-1]
        begun = {p: table.tail.position.next_offset(p) for p in moved}
        grown = replace(
            opened,
            first=merged_first(opened.first, begun),
            # Not where the reader stands: behind the last row there may be a marker of its transaction, up to which no
            # sink ever commits, and the segment would never be below a snapshot.
            next=opened.next.advanced({p: ends[p] for p in moved if p in ends}),
            rows=opened.rows + rows.num_rows,
            nbytes=opened.nbytes + rows.nbytes,
        )
        return replace(tail, segments=(*tail.segments[:-1], grown))

    def _publish(self, tables: Mapping[str, _Publication], *, all_positions: bool = False) -> None:
        """In one transaction: the views over these snapshots and segments; behind them a segment that takes rows.

        And those of bars: a table of bars that cannot be read holds up no other.
        """
        try:
            self._publish_once(tables, all_positions=all_positions)
        except Unavailable:
            if self._bars is None or not self._bars.give_up():
                raise
            self._publish_once(tables, all_positions=all_positions)

    def _publish_once(self, tables: Mapping[str, _Publication], *, all_positions: bool) -> None:
        snapshots = {name: table.snapshot for name, table in self._tables.items()}
        snapshots |= {name: one.snapshot for name, one in tables.items()}
        tails: dict[str, Tail] = {}
        generation, memory = self.published.open(snapshots)
        with self._database.publication():
            for name, one in tables.items():
                table = self._tables[name]
                segments = tuple(one.segments)
                self._learn_shapes(table, one.snapshot)
                if not self._goes_on(table, segments):
                    columns = self._database.column_types(table.decoder.schema)
                    relation = self._database.create_segment(f"{name}_{next(self._segment_numbers)}", columns)
                    opened = Segment(relation, PartitionOffsets(), PartitionOffsets(), columns=tuple(columns))
                    segments = (*segments, opened)
                view = view_sql(one.snapshot, segments, table.columns(one.snapshot))
                self._database.replace_view(table.dataset.table, view)
                stay = {segment.relation for segment in segments}
                for segment in table.tail.segments:
                    if segment.relation not in stay:
                        self._database.drop_segment(segment.relation)
                tails[name] = replace(table.tail, base=one.base, segments=segments)
                memory[name] = remembered(one.snapshot, tails[name])
            if self._bars is not None and TRADES.name not in tables:
                # Bars that come alone may have taken in rows that memory got since the trades were published last.
                memory[TRADES.name] = remembered(snapshots[TRADES.name], self._tables[TRADES.name].tail)
            owners = self.published.owners
            positions = [
                (
                    number,
                    self._tables[owners[p]].tail.position.get(p, snapshots[owners[p]].offsets.next_offset(p)),
                )
                for p, number in self.published.numbers.items()
                # Of a topic that is gone, memory has nothing: it stands where the snapshot does, also after a rollback.
                if all_positions or p not in self._tables[owners[p]].tail.position
            ]
            self._database.set_positions(generation, positions, [])
            self._publish_bars(generation, snapshots, tails, memory)
        if self._bars is not None:
            self._bars.published(generation)
        self.published.close(generation, sum(len(one.snapshot.index or ()) for one in tables.values()))
        for name, tail in tails.items():
            table = self._tables[name]
            has_other_columns = table.snapshot.further != snapshots[name].further
            table.snapshot, table.tail = snapshots[name], tail
            self.shapes_version += has_other_columns

    def _learn_shapes(self, table: _Table, snapshot: Snapshot) -> None:
        """What columns the table is shown with when it is published with this snapshot."""
        further = tuple(field.name for field in snapshot.further)
        if further not in table.shapes:
            table.shapes[further] = self._database.column_types(table.schema(snapshot))
            self._log.info("a table has further columns", table=table.dataset.table, columns=further)

    def _publish_bars(
        self,
        generation: int,
        snapshots: Mapping[str, Snapshot],
        tails: Mapping[str, Tail],
        memory: Mapping[str, Tail],
    ) -> None:
        if self._bars is None:
            return
        tail = tails.get(TRADES.name, self._tables[TRADES.name].tail)
        ends = cut_offsets(snapshots[TRADES.name], tail.position)
        if TRADES.name in tails or self._bars.has_news(ends):
            trades = snapshots[TRADES.name]
            self._bars.replace_views(generation, trades, memory[TRADES.name], ends)
        else:
            self._bars.carry(generation)

    def _trades_end(self) -> PartitionOffsets:
        trades = self._tables[TRADES.name]
        return cut_offsets(trades.snapshot, trades.tail.position)

    def _goes_on(self, table: _Table, segments: Sequence[Segment]) -> bool:
        """Whether the last segment takes further rows: it did until now and is not large yet."""
        if not self._settings.hot_window_bytes or not segments:
            return False
        is_open = segments[-1].relation == table.tail.segments[-1].relation
        if segments[-1].columns != tuple(table.decoder.schema.names):
            return False
        return is_open and segments[-1].nbytes < self._settings.hot_window_bytes // _SEGMENTS_PER_WINDOW

    def _partitions_of(self, table: _Table) -> list[KafkaPartition]:
        return [
            KafkaPartition(self._cluster_id, info.topic_id, number)
            for info in self._topics.values()
            if table.dataset.matches(info.topic)
            for number in range(info.partitions)
        ]

    def _assign_reader(self) -> None:
        starts = {p: t.tail.position.next_offset(p) for t in self._tables.values() for p in self._partitions_of(t)}
        self._reader.assign(starts, {info.topic_id: info.topic for info in self._topics.values()})


def _reason(error: BaseException) -> str:
    """The first line of what it says, or its kind."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
