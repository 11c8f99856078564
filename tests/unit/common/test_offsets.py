"""Positions as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import K2Error
from common.offsets import KafkaPartition, PartitionOffsets

PARTITIONS = st.builds(KafkaPartition, st.sampled_from(["c1", "c2"]), st.text(max_size=4), st.integers(0, 3))
OFFSETS = st.dictionaries(PARTITIONS, st.integers(0, 2**62)).map(PartitionOffsets)


@given(OFFSETS)
def test_the_text_form_keeps_everything(offsets: PartitionOffsets) -> None:
    assert dict(PartitionOffsets.from_text(offsets.to_text())) == dict(offsets)


@given(OFFSETS, OFFSETS)
def test_advancing_covers_both_and_nothing_more(a: PartitionOffsets, b: PartitionOffsets) -> None:
    both = a.advanced(b)
    assert both.covers(a)
    assert both.covers(b)
    assert both == b.advanced(a)
    assert all(both.next_offset(p) in (a.next_offset(p), b.next_offset(p)) for p in both)


@given(OFFSETS)
def test_an_absent_partition_counts_as_zero(offsets: PartitionOffsets) -> None:
    other = offsets.advanced({KafkaPartition("c9", "t", 0): 0})
    assert other == offsets
    assert hash(other) == hash(offsets)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"c":{"t":{"x":1}}}', '{"c":{"t":{"0":-1}}}', '{"c":1}', "7"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(K2Error):
        PartitionOffsets.from_text(text)
