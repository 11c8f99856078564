"""Pure: the rows between two cuts, as SQL over what a snapshot and the memory behind it hold.

Guarantee: exactly the rows with from <= offset < to, per partition, each once, wherever they lie. Files are not named
at all when memory holds all of the range: a reader that keeps up with the log never touches one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from common.errors import InvalidStatement
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from flight_server.storage.as_of import check_has
from flight_server.storage.read_view import Segment, Snapshot, TableCut, Tail, literal, view_sql

#: Where a table stands -> from where to where to read it.
Choose = Callable[[TableCut], tuple[PartitionOffsets, PartitionOffsets]]
#: Per partition the first offset and the one behind the last.
_Ranges = Mapping[KafkaPartition, tuple[int, int]]


def changes_sql(
    snapshot: Snapshot, memory: Tail, columns: Mapping[str, str], low: PartitionOffsets, high: PartitionOffsets
) -> str:
    """The SELECT that gives the rows in [low, high) of each partition; the columns of the table in their order.

    `memory` is what the transaction sees: all records in [base, position) of each partition lie in its segments. The
    snapshot has all below its offsets. Partitions that `high` does not name, and those where it is not above `low`,
    give nothing. What is asked for must be there: `check_range` says whether it is.
    """
    in_files: dict[KafkaPartition, tuple[int, int]] = {}
    in_memory: dict[KafkaPartition, tuple[int, int]] = {}
    for partition, until in high.items():
        start = low.next_offset(partition)
        held_from = _held_from(partition, snapshot, memory)
        if start < min(until, held_from):
            in_files[partition] = (start, min(until, held_from))
        if max(start, held_from) < until:
            in_memory[partition] = (max(start, held_from), until)
    parts = []
    if in_files and snapshot.relation is not None:
        parts.append(_within(view_sql(snapshot, (), columns), in_files))
    segments = _overlapping(memory.segments, in_memory)
    if segments:
        parts.append(_within(view_sql(Snapshot(), segments, columns), in_memory))
    return " UNION ALL ".join(parts) or view_sql(Snapshot(), (), columns)


def check_range(
    table: str,
    low: TableCut | None,
    high: TableCut | None,
    now: TableCut,
    topic_ids: Collection[str] | None = None,
) -> tuple[PartitionOffsets, PartitionOffsets]:
    """The positions (from, to) of two cuts of a table, in a view that stands at `now`; None: the beginning, and now.

    Raises InvalidStatement when `low` lies behind `high` in a partition, and as `condition_at` when one of them reaches
    beyond what this server has: Unavailable or SnapshotExpired.
    """
    start = PartitionOffsets() if low is None else low.offsets
    until = now.offsets if high is None else high.offsets
    for cut in (start, until):
        for partition, offset in sorted(cut.items()):
            check_has(table, partition, offset, now.offsets, topic_ids)
    for partition, offset in sorted(start.items()):
        if offset > until.next_offset(partition):
            raise InvalidStatement(
                f"the changes of {table} begin behind their end: at offset {offset} of partition "
                f"{partition.partition} of topic {topic_short(partition.topic_id)}, and the cut where they end has "
                f"{until.next_offset(partition)}; give the earlier cut first"
            )
    return start, until


def _held_from(partition: KafkaPartition, snapshot: Snapshot, memory: Tail) -> int:
    """From where on memory has the partition without a hole; the snapshot has all below."""
    committed = snapshot.offsets.next_offset(partition)
    base = memory.base.get(partition)
    if base is None or memory.position.next_offset(partition) < committed:
        return committed
    return min(base, committed)


def _overlapping(segments: Sequence[Segment], ranges: _Ranges) -> list[Segment]:
    """The segments that may have rows of the ranges. The last one still grows: its end is not known here."""
    if not ranges:
        return []
    closed, open_segment = segments[:-1], segments[-1:]
    found = [
        segment
        for segment in closed
        if any(
            start < segment.next.next_offset(partition) and segment.first.next_offset(partition) < until
            for partition, (start, until) in ranges.items()
        )
    ]
    return [*found, *open_segment]


def _within(select: str, ranges: _Ranges) -> str:
    """The rows of a SELECT that lie in the ranges; the outermost bounds by themselves, for statistics to prune by."""
    terms = " OR ".join(
        f"(_kafka_topic = {literal(topic_short(partition.topic_id))} AND _kafka_partition = {int(partition.partition)} "
        f"AND _kafka_offset >= {int(start)} AND _kafka_offset < {int(until)})"
        for partition, (start, until) in sorted(ranges.items())
    )
    lowest, highest = min(start for start, _ in ranges.values()), max(until for _, until in ranges.values())
    return (
        f"SELECT * FROM ({select}) WHERE _kafka_offset >= {int(lowest)} AND _kafka_offset < {int(highest)} "
        f"AND ({terms})"
    )
