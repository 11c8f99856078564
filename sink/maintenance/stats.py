"""What a table is made of: rows, files and their sizes, snapshots, manifests, metadata. Reads manifests, no rows."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFileContent, ManifestEntry
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot

from common.commit_files import CommitLog
from common.iceberg import summary_entry, translated
from sink.maintenance.files import FileStore, live_entries, manifests_of
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted, in_bytes

_MB = 1_000_000
#: Upper ends of the classes of file sizes, in bytes; the last class has none.
SIZE_CLASSES = (_MB // 10, _MB, 8 * _MB, 32 * _MB, 128 * _MB, 512 * _MB)


@dataclass(frozen=True)
class SizeClass:
    """Files of less than `below_nbytes` and not of the class before; None: of any size beyond."""

    below_nbytes: int | None
    files: int
    nbytes: int

    def to_json(self) -> dict[str, int | None]:
        return {"below_nbytes": self.below_nbytes, "files": self.files, "nbytes": self.nbytes}


@dataclass(frozen=True)
class StatsReport(Report):
    """The current snapshot's files, and what is kept beside it.

    `uncompressed_nbytes` is what the files' columns have before compression, from their footers; None unless asked for.
    """

    job: ClassVar[str] = "stats"

    snapshot_id: int | None
    rows: int
    data_files: int
    data_nbytes: int
    median_file_nbytes: int
    sizes: tuple[SizeClass, ...]
    delete_files: int
    deleted_rows: int
    iceberg_partitions: int
    partition_fields: tuple[str, ...]
    sort_fields: tuple[str, ...]
    codec: str
    uncompressed_nbytes: int | None
    manifests: int
    manifest_nbytes: int
    metadata_nbytes: int
    snapshots: int
    commits: int
    tags: dict[str, int]
    format_version: int
    kafka_partitions: int

    def to_text(self) -> str:
        partitioned = (
            f"{counted(self.iceberg_partitions, 'partition')} by {', '.join(self.partition_fields)}"
            if self.partition_fields
            else "not partitioned"
        )
        per_row = f", {self.data_nbytes / self.rows:.1f} bytes a row" if self.rows else ""
        packed = ""
        if self.uncompressed_nbytes:
            packed = f", {self.uncompressed_nbytes / max(self.data_nbytes, 1):.1f} times smaller than uncompressed"
        lines = [
            f"{counted(self.rows, 'row')} in {counted(self.data_files, 'file')}, {in_bytes(self.data_nbytes)}{per_row}",
            f"{partitioned}, sorted by {', '.join(self.sort_fields) or 'nothing'}, {self.codec}{packed}",
            f"file sizes: {', '.join(_text(one) for one in self.sizes if one.files) or 'no files'}"
            + (f"; half of them below {in_bytes(self.median_file_nbytes)}" if self.data_files > 1 else ""),
            f"{counted(self.delete_files, 'delete file')}"
            + (f", which take out {counted(self.deleted_rows, 'row')}" if self.delete_files else ""),
            f"{counted(self.snapshots, 'snapshot')} kept of {counted(self.commits, 'commit')}, "
            f"{counted(self.manifests, 'manifest')} of {in_bytes(self.manifest_nbytes)}, "
            f"metadata of {in_bytes(self.metadata_nbytes)}",
        ]
        if self.tags:
            lines.append("tags: " + ", ".join(f"{name} on {snapshot}" for name, snapshot in self.tags.items()))
        return "\n".join(lines)


def stats(table: MaintainedTable, *, deep: bool = False, progress: Progress = UNWATCHED) -> StatsReport:
    """The table as it is now. `deep` reads every file's footer, for the compression. Raises CatalogError, Refused."""
    with translated(f"read what {table.name} is made of"):
        progress.step("load the table")
        table.reload()
        iceberg_table = table.iceberg_table
        metadata = iceberg_table.metadata
        snapshot = metadata.current_snapshot()
        manifests = [] if snapshot is None else manifests_of(snapshot, iceberg_table.io)
        files, deletes = _Files(), _Files()
        progress.step("read manifests", len(manifests))
        for manifest in manifests:
            for entry in live_entries(manifest, iceberg_table.io):
                (files if entry.data_file.content == DataFileContent.DATA else deletes).add(entry)
            progress.advance()
        log = CommitLog()
        log.update(iceberg_table)
        uncompressed = _uncompressed(iceberg_table, files.paths, progress) if deep else None
        metadata_nbytes = FileStore(iceberg_table.io, metadata.location).sizes([iceberg_table.metadata_location])[0]
        spec = metadata.spec()
        current_schema = iceberg_table.schema()
        return StatsReport(
            table.name,
            dry_run=False,
            snapshot_id=None if snapshot is None else snapshot.snapshot_id,
            rows=files.rows,
            data_files=len(files.sizes),
            data_nbytes=sum(files.sizes),
            median_file_nbytes=int(np.median(files.sizes)) if files.sizes else 0,
            sizes=size_classes(files.sizes),
            delete_files=len(deletes.sizes),
            deleted_rows=deletes.rows,
            iceberg_partitions=len(files.partitions),
            partition_fields=tuple(field.name for field in spec.fields),
            sort_fields=tuple(
                current_schema.find_column_name(field.source_id) or str(field.source_id)
                for field in iceberg_table.sort_order().fields
            ),
            codec=metadata.properties.get("write.parquet.compression-codec", "zstd"),
            uncompressed_nbytes=uncompressed,
            manifests=len(manifests),
            manifest_nbytes=sum(manifest.manifest_length for manifest in manifests),
            metadata_nbytes=metadata_nbytes or 0,
            snapshots=len(metadata.snapshots),
            commits=sum(last - first + 1 for first, last in log.known),
            tags={
                name: reference.snapshot_id
                for name, reference in sorted(metadata.refs.items())
                if reference.snapshot_ref_type == SnapshotRefType.TAG
            },
            format_version=metadata.format_version,
            kafka_partitions=_kafka_partitions(log, metadata.current_snapshot_id),
        )


def size_classes(sizes: Sequence[int]) -> tuple[SizeClass, ...]:
    """How many files there are of each class, the empty ones included. Pure."""
    files = [0] * (len(SIZE_CLASSES) + 1)
    nbytes = [0] * (len(SIZE_CLASSES) + 1)
    for size in sizes:
        at = bisect.bisect_right(SIZE_CLASSES, size)
        files[at] += 1
        nbytes[at] += size
    return tuple(
        SizeClass(below, count, total) for below, count, total in zip((*SIZE_CLASSES, None), files, nbytes, strict=True)
    )


class _Files:
    """The files of one kind, counted."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.paths: list[str] = []
        self.rows = 0
        self.partitions: set[str] = set()

    def add(self, entry: ManifestEntry) -> None:
        file = entry.data_file
        self.sizes.append(file.file_size_in_bytes)
        self.paths.append(file.file_path)
        self.rows += file.record_count
        self.partitions.add(repr(file.partition))


def _uncompressed(table: Table, paths: Sequence[str], progress: Progress) -> int:
    progress.step("read footers", len(paths))
    total = 0
    for path in paths:
        with table.io.new_input(path).open() as stream:
            footer = pq.ParquetFile(stream).metadata
        total += sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
        progress.advance()
    return total


def _kafka_partitions(log: CommitLog, snapshot_id: int | None) -> int:
    commit = None if snapshot_id is None else log.by_id(snapshot_id)
    return 0 if commit is None or commit.offsets is None else len(commit.offsets)


def _text(one: SizeClass) -> str:
    limit = f"below {in_bytes(one.below_nbytes)}" if one.below_nbytes is not None else "larger"
    return f"{one.files:,} {limit}"


def described(table: MaintainedTable) -> dict[str, Any]:
    """A table in one row, as its newest snapshot's summary says; reads no manifest. What nobody knows is None."""
    metadata = table.iceberg_table.metadata
    snapshot = metadata.current_snapshot()
    return {
        "table": table.name,
        "rows": _said(snapshot, "total-records"),
        "data_files": _said(snapshot, "total-data-files"),
        "data_nbytes": _said(snapshot, "total-files-size"),
        "snapshots": len(metadata.snapshots),
        "tags": sum(reference.snapshot_ref_type == SnapshotRefType.TAG for reference in metadata.refs.values()),
        "last_commit": None if snapshot is None else snapshot.timestamp_ms,
        "location": metadata.location,
    }


def _said(snapshot: Snapshot | None, entry: str) -> int | None:
    if snapshot is None:
        return 0
    text = summary_entry(snapshot, entry)
    return None if text is None else int(text)
