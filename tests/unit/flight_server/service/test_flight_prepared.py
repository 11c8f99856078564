"""Prepared statements: bounded, forgotten when idle, safe to close twice."""

from __future__ import annotations

import pyarrow as pa
import pytest

from common.clock import ManualClock
from common.errors import InvalidStatement, LimitExceeded
from flight_server.service.prepared import PreparedStatements

BATCH = pa.record_batch({"1": [1]})


def test_a_handle_keeps_text_and_parameters() -> None:
    held = PreparedStatements(ManualClock(), count_max=2, idle_s_max=10)
    handle = held.add("select ?")
    assert held.get(handle).parameters is None
    held.bind(handle, BATCH)
    assert held.get(handle).query == "select ?" and held.get(handle).parameters == BATCH


def test_closing_is_idempotent_and_final() -> None:
    held = PreparedStatements(ManualClock(), count_max=2, idle_s_max=10)
    handle = held.add("select 1")
    held.close(handle)
    held.close(handle)
    with pytest.raises(InvalidStatement, match="prepare it again"):
        held.get(handle)
    with pytest.raises(InvalidStatement):
        held.bind(handle, BATCH)


def test_too_many_are_refused_and_idle_ones_make_room() -> None:
    clock = ManualClock()
    held = PreparedStatements(clock, count_max=2, idle_s_max=10)
    first, second = held.add("a"), held.add("b")
    with pytest.raises(LimitExceeded, match="2 prepared statements"):
        held.add("c")
    clock.advance(6)
    held.get(first)
    clock.advance(6)
    third = held.add("c")
    assert len(held) == 2
    held.get(first)
    held.get(third)
    with pytest.raises(InvalidStatement):
        held.get(second)
