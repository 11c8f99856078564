"""The publisher when something under it fails: nothing inexact is shown, and it finds back by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clock import ManualClock
from common.codec import Decoder, Encoder
from common.datasets import SHED, TRADES
from common.errors import BrokerError, LogTruncated, TailGap, Unavailable
from common.log import ConsumerBatch, TopicInfo
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, LakeSettings
from flight_server.storage import publications
from flight_server.storage.database import Database
from flight_server.storage.file_index import ADDED_BY, PATH, ROWS, Condition, FileIndex, lower, upper
from flight_server.storage.read_view import Snapshot, TableCut, read_files
from flight_server.storage.tail import Publisher
from tests.support.fake_log import FakeLog, FakeReader
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
OTHER = TRADES.topic(asset_class="crypto", exchange="kraken")
REGISTRY = EmbeddedRegistry()
ENCODER = Encoder(TRADES, REGISTRY, topic=TOPIC)
SETTINGS = FlightSettings(threads=1, memory_bytes_max=256 * 1024**2)


class Server:
    """One publisher over a fake log and real Parquet files."""

    def __init__(self, folder: Path, *, knows: bool = True) -> None:
        """`knows`: the catalog has said that the table is empty."""
        self.lake = LakeSettings.load(data_dir=folder)
        self.lake.prepare()
        self.folder = folder / "warehouse"
        self.folder.mkdir(exist_ok=True)
        self.log = FakeLog()
        self.log.create(TOPIC)
        self.database = Database(SETTINGS, self.lake)
        self.reader: FakeReader = self.log.reader()
        self.publisher = Publisher(
            self.database,
            self.reader,
            REGISTRY,
            SETTINGS,
            ManualClock(),
            [TRADES],
            topic_ids=lambda names: {n: i.topic_id for n, i in self.log.topics.items() if n in set(names)},
        )
        self.files = 0
        if knows:
            self.adopt(Snapshot())

    def follow(self) -> None:
        self.publisher.assign(self.log.cluster_id, self.log.topics.values())

    def produce(self, *ids: int, topic: str = TOPIC) -> None:
        for number in ids:
            self.log.append(topic, ENCODER.encode(trade(number)))

    def partition(self, topic: str = TOPIC) -> KafkaPartition:
        return KafkaPartition(self.log.cluster_id, self.log.topics[topic].topic_id, 0)

    def committed(self, ids: list[int], snapshot_id: int, *, topic: str = TOPIC) -> tuple[Snapshot, Path]:
        """A snapshot of the log's first records: these ids, at the offsets from 0 on."""
        source = self.partition(topic)
        values: list[bytes | None] = [ENCODER.encode(trade(number)) for number in ids]
        offsets = list(range(len(ids)))
        batch = ConsumerBatch(topic, source.cluster_id, source.topic_id, [0] * len(ids), offsets, values)
        rows = Decoder(TRADES, REGISTRY).decode(batch).record_batch
        self.files += 1
        path = self.folder / f"{self.files}.parquet"
        pq.write_table(pa.Table.from_batches([rows]), path)
        next_offsets = PartitionOffsets({source: len(ids)})
        return Snapshot(snapshot_id, read_files([str(path)]), tuple(rows.schema.names), next_offsets), path

    def adopt(self, snapshot: Snapshot) -> None:
        self.publisher.adopt({TRADES.name: snapshot})

    def ids(self) -> list[int]:
        """What a query reads now; each answer must end where its cut says."""
        cursor = self.database.cursor()
        try:
            cursor.execute("BEGIN")
            self.publisher.published.cut(cursor)
            found = cursor.execute("SELECT trade_id FROM market.trades ORDER BY ALL").fetchall()
            return [number for (number,) in found]
        finally:
            cursor.close()

    def settle(self) -> None:
        for _ in range(10):
            if self.publisher.poll(0.0) == 0 and self.publisher.gap is None:
                return
        raise AssertionError(self.publisher.gap)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    try:
        yield made
    finally:
        made.reader.close()
        made.database.close()


def test_a_snapshot_whose_files_are_gone_already_is_not_shown_and_the_older_one_goes_on(server: Server) -> None:
    """Between the catalog's answer and its publication another tool may have compacted and expired it."""
    server.follow()
    server.produce(1, 2, 3)
    server.settle()
    expired, path = server.committed([1, 2], 1)
    path.unlink()
    with pytest.raises(Unavailable, match=r"could not publish .* try again"):
        server.adopt(expired)
    assert server.publisher.gap is None
    assert server.ids() == [1, 2, 3]
    server.produce(4)
    server.settle()
    newer, _ = server.committed([1, 2, 3], 2)
    server.adopt(newer)
    assert server.ids() == [1, 2, 3, 4]


def test_before_a_table_was_asked_about_nothing_is_answered(tmp_path: Path) -> None:
    """The log alone is not the table: of topics that are gone only the table has the rows."""
    server = Server(tmp_path, knows=False)
    server.follow()
    server.produce(1, 2, 3)
    server.publisher.poll(0.0)
    server.publisher.poll(0.0)
    assert isinstance(server.publisher.gap, Unavailable)
    server.adopt(server.committed([1, 2], 1)[0])
    server.settle()
    assert server.ids() == [1, 2, 3]
    server.reader.close()
    server.database.close()


def test_when_the_tail_must_start_again_and_the_old_files_are_gone_the_newer_snapshot_is_taken(server: Server) -> None:
    """The tail starts again from the snapshot that is adopted, not from the one that was published before."""
    server.follow()
    server.produce(1, 2, 3)
    server.settle()
    old, path = server.committed([1], 1)
    server.adopt(old)
    server.log.down = True
    with pytest.raises(BrokerError):
        server.publisher.poll(0.0)
    path.unlink()
    server.log.down = False
    with pytest.raises(Unavailable, match="could not publish"):
        server.publisher.poll(0.0)
    assert isinstance(server.publisher.gap, TailGap)
    newer, _ = server.committed([1, 2], 2)
    server.adopt(newer)
    server.settle()
    assert server.ids() == [1, 2, 3]


def test_topics_that_could_not_be_taken_up_are_taken_up_the_next_time(server: Server) -> None:
    server.follow()
    server.produce(1)
    server.settle()
    server.log.create(OTHER)
    server.produce(2, topic=OTHER)
    server.log.down = True
    with pytest.raises(BrokerError):
        server.follow()
    assert isinstance(server.publisher.gap, TailGap)
    server.log.down = False
    server.follow()
    server.settle()
    assert server.ids() == [1, 2]


def test_a_topic_that_is_listed_again_is_read_from_where_the_snapshot_ends(server: Server) -> None:
    """A topic is missing from one answer of the broker, and the tail starts again before it is back."""
    server.log.create(OTHER)
    server.follow()
    server.produce(1, 2, topic=OTHER)
    server.settle()
    committed, _ = server.committed([1, 2], 1, topic=OTHER)
    server.adopt(committed)
    listed = dict(server.log.topics)
    server.publisher.assign(server.log.cluster_id, [listed[TOPIC]])
    server.publisher.reset()
    server.follow()
    server.produce(3, topic=OTHER)
    server.settle()
    assert server.ids() == [1, 2, 3]


def test_retention_that_is_ahead_of_the_table_is_refused_until_the_table_has_passed_it(server: Server) -> None:
    server.follow()
    server.produce(1, 2, 3)
    server.log.truncate(TOPIC, 2)
    for _ in range(2):
        with pytest.raises(LogTruncated):
            server.publisher.poll(0.0)
        gap = server.publisher.gap
        assert isinstance(gap, TailGap) and "no longer holds" in str(gap), "a part would be given as the whole"
    passed, _ = server.committed([1, 2], 1)
    server.adopt(passed)
    server.settle()
    assert server.ids() == [1, 2, 3]


def test_records_that_retention_took_after_the_tail_had_them_are_still_answered(server: Server) -> None:
    server.follow()
    server.produce(1, 2, 3)
    server.settle()
    server.log.truncate(TOPIC, 3)
    server.publisher.poll(0.0)
    assert server.publisher.gap is None and server.ids() == [1, 2, 3]


def test_partitions_that_are_added_to_a_topic_are_read_from_their_beginning(server: Server) -> None:
    server.follow()
    server.produce(1)
    server.settle()
    grow(server, 3)
    server.log.append(TOPIC, ENCODER.encode(trade(2)), 2)
    server.follow()
    server.settle()
    assert server.ids() == [1, 2]


def grow(server: Server, partitions: int) -> None:
    server.log.grow(TOPIC, partitions)
    assert server.log.topics[TOPIC] == TopicInfo(TOPIC, server.partition().topic_id, partitions)


@pytest.mark.parametrize("back_to", [0, 1, 2, 3])
def test_a_table_that_is_rolled_back_is_filled_up_from_the_log(server: Server, back_to: int) -> None:
    server.follow()
    server.produce(1, 2, 3, 4)
    server.settle()
    snapshots = [server.committed([1, 2, 3, 4][:count], count + 1)[0] for count in range(4)]
    server.adopt(snapshots[3])
    assert server.ids() == [1, 2, 3, 4]
    server.adopt(snapshots[back_to])
    if back_to < 3:
        assert isinstance(server.publisher.gap, TailGap)
    server.settle()
    assert server.ids() == [1, 2, 3, 4]


def test_a_cut_of_a_table_that_is_rolled_back_does_not_reach_into_a_topic_that_is_gone(server: Server) -> None:
    """What the table had of the old topic and has no longer, nobody has: the cut must not say that it is in."""
    server.follow()
    server.produce(1, 2, 3)
    server.settle()
    old = server.partition()
    snapshots = [server.committed([1, 2, 3][:count], count + 1)[0] for count in range(4)]
    server.adopt(snapshots[3])
    server.log.create(TOPIC)
    server.follow()
    server.settle()
    server.adopt(snapshots[1])
    server.settle()
    cursor = server.database.cursor()
    assert server.publisher.published.cut(cursor).tables[TRADES.table].offsets.next_offset(old) == 1
    cursor.close()
    assert server.ids() == [1]


def test_a_snapshot_that_says_it_is_further_than_the_log_ends_is_refused(server: Server) -> None:
    """Records were lost in Kafka that the table has: what comes at those offsets now is not what was there."""
    server.follow()
    server.produce(1, 2)
    ahead, _ = server.committed([1, 2, 3], 1)
    server.adopt(ahead)
    server.publisher.reset()
    with pytest.raises(LogTruncated):
        server.publisher.poll(0.0)
    assert isinstance(server.publisher.gap, TailGap)


def shown(server: Server) -> tuple[list[int], str]:
    """The rows and the cut that go with them, whatever `gap` says."""
    cursor = server.database.cursor()
    cursor.execute("BEGIN")
    cut = server.publisher.published.cut(cursor).to_text()
    cursor.close()
    return server.ids(), cut


@pytest.mark.parametrize(
    "statement", ["create_segment", "_insert", "_move", "drop_segment", "replace_view", "set_positions"]
)
@pytest.mark.parametrize("after", [False, True], ids=["before it", "behind it"])
def test_a_publication_that_fails_at_a_statement_shows_nothing_of_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch, statement: str, after: bool
) -> None:
    """Rows, positions and views are one state, or the one before; and the next publications go on from there."""
    server.follow()
    server.produce(1, 2, 3)
    server.settle()
    reader = server.database.cursor()
    reader.execute("BEGIN")
    pinned = server.publisher.published.cut(reader)
    does = getattr(Database, statement)
    failed = []

    def failing(self: Database, *args: Any) -> Any:
        done = does(self, *args) if after else None
        if not failed:
            failed.append(statement)
            raise duckdb.OutOfMemoryException("no memory")
        return done if after else does(self, *args)

    monkeypatch.setattr(Database, statement, failing)
    server.produce(4, 5)
    newer, _ = server.committed([1, 2, 3, 4, 5], 1)
    for step in (server.publisher.poll, lambda _: server.adopt(newer), server.publisher.poll):
        before = shown(server)
        try:
            step(0.0)
        except Unavailable:
            assert shown(server) == before
    assert failed, "nothing failed"
    server.adopt(newer)
    server.settle()
    assert server.ids() == [1, 2, 3, 4, 5]
    assert reader.execute("SELECT count(*) FROM market.trades").fetchall() == [(3,)]
    assert server.publisher.published.cut(reader) == pinned


def test_rows_are_the_snapshots_when_it_has_them_all_and_only_a_marker_lies_behind(server: Server) -> None:
    """A sink commits up to the last row; the marker of the transaction that the rows came in has an offset too."""
    server.follow()
    for number in (1, 2, 3):
        server.log.append(TOPIC, ENCODER.encode(trade(number)), transaction="ingest")
    server.log.end_transaction("ingest", commit=True)
    server.settle()
    assert server.publisher.tail_rows() == {TRADES.name: 3}
    server.adopt(server.committed([1, 2, 3], 1)[0])
    assert server.publisher.tail_rows() == {TRADES.name: 0}
    server.produce(4)
    server.settle()
    assert server.publisher.tail_rows() == {TRADES.name: 1}
    assert server.ids() == [1, 2, 3, 4]


def test_a_transaction_that_is_older_than_a_table_goes_on_as_it_was(server: Server) -> None:
    server.follow()
    server.produce(1, 2)
    server.settle()
    reader = server.database.cursor()
    before = server.publisher.published.begin(reader)
    server.produce(3)
    server.settle()  # and so what was asked last is not remembered
    assert server.publisher.published.seen(server.database.cursor()) != before
    server.publisher.add(SHED, Snapshot())
    assert server.publisher.published.seen(reader) == before
    assert server.publisher.published.cut(reader).to_text() == before.cut
    assert reader.execute("SELECT count(*) FROM market.trades").fetchall() == [(2,)]


def test_a_cut_names_what_its_transaction_sees(server: Server) -> None:
    server.follow()
    server.produce(1, 2)
    server.settle()
    cursor: Any = server.database.cursor()
    cursor.execute("BEGIN")
    before = server.publisher.published.cut(cursor)
    newer, _ = server.committed([1, 2], 1)
    server.adopt(newer)
    server.produce(3)
    server.settle()
    assert server.publisher.published.cut(cursor) == before
    assert json.loads(before.to_text())["market.trades"]["snapshot"] is None
    assert cursor.execute("SELECT count(*) FROM market.trades").fetchone() == (2,)
    cursor.close()


def test_publications_long_ago_share_what_is_left_of_their_snapshots(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old one has no index and no text of its own, and what a transaction of then asks of it is as it was."""
    monkeypatch.setattr(publications, "_INDEXES_KEPT", 2)
    server.follow()
    server.produce(1, 2, 3, 4)
    server.settle()
    server.adopt(indexed(*server.committed([1, 2], 1)))
    cursor: Any = server.database.cursor()
    cursor.execute("BEGIN")
    seen = server.publisher.published.seen(cursor)
    here = PartitionOffsets({server.partition(): 1})
    select = server.publisher.published.changes(cursor, TRADES.table, TableCut(None, here), None)
    beyond = [Condition("trade_id", ((100, 100),))]
    assert server.publisher.published.select_where(seen, TRADES.table, beyond) is not None
    # Three publications, none of which has another snapshot of the trades.
    for number in range(3):
        server.publisher.adopt({"elsewhere": Snapshot(number)})
        server.publisher._publish({})
    old = [snapshots[TRADES.name] for snapshots in server.publisher.published._generations.values()]
    lean = [snapshot for snapshot in old if snapshot.files and snapshot.index is None]
    assert len(lean) > 1 and all(snapshot is lean[0] for snapshot in lean)
    assert lean[0].relation is None and lean[0].taken == {}
    assert server.publisher.published.select_where(seen, TRADES.table, beyond) is None
    assert server.publisher.published.changes(cursor, TRADES.table, TableCut(None, here), None) == select
    assert server.publisher.snapshots()[TRADES.name].index is not None
    cursor.close()


def test_indexes_of_many_files_are_remembered_for_fewer_publications(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publications, "_INDEXED_FILES_MAX", 3)
    server.follow()
    server.produce(*range(1, 7))
    server.settle()
    for number in range(1, 7):
        server.adopt(indexed(*server.committed(list(range(1, number + 1)), number)))
    with_index = [
        snapshots[TRADES.name].snapshot_id
        for snapshots in server.publisher.published._generations.values()
        if snapshots[TRADES.name].index is not None
    ]
    assert with_index == [4, 5, 6]


def indexed(snapshot: Snapshot, path: Path) -> Snapshot:
    """The snapshot of one file, with what the catalog's reader finds of it."""
    files = {
        PATH: [str(path)],
        ADDED_BY: [snapshot.snapshot_id],
        ROWS: [1],
        lower("trade_id"): [1],
        upper("trade_id"): [9],
    }
    taken = {1: (PartitionOffsets(), snapshot.offsets)}
    return replace(snapshot, files=(str(path),), index=FileIndex.of(pa.table(files)), taken=taken)
