"""What a snapshot is read as: its files by name while they are few and plain, by iceberg_scan otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import StringType
from sqlalchemy.event import listen

from common.datasets import BARS, GAP_EVENTS, QUOTES, TRADES
from common.iceberg import open_catalog
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.database import Database
from flight_server.storage.manifests import ManifestReader
from flight_server.storage.read_view import Snapshot
from flight_server.storage.snapshots import _FILES_MAX, IcebergSnapshots
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.table import IcebergTable
from tests.support.fake_lake import trades

PARTITION = KafkaPartition("cluster", "topic-id-abcdefgh", 0)
LATER_US = 4_000_000_000_000_000


class Written:
    """A table that grows by one file of ten trades a commit."""

    def __init__(self, folder: Path) -> None:
        self.lake = LakeSettings(data_dir=folder)
        self.lake.prepare()
        self.table = IcebergTable.open(self.lake, TRADES)
        self.commits = 0

    def commit(self, count: int = 1) -> None:
        for _ in range(count):
            start = self.commits * 10
            base = PartitionOffsets({PARTITION: start} if start else {})
            rows: pa.Table = trades(range(start, start + 10))
            self.table.append(rows, base, PartitionOffsets({PARTITION: start + 10}), f"commit-{self.commits}")
            self.commits += 1


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


@pytest.fixture
def database(written: Written) -> Iterator[Database]:
    opened = Database(FlightSettings(), written.lake)
    yield opened
    opened.close()


@pytest.fixture
def snapshots(written: Written, database: Database) -> IcebergSnapshots:
    return IcebergSnapshots(written.lake, ManifestReader(database.cursor))


def test_few_files_are_read_by_name_and_give_the_snapshots_rows(
    written: Written, snapshots: IcebergSnapshots, database: Database
) -> None:
    written.commit(2)
    snapshot = snapshots.newest(TRADES)
    assert snapshot.relation is not None and snapshot.relation.startswith("read_parquet([")
    assert snapshots.newest(TRADES) is snapshot
    written.commit()
    newer = snapshots.newest(TRADES)
    assert ids(database, snapshot.relation) == list(range(20))
    assert ids(database, newer.relation) == list(range(30))
    table = open_catalog(written.lake).load_table(TRADES.table)
    scanned = f"iceberg_scan('{table.metadata_location}', snapshot_from_id => {newer.snapshot_id})"
    assert rows(database, newer.relation) == rows(database, scanned)


def test_many_files_are_left_to_iceberg_scan(written: Written, snapshots: IcebergSnapshots) -> None:
    written.commit(_FILES_MAX)
    assert "read_parquet" in str(snapshots.newest(TRADES).relation)
    written.commit()
    assert "iceberg_scan" in str(snapshots.newest(TRADES).relation)


def test_a_table_whose_schema_has_changed_is_left_to_iceberg_scan(
    written: Written, snapshots: IcebergSnapshots, database: Database
) -> None:
    """A snapshot has the columns of its own schema: the new one comes with the first snapshot that was made with it."""
    written.commit()
    with open_catalog(written.lake).load_table(TRADES.table).update_schema() as update:
        update.add_column("venue_note", StringType())
    found = snapshots.newest(TRADES)
    assert "iceberg_scan" in str(found.relation) and "venue_note" not in found.columns
    assert set(rows(database, found.relation)[0]) == set(found.columns)
    table = open_catalog(written.lake).load_table(TRADES.table)
    table.append(table.scan().to_arrow().slice(0, 0))
    found = snapshots.newest(TRADES)
    assert "iceberg_scan" in str(found.relation) and "venue_note" in found.columns
    assert set(rows(database, found.relation)[0]) == set(found.columns)


def test_of_files_that_are_there_it_is_remembered_which_offsets_came_with_them(
    written: Written, snapshots: IcebergSnapshots
) -> None:
    """Also when their snapshots have expired; and of files that compaction took up nothing is remembered."""
    written.commit(3)
    three = snapshots.newest(TRADES).taken
    assert sorted((begin.next_offset(PARTITION), end.next_offset(PARTITION)) for begin, end in three.values()) == [
        (0, 10),
        (10, 20),
        (20, 30),
    ]
    assert expire_snapshots(written.table, ExpiryPolicy(1, 0), LATER_US) == 2
    written.table.reload()
    written.commit()
    four = snapshots.newest(TRADES).taken
    assert three.items() < four.items() and len(four) == 4
    compact(written.table, CompactionPolicy(), LATER_US)
    assert snapshots.newest(TRADES).taken == {}
    written.commit()
    assert len(snapshots.newest(TRADES).taken) == 1


def test_where_all_tables_are_is_one_query_and_what_did_not_move_is_none(
    written: Written, snapshots: IcebergSnapshots
) -> None:
    tables = (TRADES, QUOTES, GAP_EVENTS, *BARS.values())
    written.commit()
    before = snapshots.newest(TRADES)
    asked: list[str] = []
    catalog = snapshots._open()
    assert isinstance(catalog, SqlCatalog)
    listen(catalog.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    locations = snapshots.locations(tables)
    found = [snapshots.newest(table, locations) for table in tables]
    assert len(asked) == 1, asked
    assert found[0] is before and found[1:] == [Snapshot()] * (len(tables) - 1)
    written.commit()
    moved = snapshots.newest(TRADES, snapshots.locations(tables))
    assert moved.snapshot_id != before.snapshot_id and moved.rows == 20


def ids(database: Database, relation: Any) -> list[int]:
    found = database.cursor().execute(f"SELECT trade_id FROM {relation} ORDER BY 1").fetchall()
    return [number for (number,) in found]


def rows(database: Database, relation: Any) -> list[Any]:
    table: pa.Table = database.cursor().execute(f"SELECT * FROM {relation} ORDER BY trade_id").to_arrow_table()
    return list(table.to_pylist())
