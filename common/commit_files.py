"""A table's history of commits, written beside the table and read again: what outlives the expiry of snapshots.

Whatever expires snapshots calls `record` first, and sets the property that it gives in the same metadata commit that
expires them. So the history costs a commit of rows nothing, and nothing is lost at whatever moment the work is
interrupted: files that no metadata lists are not read, and files that it lists are there. Every snapshot is recorded
that is not yet, not only those that expire, so that a foreign tool's expiry takes away few or none.

Files are Parquet in the folder `history` under the table's location, read and written through the table's own FileIO.
They are merged by the power of eight, so their number stays bounded. What 0, 1 or 2 rows a lookup needs is read by row
group; a file that was opened is not opened again.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from common.commits import (
    DELETED_KEY,
    HISTORY_KEY,
    Commit,
    HistoryFile,
    HistoryList,
    Loss,
    commits_of,
    fewer_losses,
    files_to_merge,
    has_number,
    lost_rows,
    merged,
    merged_ranges,
    table_of,
)
from common.offsets import SUMMARY_KEY, PartitionOffsets

#: Rows that are read for one lookup.
_GROUP_ROWS = 8_192
_FOLLOWS = "parent_is_row_before"


# -- what a table's metadata says


def commits_kept(metadata: TableMetadata) -> list[Commit]:
    """The rows of the snapshots that the metadata keeps, in no order."""
    by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    known: dict[int, PartitionOffsets | None] = {}
    times: dict[int, list[int | None]] = {}
    for entry in metadata.snapshot_log:
        times.setdefault(entry.snapshot_id, []).append(entry.timestamp_ms)
    return [
        _commit(snapshot, current_ms, _offsets_of(snapshot, by_id, known))
        for snapshot in metadata.snapshots
        for current_ms in times.get(snapshot.snapshot_id) or [None]
    ]


def losses_of(metadata: TableMetadata, recorded: Sequence[Loss], of: int | None) -> list[Loss]:
    """The deletions of rows that the snapshot `of` is behind, in no order: those recorded, and those still kept.

    One is left out only where the ancestors that are kept show that the snapshot does not come from it.
    """
    by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    chain = list(_ancestors(by_id.get(of) if of is not None else None, by_id))
    ids = {snapshot.snapshot_id for snapshot in chain}
    found = {loss.snapshot_id: loss for loss in recorded}
    for snapshot in metadata.snapshots:
        lost, from_ = lost_rows(_summary(snapshot))
        if lost and not _written_anew(snapshot, chain):
            found[snapshot.snapshot_id] = Loss(_number(snapshot), snapshot.snapshot_id, from_)
    if not chain:
        return list(found.values())
    oldest = _number(chain[-1])
    return [loss for loss in found.values() if loss.snapshot_id in ids or loss.sequence_number < oldest]


def _written_anew(snapshot: Snapshot, snapshots: Iterable[Snapshot]) -> bool:
    """True when the next snapshot put back as many rows as this one deleted, and is no commit of the log's.

    So PyIceberg overwrites a table: by two snapshots in one commit. What the sink appends puts nothing back.
    """
    gone = _summary(snapshot)
    for after in snapshots:
        if after.parent_snapshot_id == snapshot.snapshot_id and _number(after) == _number(snapshot) + 1:
            added = _summary(after)
            is_foreign = SUMMARY_KEY not in added and DELETED_KEY not in gone
            return is_foreign and added.get("added-records") == gone.get("deleted-records", "")
    return False


def _ancestors(snapshot: Snapshot | None, by_id: Mapping[int, Snapshot]) -> Iterator[Snapshot]:
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else by_id.get(parent)


def _summary(snapshot: Snapshot) -> Mapping[str, str | None]:
    if snapshot.summary is None:
        return {}
    return {"operation": snapshot.summary.operation.value, **snapshot.summary.additional_properties}


def _number(snapshot: Snapshot) -> int:
    return int(snapshot.sequence_number or 0)


def _commit(snapshot: Snapshot, current_ms: int | None, offsets: PartitionOffsets | None) -> Commit:
    summary = _summary(snapshot)
    return Commit(
        snapshot_id=snapshot.snapshot_id,
        parent_snapshot_id=snapshot.parent_snapshot_id,
        sequence_number=_number(snapshot),
        committed_ms=snapshot.timestamp_ms,
        current_ms=current_ms,
        schema_id=snapshot.schema_id,
        operation=summary.get("operation"),
        added_rows=_count(summary.get("added-records")),
        total_rows=_count(summary.get("total-records")),
        offsets=offsets,
    )


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _offsets_of(
    snapshot: Snapshot, by_id: Mapping[int, Snapshot], known: dict[int, PartitionOffsets | None]
) -> PartitionOffsets | None:
    """The next offsets of a snapshot, of its nearest ancestor that has them when a foreign tool made it.

    A history that is there from the first snapshot on, and has none, has taken in nothing. None when nobody knows.
    """
    passed: list[int] = []
    offsets: PartitionOffsets | None = None
    for ancestor in _ancestors(snapshot, by_id):
        if ancestor.snapshot_id in known:
            offsets = known[ancestor.snapshot_id]
            break
        passed.append(ancestor.snapshot_id)
        entry = None if ancestor.summary is None else ancestor.summary.get(SUMMARY_KEY)
        if entry is not None:
            offsets = PartitionOffsets.from_text(entry)
            break
        if ancestor.parent_snapshot_id is None:
            offsets = PartitionOffsets() if _number(ancestor) in (0, 1) else None
    for snapshot_id in passed:
        known[snapshot_id] = offsets
    return offsets


# -- writing


@dataclass(frozen=True)
class Recorded:
    """Files that are written and that nothing refers to yet, and the property that will. `rows` are new ones."""

    property_text: str
    rows: int
    written: tuple[str, ...]
    replaced: tuple[str, ...]
    _io: FileIO

    def landed(self) -> None:
        """The property is in the table's metadata: files that it does not list any more are deleted."""
        _delete(self._io, self.replaced)

    def discard(self) -> None:
        """The property will certainly not be in the table's metadata: what was written is deleted."""
        _delete(self._io, self.written)


def record(table: Table) -> Recorded | None:
    """Write every commit of the table that its history does not have yet; None when it has them all.

    `table` is as of its last load, and the property is for a metadata commit that lands on nothing else. Offsets of
    foreign snapshots are resolved here, while their ancestors are there. Raises K2Error for a property that cannot be
    read, and what the file store raises.
    """
    metadata = table.metadata
    history = HistoryList.from_text(metadata.properties.get(HISTORY_KEY))
    known = CommitLog()
    known.update(table)
    fresh = [known.resolved(commit) for commit in _fresh(metadata, history)]
    if not fresh:
        return None
    merging = files_to_merge(history.files, len(fresh))
    folder = history_folder(metadata)
    rows = merged([table_of(fresh), *(_read(table.io, f"{folder}/{file.name}") for file in merging)])
    name = f"{uuid.uuid4().hex[:16]}.parquet"
    _write(table.io, f"{folder}/{name}", rows)
    times = [time for time in (pc.min(rows["committed_ms"]).as_py(), pc.min(rows["current_ms"]).as_py()) if time]
    latest = pc.max(rows["current_ms"]).as_py()
    file = HistoryFile(name, rows.num_rows, min(times), max(times) if latest is None else latest)
    log = metadata.snapshot_log
    after = HistoryList(
        (*(other for other in history.files if other not in merging), file),
        merged_ranges(history.known, (commit.sequence_number for commit in fresh)),
        (log[-1].snapshot_id, log[-1].timestamp_ms) if log else history.mark,
        fewer_losses(losses_of(metadata, history.losses, metadata.current_snapshot_id)),
    )
    replaced = tuple(f"{folder}/{other.name}" for other in merging)
    return Recorded(after.to_text(), len(fresh), (f"{folder}/{name}",), replaced, table.io)


def history_folder(metadata: TableMetadata) -> str:
    """Where the table's history files are."""
    return f"{metadata.location.rstrip('/')}/history"


def _fresh(metadata: TableMetadata, history: HistoryList) -> list[Commit]:
    """The rows that are in no file yet. When a foreign tool has removed what marks the place, all: they come once."""
    log = [(entry.snapshot_id, entry.timestamp_ms) for entry in metadata.snapshot_log]
    behind = len(log) - log[::-1].index(history.mark) if history.mark in log else 0
    became = set(log[behind:])
    return [
        commit
        for commit in commits_kept(metadata)
        if (commit.snapshot_id, commit.current_ms) in became
        or (commit.current_ms is None and not has_number(history.known, commit.sequence_number))
    ]


def _write(store: FileIO, path: str, rows: pa.Table) -> None:
    buffer = io.BytesIO()
    packed = _packed(rows)
    pq.write_table(
        packed,
        buffer,
        row_group_size=_GROUP_ROWS,
        compression="zstd",
        use_dictionary=["operation"],
        column_encoding={
            field.name: "DELTA_BINARY_PACKED"
            for field in packed.schema
            if pa.types.is_integer(field.type) and field.name not in ("snapshot_id", "parent_snapshot_id")
        },
        write_statistics=False,
    )
    with store.new_output(path).create() as stream:
        stream.write(buffer.getvalue())


def _packed(rows: pa.Table) -> pa.Table:
    """Ids are random, and nearly every parent is the snapshot of the row before: then it is not written twice."""
    ids, parents = rows["snapshot_id"].to_numpy(), rows["parent_snapshot_id"].combine_chunks()
    follows = np.zeros(len(ids), dtype=bool)
    follows[1:] = pc.fill_null(parents, 0).to_numpy(zero_copy_only=False)[1:] == ids[:-1]
    follows[1:] &= pc.is_valid(parents).to_numpy(zero_copy_only=False)[1:]
    follows[::_GROUP_ROWS] = False  # each row group is read by itself
    index = rows.schema.get_field_index("parent_snapshot_id")
    kept = pc.if_else(pa.array(follows), pa.scalar(None, pa.int64()), parents)
    return rows.set_column(index, rows.schema.field(index), kept).append_column(_FOLLOWS, pa.array(follows))


def _unpacked(rows: pa.Table) -> pa.Table:
    """Whole row groups as they were before `_packed`."""
    ids = rows["snapshot_id"].to_numpy()
    before = np.concatenate([ids[:1], ids[:-1]])
    parents = pc.if_else(rows[_FOLLOWS], pa.array(before), rows["parent_snapshot_id"])
    index = rows.schema.get_field_index("parent_snapshot_id")
    return rows.drop_columns([_FOLLOWS]).set_column(index, rows.schema.field(index), parents)


def _read(store: FileIO, path: str) -> pa.Table:
    with store.new_input(path).open() as stream:
        return _unpacked(pq.read_table(stream))


def _delete(store: FileIO, paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(Exception):  # an orphan costs its space and nothing else
            store.delete(path)


# -- reading


class _File:
    """One history file, read as far as it was asked for. A file never changes."""

    def __init__(self, store: FileIO, path: str, listed: HistoryFile) -> None:
        self._store = store
        self._path = path
        self.listed = listed
        self._columns: dict[str, Any] = {}
        self._footer: pq.FileMetaData | None = None

    def column(self, name: str) -> Any:
        """A column of integers as NumPy has it; the times of rows without one as -1."""
        found = self._columns.get(name)
        if found is None:
            with self._opened() as file:
                read = file.read(columns=[name])[name]
            found = self._columns[name] = pc.fill_null(read, -1).to_numpy()
        return found

    def last_until(self, time_ms: int) -> _Found:
        """The last row of a time up to this one."""
        return self._at(int(np.searchsorted(self._times(), time_ms, side="right")) - 1)

    def first_after(self, time_ms: int) -> _Found:
        """The first row of a later time."""
        return self._at(int(np.searchsorted(self._times(), time_ms, side="right")))

    def row(self, index: int) -> Commit:
        group, within = divmod(index, _GROUP_ROWS)
        with self._opened() as file:
            rows = _unpacked(file.read_row_group(group))
        return commits_of(rows.slice(within, 1))[0]

    def rows(self) -> pa.Table:
        return _read(self._store, self._path)

    def _times(self) -> Any:
        """The times of the rows that have one, ascending."""
        found = self.column("current_ms")
        return found[: int(np.count_nonzero(found >= 0))]

    def _at(self, index: int) -> _Found:
        times = self._times()
        if not 0 <= index < len(times):
            return None
        return (int(times[index]), int(self.column("sequence_number")[index])), (self, index)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with self._store.new_input(self._path).open() as stream:
            file = pq.ParquetFile(stream, metadata=self._footer)
            self._footer = file.metadata
            yield file


#: A row that was looked for, by its time and sequence number: there already, or in a file at an index.
_Found = tuple[tuple[int, int], Commit | tuple[_File, int]] | None


class CommitLog:
    """The commits of one table, those of expired snapshots included, as of the metadata that `update` was given last.

    Files are read when a question needs them, and remembered. Not thread-safe. Every question raises what the file
    store raises; FileNotFoundError means that the files were merged meanwhile: load the table again and `update`.
    """

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._kept: list[Commit] = []
        #: The snapshots that the table's metadata still has.
        self.kept_ids: frozenset[int] = frozenset()
        self._metadata: TableMetadata | None = None
        self.history = HistoryList()
        #: The ranges of sequence numbers whose commits are known.
        self.known: tuple[tuple[int, int], ...] = ()

    def update(self, table: Table) -> None:
        """Go by this state of the table from now on. Raises K2Error when its property cannot be read."""
        metadata = table.metadata
        if metadata is self._metadata:
            return
        history = HistoryList.from_text(metadata.properties.get(HISTORY_KEY))
        folder = history_folder(metadata)
        self._files = {
            file.name: self._files.get(file.name) or _File(table.io, f"{folder}/{file.name}", file)
            for file in history.files
        }
        self._kept = sorted(commits_kept(metadata), key=_moment)
        self.kept_ids = frozenset(commit.snapshot_id for commit in self._kept)
        self._metadata, self.history = metadata, history
        self.known = merged_ranges(history.known, (commit.sequence_number for commit in self._kept))

    @property
    def metadata(self) -> TableMetadata | None:
        """The table's metadata as `update` was given it."""
        return self._metadata

    def unknown_ms(self) -> list[tuple[int | None, int | None]]:
        """The stretches of time in which commits were made of which nothing is known: after one, before another.

        None where there is none: a foreign tool expired the first ones, or the last ones after a rollback.
        """
        last = int(getattr(self._metadata, "last_sequence_number", 0))  # a table of format 1 has none
        edges = [(0, 0), *self.known, (last + 1, last + 1)]
        return [
            (self._committed_ms(before), self._committed_ms(after))
            for (_, before), (after, _) in itertools.pairwise(edges)
            if after - before > 1
        ]

    def is_kept(self, snapshot_id: int) -> bool:
        """True when the table's metadata still has the snapshot."""
        return snapshot_id in self.kept_ids

    def by_id(self, snapshot_id: int) -> Commit | None:
        """The commit of a snapshot; None when the history has none of that id."""
        kept = next((commit for commit in self._kept if commit.snapshot_id == snapshot_id), None)
        return self._recorded(snapshot_id) if kept is None else self.resolved(kept)

    def resolved(self, commit: Commit) -> Commit:
        """The commit of a kept snapshot with its offsets, if need be those that an ancestor of it was recorded with."""
        if commit.offsets is not None or self._metadata is None:
            return commit
        by_id = {snapshot.snapshot_id: snapshot for snapshot in self._metadata.snapshots}
        for ancestor in _ancestors(by_id.get(commit.snapshot_id), by_id):
            recorded = self._recorded(ancestor.snapshot_id)
            if recorded is not None and recorded.offsets is not None:
                return replace(commit, offsets=recorded.offsets)
        return commit

    def around(self, time_ms: int) -> tuple[Commit | None, Commit | None]:
        """The commit that was the current one at a time, and the one that was so next, as far as they are known.

        None and a commit before the first, a commit and None after the last. Whether there was another one between,
        of which nothing is known, tells `known`.
        """
        moments = [(_moment(commit), commit) for commit in self._kept if commit.current_ms is not None]
        at: _Found = max((pair for pair in moments if pair[0][0] <= time_ms), key=_first, default=None)
        then: _Found = min((pair for pair in moments if pair[0][0] > time_ms), key=_first, default=None)
        files = sorted(self._files.values(), key=lambda file: min(file.listed.to_ms, time_ms), reverse=True)
        for file in files:
            if file.listed.from_ms <= time_ms and (at is None or min(file.listed.to_ms, time_ms) >= at[0][0]):
                at = max(filter(None, (at, file.last_until(time_ms))), key=_first, default=None)
        for file in sorted(files, key=lambda file: file.listed.from_ms):
            if file.listed.to_ms > time_ms and (then is None or file.listed.from_ms <= then[0][0]):
                then = min(filter(None, (then, file.first_after(time_ms))), key=_first, default=None)
        return self._commit_of(at), self._commit_of(then)

    def oldest_ms(self) -> int | None:
        """When the first commit was made that is known; None without any."""
        return min(
            (*(file.from_ms for file in self.history.files), *(c.committed_ms for c in self._kept)), default=None
        )

    def losses(self, snapshot_id: int | None) -> list[Loss]:
        """The deletions of rows that this snapshot, which must be kept, may be behind."""
        assert self._metadata is not None
        return losses_of(self._metadata, self.history.losses, snapshot_id)

    def rows(self) -> pa.Table:
        """All commits as rows (see common.commits), in order, each once."""
        # A file's row knows the parent, and the offsets, that the snapshot had while its ancestors were there.
        files = sorted(self._files.values(), key=lambda file: file.listed.from_ms)
        fresh = [] if self._metadata is None else _fresh(self._metadata, self.history)
        fresh = [self.resolved(commit) for commit in fresh]
        return merged([*(file.rows() for file in files), table_of(fresh)])

    def _recorded(self, snapshot_id: int) -> Commit | None:
        for file in reversed(self._files.values()):
            found = np.flatnonzero(file.column("snapshot_id") == snapshot_id)
            if len(found):
                return file.row(int(found[0]))
        return None

    def _commit_of(self, found: _Found) -> Commit | None:
        if found is None:
            return None
        return self.resolved(found[1]) if isinstance(found[1], Commit) else found[1][0].row(found[1][1])

    def _committed_ms(self, sequence_number: int) -> int | None:
        for commit in self._kept:
            if commit.sequence_number == sequence_number:
                return commit.committed_ms
        for file in self._files.values():
            found = np.flatnonzero(file.column("sequence_number") == sequence_number)
            if len(found):
                return int(file.column("committed_ms")[found[0]])
        return None


def _first(pair: tuple[tuple[int, int], object]) -> tuple[int, int]:
    return pair[0]


def _moment(commit: Commit) -> tuple[int, int]:
    return (-1 if commit.current_ms is None else commit.current_ms, commit.sequence_number)
