"""Prepared statements: bounded, forgotten when idle, safe to close twice."""

from __future__ import annotations

import pyarrow as pa
import pytest

from common.clock import ManualClock
from common.errors import InvalidStatement, LimitExceeded
from flight_server.service.prepared import PreparedStatement, PreparedStatements

BATCH = pa.record_batch({"1": [1]})


def test_a_handle_keeps_text_and_parameters() -> None:
    held = PreparedStatements(ManualClock(), count_max=2, idle_s_max=10)
    handle = held.add(PreparedStatement("select ?"))
    assert held.get(handle).parameters is None
    held.bind(handle, BATCH)
    assert held.get(handle).query == "select ?" and held.get(handle).parameters == BATCH


def test_closing_is_idempotent_and_final() -> None:
    held = PreparedStatements(ManualClock(), count_max=2, idle_s_max=10)
    handle = held.add(PreparedStatement("select 1"))
    held.close(handle)
    held.close(handle)
    with pytest.raises(InvalidStatement, match="prepare it again"):
        held.get(handle)
    with pytest.raises(InvalidStatement):
        held.bind(handle, BATCH)


def test_too_many_are_refused_and_idle_ones_make_room() -> None:
    clock = ManualClock()
    held = PreparedStatements(clock, count_max=2, idle_s_max=10)
    first, second = held.add(PreparedStatement("a")), held.add(PreparedStatement("b"))
    with pytest.raises(LimitExceeded, match="2 prepared statements"):
        held.add(PreparedStatement("c"))
    clock.advance(6)
    held.get(first)
    clock.advance(6)
    third = held.add(PreparedStatement("c"))
    assert len(held) == 2
    held.get(first)
    held.get(third)
    with pytest.raises(InvalidStatement):
        held.get(second)


def test_a_handle_is_its_principals_and_ends_with_its_session() -> None:
    held = PreparedStatements(ManualClock(), count_max=9, idle_s_max=10)
    hers = held.add(PreparedStatement("select 1", "ann", "s1"))
    other = held.add(PreparedStatement("select 2", "ann", "s2"))
    with pytest.raises(InvalidStatement):
        held.get(hers, "bob")
    held.close(hers, "bob")
    held.close_session("s1", "bob")
    assert held.get(hers, "ann").query == "select 1"
    held.close_session("s1", "ann")
    with pytest.raises(InvalidStatement):
        held.get(hers, "ann")
    assert held.get(other, "ann").query == "select 2"
