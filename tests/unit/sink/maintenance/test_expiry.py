"""Snapshots expire, and what the table holds and says of itself stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots, snapshots_to_expire
from sink.table import IcebergTable
from tests.support.records import table_rows, trade

P0 = KafkaPartition("cluster", "topic-id-1", 0)
LATER_US = 4_000_000_000_000_000  # far behind any snapshot's own time


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def table(lake: LakeSettings) -> IcebergTable:
    return IcebergTable.open(lake, TRADES)


def fill(table: IcebergTable, commits: int) -> None:
    for n in range(commits):
        rows = table_rows("trade", [trade(n)], first_offset=n)
        table.append(rows, PartitionOffsets({P0: n}), PartitionOffsets({P0: n + 1}), f"commit-{n}")


def count(table: IcebergTable) -> int:
    return len(table.iceberg_table.metadata.snapshots)


def ids(table: IcebergTable) -> list[int]:
    return sorted(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())


def files_of(lake: LakeSettings) -> list[Path]:
    """Data files, manifests and their lists."""
    found = (path for path in lake.data_dir.rglob("*") if path.parent.name != "history")
    return sorted(path for path in found if path.suffix in (".parquet", ".avro"))


def test_rows_and_offsets_outlive_the_snapshots(lake: LakeSettings, table: IcebergTable) -> None:
    fill(table, 6)
    files = files_of(lake)
    assert expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=2), LATER_US) == 4
    fresh = IcebergTable.open(lake, TRADES)
    assert count(fresh) == 2
    assert ids(fresh) == list(range(6))
    assert fresh.committed_offsets() == PartitionOffsets({P0: 6})
    assert files_of(lake) == files
    fresh.append(table_rows("trade", [trade(6)]), PartitionOffsets({P0: 6}), PartitionOffsets({P0: 7}), "next")
    assert ids(fresh) == list(range(7))


def test_the_same_object_commits_on_after_expiring(table: IcebergTable) -> None:
    fill(table, 3)
    expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US)
    table.append(table_rows("trade", [trade(3)]), PartitionOffsets({P0: 3}), PartitionOffsets({P0: 4}), "next")
    assert ids(table) == [0, 1, 2, 3]


def test_young_snapshots_stay(table: IcebergTable) -> None:
    fill(table, 3)
    newest_us = max(snapshot.timestamp_ms for snapshot in table.iceberg_table.metadata.snapshots) * 1000
    policy = ExpiryPolicy(snapshots_kept_min=1, age_us_min=60_000_000)
    assert expire_snapshots(table, policy, newest_us + 50_000_000) == 0
    assert count(table) == 3


def test_tagged_snapshots_stay(table: IcebergTable) -> None:
    fill(table, 4)
    oldest = table.iceberg_table.metadata.snapshots[0].snapshot_id
    table.iceberg_table.manage_snapshots().create_tag(oldest, "audit").commit()
    table.reload()
    assert expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US) == 2
    assert {snapshot.snapshot_id for snapshot in table.iceberg_table.metadata.snapshots} == {oldest, table.snapshot_id}


def test_the_snapshot_that_holds_the_offsets_stays_when_foreign_ones_are_newer(
    lake: LakeSettings, table: IcebergTable
) -> None:
    fill(table, 3)
    foreign = open_catalog(lake).load_table("market.trades")
    for n in range(3):
        foreign.append(table_rows("trade", [trade(100 + n)]))
    table.reload()
    expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US)
    assert table.committed_offsets() == PartitionOffsets({P0: 3})


def test_of_two_that_expire_at_once_the_second_finds_it_done(lake: LakeSettings, table: IcebergTable) -> None:
    fill(table, 4)
    second = IcebergTable.open(lake, TRADES)
    assert expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US) == 3
    assert expire_snapshots(second, ExpiryPolicy(snapshots_kept_min=1), LATER_US) == 0
    assert count(second) == 1


def test_an_empty_table_has_nothing_to_expire(table: IcebergTable) -> None:
    assert snapshots_to_expire(table.iceberg_table.metadata, ExpiryPolicy(snapshots_kept_min=1), LATER_US) == set()
    assert expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US) == 0
