"""The join's pure part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import K2Error, TailGap
from common.offsets import KafkaPartition, PartitionOffsets
from flight_server.storage.read_view import (
    Cut,
    Segment,
    Snapshot,
    TableCut,
    Tail,
    check_reach,
    cut_offsets,
    literal,
    merged_first,
    quoted,
    view_sql,
)

P0, P1 = KafkaPartition("c", "topic-id-00000001", 0), KafkaPartition("c", "topic-id-00000001", 1)
COLUMNS = {"a": "BIGINT", "b": "VARCHAR"}

OFFSETS = st.dictionaries(st.sampled_from([P0, P1]), st.integers(0, 1000)).map(PartitionOffsets)


def test_nothing_at_all_is_an_empty_table_of_the_right_shape() -> None:
    assert (
        view_sql(Snapshot(), (), COLUMNS)
        == 'SELECT CAST(NULL AS BIGINT) AS "a", CAST(NULL AS VARCHAR) AS "b" WHERE false'
    )


def test_a_column_that_the_snapshot_does_not_have_is_null() -> None:
    sql = view_sql(Snapshot(1, "s", ("a",)), (), COLUMNS)
    assert sql == 'SELECT "a", CAST(NULL AS VARCHAR) AS "b" FROM s'


def test_a_segment_above_the_snapshot_is_taken_whole_and_one_across_its_end_in_part() -> None:
    snapshot = Snapshot(1, "s", ("a", "b"), PartitionOffsets({P0: 10, P1: 10}))
    across = Segment("t1", PartitionOffsets({P0: 5, P1: 12}), PartitionOffsets({P0: 15, P1: 20}))
    above = Segment("t2", PartitionOffsets({P0: 15}), PartitionOffsets({P0: 18}))
    assert view_sql(snapshot, (across, above), COLUMNS).split(" UNION ALL ") == [
        'SELECT "a", "b" FROM s',
        'SELECT "a", "b" FROM t1 '
        "WHERE NOT ((_kafka_topic = '00000001' AND _kafka_partition = 0 AND _kafka_offset < 10))",
        'SELECT "a", "b" FROM t2',
    ]


@given(OFFSETS, OFFSETS)
def test_the_cut_is_never_behind_the_snapshot_or_the_tail(
    committed: PartitionOffsets, position: PartitionOffsets
) -> None:
    offsets = cut_offsets(Snapshot(offsets=committed), position)
    assert offsets.covers(committed)
    assert offsets.covers(position)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_a_gap_is_refused_and_nothing_else_is(committed: int, base: int, held: int) -> None:
    """Rows are missing exactly when the tail begins behind the snapshot's end and goes on from there."""
    snapshot = Snapshot(offsets=PartitionOffsets({P0: committed}))
    tail = Tail(PartitionOffsets({P0: base}), PartitionOffsets({P0: base + held}))
    missing = set(range(base + held)) - set(range(committed)) - set(range(base, base + held))
    if missing:
        with pytest.raises(TailGap, match=r"market\.trades"):
            check_reach(snapshot, tail, table="market.trades")
    else:
        check_reach(snapshot, tail, table="market.trades")


@given(st.integers(0, 2**62) | st.none(), OFFSETS, OFFSETS)
def test_a_cut_has_a_text_form(snapshot_id: int | None, trades: PartitionOffsets, quotes: PartitionOffsets) -> None:
    cut = Cut({"market.trades": TableCut(snapshot_id, trades), "market.quotes": TableCut(None, quotes)})
    assert Cut.from_text(cut.to_text()) == cut


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"market.trades":{}}', '{"market.trades":{"snapshot":1,"next":[]}}']
)
def test_other_text_is_no_cut(text: str) -> None:
    with pytest.raises(K2Error):
        Cut.from_text(text)


def test_names_and_strings_are_quoted() -> None:
    assert (quoted('a"b'), literal("it's")) == ('"a""b"', "'it''s'")


def test_a_segment_begins_where_its_first_rows_did() -> None:
    assert merged_first(PartitionOffsets({P0: 5}), {P0: 9, P1: 3}) == PartitionOffsets({P0: 5, P1: 3})
