"""A table of trades on local files, filled as the sink fills it, and what is in it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.manifest import DataFile

from common.datasets import TRADES, Dataset
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.support.records import EPOCH, table_rows, trade

PARTITION = KafkaPartition("cluster", "topic-id-1", 0)


def lake_settings(folder: Path, **settings: Any) -> LakeSettings:
    one = LakeSettings(data_dir=folder, **settings)
    one.prepare()
    return one


def trades_of(first: int, count: int, *, day: int = 0, symbols: int = 3) -> pa.Table:
    """Trades of a day, one a millisecond, by turns of these symbols; offsets and ids are the same numbers."""
    rows = [
        trade(n, symbol=f"S{n % symbols}", event_time=EPOCH + timedelta(days=day, milliseconds=n))
        for n in range(first, first + count)
    ]
    return table_rows("trade", rows, first_offset=first)


class Filled:
    """A table, and what was appended to it."""

    def __init__(self, folder: Path, dataset: Dataset = TRADES, **settings: Any) -> None:
        self.settings = lake_settings(folder, **settings)
        self.folder = folder
        self.dataset = dataset
        self.table = IcebergTable.open(self.settings, dataset)
        self.end = 0

    def append(self, count: int = 10, *, day: int = 0, symbols: int = 3, table: IcebergTable | None = None) -> None:
        """A commit of so many trades of a day."""
        rows = trades_of(self.end, count, day=day, symbols=symbols)
        self.append_rows(rows, table=table)

    def append_rows(self, rows: pa.Table, *, table: IcebergTable | None = None) -> None:
        table = table or self.table
        base = table.committed_offsets()
        end = self.end + rows.num_rows
        table.append(rows, base, PartitionOffsets({PARTITION: end}), f"to-{end}")
        self.end = end

    def other(self) -> IcebergTable:
        """The same table through a connection of its own."""
        return IcebergTable.open(self.settings, self.dataset)

    def ids(self, snapshot_id: int | None = None) -> list[int]:
        """The ids of all rows, of the newest snapshot or of another one, ascending."""
        self.table.reload()
        scan = self.table.iceberg_table.scan(snapshot_id=snapshot_id)
        return sorted(scan.to_arrow()[self.dataset.id_column].to_pylist())

    def files(self) -> list[DataFile]:
        self.table.reload()
        return data_files(self.table)

    def stored(self) -> set[str]:
        """The Parquet files of the table that are on disk, listed by a snapshot or not."""
        data = self.folder / "warehouse" / "market" / self.dataset.name / "data"
        return {f"file://{path}" for path in data.rglob("*.parquet")}


def data_files(table: IcebergTable) -> list[DataFile]:
    """The data files of the newest loaded snapshot."""
    iceberg = table.iceberg_table
    snapshot = iceberg.current_snapshot()
    if snapshot is None:
        return []
    return [
        entry.data_file
        for manifest in snapshot.manifests(iceberg.io)
        for entry in manifest.fetch_manifest_entry(iceberg.io)
    ]
