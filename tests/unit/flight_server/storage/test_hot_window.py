"""Rows that were committed and are still in memory: each is read once, from there or from its file."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from common.clock import ManualClock
from common.codec import Decoder, Encoder
from common.datasets import TRADES
from common.errors import TailGap
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.database import Database
from flight_server.storage.file_index import ADDED_BY, PATH, ROWS, Condition, FileIndex, lower, upper
from flight_server.storage.read_view import Cut, CutOff, Segment, Snapshot, below, read_files, rows_beyond
from flight_server.storage.tail import Publisher
from tests.support.fake_log import FakeLog
from tests.support.records import trade

TOPIC = "market.crypto.trades.binance"
REGISTRY = EmbeddedRegistry()
ENCODER = Encoder(TRADES, REGISTRY, topic=TOPIC)
ID = ["_kafka_partition", "_kafka_offset", "trade_id"]


class World:
    """A log of two partitions, a table that is committed to by hand into real Parquet files, and the publisher."""

    def __init__(self, folder: Path, window_bytes: int) -> None:
        lake = LakeSettings(data_dir=folder)
        lake.prepare()
        self.folder = Path(lake.resolved_warehouse.removeprefix("file://"))
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = FlightSettings(threads=1, hot_window_bytes=window_bytes, memory_bytes_max=256 * 1024**2)
        self.log = FakeLog()
        self.log.create(TOPIC, 2)
        self.database = Database(settings, lake)
        self.reader = self.log.reader()
        self.publisher = Publisher(
            self.database, self.reader, REGISTRY, settings, ManualClock(), [TRADES], topic_ids=self._topic_ids
        )
        self.records: list[tuple[int, int, int]] = []
        self.snapshots = [Snapshot()]
        #: Of each snapshot: (path, id of the snapshot that added it).
        self.files: list[list[tuple[str, int]]] = [[]]
        self.taken: dict[int, tuple[PartitionOffsets, PartitionOffsets]] = {}
        self.chosen = 0
        self.refresh()

    def partition(self, number: int) -> KafkaPartition:
        return KafkaPartition(self.log.cluster_id, self.log.topics[TOPIC].topic_id, number)

    def produce(self, rng: random.Random) -> None:
        partition = rng.randrange(2)
        for _ in range(rng.randrange(1, 6)):
            number = len(self.records) + 1
            offset = self.log.append(TOPIC, ENCODER.encode(trade(number, symbol=rng.choice("ABC"))), partition)
            self.records.append((partition, offset, number))
        if rng.random() < 0.2:
            self.log.hole(TOPIC, partition)

    def commit(self, rng: random.Random) -> None:
        """One more file with the next rows of each partition, not always all of them."""
        begin = self.snapshots[-1].offsets
        ends = self.log.end_offsets()
        end = PartitionOffsets({p: rng.randint(begin.next_offset(p), until) for p, until in ends.items()})
        rows = self.rows(begin, end)
        number = len(self.snapshots)
        self.taken[number] = (begin, begin.advanced(end))
        added = [(self.write(rows), number)] if rows.num_rows else []
        self.add([*self.files[-1], *added], begin.advanced(end), grown=True)

    def compact(self, _rng: random.Random) -> None:
        """All files become one; Iceberg calls it replace."""
        rows = self.rows(PartitionOffsets(), self.snapshots[-1].offsets)
        number = len(self.snapshots)
        self.add([(self.write(rows), number)] if rows.num_rows else [], self.snapshots[-1].offsets, grown=True)

    def overwrite(self, _rng: random.Random) -> None:
        """The same by a tool of which nobody knows what it did."""
        self.compact(_rng)
        self.snapshots[-1] = replace(self.snapshots[-1], grown_from=frozenset())

    def roll_back(self, rng: random.Random) -> None:
        back = rng.randrange(max(1, len(self.snapshots) - 4), len(self.snapshots) + 1) - 1
        old = self.snapshots[back]
        if old.snapshot_id is not None:
            self.snapshots.append(replace(old, snapshot_id=len(self.snapshots), grown_from=old.grown_from))
            self.files.append(self.files[back])

    def poll(self, _rng: random.Random) -> None:
        self.publisher.poll(0.0)

    def refresh(self, _rng: random.Random | None = None) -> None:
        self.publisher.adopt({TRADES.name: self.snapshots[-1]})
        self.publisher.assign(self.log.cluster_id, self.log.topics.values())

    def ask(self, rng: random.Random) -> None:
        """Some rows by some conditions, by the view and by what is chosen: the log's prefix, each once."""
        if self.publisher.gap is not None:
            return
        begin = rng.randrange(len(self.records) + 1)
        end = begin + rng.randrange(1, 12)
        conditions, where = rng.choice(
            [
                ([], "true"),
                ([Condition("trade_id", ((begin, end),))], f"trade_id BETWEEN {begin} AND {end}"),
                ([Condition("trade_id", ((begin, None),))], f"trade_id >= {begin}"),
                ([Condition("symbol", (("B", "B"),))], "symbol = 'B'"),
            ]
        )
        cursor = self.database.cursor()
        seen = self.publisher.published.begin(cursor)
        cut = Cut.from_text(str(seen.cut)).tables[TRADES.table].offsets
        chosen = self.publisher.published.select_where(seen, TRADES.table, conditions)
        expected = [row for row in self.records if row[1] < cut.next_offset(self.partition(row[0]))]
        found = cursor.execute(f"SELECT {', '.join(ID)} FROM market.trades").fetchall()
        assert sorted(found) == sorted(expected)
        if chosen is not None:
            self.chosen += 1
            of_view = cursor.execute(f"SELECT {', '.join(ID)} FROM market.trades WHERE {where}").fetchall()
            of_chosen = cursor.execute(f"SELECT {', '.join(ID)} FROM ({chosen}) WHERE {where}").fetchall()
            assert sorted(of_chosen) == sorted(of_view)
        then = PartitionOffsets({p: rng.randint(0, end) for p, end in cut.items()})
        cut_off = CutOff(then, below(then) or "false")
        chosen = self.publisher.published.select_where(seen, TRADES.table, conditions, cut_off)
        if chosen is not None:
            of_view = cursor.execute(
                f"SELECT {', '.join(ID)} FROM market.trades WHERE {where} AND ({cut_off.condition})"
            ).fetchall()
            of_chosen = cursor.execute(f"SELECT {', '.join(ID)} FROM ({chosen}) WHERE {where}").fetchall()
            assert sorted(of_chosen) == sorted(of_view)
        cursor.execute("COMMIT")
        cursor.close()

    def close(self) -> None:
        self.reader.close()
        self.database.close()

    # -- inside

    def rows(self, begin: PartitionOffsets, end: PartitionOffsets) -> pa.Table:
        decoder = Decoder(TRADES, REGISTRY)
        reader = self.log.reader()
        reader.assign({self.partition(p): 0 for p in range(2)}, {self.log.topics[TOPIC].topic_id: TOPIC})
        tables = []
        while batches := reader.poll(1_000, 0.0):
            tables += [pa.Table.from_batches([decoder.decode(batch).record_batch]) for batch in batches]
        reader.close()
        if not tables:
            return pa.table({name: [] for name in ID})
        everything = pa.concat_tables(tables)
        inside = [
            begin.next_offset(self.partition(p)) <= offset < end.next_offset(self.partition(p))
            for p, offset in zip(*(everything.column(name).to_pylist() for name in ID[:2]), strict=True)
        ]
        return everything.filter(pa.array(inside, pa.bool_())).sort_by([("symbol", "ascending")])

    def write(self, rows: pa.Table) -> str:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.parquet"
        pq.write_table(rows, path)
        return str(path)

    def add(self, files: Sequence[tuple[str, int]], offsets: PartitionOffsets, *, grown: bool) -> None:
        paths = [path for path, _ in files]
        number = len(self.snapshots)
        before = self.snapshots[-1]
        grown_from = before.grown_from | {before.snapshot_id}
        self.files.append(list(files))
        self.snapshots.append(
            Snapshot(
                number,
                read_files(paths) if paths else None,
                tuple(pq.read_schema(paths[0]).names) if paths else (),
                offsets,
                (),
                sum(pq.read_metadata(path).num_rows for path in paths),
                index_of(files) if paths else None,
                {},
                frozenset(grown_from) if grown else frozenset(),
                dict(self.taken),
            )
        )

    def _topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        return {name: info.topic_id for name, info in self.log.topics.items() if name in set(names)}


def index_of(files: Sequence[tuple[str, int]]) -> FileIndex:
    columns: dict[str, list[Any]] = {
        name: []
        for name in (PATH, ADDED_BY, ROWS, lower("trade_id"), upper("trade_id"), lower("symbol"), upper("symbol"))
    }
    for path, added_by in files:
        rows = pq.read_table(path)
        ids, symbols = (rows.column(name).to_pylist() for name in ("trade_id", "symbol"))
        for name, value in zip(
            columns, [path, added_by, len(ids), min(ids), max(ids), min(symbols), max(symbols)], strict=True
        ):
            columns[name].append(value)
    return FileIndex.of(pa.table(columns))


WEIGHTS = {
    "produce": 12,
    "poll": 12,
    "commit": 6,
    "refresh": 6,
    "ask": 10,
    "compact": 1,
    "overwrite": 1,
    "roll_back": 1,
}


@pytest.mark.parametrize("window_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("seed", range(8))
def test_each_row_is_read_once_from_memory_or_from_its_file(tmp_path: Path, window_bytes: int, seed: int) -> None:
    rng = random.Random(f"{seed}-{window_bytes}")
    world = World(tmp_path, window_bytes)
    try:
        for name in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=150):
            getattr(world, name)(rng)
        for _ in range(3):
            world.refresh()
            world.poll(rng)
        assert world.publisher.gap is None
        for _ in range(10):
            world.ask(rng)
        assert world.chosen > 10, "nothing was tried"
    finally:
        world.close()


def committed_world(folder: Path, window_bytes: int) -> World:
    """Ten rows in each of three commits, all of them read by the tail before they were committed."""
    world = World(folder, window_bytes)
    for _ in range(3):
        for _ in range(10):
            number = len(world.records) + 1
            offset = world.log.append(TOPIC, ENCODER.encode(trade(number)), 0)
            world.records.append((0, offset, number))
        world.poll(random.Random(0))
        before = world.snapshots[-1].offsets
        end = world.log.end_offsets()
        number = len(world.snapshots)
        world.taken[number] = (before, before.advanced(end))
        world.add([*world.files[-1], (world.write(world.rows(before, end)), number)], before.advanced(end), grown=True)
        world.refresh()
    return world


def selected(world: World, cut: CutOff | None = None) -> str | None:
    cursor = world.database.cursor()
    try:
        return world.publisher.published.select_where(
            world.publisher.published.begin(cursor), TRADES.table, [Condition("trade_id", ((25, None),))], cut
        )
    finally:
        cursor.close()


def test_what_is_in_memory_is_not_read_from_files(tmp_path: Path) -> None:
    world = committed_world(tmp_path, 10**9)
    try:
        assert "read_parquet" not in str(selected(world))
        assert world.publisher.memory_rows() == {TRADES.name: 30} and world.publisher.tail_rows() == {TRADES.name: 0}
        world.ask(random.Random(1))
    finally:
        world.close()


def test_without_a_window_only_the_file_that_can_have_the_rows_is_read(tmp_path: Path) -> None:
    world = committed_world(tmp_path, 0)
    try:
        assert str(selected(world)).count(".parquet") == 1
        assert world.publisher.memory_rows() == {TRADES.name: 0}
    finally:
        world.close()


def test_rows_of_a_file_are_compared_with_a_cut_only_where_it_may_have_some_behind_it(tmp_path: Path) -> None:
    """The last of three files has the offsets from 20 on."""
    world = committed_world(tmp_path, 0)
    try:
        for end, is_compared in ((30, False), (29, True), (20, True)):
            offsets = PartitionOffsets({world.partition(0): end})
            text = str(selected(world, CutOff(offsets, "CUT")))
            files = next(part for part in text.split(" UNION ALL ") if ".parquet" in part)
            assert ("CUT" in files) == is_compared
    finally:
        world.close()


def test_a_table_that_was_overwritten_is_not_read_from_memory(tmp_path: Path) -> None:
    """Somebody deleted a row: memory still has it, the table does not."""
    world = committed_world(tmp_path, 10**9)
    try:
        end = world.snapshots[-1].offsets
        rows = world.rows(PartitionOffsets(), end)
        left = rows.filter(pc.not_equal(rows.column("trade_id"), 27))
        world.add([(world.write(left), 4)], end, grown=False)
        world.refresh()
        cursor = world.database.cursor()
        found = cursor.execute(f"SELECT trade_id FROM ({selected(world)}) WHERE trade_id >= 25 ORDER BY 1").fetchall()
        assert found == [(25,), (26,), (28,), (29,), (30,)]
        cursor.close()
    finally:
        world.close()


def test_a_rollback_within_the_window_needs_no_new_start(tmp_path: Path) -> None:
    """The tail still has what the older snapshot does not."""
    for window_bytes, has_gap in ((10**9, False), (0, True)):
        world = committed_world(tmp_path / str(window_bytes), window_bytes)
        try:
            world.snapshots.append(replace(world.snapshots[1], snapshot_id=99))
            world.files.append(world.files[1])
            world.refresh()
            assert isinstance(world.publisher.gap, TailGap) == has_gap
            world.poll(random.Random(0))
            world.ask(random.Random(0))
        finally:
            world.close()


def test_rows_beyond_the_snapshot_are_counted_without_the_hot_ones() -> None:
    p = KafkaPartition("c", "t", 0)
    segment = Segment("s", PartitionOffsets({p: 10}), PartitionOffsets({p: 20}), 8)
    for end, rows in ((0, 8), (10, 8), (15, 5), (19, 1), (20, 0), (25, 0)):
        assert rows_beyond(Snapshot(offsets=PartitionOffsets({p: end})), segment) == rows
