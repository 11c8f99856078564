"""A table's metadata without a catalog or rows: commits, rollbacks, branches and expiries by hand, at times by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pyiceberg.io import FileIO, load_file_io
from pyiceberg.io.pyarrow import pyarrow_to_schema
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataV2
from pyiceberg.table.refs import SnapshotRef, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, SnapshotLogEntry, Summary
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import (
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    update_table_metadata,
)

from common.commits import HISTORY_KEY
from common.offsets import SUMMARY_KEY, PartitionOffsets
from common.schemas.arrow import table_schema


class Past:
    """`metadata` is the table's as committed; `table` as PyIceberg has it, its files in `folder`."""

    def __init__(self, folder: Path) -> None:
        schema = pyarrow_to_schema(table_schema("trade"))
        self.io: FileIO = load_file_io({}, str(folder))
        self.metadata: TableMetadata = TableMetadataV2(
            location=str(folder),
            last_column_id=schema.highest_field_id,
            schemas=[schema],
            current_schema_id=schema.schema_id,
            partition_specs=[UNPARTITIONED_PARTITION_SPEC],
            default_spec_id=UNPARTITIONED_PARTITION_SPEC.spec_id,
            sort_orders=[UNSORTED_SORT_ORDER],
            default_sort_order_id=UNSORTED_SORT_ORDER.order_id,
        )
        self.now_ms = 1_000
        self._ids = 0

    @property
    def table(self) -> Table:
        return cast(Table, SimpleNamespace(metadata=self.metadata, io=self.io))

    @property
    def current_id(self) -> int | None:
        return self.metadata.current_snapshot_id

    def commit(
        self,
        offsets: PartitionOffsets | None = None,
        *,
        branch: bool = False,
        operation: str = "append",
        summary: dict[str, str] | None = None,
    ) -> int:
        """A snapshot on the current one; `offsets` None: a foreign one, without the entry. Returns its id."""
        self.now_ms += 10
        self._ids += 1
        snapshot_id = (self._ids * 7_919_000_003) % 2**62  # ids are in no order
        number = cast(Any, self.metadata).last_sequence_number + 1
        entries = dict(summary or {})
        if offsets is not None:
            entries[SUMMARY_KEY] = offsets.to_text()
        snapshot = Snapshot(
            snapshot_id=snapshot_id,
            parent_snapshot_id=self.current_id,
            sequence_number=number,
            timestamp_ms=self.now_ms,
            manifest_list="",
            summary=Summary(Operation(operation), **entries),
            schema_id=self.metadata.current_schema_id,
        )
        changed: dict[str, Any] = {
            "snapshots": [*self.metadata.snapshots, snapshot],
            "last_sequence_number": number,
            "last_updated_ms": self.now_ms,
        }
        if branch:
            reference = SnapshotRef(snapshot_id=snapshot_id, snapshot_ref_type=SnapshotRefType.BRANCH)
            changed["refs"] = {**self.metadata.refs, f"branch-{self._ids}": reference}
        self.metadata = self.metadata.model_copy(update=changed)
        if not branch:
            self._become(snapshot_id)
        return snapshot_id

    def rollback(self, snapshot_id: int) -> None:
        """An older snapshot, which is kept, becomes the current one again."""
        self.now_ms += 10
        self._become(snapshot_id)

    def without_branches(self) -> None:
        refs = {name: ref for name, ref in self.metadata.refs.items() if name == "main"}
        self.metadata = self.metadata.model_copy(update={"refs": refs})

    def expire(self, ids: set[int], property_text: str | None = None) -> None:
        """Remove snapshots, and set the history's property with it."""
        updates: tuple[Any, ...] = (RemoveSnapshotsUpdate(snapshot_ids=sorted(ids)),)
        if property_text is not None:
            updates += (SetPropertiesUpdate(updates={HISTORY_KEY: property_text}),)
        self.metadata = update_table_metadata(self.metadata, updates)

    def expirable(self) -> list[int]:
        """The ids of the snapshots that no branch or tag refers to."""
        held = {reference.snapshot_id for reference in self.metadata.refs.values()}
        return [snapshot.snapshot_id for snapshot in self.metadata.snapshots if snapshot.snapshot_id not in held]

    def _become(self, snapshot_id: int) -> None:
        main = SnapshotRef(snapshot_id=snapshot_id, snapshot_ref_type=SnapshotRefType.BRANCH)
        entry = SnapshotLogEntry(snapshot_id=snapshot_id, timestamp_ms=self.now_ms)
        self.metadata = self.metadata.model_copy(
            update={
                "current_snapshot_id": snapshot_id,
                "refs": {**self.metadata.refs, "main": main},
                "snapshot_log": [*self.metadata.snapshot_log, entry],
            }
        )
