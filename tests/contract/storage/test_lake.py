"""The lake on a real broker and a real Iceberg table: exact answers while rows arrive and are committed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from confluent_kafka import Producer

from common.codec import Encoder
from common.datasets import BARS, TRADES
from common.errors import BrokerError, SnapshotExpired, SnapshotNotFound, TableNotFound, Unavailable
from common.iceberg import open_catalog
from common.log import KafkaLog
from common.offsets import PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.storage.as_of import AsOfCut, AsOfSnapshot, AsOfTime, parse_as_of
from flight_server.storage.lake import Lake
from flight_server.storage.read_view import Cut, TableCut
from flight_server.storage.research import ResearchTables, WriteMode
from flight_server.storage.snapshots import IcebergSnapshots
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from sink.table import IcebergTable
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)
SETTINGS = FlightSettings(threads=2, memory_bytes_max=512 * 1024**2, snapshot_refresh_ms=20, topic_refresh_ms=50)


@pytest.fixture
def kafka() -> Iterator[KafkaSettings]:
    with EmbeddedBroker() as broker:
        settings = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        KafkaLog(settings).ensure_topics([TOPIC])
        yield settings


@pytest.fixture
def lake_settings(tmp_path: Path) -> LakeSettings:
    settings = LakeSettings.load(data_dir=tmp_path)
    settings.prepare()
    return settings


class Market:
    """Trades with dense ids, spread over the partitions of the topic."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._producer = Producer(kafka.client_config() | {"linger.ms": 1})
        self.next_id = 0

    def produce(self, count: int, *, partition: int | None = None) -> None:
        for trade_id in range(self.next_id, self.next_id + count):
            number = trade_id % 4 if partition is None else partition
            self._producer.produce(TOPIC, ENCODER.encode(trade(trade_id)), partition=number)
        self.next_id += count
        self._producer.flush()

    def produce_raw(self, value: bytes) -> None:
        self._producer.produce(TOPIC, value, partition=0)
        self._producer.flush()


def ask(lake: Lake, sql: str) -> tuple[list[tuple[Any, ...]], Cut]:
    """One statement in a transaction of its own, as the engine does it."""
    cursor = lake.cursor()
    try:
        cut = lake.begin(cursor).cut
        assert cut is not None
        return cursor.execute(sql).fetchall(), Cut.from_text(cut)
    finally:
        cursor.close()


def eventually(lake: Lake, sql: str, wanted: object) -> None:
    """Ask until the answer is the wanted one."""
    waiter = threading.Event()
    for _attempt in range(1_000):
        if ask(lake, sql)[0] == wanted:
            return
        waiter.wait(0.01)
    raise AssertionError(f"{sql}: still {ask(lake, sql)[0]}, not {wanted}")


def test_counts_never_fall_and_ids_are_gapless_while_the_sink_commits(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    market = Market(kafka)
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=50), datasets=(TRADES,))
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    sink.start()
    lake.start()
    try:
        last = 0
        for turn in range(60):
            market.produce(40, partition=0)
            (row,), cut = ask(
                lake, "SELECT count(*), min(trade_id), max(trade_id), count(DISTINCT trade_id) FROM market.trades"
            )
            count, first_id, last_id, distinct = row
            assert count == distinct == (0 if last_id is None else last_id - first_id + 1)
            assert count >= last, f"turn {turn}"
            assert count == sum(cut.tables["market.trades"].offsets.values())
            last = count
        eventually(lake, "SELECT count(*), max(trade_id) FROM market.trades", [(2400, 2399)])
        assert sink.stats()["trades"].commits > 1
        assert lake.stats().snapshot_ids["trades"] is not None
    finally:
        lake.stop()
        sink.stop()
    assert lake.failure is None


def test_a_broken_message_is_left_out_and_its_neighbours_show(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    market = Market(kafka)
    market.produce(3)
    market.produce_raw(b"\x00broken")
    market.produce(3)
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    lake.start()
    try:
        rows, cut = ask(lake, "SELECT trade_id FROM market.trades ORDER BY 1")
        assert [row[0] for row in rows] == list(range(6))
        assert sum(cut.tables["market.trades"].offsets.values()) == 7
        assert lake.stats().records_refused == {"trades": 1}
    finally:
        lake.stop()


def test_an_old_transaction_keeps_its_instant_while_the_table_moves_on(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    market = Market(kafka)
    market.produce(100)
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=20), datasets=(TRADES,))
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    lake.start()
    try:
        old = lake.cursor()
        lake.begin(old)
        before = old.execute("SELECT max(_kafka_offset) FROM market.trades").fetchall()
        market.produce(100)
        sink.start()
        eventually(lake, "SELECT count(*) FROM market.trades", [(200,)])
        waiter = threading.Event()
        while sum(lake.stats().tail_rows.values()):
            waiter.wait(0.01)
        assert old.execute("SELECT count(*), max(trade_id) FROM market.trades").fetchall() == [(100, 99)]
        assert old.execute("SELECT max(_kafka_offset) FROM market.trades").fetchall() == before
        old.close()
    finally:
        lake.stop()
        sink.stop()


def all_committed_and_shown(lake: Lake, sink: SinkService, settings: LakeSettings) -> int:
    """Wait until the sink has stopped with everything committed and the lake shows the last snapshot; its id."""
    waiter = threading.Event()
    while sum(lake.stats().tail_rows.values()) or lake.stats().snapshot_ids["trades"] is None:
        waiter.wait(0.01)
    sink.stop()
    newest = open_catalog(settings).load_table("market.trades").current_snapshot()
    assert newest is not None
    while lake.stats().snapshot_ids["trades"] != newest.snapshot_id:
        waiter.wait(0.01)
    return newest.snapshot_id


def test_a_table_whose_entries_a_foreign_tool_expired_is_served_from_what_is_known(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    """Which offsets the newest snapshot holds, nobody can say; the one before it and the log give exact answers."""
    market = Market(kafka)
    market.produce(100)
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=20), datasets=(TRADES,))
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    sink.start()
    lake.start()
    try:
        known = all_committed_and_shown(lake, sink, lake_settings)
        table = open_catalog(lake_settings).load_table("market.trades")
        table.overwrite(table.scan().to_arrow())
        newest = table.current_snapshot()
        assert newest is not None
        others = [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id != newest.snapshot_id]
        table.maintenance.expire_snapshots().by_ids(others).commit()
        with pytest.raises(SnapshotNotFound, match="which Kafka offsets it holds"):
            IcebergSnapshots(lake_settings).newest(TRADES)
        for _turn in range(3):
            market.produce(20)
            eventually(lake, "SELECT count(*), count(DISTINCT trade_id) FROM market.trades", [(market.next_id,) * 2])
        assert lake.failure is None
        # The new one only if it was seen in the moment between the two commits, when its ancestor still had the entry.
        assert lake.stats().snapshot_ids["trades"] in (known, newest.snapshot_id)
        fresh = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
        with pytest.raises(SnapshotNotFound, match="roll the table back"):
            fresh.start()
        fresh.stop()
    finally:
        lake.stop()
        sink.stop()


def test_metadata_that_cannot_be_read_stops_neither_the_server_nor_the_tail(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    market = Market(kafka)
    market.produce(100)
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=20), datasets=(TRADES,))
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    sink.start()
    lake.start()
    try:
        all_committed_and_shown(lake, sink, lake_settings)
        table = open_catalog(lake_settings).load_table("market.trades")
        with table.transaction() as transaction:
            transaction.set_properties({"another": "metadata file"})
        written = Path(table.metadata_location.removeprefix("file://"))
        whole = written.read_text()
        written.write_text(whole[: len(whole) // 2])
        for _turn in range(3):
            market.produce(20)
            eventually(lake, "SELECT count(*) FROM market.trades", [(market.next_id,)])
        assert lake.failure is None
        written.write_text(whole)
    finally:
        lake.stop()
        sink.stop()


@pytest.mark.parametrize(
    "attack",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('{catalog}')",
        "SELECT * FROM glob('/*')",
        "COPY (SELECT 1) TO '{folder}/stolen.csv'",
        "ATTACH '{folder}/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "RESET lock_configuration",
    ],
)
def test_sql_reaches_nothing_but_the_warehouse(attack: str, lake_settings: LakeSettings) -> None:
    lake = Lake(KafkaSettings(bootstrap_servers="127.0.0.1:1"), lake_settings, SETTINGS)
    cursor = lake.cursor()
    text = attack.format(folder=lake_settings.data_dir, catalog=lake_settings.data_dir / "catalog.db")
    with pytest.raises(duckdb.Error):
        cursor.execute(text)
    cursor.close()
    lake.stop()


def test_before_the_start_nothing_is_answered(lake_settings: LakeSettings) -> None:
    lake = Lake(KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_ms=200), lake_settings, SETTINGS)
    with pytest.raises(Unavailable, match="not running"):
        lake.check_ready()
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        lake.start()
    lake.stop()


def test_research_tables_of_anybody_are_served_soon_and_ones_own_at_once(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    rows = pa.table({"id": [1, 2, 3]})
    others = ResearchTables(lake_settings)

    def put(tables: ResearchTables, name: str) -> None:
        write = tables.begin_write(name, rows.schema, WriteMode.CREATE_APPEND)
        write.write(rows)
        write.commit()

    put(others, "before")
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    lake.start()
    try:
        names = [(table.schema, table.name) for table in lake.tables()]
        assert names == [("market", "trades"), *(("market", bars) for bars in BARS), ("research", "before")]
        assert ask(lake, "SELECT sum(id) FROM research.before")[0] == [(6,)]
        version = lake.research_version
        put(lake.research, "mine")
        lake.publish_research()
        assert lake.research_version != version
        assert ask(lake, "SELECT count(*) FROM research.mine JOIN research.before USING (id)")[0] == [(3,)]
        put(others, "before")
        eventually(lake, "SELECT count(*) FROM research.before", [(6,)])
        cursor = lake.cursor()
        first = open_catalog(lake_settings).load_table("research.before").metadata.snapshots[0]
        for as_of in (
            AsOfSnapshot(first.snapshot_id),
            AsOfTime(first.timestamp_ms * 1_000),
            AsOfCut(Cut({"research.before": TableCut(first.snapshot_id, PartitionOffsets())})),
        ):
            select = lake.select_at(cursor, "research.before", lake.table_cut("research.before", as_of))
            assert cursor.execute(f"SELECT count(*) FROM ({select})").fetchall() == [(3,)]
        others.drop("mine")
        eventually(lake, "SELECT count(*) FROM duckdb_views() WHERE schema_name = 'research'", [(1,)])
    finally:
        lake.stop()
    assert lake.failure is None


def rows_at(lake: Lake, wanted: TableCut) -> list[tuple[Any, ...]]:
    cursor = lake.cursor()
    try:
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        select = lake.select_at(cursor, "market.trades", wanted)
        return sorted(cursor.execute(f"SELECT trade_id FROM ({select}) AS trades").fetchall())
    finally:
        cursor.close()


def test_a_cut_a_snapshot_and_a_time_are_read_again_while_the_market_goes_on(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    market = Market(kafka)
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=20), datasets=(TRADES,))
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    other = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    sink.start()
    lake.start()
    try:
        taken: list[tuple[Cut, list[tuple[Any, ...]]]] = []
        for _turn in range(6):
            market.produce(50)
            eventually(lake, "SELECT count(*) FROM market.trades", [(market.next_id,)])
            rows, cut = ask(lake, "SELECT trade_id FROM market.trades ORDER BY 1")
            taken.append((cut, rows))
        waiter = threading.Event()
        while sum(lake.stats().tail_rows.values()):
            waiter.wait(0.01)
        other.start()
        for cut, rows in taken:
            wanted = lake.table_cut("market.trades", parse_as_of(cut.to_text()))
            assert rows_at(lake, wanted) == rows
            assert rows_at(other, wanted) == rows  # another server, which never saw that tail
        for entry in IcebergTable.open(lake_settings, TRADES).iceberg_table.metadata.snapshot_log:
            by_id = lake.table_cut("market.trades", AsOfSnapshot(entry.snapshot_id))
            by_time = lake.table_cut("market.trades", AsOfTime(entry.timestamp_ms * 1_000))
            assert by_id.offsets.covers(by_time.offsets) or by_time.offsets.covers(by_id.offsets)
            assert len(rows_at(lake, by_id)) == sum(by_id.offsets.values())
        assert rows_at(lake, lake.table_cut("market.trades", AsOfTime(0))) == []
        with pytest.raises(SnapshotNotFound):
            lake.table_cut("market.trades", AsOfSnapshot(1))
        with pytest.raises(TableNotFound):
            lake.table_cut("market.nothing", AsOfTime(0))
    finally:
        other.stop()
        lake.stop()
        sink.stop()


def test_a_cut_of_a_server_that_is_further_waits_and_a_foreign_one_does_not(
    kafka: KafkaSettings, lake_settings: LakeSettings
) -> None:
    market = Market(kafka)
    market.produce(10)
    lake = Lake(kafka, lake_settings, SETTINGS, datasets=(TRADES,))
    lake.start()
    try:
        _, cut = ask(lake, "SELECT 1")
        offsets = cut.tables["market.trades"].offsets
        further = PartitionOffsets({partition: until + 1 for partition, until in offsets.items()})
        with pytest.raises(Unavailable, match="try again"):
            rows_at(lake, TableCut(None, further))
        foreign = PartitionOffsets({p._replace(cluster_id="elsewhere"): until for p, until in offsets.items()})
        with pytest.raises(SnapshotExpired, match="elsewhere"):
            rows_at(lake, TableCut(None, foreign))
        gone = PartitionOffsets({p._replace(topic_id="gone-topic"): until for p, until in offsets.items()})
        with pytest.raises(SnapshotExpired, match="gone"):
            rows_at(lake, TableCut(None, gone))
    finally:
        lake.stop()


def test_an_instant_that_is_about_to_come_is_waited_for(kafka: KafkaSettings, lake_settings: LakeSettings) -> None:
    """As one that another server has given out, or the newest commit, of more than was read here."""
    market = Market(kafka)
    market.produce(8)
    settings = SETTINGS.model_copy(update={"as_of_wait_ms": 60_000})
    lake = Lake(kafka, lake_settings, settings, datasets=(TRADES,))
    lake.start()
    try:
        _, cut = ask(lake, "SELECT 1")
        here = cut.tables["market.trades"].offsets
        further = TableCut(None, PartitionOffsets({partition: until + 1 for partition, until in here.items()}))
        found: list[TableCut] = []

        def wait() -> None:
            found.append(lake.table_cut("market.trades", AsOfCut(Cut({"market.trades": further}))))

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()  # nothing came yet
        market.produce(4)
        waiter.join(30)
        assert found == [further]
        assert len(rows_at(lake, further)) == 12
    finally:
        lake.stop()


def test_an_instant_that_does_not_come_is_told_after_a_while(kafka: KafkaSettings, lake_settings: LakeSettings) -> None:
    Market(kafka).produce(8)
    lake = Lake(kafka, lake_settings, SETTINGS.model_copy(update={"as_of_wait_ms": 50}), datasets=(TRADES,))
    lake.start()
    try:
        _, cut = ask(lake, "SELECT 1")
        offsets = cut.tables["market.trades"].offsets
        further = TableCut(None, PartitionOffsets({partition: until + 1 for partition, until in offsets.items()}))
        assert lake.table_cut("market.trades", AsOfCut(Cut({"market.trades": further}))) == further
        with pytest.raises(Unavailable, match="try again"):
            rows_at(lake, further)
    finally:
        lake.stop()
