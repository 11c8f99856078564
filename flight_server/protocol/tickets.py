"""Statement handles: what GetFlightInfo hands out and DoGet takes back, sealed so that a foreign or damaged one
is seen.

A handle holds all that is needed to run its statement (Handle.proto), so it needs no memory on the server, may be read
once or often, and any replica that has the same key can answer it. Form: the magic `K2H1`, a 16-byte keyed BLAKE2b of
the rest, the rest. With the empty key the seal tells damage apart, not forgery.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import pyarrow as pa
from google.protobuf.message import DecodeError

from common.errors import InvalidStatement, PermissionDenied
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol import Handle_pb2
from flight_server.protocol.commands import wrap

_MAGIC = b"K2H1"
_SEAL_BYTES = 16
_FOREIGN = "the ticket was not made by this server or is damaged; ask for a new one with GetFlightInfo"


@dataclass(frozen=True)
class StatementHandle:
    """What is to be run: the text, its bound parameters (None without any), and the print of the schema promised.

    `result` is the answer itself where the statement was run already. The other fields are as in Handle.proto.
    """

    query: str
    parameters: pa.RecordBatch | None
    schema_fingerprint: bytes
    id: bytes = b""
    principal: str = ""
    expires_us: int = 0
    cut: str | None = None
    transaction_id: bytes | None = None
    result: pa.RecordBatch | None = None
    is_part: bool = False


class TicketSeal:
    """Makes and opens statement tickets under one key (at most 64 bytes)."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    def ticket(self, handle: StatementHandle) -> bytes:
        """The bytes of a Ticket: an Any with a TicketStatementQuery."""
        message = Handle_pb2.StatementHandle(
            query=handle.query,
            schema_fingerprint=handle.schema_fingerprint,
            id=handle.id,
            principal=handle.principal,
            expires_us=handle.expires_us,
            cut=handle.cut,
            transaction_id=handle.transaction_id,
            is_part=handle.is_part,
        )
        if handle.parameters is not None:
            message.parameters = batch_to_ipc(handle.parameters)
        if handle.result is not None:
            message.result = batch_to_ipc(handle.result)
        payload = message.SerializeToString()
        return wrap(sql.TicketStatementQuery(statement_handle=_MAGIC + self._seal(payload) + payload))

    def open(self, statement_handle: bytes, *, principal: str = "", now_us: int = 0) -> StatementHandle:
        """The handle inside a TicketStatementQuery.

        Raises InvalidStatement when it is not one of ours or is good no longer, PermissionDenied when it was announced
        to somebody else.
        """
        seal, payload = statement_handle[4 : 4 + _SEAL_BYTES], statement_handle[4 + _SEAL_BYTES :]
        if statement_handle[:4] != _MAGIC or not hmac.compare_digest(seal, self._seal(payload)):
            raise InvalidStatement(_FOREIGN)
        try:
            message = Handle_pb2.StatementHandle.FromString(payload)
            parameters = batch_from_ipc(message.parameters) if message.HasField("parameters") else None
            result = batch_from_ipc(message.result) if message.HasField("result") else None
        except (DecodeError, pa.ArrowException, OSError):
            raise InvalidStatement(_FOREIGN) from None
        if message.principal != principal:
            raise PermissionDenied("the ticket was given to another principal; ask for one with GetFlightInfo")
        if message.expires_us and message.expires_us < now_us:
            raise InvalidStatement("the ticket has expired; ask for a new one with GetFlightInfo, or renew it in time")
        return StatementHandle(
            message.query,
            parameters,
            message.schema_fingerprint,
            message.id,
            message.principal,
            message.expires_us,
            message.cut if message.HasField("cut") else None,
            message.transaction_id if message.HasField("transaction_id") else None,
            result,
            message.is_part,
        )

    def _seal(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, digest_size=_SEAL_BYTES, key=self._key).digest()


def fingerprint(schema: pa.Schema) -> bytes:
    """8 bytes that differ when two schemas differ in any name, type, nullability or metadata."""
    return hashlib.blake2b(schema.serialize(), digest_size=8).digest()


def batch_to_ipc(batch: pa.RecordBatch) -> bytes:
    """The batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def batch_from_ipc(data: bytes) -> pa.RecordBatch:
    """The one batch of an Arrow IPC stream. Raises an Arrow error when it is none."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
