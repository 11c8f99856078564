"""The commits of a table as values, and as the rows in which they outlive the table's snapshots. Pure.

A row says: this snapshot became the table's current one at this time. A snapshot that became so twice, by a rollback,
has two rows; one that never did, as on a branch, has one without a time. A table's history is the rows of its history
files, which the table property `k2.history` lists, together with the snapshots that its metadata still keeps.

Times are milliseconds UTC, as in Iceberg, wherever a name ends in `_ms`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import K2Error
from common.offsets import KafkaPartition, PartitionOffsets

#: Table property: which history files there are; see `HistoryList`.
HISTORY_KEY = "k2.history"
#: Snapshot-summary entry of what deletes rows: for each partition the lowest offset of which rows are gone, in the form
#: of `k2.offsets`. A partition that is not named lost none, `{}` says that no row is gone.
DELETED_KEY = "k2.deleted-from"

#: So many files of about one size become one.
_FAN_OUT = 8
#: A file of this many rows is left as it is: 116 days of a commit every 10 s.
FILE_ROWS_MAX = 1_000_000
#: Known ranges of sequence numbers, and losses, that the property has at most; the oldest give way, to refusal.
_RANGES_MAX = 200
_LOSSES_MAX = 100
_PARTITIONS = b"k2.partitions"
_NEXT = "next_"
_BASE = pa.schema(
    [
        pa.field("current_ms", pa.int64()),
        pa.field("committed_ms", pa.int64(), nullable=False),
        pa.field("snapshot_id", pa.int64(), nullable=False),
        pa.field("parent_snapshot_id", pa.int64()),
        pa.field("sequence_number", pa.int64(), nullable=False),
        pa.field("schema_id", pa.int32()),
        pa.field("operation", pa.string()),
        pa.field("added_rows", pa.int64()),
        pa.field("total_rows", pa.int64()),
        pa.field("has_offsets", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Commit:
    """One row of a history. `current_ms` is when the snapshot became the current one, None when it did not by this row;
    `offsets` are None when nobody knows them any more.
    """

    snapshot_id: int
    parent_snapshot_id: int | None
    sequence_number: int
    committed_ms: int
    current_ms: int | None
    schema_id: int | None
    operation: str | None
    added_rows: int | None
    total_rows: int | None
    offsets: PartitionOffsets | None

    @property
    def committed_us(self) -> int:
        return self.committed_ms * 1_000


@dataclass(frozen=True)
class HistoryFile:
    """A file of the table's history: its name in the folder `history`, its rows, and the times that they span."""

    name: str
    rows: int
    from_ms: int
    to_ms: int


@dataclass(frozen=True)
class Loss:
    """A snapshot that deleted rows: of each partition from which offset on; None when nobody knows of which."""

    sequence_number: int
    snapshot_id: int
    deleted_from: PartitionOffsets | None

    def touches(self, offsets: PartitionOffsets) -> bool:
        """True when rows below `offsets` may be gone."""
        if self.deleted_from is None:
            return True
        return any(offsets.next_offset(partition) > first for partition, first in self.deleted_from.items())


@dataclass(frozen=True)
class HistoryList:
    """What the property `k2.history` says: the files, and what must be known without reading one.

    `known`: the ranges of sequence numbers, both ends inclusive, whose snapshots are in the files. `mark`: the last row
    that was written, as (snapshot id, current_ms). `losses`: snapshots that deleted rows.
    """

    files: tuple[HistoryFile, ...] = ()
    known: tuple[tuple[int, int], ...] = ()
    mark: tuple[int, int] | None = None
    losses: tuple[Loss, ...] = field(default=())

    def to_text(self) -> str:
        """Compact JSON."""
        tree = {
            "v": 1,
            "files": [[file.name, file.rows, file.from_ms, file.to_ms] for file in self.files],
            "known": self.known[-_RANGES_MAX:],
            "mark": self.mark,
            "losses": [
                [loss.sequence_number, loss.snapshot_id, loss.deleted_from and json.loads(loss.deleted_from.to_text())]
                for loss in self.losses
            ],
        }
        return json.dumps(tree, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str | None) -> HistoryList:
        """The reverse of `to_text`; an empty one for None. Raises K2Error when the text is of another form."""
        if text is None:
            return cls()
        try:
            tree = json.loads(text)
            if tree["v"] != 1:
                raise ValueError(f"version {tree['v']}")
            return cls(
                tuple(HistoryFile(str(name), int(rows), int(a), int(b)) for name, rows, a, b in tree["files"]),
                tuple((int(first), int(last)) for first, last in tree["known"]),
                None if tree["mark"] is None else (int(tree["mark"][0]), int(tree["mark"][1])),
                tuple(
                    Loss(int(number), int(snapshot), None if gone is None else _offsets(gone))
                    for number, snapshot, gone in tree["losses"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise K2Error(
                f"the table property {HISTORY_KEY} cannot be read ({error}); it was written by another version of K2"
            ) from None


# -- what a list knows


def merged_ranges(ranges: Iterable[tuple[int, int]], numbers: Iterable[int] = ()) -> tuple[tuple[int, int], ...]:
    """The ranges and the numbers as few ranges, in order; both ends are inclusive."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted([*ranges, *((number, number) for number in numbers)]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def has_number(ranges: Sequence[tuple[int, int]], number: int) -> bool:
    return any(first <= number <= last for first, last in ranges)


def covers_between(ranges: Sequence[tuple[int, int]], low: int, high: int) -> bool:
    """True when every number above `low` and below `high` is in one of the merged ranges."""
    return high - low < 2 or any(first <= low + 1 and high - 1 <= last for first, last in ranges)


def fewer_losses(losses: Sequence[Loss]) -> tuple[Loss, ...]:
    """The losses in order, the oldest taken together where there are too many: that refuses more, never less."""
    ordered = sorted(losses, key=lambda loss: loss.sequence_number)
    while len(ordered) > _LOSSES_MAX:
        first, second, *rest = ordered
        both = None
        if first.deleted_from is not None and second.deleted_from is not None:
            lowest = dict(first.deleted_from.items())
            for partition, offset in second.deleted_from.items():
                lowest[partition] = min(offset, lowest.get(partition, offset))
            both = PartitionOffsets(lowest)
        ordered = [Loss(second.sequence_number, second.snapshot_id, both), *rest]
    return tuple(ordered)


def files_to_merge(files: Sequence[HistoryFile], added_rows: int) -> tuple[HistoryFile, ...]:
    """Which files are to be written anew together with `added_rows` new rows; none while few are of one size.

    Sizes grow by the power: with a fan-out of 8, a history of n rows in steps of s has at most 7 files of each of
    log8(n / s) sizes, and each row is written anew once for each size.
    """
    tiers: dict[int, list[HistoryFile]] = {}
    for file in files:
        if file.rows < FILE_ROWS_MAX:
            tiers.setdefault(_tier(file.rows), []).append(file)
    merging: list[HistoryFile] = []
    rows = added_rows
    while True:
        tier = _tier(rows)
        same = [file for size, found in tiers.items() if size <= tier for file in found if file not in merging]
        if len(same) + 1 < _FAN_OUT:
            return tuple(merging)
        merging += same
        rows += sum(file.rows for file in same)


def _tier(rows: int) -> int:
    """The power of the fan-out that fits into `rows`."""
    tier = 0
    while rows >= _FAN_OUT:
        rows //= _FAN_OUT
        tier += 1
    return tier


def lost_rows(summary: Mapping[str, str | None]) -> tuple[bool, PartitionOffsets | None]:
    """Whether the snapshot of this summary took rows out of the table, and from which offsets on, if that is known.

    `k2.deleted-from` says it. Without that entry: an append takes out none; of anything else it is only believed that
    it wrote the same rows anew when it has as many as it took out, and no delete files. Raises K2Error on an entry that
    cannot be read.
    """
    marked = summary.get(DELETED_KEY)
    if marked is not None:
        from_ = PartitionOffsets.from_text(marked)
        return bool(from_), from_
    if summary.get("operation") in (None, "append"):
        return False, None
    masked = ("added-delete-files", "added-position-deletes", "added-equality-deletes", "added-dvs")
    if any(_number(summary.get(key)) for key in masked):
        return True, None
    gone = _number(summary.get("deleted-records"))
    if gone is None:
        return bool(_number(summary.get("deleted-data-files"))), None
    return gone != (_number(summary.get("added-records")) or 0) and gone > 0, None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


# -- rows


def table_of(commits: Sequence[Commit]) -> pa.Table:
    """The commits as rows, in the order of `in_order`: a column `next_<n>` for each partition, whose names are in the
    schema's metadata.
    """
    partitions = sorted({p for commit in commits if commit.offsets is not None for p in commit.offsets})
    columns: dict[str, list[Any]] = {
        name: [getattr(commit, name) for commit in commits] for name in _BASE.names if name != "has_offsets"
    }
    columns["has_offsets"] = [commit.offsets is not None for commit in commits]
    for index, partition in enumerate(partitions):
        columns[f"{_NEXT}{index}"] = [
            None if commit.offsets is None else commit.offsets.next_offset(partition) for commit in commits
        ]
    return in_order(pa.table(columns, schema=_schema(partitions)))


def in_order(table: pa.Table) -> pa.Table:
    """The rows by when they became current, those that never did at the end; each (snapshot, time) once.

    At the same millisecond the later sequence number counts as the later one.
    """
    times = table["current_ms"]
    if times.null_count == 0 and bool(np.all(np.diff(times.to_numpy()) > 0)):
        return table
    keys = [(name, "ascending", "at_end") for name in ("current_ms", "sequence_number", "snapshot_id")]
    table = table.take(pc.sort_indices(table, sort_keys=keys))
    if table.num_rows < 2:
        return table
    same = None
    for name in ("current_ms", "snapshot_id"):
        column = table.column(name).combine_chunks()
        equal = pc.fill_null(pc.equal(column[1:], column[:-1]), False)
        if name == "current_ms":
            equal = pc.or_(equal, pc.and_(pc.is_null(column[1:]), pc.is_null(column[:-1])))
        same = equal if same is None else pc.and_(same, equal)
    return table.filter(pa.concat_arrays([pa.array([True]), pc.invert(same)]))


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """All of the rows in one table, with the partitions of all."""
    partitions = sorted({partition for table in tables for partition in partitions_of(table.schema)})
    return in_order(pa.concat_tables([_with_partitions(table, partitions) for table in tables]))


def commits_of(table: pa.Table) -> list[Commit]:
    """The rows as commits."""
    partitions = partitions_of(table.schema)
    return [
        Commit(
            **{name: row[name] for name in _BASE.names if name != "has_offsets"},
            offsets=PartitionOffsets({partition: row[f"{_NEXT}{index}"] for index, partition in enumerate(partitions)})
            if row["has_offsets"]
            else None,
        )
        for row in table.to_pylist()
    ]


def partitions_of(schema: pa.Schema) -> list[KafkaPartition]:
    """The partitions of the columns `next_<n>`, in their order."""
    text = (schema.metadata or {}).get(_PARTITIONS, b"[]")
    return [KafkaPartition(cluster, topic, int(number)) for cluster, topic, number in json.loads(text)]


def next_column(index: int) -> str:
    """The name of the column that has a partition's next offset."""
    return f"{_NEXT}{index}"


def _schema(partitions: Sequence[KafkaPartition]) -> pa.Schema:
    fields = [*_BASE, *(pa.field(f"{_NEXT}{index}", pa.int64()) for index in range(len(partitions)))]
    return pa.schema(fields, metadata={_PARTITIONS: json.dumps(partitions).encode()})


def _with_partitions(table: pa.Table, partitions: Sequence[KafkaPartition]) -> pa.Table:
    here = {partition: index for index, partition in enumerate(partitions_of(table.schema))}
    columns = [table.column(name) for name in _BASE.names]
    known = table.column("has_offsets")
    for partition in partitions:
        if partition in here:
            columns.append(table.column(f"{_NEXT}{here[partition]}"))
        else:
            columns.append(pc.if_else(known, pa.scalar(0, pa.int64()), pa.scalar(None, pa.int64())))
    return pa.table(columns, schema=_schema(partitions))


def _offsets(tree: object) -> PartitionOffsets:
    return PartitionOffsets.from_text(json.dumps(tree))
