"""A lake with trades by hand, and what is compared of two tables that should be one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyiceberg.table import Table

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.recovery.archive import RESTORED_KEY
from sink.table import IcebergTable
from tests.support.records import table_rows, trade

PARTITION = KafkaPartition("cluster", "topic-id-1", 0)
LATER_US = 4_000_000_000_000_000  # far behind any snapshot's own time


def lake_at(folder: Path) -> LakeSettings:
    settings = LakeSettings.load(data_dir=folder)
    settings.prepare()
    return settings


def fill(lake: LakeSettings, commits: int, *, rows: int = 3) -> IcebergTable:
    """So many more commits to `market.trades`, each of `rows` trades whose ids are their offsets."""
    table = IcebergTable.open(lake, TRADES)
    for _ in range(commits):
        first = table.committed_offsets().next_offset(PARTITION)
        trades = [trade(n, vendor_data={"n": str(n)}) for n in range(first, first + rows)]
        table.append(
            table_rows("trade", trades, first_offset=first),
            PartitionOffsets({PARTITION: first}),
            PartitionOffsets({PARTITION: first + rows}),
            f"commit-{first}",
        )
    return table


def loaded(lake: LakeSettings, name: str = "market.trades") -> Table:
    return open_catalog(lake).load_table(name)


def rows_of(table: Table, snapshot_id: int | None = None) -> list[dict[str, Any]]:
    """All rows, in the order of their offsets."""
    found: list[dict[str, Any]] = table.scan(snapshot_id=snapshot_id).to_arrow().to_pylist()
    return sorted(found, key=lambda row: (row["_kafka_partition"], row["_kafka_offset"]))


def said_of(table: Table) -> Any:
    """Everything that a table's metadata, lists and manifests say, with paths below its location made relative."""
    base = table.metadata.location.rstrip("/") + "/"
    tree = table.metadata.model_dump(mode="json", by_alias=True) | {"location": "", "metadata-log": []}
    tree["properties"].pop(RESTORED_KEY, None)
    entries = {
        snapshot.snapshot_id: [
            (
                manifest.manifest_path,
                manifest.sequence_number,
                manifest.min_sequence_number,
                manifest.added_snapshot_id,
                manifest.partition_spec_id,
                manifest.content,
                [
                    (
                        entry.status,
                        entry.snapshot_id,
                        entry.sequence_number,
                        entry.file_sequence_number,
                        _plain(entry.data_file),
                    )
                    for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)
                ],
            )
            for manifest in snapshot.manifests(table.io)
        ]
        for snapshot in table.metadata.snapshots
    }
    return _relative([tree, entries], base)


def _plain(data_file: Any) -> list[Any]:
    """The values of a manifest's data file; its maps are read when they are looked at."""
    values = [data_file[position] for position in range(len(data_file))]
    return [dict(value.items()) if isinstance(value, Mapping) else str(value) for value in values]


def _relative(value: Any, base: str) -> Any:
    if isinstance(value, dict):
        return {key: _relative(each, base) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_relative(each, base) for each in value]
    return value.replace(base, "") if isinstance(value, str) else value
