"""Statement handles: they come back whole, and nothing else comes back."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidStatement
from flight_server.protocol.commands import decode_command
from flight_server.protocol.tickets import StatementHandle, TicketSeal, fingerprint

PARAMETERS = pa.record_batch({"1": pa.array([Decimal("1.25")], pa.decimal128(18, 8)), "2": [None]})


def opened(seal: TicketSeal, ticket: bytes) -> StatementHandle:
    return seal.open(decode_command(ticket).statement_handle)  # type: ignore[attr-defined]


@given(st.text(max_size=200), st.booleans(), st.binary(max_size=8))
def test_a_handle_comes_back(query: str, bound: bool, schema_fingerprint: bytes) -> None:
    handle = StatementHandle(query, PARAMETERS if bound else None, schema_fingerprint)
    assert opened(TicketSeal(), TicketSeal().ticket(handle)) == handle


@given(st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_seen(where: int, change: int) -> None:
    ticket = decode_command(TicketSeal().ticket(StatementHandle("select 1", PARAMETERS, b"12345678")))
    sealed = bytearray(ticket.statement_handle)  # type: ignore[attr-defined]
    sealed[where % len(sealed)] ^= change
    with pytest.raises(InvalidStatement, match="not made by this server or is damaged"):
        TicketSeal().open(bytes(sealed))


@given(st.binary(max_size=100))
def test_a_strangers_handle_is_refused(stranger: bytes) -> None:
    with pytest.raises(InvalidStatement):
        TicketSeal().open(stranger)


def test_another_key_opens_nothing() -> None:
    ticket = TicketSeal(b"one").ticket(StatementHandle("select 1", None, b""))
    with pytest.raises(InvalidStatement):
        opened(TicketSeal(b"two"), ticket)


def test_fingerprints_tell_apart_what_clients_compare() -> None:
    schemas = [
        pa.schema([pa.field("a", pa.int32())]),
        pa.schema([pa.field("a", pa.int64())]),
        pa.schema([pa.field("b", pa.int32())]),
        pa.schema([pa.field("a", pa.int32(), nullable=False)]),
        pa.schema([pa.field("a", pa.int32(), metadata={"x": "y"})]),
        pa.schema([]),
    ]
    assert len({fingerprint(schema) for schema in schemas}) == len(schemas)
