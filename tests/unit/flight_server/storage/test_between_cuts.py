"""The rows between two cuts, against a list of rows: for whatever lies in files, in memory, or in both."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidStatement, SnapshotExpired, Unavailable
from common.offsets import KafkaPartition, PartitionOffsets, offsets_between, slice_end, topic_short
from flight_server.storage.between_cuts import changes_sql, check_range
from flight_server.storage.read_view import Segment, Snapshot, TableCut, Tail

A, B, OLD = (KafkaPartition("c", "topic-id-1", 0), KafkaPartition("c", "topic-id-1", 1), KafkaPartition("c", "old", 0))
COLUMNS = {"_kafka_topic": "VARCHAR", "_kafka_partition": "INTEGER", "_kafka_offset": "BIGINT"}
END = 12
Row = tuple[str, int, int]


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@st.composite
def offsets(draw: st.DrawFn, partitions: tuple[KafkaPartition, ...] = (A, B)) -> PartitionOffsets:
    return PartitionOffsets({p: draw(st.integers(0, END)) for p in partitions if draw(st.booleans())})


@st.composite
def states(draw: st.DrawFn) -> tuple[list[Row], Snapshot, Tail, dict[str, list[Row]]]:
    """(the log's rows, a snapshot, the memory, what lies under which name) that keep what both promise."""
    holes = draw(st.sets(st.tuples(st.sampled_from((A, B)), st.integers(0, END - 1))))
    log = [(p, o) for p in (A, B) for o in range(END) if (p, o) not in holes]
    committed = draw(offsets())
    position = {p: draw(st.integers(0, END)) for p in (A, B)}
    # Memory reaches back to the snapshot, or further, or has nothing that the snapshot has not.
    base = {p: draw(st.integers(0, committed.next_offset(p))) for p in (A, B)}
    behind = {p: position[p] < committed.next_offset(p) for p in (A, B)}
    marks = sorted(draw(st.lists(st.integers(0, END), max_size=3)))
    segments, lying = [], {"files": [row_of(p, o) for p, o in log if o < committed.next_offset(p)]}
    starts = [0, *marks]
    for number, (start, end) in enumerate(zip(starts, [*marks, END], strict=True)):
        first, until = {}, {}
        rows = []
        for p in (A, B):
            low, high = max(start, base[p]), min(end, position[p])
            if low < high:
                first[p], until[p] = low, high
                rows += [row_of(q, o) for q, o in log if q == p and low <= o < high]
        lying[f"s{number}"] = rows
        segments.append(Segment(f"s{number}", PartitionOffsets(first), PartitionOffsets(until), len(rows)))
    lying["open"] = []
    segments.append(Segment("open", PartitionOffsets(), PartitionOffsets()))
    has_files = bool(lying["files"]) or draw(st.booleans())
    snapshot = Snapshot(1, "files" if has_files else None, tuple(COLUMNS), committed)
    at = {p: position[p] if behind[p] else max(position[p], base[p]) for p in (A, B)}
    return (
        [row_of(p, o) for p, o in log if o < max(committed.next_offset(p), at[p])],
        snapshot,
        Tail(PartitionOffsets(base), PartitionOffsets(at), tuple(segments)),
        lying,
    )


def row_of(partition: KafkaPartition, offset: int) -> Row:
    return (topic_short(partition.topic_id), partition.partition, offset)


@settings(max_examples=300, deadline=None)
@given(states(), offsets(), offsets())
def test_exactly_the_rows_between_each_once(
    database: duckdb.DuckDBPyConnection,
    state: tuple[list[Row], Snapshot, Tail, dict[str, list[Row]]],
    low: PartitionOffsets,
    high: PartitionOffsets,
) -> None:
    log, snapshot, memory, lying = state
    reached = snapshot.offsets.advanced(memory.position)
    high = PartitionOffsets({p: min(until, reached.next_offset(p)) for p, until in high.items()})
    for name, rows in lying.items():
        values = ", ".join(f"({topic!r}, {number}, {offset})" for topic, number, offset in rows)
        database.execute(f"CREATE OR REPLACE TABLE {name} (_kafka_topic VARCHAR, _kafka_partition INT, o BIGINT)")
        database.execute(f"ALTER TABLE {name} RENAME o TO _kafka_offset")
        if values:
            database.execute(f"INSERT INTO {name} VALUES {values}")
    query = changes_sql(snapshot, memory, COLUMNS, low, high)
    found = sorted(database.execute(query).fetchall())
    by_number = {0: A, 1: B}
    wanted = [row for row in log if low.next_offset(by_number[row[1]]) <= row[2] < high.next_offset(by_number[row[1]])]
    assert found == sorted(wanted)
    held = {p: memory.base.next_offset(p) for p in (A, B) if memory.position[p] >= snapshot.offsets.next_offset(p)}
    if all(low.next_offset(p) >= held.get(p, END) for p, until in high.items() if until > low.next_offset(p)):
        assert "FROM files" not in query


@given(offsets((A, B, OLD)), offsets((A, B, OLD)), st.integers(1, 10))
def test_a_slice_is_bounded_goes_forward_and_comes_to_the_end(
    low: PartitionOffsets, high: PartitionOffsets, offsets_max: int
) -> None:
    end = low.advanced(high)
    steps = 0
    while (left := offsets_between(low, high)) > 0:
        until = slice_end(low, high, offsets_max)
        assert 0 < offsets_between(low, until) <= offsets_max
        assert until.covers(low)
        assert end.covers(until)
        assert offsets_between(until, high) < left
        low, steps = until, steps + 1
        assert steps <= 3 * END
    assert slice_end(low, high, offsets_max) == end


NOW = TableCut(7, PartitionOffsets({A: 10, B: 5}))


def cut(**offsets: int) -> TableCut:
    return TableCut(None, PartitionOffsets({{"a": A, "b": B, "old": OLD}[name]: o for name, o in offsets.items()}))


def test_left_out_cuts_are_the_beginning_and_now() -> None:
    assert check_range("t", None, None, NOW) == (PartitionOffsets(), NOW.offsets)
    assert check_range("t", cut(a=3), cut(a=4, b=1), NOW) == (cut(a=3).offsets, cut(a=4, b=1).offsets)


@pytest.mark.parametrize(
    ("low", "high", "error", "says"),
    [
        (cut(a=4), cut(a=3), InvalidStatement, "give the earlier cut first"),
        (cut(a=4), cut(b=3), InvalidStatement, "at offset 4 of partition 0 of topic pic-id-1"),
        (cut(a=11), None, Unavailable, "try again"),
        (None, cut(b=6), Unavailable, "up to offset 5"),
        (cut(old=1), None, SnapshotExpired, "topic is gone"),
        (
            TableCut(None, PartitionOffsets({KafkaPartition("elsewhere", "topic-id-1", 0): 1})),
            None,
            SnapshotExpired,
            "of the Kafka cluster elsewhere",
        ),
    ],
)
def test_what_cannot_be_given_is_said(
    low: TableCut | None, high: TableCut | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        check_range("t", low, high, NOW, {"topic-id-1"})
