"""Bytes off the wire: whatever comes, a message or one of our errors."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidStatement, K2Error, Unsupported
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import decode_action, decode_command, wrap


def test_a_wrapped_command_comes_back() -> None:
    command = sql.CommandGetTables(catalog="k2", table_types=["TABLE"], include_schema=True)
    assert decode_command(wrap(command)) == command


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_decoded_never_raised_through(data: bytes) -> None:
    try:
        decode_command(data)
    except K2Error as error:
        assert "\n" not in error.message


@given(st.data())
def test_every_truncation_is_refused_or_another_whole_message(data: st.DataObject) -> None:
    whole = wrap(sql.CommandStatementQuery(query="select 1 as a", transaction_id=b"12345678"))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with contextlib.suppress(K2Error):
        assert decode_command(whole[:cut]) != decode_command(whole)


def test_no_command_at_all() -> None:
    for nothing in (None, b""):
        with pytest.raises(InvalidStatement, match="holds no message"):
            decode_command(nothing)


def test_an_unknown_message_is_named() -> None:
    stranger = AnyMessage(type_url="type.googleapis.com/arrow.flight.protocol.sql.CommandFlyToTheMoon")
    with pytest.raises(Unsupported, match="CommandFlyToTheMoon"):
        decode_command(stranger.SerializeToString())


def test_an_unknown_name_is_cut_and_made_printable() -> None:
    stranger = AnyMessage(type_url="x/" + "a\nb" * 500)
    with pytest.raises(Unsupported) as caught:
        decode_command(stranger.SerializeToString())
    assert "\n" not in caught.value.message and len(caught.value.message) < 300


def test_a_damaged_message_inside_a_whole_any() -> None:
    damaged = AnyMessage(type_url="x/arrow.flight.protocol.sql.CommandStatementQuery", value=b"\x0a\xff")
    with pytest.raises(InvalidStatement, match="truncated or damaged"):
        decode_command(damaged.SerializeToString())


def test_action_bodies_are_taken_wrapped_and_bare() -> None:
    for request in (
        sql.ActionCreatePreparedStatementRequest(query="select ?"),
        sql.ActionCreatePreparedStatementRequest(query=""),
        sql.ActionCreatePreparedStatementRequest(query="x" * 5000, transaction_id=b"t"),
    ):
        assert decode_action("CreatePreparedStatement", wrap(request)) == request
        assert decode_action("CreatePreparedStatement", request.SerializeToString()) == request


def test_another_actions_body_is_refused() -> None:
    with pytest.raises(InvalidStatement, match="ActionClosePreparedStatementRequest"):
        decode_action("CreatePreparedStatement", wrap(sql.ActionClosePreparedStatementRequest()))
    with pytest.raises(InvalidStatement, match="truncated or damaged"):
        decode_action("CreatePreparedStatement", b"\xff\xff\xff")
