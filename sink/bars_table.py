"""A table of bars: its files by their time, what of them is written anew, and how far it has taken in the trades.

It is an IcebergTable whose `k2.offsets` are offsets of the trades: every trade below them is in its bars, and no other.
Bars and offsets move in one snapshot, only on top of the offsets that they were made for (rules 1 to 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntryStatus
from pyiceberg.table import FileScanTask
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.types import TimestamptzType

from common.datasets import Bars
from common.errors import K2Error
from common.iceberg import MergingOverwrite, ThriftyTransaction, translated
from common.offsets import COMMIT_ID_KEY, SUMMARY_KEY, PartitionOffsets
from sink.bars import BAR_SCHEMA, folded
from sink.bars_layout import Span, pieces, rewrites
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.table import IcebergTable, WrittenFiles

_DAY_US = 86_400_000_000
#: What is assumed of a file that does not say.
_ANY_TIME = Span(-(2**62), 2**62, 0)
#: Bars that were written anew leave their old file behind, which readers of older snapshots still read: it stays for
#: longer than a statement may take (K2_FLIGHT_STATEMENT_TIMEOUT_S, 5 minutes).
EXPIRY = ExpiryPolicy(snapshots_kept_min=2, age_us_min=900 * 1_000_000)


@dataclass(frozen=True)
class Change:
    """Files of bars that lie in the warehouse, those that they take the place of, and what the table then says."""

    files: WrittenFiles
    replacing: tuple[DataFile, ...]
    base: PartitionOffsets
    to: PartitionOffsets


class BarsTable(IcebergTable):
    """One table of bars. One thread at a time per object."""

    _dataset: Bars
    #: Manifest -> its live files and their times. A manifest never changes.
    _listed: dict[str, list[tuple[DataFile, Span]]] | None = None

    @property
    def width_us(self) -> int:
        return self._dataset.width_us

    @property
    def files(self) -> int:
        """Data files of the newest snapshot as of the last load."""
        return len(self._files())

    def prepare(self, more: pa.Table, base: PartitionOffsets, to: PartitionOffsets) -> Change:
        """Write the files that the table has with further bars in it, those of the trades in [base, to), as of its last
        load. Nothing refers to them until `land`. Raises CatalogError, K2Error.
        """
        held = self._files()
        start_us = more.column("bar_start").cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=False)
        period_us = None if self._dataset.day_column is None else _DAY_US
        written: list[WrittenFiles] = []
        replacing: list[DataFile] = []
        for one in rewrites([span for _, span in held], np.asarray(start_us), period_us=period_us):
            old = [held[index][0] for index in one.files]
            bars = folded(self._read(old), more.take(pa.array(one.bars)), self.width_us)
            written += [self.write(piece) for piece in pieces(bars, period_us=period_us)]
            replacing += old
        files = WrittenFiles(
            tuple(data_file for each in written for data_file in each.data_files), sum(each.rows for each in written)
        )
        return Change(files, tuple(replacing), base, to)

    def land(self, change: Change, commit_id: str) -> int:
        """Make the change part of the table; as IcebergTable.commit, with its errors."""
        return self.commit(change.files, change.base, change.to, commit_id, replacing=change.replacing)

    def empty(self, commit_id: str) -> int:
        """Take every bar out of the table, which then has taken in nothing: they are to be made anew from the trades.

        Returns the number of bars that went. Raises as `commit`, and CatalogError.
        """
        self.reload()
        held, rows = [data_file for data_file, _ in self._files()], self.rows
        summary = {SUMMARY_KEY: PartitionOffsets().to_text(), COMMIT_ID_KEY: commit_id}
        transaction = ThriftyTransaction(self.iceberg_table)
        with (
            translated(f"prepare a commit to {self.name}"),
            MergingOverwrite.of(transaction, summary) as change,
        ):
            for data_file in held:
                change.delete_data_file(data_file)
        self.swap(transaction, commit_id)
        return rows

    def expire(self, now_us: int) -> int:
        """Expire old snapshots, and delete the files that only they had; returns how many snapshots went.

        Files stay that a snapshot before may have (a tag's), and after a crash in between; nothing refers to the latter
        then. Raises CatalogError.
        """
        before = self.iceberg_table.metadata
        line = list(ancestors_of(before.current_snapshot(), before))
        expired = expire_snapshots(self, EXPIRY, now_us)
        if not expired:
            return 0
        self.reload()
        kept = self.iceberg_table.metadata.snapshots
        oldest = min((snapshot.sequence_number or 0 for snapshot in kept), default=0)
        live = {data_file.file_path for data_file, _ in self._files()}
        for snapshot in line:
            # What the oldest one that is kept took out is in none that is kept.
            if (snapshot.sequence_number or 0) <= oldest:
                self._delete_replaced(snapshot, live)
        return expired

    # -- inside

    def _files(self) -> list[tuple[DataFile, Span]]:
        """The data files of the newest loaded snapshot, with their times. Raises CatalogError, K2Error."""
        snapshot = self.iceberg_table.metadata.current_snapshot()
        if snapshot is None:
            return []
        with translated(f"list the files of {self.name}"):
            manifests = snapshot.manifests(self.iceberg_table.io)
            if any(manifest.content != ManifestContent.DATA for manifest in manifests):
                raise K2Error(
                    f"the table {self.name} has delete files, which no tool of K2 writes there; make it anew with "
                    "`k2 bars rebuild`"
                )
            known, now = self._listed or {}, {}
            for manifest in manifests:
                path = manifest.manifest_path
                now[path] = known.get(path) or [
                    (entry.data_file, self._span(entry.data_file))
                    for entry in manifest.fetch_manifest_entry(self.iceberg_table.io, discard_deleted=True)
                ]
        self._listed = now
        return [found for listed in now.values() for found in listed]

    def _span(self, data_file: DataFile) -> Span:
        field_id = self.iceberg_table.schema().find_field("bar_start").field_id
        low, high = (bounds.get(field_id) for bounds in (data_file.lower_bounds or {}, data_file.upper_bounds or {}))
        if low is None or high is None:
            return _ANY_TIME
        first, last = (int(from_bytes(TimestamptzType(), bound)) for bound in (low, high))
        return Span(first, last, int(data_file.record_count))

    def _read(self, data_files: Sequence[DataFile]) -> pa.Table:
        if not data_files:
            return BAR_SCHEMA.empty_table()
        table = self.iceberg_table
        with translated(f"read bars of {self.name}"):
            scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
            found = scan.to_table([FileScanTask(data_file) for data_file in data_files])
            return found.select(BAR_SCHEMA.names).cast(BAR_SCHEMA)

    def _delete_replaced(self, snapshot: Snapshot, live: Set[str]) -> None:
        """Delete the files that this snapshot took out of the table. An orphan that stays is harmless."""
        io = self.iceberg_table.io
        with contextlib.suppress(OSError):
            for manifest in snapshot.manifests(io):
                if manifest.added_snapshot_id != snapshot.snapshot_id:
                    continue
                for entry in manifest.fetch_manifest_entry(io, discard_deleted=False):
                    path = entry.data_file.file_path
                    is_ours = entry.snapshot_id == snapshot.snapshot_id
                    if entry.status == ManifestEntryStatus.DELETED and is_ours and path not in live:
                        with contextlib.suppress(OSError):
                            io.delete(path)
