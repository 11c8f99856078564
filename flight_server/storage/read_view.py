"""The join, pure: what one table is, at one cut, made of an Iceberg snapshot and the tail of the log.

Rules 5 to 8 of the design. A snapshot S holds every record below its next offsets C; the tail holds every record in
[base, position) of each partition. The table at the cut is the rows of S plus, per partition, the tail's rows in
[C, position). No clock and no comparison of ids takes part. What cannot be given exactly is refused with TailGap.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import pyarrow as pa

from common.errors import K2Error, TailGap
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from flight_server.storage.file_index import Condition, FileIndex


@dataclass(frozen=True)
class Snapshot:
    """One committed state of a table.

    `relation` is SQL that gives exactly its rows (None: it has none), `columns` the columns that it has, `offsets` the
    next offset of every partition it has taken in. `snapshot_id` is Iceberg's, None before the first commit. `files`
    are Parquet files that hold exactly its `rows`, where that can be said; none otherwise.

    `index` has its data files with their bounds, where they are plain Parquet; `field_ids` the columns' field ids,
    where some of these files may be of an older schema. `grown_from` are the earlier snapshots out of which this one
    came by appends and changes of layout alone (None: the empty table); `taken` says of snapshots that only appended
    which offsets they took in: from, to. `is_remote`: each read of a file is a request to an object store. `further`
    are the columns that the table got beyond those of the packaged schema; they are shown with it, and so are a
    function of the cut.
    """

    snapshot_id: int | None = None
    relation: str | None = None
    columns: tuple[str, ...] = ()
    offsets: PartitionOffsets = field(default_factory=PartitionOffsets)
    files: tuple[str, ...] = ()
    rows: int = 0
    index: FileIndex | None = None
    field_ids: Mapping[str, int] = field(default_factory=dict)
    grown_from: Set[int | None] = frozenset()
    taken: Mapping[int, tuple[PartitionOffsets, PartitionOffsets]] = field(default_factory=dict)
    is_remote: bool = False
    further: tuple[pa.Field, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A stretch of the tail in a table of its own: `rows` with first <= offset < next, per partition; of `nbytes` as
    Arrow. It has these `columns`; none means every column that is asked for."""

    relation: str
    first: PartitionOffsets
    next: PartitionOffsets
    rows: int = 0
    nbytes: int = 0
    columns: tuple[str, ...] = ()

    def below(self, offsets: PartitionOffsets) -> bool:
        """True when every row lies below `offsets`: the snapshot has them all."""
        return offsets.covers(self.next)

    def select(self, columns: Mapping[str, str]) -> str:
        """The SELECT of all of its rows in these columns; one that it does not have is NULL."""
        return f"SELECT {listed(columns, self.columns or columns)} FROM {self.relation}"


@dataclass(frozen=True)
class Tail:
    """What the tail holds: all records in [base, position) of each partition that it reads, in segments.

    It may begin below the snapshot's end: rows that were committed lately stay for a while (the hot window).
    """

    base: PartitionOffsets = field(default_factory=PartitionOffsets)
    position: PartitionOffsets = field(default_factory=PartitionOffsets)
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class TableCut:
    """One table's part of a cut: the snapshot read, and the next offset of each partition: rows below it are in."""

    snapshot_id: int | None
    offsets: PartitionOffsets


@dataclass(frozen=True)
class Cut:
    """One instant of all tables, as a value. Equal cuts give equal rows."""

    tables: Mapping[str, TableCut]

    def to_text(self) -> str:
        """Compact JSON: {table: {"snapshot": id, "next": {cluster: {topic id: {partition: next offset}}}}}."""
        tree = {
            table: {"snapshot": cut.snapshot_id, "next": json.loads(cut.offsets.to_text())}
            for table, cut in sorted(self.tables.items())
        }
        return json.dumps(tree, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Cut:
        """The reverse of `to_text`. Raises K2Error when the text is no cut."""
        try:
            tree = json.loads(text)
            return cls(
                {
                    table: TableCut(entry["snapshot"], PartitionOffsets.from_text(json.dumps(entry["next"])))
                    for table, entry in tree.items()
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise K2Error(f"{text[:200]!r} is not a cut; take one from the app_metadata of a result") from None


@dataclass(frozen=True)
class CutOff:
    """Where one table's rows end: its next offsets, and the condition for the rows below them."""

    offsets: PartitionOffsets
    condition: str


@dataclass(frozen=True)
class Seen:
    """What a transaction sees: which publication, and the cut in its text form (None where there is none).

    `empty` are the tables, by full name, of which it sees no row in memory that the table's files do not have.
    """

    generation: int
    cut: str | None
    empty: Set[str] = frozenset()


def check_reach(snapshot: Snapshot, tail: Tail, *, table: str) -> None:
    """Raise TailGap unless the tail reaches back to the snapshot in every partition (rule 6)."""
    for partition, position in tail.position.items():
        committed = snapshot.offsets.next_offset(partition)
        base = tail.base.next_offset(partition)
        if committed < base and committed < position:
            raise TailGap(
                f"{table}: the tail of partition {partition.partition} begins at offset {base}, but the snapshot ends "
                f"at {committed}; the offsets between are being read from Kafka, try again"
            )


def cut_offsets(snapshot: Snapshot, position: PartitionOffsets) -> PartitionOffsets:
    """The cut's next offsets: where the tail ends, or where the snapshot does when it is ahead (rule 5)."""
    return snapshot.offsets.advanced(position)


def view_sql(snapshot: Snapshot, segments: Sequence[Segment], columns: Mapping[str, str]) -> str:
    """The SELECT that gives the table: the snapshot's rows, then each segment's rows at or above the snapshot's end.

    `columns` maps each column of the table to its SQL type, in order; one that the snapshot does not have yet is NULL.
    """
    parts = []
    if snapshot.relation is not None:
        parts.append(f"SELECT {listed(columns, snapshot.columns)} FROM {snapshot.relation}")
    for segment in beyond(snapshot, segments):
        taken = taken_in(segment, snapshot.offsets)
        parts.append(segment.select(columns) + (f" WHERE NOT ({taken})" if taken else ""))
    return " UNION ALL ".join(parts) or f"SELECT {listed(columns, ())} WHERE false"


def listed(columns: Mapping[str, str], present: Container[str]) -> str:
    """These columns, as behind SELECT; those that are not present are NULL."""
    return ", ".join(
        quoted(name) if name in present else f"CAST(NULL AS {kind}) AS {quoted(name)}" for name, kind in columns.items()
    )


def is_empty(memory: Tail, position: Mapping[KafkaPartition, int]) -> bool:
    """Whether memory, as `remembered`, has no row from its base on while it reaches to these positions."""
    return all(offset <= memory.base.next_offset(partition) for partition, offset in position.items())


def beyond(snapshot: Snapshot, segments: Sequence[Segment]) -> Sequence[Segment]:
    """The segments that have, or may get, rows at or above the snapshot's end: the last one is still filled."""
    return [s for s in segments[:-1] if not s.below(snapshot.offsets)] + list(segments[-1:])


def rows_beyond(snapshot: Snapshot, segment: Segment) -> int:
    """Rows of the segment at or above the snapshot's end; where that is in the middle of it, at most."""
    ends = snapshot.offsets
    if segment.below(ends):
        return 0
    if not taken_in(segment, ends):
        return segment.rows
    above = sum(
        max(0, following - max(segment.first.next_offset(partition), ends.next_offset(partition)))
        for partition, following in segment.next.items()
    )
    return min(segment.rows, above)


def remembered(snapshot: Snapshot, tail: Tail) -> Tail:
    """The tail as a publication with this snapshot may remember it while its positions move on.

    Of a partition where the tail is behind the snapshot the rows between are not kept: memory begins at the snapshot's
    end there.
    """
    behind = {p: snapshot.offsets.next_offset(p) for p in tail.base}
    return replace(
        tail, base=tail.base.advanced({p: end for p, end in behind.items() if tail.position.next_offset(p) < end})
    )


def lean(snapshot: Snapshot) -> Snapshot:
    """The snapshot as it is remembered for long: without its index, and without the text that its files give again."""
    relation = None if snapshot.files else snapshot.relation
    return replace(snapshot, relation=relation, index=None, taken={}, grown_from=frozenset())


def readable(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the relation that `lean` left out."""
    is_lean = snapshot.files and snapshot.relation is None
    return replace(snapshot, relation=read_files(snapshot.files)) if is_lean else snapshot


def chosen_sql(
    snapshot: Snapshot,
    memory: Tail,
    columns: Mapping[str, str],
    conditions: Sequence[Condition],
    *,
    files_max: int,
    is_empty: bool = False,
    cut: CutOff | None = None,
) -> str | None:
    """The SELECT of all rows of the table that meet the conditions, and of others, out of few files and of memory.

    `is_empty`: memory has no row from its base on in the transaction that this is for, so that
    nothing of it need be planned. With `cut`, of the rows below it only.

    What memory has from its base on is taken from there and not from files; a file whose rows are all in memory is not
    read. `memory` is as `remembered`. None when the table's own view is as good: it would be made of more than
    `files_max` files, or of all of them.
    """
    if snapshot.index is None:
        return None
    segments, ends = memory.segments, snapshot.offsets
    hot = PartitionOffsets({p: base for p, base in memory.base.items() if base < ends.next_offset(p)})
    found = snapshot.index.matching(conditions)
    below: list[str] = []  # the cut: of these nothing has to be compared
    cold: list[str] = []
    mixed: list[str] = []
    for path, added_by in found:
        taken = snapshot.taken.get(added_by)
        if not hot or (taken is not None and all(taken[1].next_offset(p) <= offset for p, offset in hot.items())):
            is_below = cut is not None and taken is not None and cut.offsets.covers(taken[1])
            (below if is_below else cold).append(path)
        elif taken is None or not _all_hot(taken, hot):
            mixed.append(path)
    chosen = len(below) + len(cold)
    if chosen + len(mixed) > files_max or (chosen == len(snapshot.index) == len(snapshot.files) and not below):
        return None

    def of_files(paths: Sequence[str], condition: str = "") -> list[str]:
        files = replace(snapshot, relation=read_files(sorted(paths), snapshot.field_ids, columns))
        return [view_sql(files, (), columns) + condition] if paths else []

    parts = of_files(cold) + of_files(mixed, f" WHERE NOT ({at_or_above(hot)})" if hot else "")
    if not (is_empty and (parts or below)):
        parts += _of_memory(snapshot, segments, hot, columns)
    rest = " UNION ALL ".join(parts)
    if cut is None:
        return rest
    return " UNION ALL ".join(of_files(below) + ([f"SELECT * FROM ({rest}) WHERE {cut.condition}"] if parts else []))


def _of_memory(
    snapshot: Snapshot, segments: Sequence[Segment], hot: PartitionOffsets, columns: Mapping[str, str]
) -> list[str]:
    """The SELECTs of the rows in memory from these offsets on, where there are some, else from the snapshot's end."""
    if not hot:
        return [view_sql(replace(snapshot, relation=None), segments, columns)]
    floor = PartitionOffsets({**snapshot.offsets, **hot})
    parts = []
    for segment in segments:
        lower = taken_in(segment, floor)
        parts.append(segment.select(columns) + (f" WHERE NOT ({lower})" if lower else ""))
    return parts


def _all_hot(taken: tuple[PartitionOffsets, PartitionOffsets], hot: PartitionOffsets) -> bool:
    """Whether all rows between these offsets are in memory."""
    begin, end = taken
    return all(
        partition in hot and hot.next_offset(partition) <= begin.next_offset(partition)
        for partition in end
        if begin.next_offset(partition) < end.next_offset(partition)
    )


def at_or_above(offsets: PartitionOffsets) -> str:
    """The condition for rows at or above the next offset of their partition; not for those of partitions without."""
    return _compared(offsets, ">=")


def below(offsets: PartitionOffsets) -> str:
    """The condition for rows below the next offset of their partition."""
    return _compared(offsets, "<")


def _compared(offsets: PartitionOffsets, sign: str) -> str:
    return " OR ".join(
        f"(_kafka_topic = {literal(topic_short(partition.topic_id))} "
        f"AND _kafka_partition = {int(partition.partition)} AND _kafka_offset {sign} {int(offset)})"
        for partition, offset in sorted(offsets.items())
    )


def parts_sql(snapshot: Snapshot, tail: str, columns: Mapping[str, str], count: int) -> list[str]:
    """The table in at most `count` parts: every row in exactly one of them.

    All but the last are made of files, which never change, and can be read in any transaction; the last one has the
    tail too, `tail` being its SELECT, and must be read in the transaction that fixed the cut.
    """
    groups = [snapshot.files[index::count] for index in range(min(count, len(snapshot.files)))]
    selects = []
    for group in groups:
        part = replace(snapshot, relation=read_files(group))
        selects.append(view_sql(part, (), columns))
    return [*selects[:-1], f"{selects[-1]} UNION ALL {tail}"]


def taken_in(segment: Segment, committed: PartitionOffsets) -> str:
    """The condition for the segment's rows that the snapshot has too; empty when there can be none."""
    terms = []
    for partition in sorted(segment.next):
        until = committed.next_offset(partition)
        if segment.first.next_offset(partition) < until:
            terms.append(
                f"(_kafka_topic = {literal(topic_short(partition.topic_id))} "
                f"AND _kafka_partition = {partition.partition} AND _kafka_offset < {until})"
            )
    return " OR ".join(terms)


def merged_first(first: PartitionOffsets, added: Mapping[KafkaPartition, int]) -> PartitionOffsets:
    """The lower of both starts, per partition that either has."""
    merged = dict(first.items())
    for partition, offset in added.items():
        merged[partition] = min(merged.get(partition, offset), offset)
    return PartitionOffsets(merged)


def read_files(
    paths: Sequence[str], field_ids: Mapping[str, int] | None = None, columns: Mapping[str, str] | None = None
) -> str:
    """SQL that gives the rows of these Parquet files: as they are in them, or where `field_ids` are given, as `columns`
    of these ids, NULL in files that do not have them."""
    listed = ", ".join(literal(path) for path in paths)
    if not field_ids or columns is None:
        return f"read_parquet([{listed}], hive_partitioning => false)"
    fields = ", ".join(
        f"{field_id}: {{name: {literal(name)}, type: {literal(columns[name])}, default_value: NULL}}"
        for name, field_id in field_ids.items()
        if name in columns
    )
    return f"read_parquet([{listed}], hive_partitioning => false, schema => MAP {{{fields}}})"


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"
