"""Bytes off the wire to Flight SQL messages, and back: descriptors, tickets, action bodies.

Guarantee: whatever bytes come in, the outcome is a message of this module's tables or one of InvalidStatement (not
a Flight SQL message) and Unsupported (a message that is not offered), in one sentence each.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from common.errors import InvalidStatement, Unsupported
from flight_server.protocol import Flight_pb2 as flight
from flight_server.protocol import FlightSql_pb2 as sql

_PACKAGE = "arrow.flight.protocol."

#: Every message that a FlightDescriptor's command or a Ticket may carry, by full name.
_MESSAGES: dict[str, type[Message]] = {
    message.DESCRIPTOR.full_name: message
    for message in (
        sql.CommandStatementQuery,
        sql.CommandStatementSubstraitPlan,
        sql.CommandPreparedStatementQuery,
        sql.CommandStatementUpdate,
        sql.CommandPreparedStatementUpdate,
        sql.CommandStatementIngest,
        sql.CommandGetCatalogs,
        sql.CommandGetDbSchemas,
        sql.CommandGetTables,
        sql.CommandGetTableTypes,
        sql.CommandGetPrimaryKeys,
        sql.CommandGetExportedKeys,
        sql.CommandGetImportedKeys,
        sql.CommandGetCrossReference,
        sql.CommandGetXdbcTypeInfo,
        sql.CommandGetSqlInfo,
        sql.TicketStatementQuery,
    )
}

#: Action type -> the message in its body, for every action of Flight SQL and those of Flight that its clients send.
ACTION_BODIES: dict[str, type[Message]] = {
    "CreatePreparedStatement": sql.ActionCreatePreparedStatementRequest,
    "ClosePreparedStatement": sql.ActionClosePreparedStatementRequest,
    "CreatePreparedSubstraitPlan": sql.ActionCreatePreparedSubstraitPlanRequest,
    "BeginTransaction": sql.ActionBeginTransactionRequest,
    "EndTransaction": sql.ActionEndTransactionRequest,
    "BeginSavepoint": sql.ActionBeginSavepointRequest,
    "EndSavepoint": sql.ActionEndSavepointRequest,
    "CancelQuery": sql.ActionCancelQueryRequest,
    "CancelFlightInfo": flight.CancelFlightInfoRequest,
    "RenewFlightEndpoint": flight.RenewFlightEndpointRequest,
    "SetSessionOptions": flight.SetSessionOptionsRequest,
    "GetSessionOptions": flight.GetSessionOptionsRequest,
    "CloseSession": flight.CloseSessionRequest,
}


def name_of(message: Message) -> str:
    """The message's name without its package, as the specification and our error texts write it."""
    return str(message.DESCRIPTOR.name)


def wrap(message: Message) -> bytes:
    """The message in a google.protobuf.Any, serialised."""
    any_message = AnyMessage()
    any_message.Pack(message)
    return bytes(any_message.SerializeToString())


def decode_command(data: bytes | None, *, where: str = "FlightDescriptor.cmd") -> Message:
    """The Flight SQL message that a descriptor's command or a ticket carries."""
    any_message = AnyMessage()
    try:
        any_message.ParseFromString(data or b"")
    except DecodeError:
        raise InvalidStatement(f"{where} is not a google.protobuf.Any; send a Flight SQL message") from None
    full_name = any_message.type_url.rpartition("/")[2]
    if not full_name:
        raise InvalidStatement(f"{where} holds no message; send a Flight SQL message in a google.protobuf.Any")
    message_type = _MESSAGES.get(full_name)
    if message_type is None:
        raise Unsupported(f"{where} holds {_quotable(full_name)}, which is no Flight SQL command that K2 knows")
    return _parse(message_type, any_message.value, where)


def decode_action(action_type: str, body: bytes) -> Message:
    """The message in the body of a Flight SQL action, wrapped in an Any (JDBC, ADBC) or bare (raw Flight clients)."""
    message_type = ACTION_BODIES[action_type]
    any_message = AnyMessage()
    try:
        any_message.ParseFromString(body)
        full_name = any_message.type_url.rpartition("/")[2]
    except DecodeError:
        full_name = ""
    where = f"the body of the action {action_type}"
    if full_name == message_type.DESCRIPTOR.full_name:
        return _parse(message_type, any_message.value, where)
    if full_name.startswith(_PACKAGE):
        raise InvalidStatement(f"{where} holds {_quotable(full_name)}; it takes {message_type.DESCRIPTOR.name}")
    return _parse(message_type, body, where)


def _parse(message_type: type[Message], data: bytes, where: str) -> Message:
    message: Message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InvalidStatement(
            f"{where} is not a whole {message_type.DESCRIPTOR.name}; the message is truncated or damaged"
        ) from None
    return message


def _quotable(name: str) -> str:
    """At most 100 printable characters of a name that a stranger chose."""
    return "".join(
        character if character.isprintable() else "?"
        for character in name.removeprefix(_PACKAGE).removeprefix("sql.")[:100]
    )
