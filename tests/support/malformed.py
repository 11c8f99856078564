"""Requests that are wrong, from a seed: each with the statuses that answer it rightly.

Half of them begin as a right request (every message of FlightSql.proto and Flight.proto, its fields filled from what a
client could send) that is then damaged. The same seed gives the same requests, but for handles that a server made.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import StatusCode

from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import _MESSAGES, ACTION_BODIES, wrap
from tests.support.raw_flight import (
    METHODS,
    Metadata,
    action,
    descriptor,
    flight_data,
    ipc_messages,
    length_delimited,
    ticket,
    varint,
)

#: The request is wrong, names what there is not, or asks for what is not offered. UNKNOWN is pyarrow's: what its
#: classes cannot say (RESOURCE_EXHAUSTED, and everything of Flight's in GetSchema).
WRONG = frozenset(
    (
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.UNIMPLEMENTED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.UNKNOWN,
    )
)
#: Damage may miss what matters: a changed letter in a pattern is another good pattern.
WRONG_OR_HARMLESS = WRONG | {StatusCode.OK}
#: The transport's own envelope does not parse: gRPC answers before any code of ours, and the status is its own.
ENVELOPE = WRONG_OR_HARMLESS | {StatusCode.INTERNAL}
#: The client left, or an earlier request of the run cancelled what the ticket stands for.
LEFT = WRONG_OR_HARMLESS | {StatusCode.CANCELLED}

_QUERIES = (
    "SELECT 1",
    "SELECT * FROM market.trades",
    "SELECT symbol, price FROM trades WHERE price > ? LIMIT 10",
    "SELECT $a, $b::VARCHAR",
    "",
    ";",
    "SELECT 1; SELECT 2",
    "CREATE TABLE wrong AS SELECT 1 AS a",
    "INSERT INTO wrong VALUES (?)",
    "DROP TABLE IF EXISTS wrong",
    "SELEC 1",
    "SELECT '\x00'",
    "\ud7ff\U0001f600 SELECT",
    "EXPLAIN EXPLAIN SELECT 1",
    "SELECT " + "(" * 300 + "1" + ")" * 300,
    "SELECT * FROM market.trades AT (VERSION => 1)",
    "KILL STATEMENT 'x'",
)
_WORDS = (
    "",
    "%",
    "market",
    "trades",
    "k2",
    "%_%",
    "\\",
    "\x00",
    "TABLE",
    "a" * 300,
    "é漢",
    "catalog",
    "statement_timeout",
)


@dataclass(frozen=True)
class Case:
    """One request, and the statuses that are right for it."""

    category: str
    method: str
    messages: Sequence[bytes]
    allowed: frozenset[StatusCode]
    metadata: Metadata = ()
    leave_after: int | None = None


@dataclass
class Handles:
    """What a server gave out, to be replayed and bent."""

    tickets: list[bytes] = field(default_factory=list)
    prepared: list[bytes] = field(default_factory=list)
    transactions: list[bytes] = field(default_factory=list)


def cases(seed: int, count: int, handles: Handles) -> Iterator[Case]:
    """`count` requests."""
    chance = random.Random(seed)
    makers = tuple(_MAKERS.items())
    weights = [weight for _, (weight, _) in makers]
    for _ in range(count):
        ((name, (_, make)),) = chance.choices(makers, weights)
        yield make(_Maker(chance, name, handles))


class _Maker:
    """One request in the making."""

    def __init__(self, chance: random.Random, category: str, handles: Handles) -> None:
        self.chance = chance
        self.category = category
        self.handles = handles

    def case(
        self,
        method: str,
        messages: Sequence[bytes],
        allowed: frozenset[StatusCode],
        metadata: Metadata = (),
        leave_after: int | None = None,
    ) -> Case:
        return Case(self.category, method, messages, allowed, metadata, leave_after)

    # -- raw material

    def noise(self, longest: int = 200) -> bytes:
        return self.chance.randbytes(self.chance.randrange(longest))

    def damaged(self, data: bytes) -> bytes:
        """The bytes with one to three injuries."""
        for _ in range(self.chance.randint(1, 3)):
            place = self.chance.randrange(len(data) + 1)
            end = min(len(data), place + self.chance.randrange(1, 9))
            kind = self.chance.randrange(6)
            if kind == 0:
                data = data[:place]
            elif kind == 1 and data:
                place = min(place, len(data) - 1)
                data = data[:place] + bytes([data[place] ^ 1 << self.chance.randrange(8)]) + data[place + 1 :]
            elif kind == 2:
                data = data[:place] + self.noise(12) + data[place:]
            elif kind == 3:
                data = data[:place] + data[end:]
            elif kind == 4:
                data = data[:end] + data[place:]
            else:  # a length, or a number, that is far too large
                data = data[:place] + b"\xff" * self.chance.randint(1, 10) + data[end:]
        return data

    def handle(self, known: list[bytes]) -> bytes:
        """A handle: unknown, bent, or one that was given out."""
        kind = self.chance.randrange(4)
        if not known or kind == 0:
            return self.noise(64)
        one = self.chance.choice(known)
        return one if kind == 1 else self.damaged(one)

    def command(self) -> Message:
        return self.filled(self.chance.choice(list(_MESSAGES.values()))())

    def filled(self, message: Message, depth: int = 0) -> Message:
        """The message with some of its fields set, each to what its name suggests or to anything of its type."""
        for one in message.DESCRIPTOR.fields:
            if self.chance.random() < 0.25 or depth > 3:
                continue
            if one.type == FieldDescriptor.TYPE_MESSAGE:
                self._fill_nested(message, one, depth)
            elif one.is_repeated:
                getattr(message, one.name).extend(self._value(one) for _ in range(self.chance.randrange(4)))
            else:
                setattr(message, one.name, self._value(one))
        return message

    def _fill_nested(self, message: Message, one: FieldDescriptor, depth: int) -> None:
        target = getattr(message, one.name)
        if one.message_type.GetOptions().map_entry:
            for _ in range(self.chance.randrange(3)):
                key = self.chance.choice(_WORDS)
                if one.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE:
                    self.filled(target[key], depth + 1)
                else:
                    target[key] = self.chance.choice(_WORDS)
        elif one.is_repeated:
            for _ in range(self.chance.randrange(3)):
                self.filled(target.add(), depth + 1)
        else:
            target.SetInParent()
            self.filled(target, depth + 1)

    def _value(self, one: FieldDescriptor) -> object:
        name = one.name
        if one.type == FieldDescriptor.TYPE_STRING:
            return self.chance.choice(_QUERIES if name == "query" else _WORDS)
        if one.type == FieldDescriptor.TYPE_BYTES:
            known = {
                "ticket": self.handles.tickets,
                "prepared_statement_handle": self.handles.prepared,
                "transaction_id": self.handles.transactions,
            }
            return self.handle(known.get(name, []))
        if one.type == FieldDescriptor.TYPE_BOOL:
            return self.chance.random() < 0.5
        if one.type == FieldDescriptor.TYPE_ENUM:
            return self.chance.choice([value.number for value in one.enum_type.values])
        if one.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            return self.chance.choice((0.0, -1.5, 1e300, float("nan")))
        unsigned = one.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
        return self.chance.choice((0, 1, 5, 2**31 - 1) if unsigned else (0, -1, 7, -(2**31), 2**31 - 1))

    def asked(self, command: bytes) -> tuple[str, Sequence[bytes]]:
        """A command under a method that takes commands; now and then under one that does not."""
        method = self.chance.choice(("GetFlightInfo", "GetFlightInfo", "GetSchema", "DoGet", "DoPut", "PollFlightInfo"))
        if method == "DoGet":
            return method, [ticket(command)]
        if method == "DoPut":
            return method, self.put(command)
        return method, [descriptor(command)]

    def put(self, command: bytes) -> list[bytes]:
        """A DoPut of one batch, as it should be."""
        batch = pa.record_batch({"a": [1, 2, 3], "b": ["x", None, "z"]})
        (schema, _), (header, body) = ipc_messages(batch)
        return [flight_data(descriptor=descriptor(command), header=schema), flight_data(header=header, body=body)]


# -- the categories


def _bytes(make: _Maker) -> Case:
    method = make.chance.choice(list(METHODS))
    return make.case(method, [make.noise() for _ in range(make.chance.randint(1, 3))], ENVELOPE)


def _envelope(make: _Maker) -> Case:
    """A message of Flight, whole, around noise."""
    kind = make.chance.randrange(5)
    if kind == 0:
        return make.case("GetFlightInfo", [descriptor(make.noise())], WRONG)
    if kind == 1:  # a path, or no kind at all
        path = b"\x08" + varint(make.chance.choice((0, 1, 7))) + length_delimited(3, b"market") * 3
        return make.case(make.chance.choice(("GetFlightInfo", "GetSchema")), [path], WRONG)
    if kind == 2:
        return make.case("DoGet", [ticket(make.noise())], WRONG)
    if kind == 3:
        name = make.chance.choice((*ACTION_BODIES, "Fly", "", "x" * 300, "create\x01"))
        return make.case("DoAction", [action(name, make.noise())], WRONG_OR_HARMLESS)
    return make.case("DoPut", make.put(make.noise()), WRONG)


def _any(make: _Maker) -> Case:
    """A google.protobuf.Any that says one thing and holds another."""
    name = make.chance.choice(list(_MESSAGES))
    url = make.chance.choice((f"type.googleapis.com/{name}", name, f"//{name}", "type.googleapis.com/", name[:-1], "x"))
    value = make.chance.choice((make.noise(), make.command().SerializeToString(), wrap(make.command())))
    data = AnyMessage(type_url=url, value=value).SerializeToString()
    if make.chance.random() < 0.3:
        data = data[: make.chance.randrange(len(data) + 1)]
    return make.case(*make.asked(data), WRONG_OR_HARMLESS)


def _command(make: _Maker) -> Case:
    """A command, right or damaged."""
    data = wrap(make.command())
    return make.case(*make.asked(data if make.chance.random() < 0.3 else make.damaged(data)), WRONG_OR_HARMLESS)


def _action(make: _Maker) -> Case:
    """An action's body, right, damaged, another action's, wrapped or bare."""
    name = make.chance.choice(list(ACTION_BODIES))
    body = make.filled(ACTION_BODIES[make.chance.choice((name, name, make.chance.choice(list(ACTION_BODIES))))]())
    data = wrap(body) if make.chance.random() < 0.6 else body.SerializeToString()
    if make.chance.random() < 0.5:
        data = make.damaged(data)
    return make.case("DoAction", [action(name, data)], WRONG_OR_HARMLESS)


def _handle(make: _Maker) -> Case:
    """Tickets replayed, bent and forged; handles of others."""
    kind = make.chance.randrange(4)
    if kind == 0:
        return make.case("DoGet", [ticket(make.handle(make.handles.tickets))], LEFT)
    if kind == 1:
        forged = sql.TicketStatementQuery(statement_handle=make.damaged(b"K2H1" + make.noise(80)))
        return make.case("DoGet", [ticket(wrap(forged))], WRONG)
    handle = make.handle(make.handles.prepared)
    if kind == 2:
        return make.case(*make.asked(wrap(sql.CommandPreparedStatementQuery(prepared_statement_handle=handle))), LEFT)
    update = sql.CommandPreparedStatementUpdate(prepared_statement_handle=handle)
    return make.case("DoPut", make.put(wrap(update)), WRONG_OR_HARMLESS)


def _put(make: _Maker) -> Case:
    """A DoPut whose Arrow stream is broken: in its headers, its bodies, its order, or nowhere."""
    command = make.chance.choice(
        (
            sql.CommandStatementUpdate(query=make.chance.choice(_QUERIES)),
            sql.CommandPreparedStatementQuery(prepared_statement_handle=make.handle(make.handles.prepared)),
            sql.CommandPreparedStatementUpdate(prepared_statement_handle=make.handle(make.handles.prepared)),
            make.filled(sql.CommandStatementIngest()),
        )
    )
    batch = pa.record_batch({"a": [1, 2, 3], "b": ["x", None, "z"]})
    pieces = ipc_messages(batch)
    (schema, _), (header, body) = pieces
    messages = [(schema, b""), (header, body), (header, body)]
    kind = make.chance.randrange(6)
    if kind == 0:
        messages = messages[1:]
    elif kind == 1:
        messages = [(make.damaged(one), other) for one, other in messages]
    elif kind == 2:
        messages = [(one, make.damaged(other)) for one, other in messages]
    elif kind == 3:
        messages = [messages[0], messages[0], (b"", b"")]
    elif kind == 4:
        messages = [(make.noise(), make.noise())]
    else:
        make.chance.shuffle(messages)
    stream = [flight_data(header=one, body=other, metadata=make.noise(9)) for one, other in messages]
    if make.chance.random() < 0.9:
        stream[0] = flight_data(descriptor=descriptor(wrap(command))) + stream[0]
    leave = 0 if make.chance.random() < 0.1 else None
    # The Arrow stream is read by pyarrow, and what that says of a broken one is its own choice of words and status.
    return make.case("DoPut", stream, LEFT, leave_after=leave)


def _size(make: _Maker) -> Case:
    """Sizes that nobody means."""
    much = make.chance.choice((100_000, 1_000_000))
    command = make.chance.choice(
        (
            sql.CommandStatementQuery(query="SELECT '" + "x" * much + "'"),
            sql.CommandStatementQuery(query="(" * (much // 10)),
            sql.CommandStatementQuery(query="SELECT " + "-" * 20_000 + "1"),
            sql.CommandStatementQuery(query="SELECT 1" + " UNION ALL SELECT 1" * 2_000),
            sql.CommandStatementQuery(query="SELECT " + "NOT " * 5_000 + "true"),
            sql.CommandGetSqlInfo(info=range(much // 10)),
            sql.CommandGetTables(table_name_filter_pattern="%_" * (much // 20)),
            sql.CommandGetDbSchemas(db_schema_filter_pattern="%" * much),
            sql.CommandPreparedStatementQuery(prepared_statement_handle=b"h" * much),
            sql.TicketStatementQuery(statement_handle=b"K2H1" + b"h" * much),
        )
    )
    return make.case(*make.asked(wrap(command)), WRONG_OR_HARMLESS)


def _nested(make: _Maker) -> Case:
    """A message in a message in a message, deeper than a parser goes."""
    data = make.noise()
    for _ in range(make.chance.choice((5, 200))):
        data = AnyMessage(type_url="type.googleapis.com/google.protobuf.Any", value=data).SerializeToString()
    return make.case(*make.asked(data), WRONG)


def _metadata(make: _Maker) -> Case:
    """A right request under headers that are not."""
    text = "".join(chr(make.chance.randrange(33, 127)) for _ in range(make.chance.choice((0, 5, 300, 4_000))))
    headers: list[tuple[str, str | bytes]] = [
        ("authorization", make.chance.choice((text, f"Basic {text}", "Bearer", f"Bearer {text}", "basic Og=="))),
        ("authorization", "Basic " + base64.b64encode(make.noise()).decode()),
        ("cookie", make.chance.choice((text, f"k2_session={text}", "k2_session", "a=b; k2_session=; ;;=", "=" * 50))),
        ("x-k2-correlation-id", text),
        ("auth-token-bin", make.noise()),
        ("x-odd-bin", make.noise()),
        ("x-" + "long" * 20, text),
    ]
    metadata = make.chance.sample(headers, make.chance.randint(1, 4))
    allowed = WRONG_OR_HARMLESS
    if make.chance.random() < 0.2:
        return make.case("Handshake", [make.noise()], ENVELOPE, metadata)
    query = wrap(sql.CommandStatementQuery(query=make.chance.choice(_QUERIES)))
    return make.case(*make.asked(query), allowed, metadata)


def _left(make: _Maker) -> Case:
    """A client that goes away: before the answer, within a stream, within what it sends."""
    kind = make.chance.randrange(3)
    if kind == 0 and make.handles.tickets:
        one = make.chance.choice(make.handles.tickets)
        return make.case("DoGet", [ticket(one)], LEFT, leave_after=make.chance.randrange(3))
    if kind == 1:
        create = sql.ActionCreatePreparedStatementRequest(query=make.chance.choice(_QUERIES))
        return make.case("DoAction", [action("CreatePreparedStatement", wrap(create))], LEFT, leave_after=0)
    update = sql.CommandStatementUpdate(query=make.chance.choice(_QUERIES))
    return make.case("DoPut", make.put(wrap(update)), LEFT, leave_after=0)


#: Category -> (how often, who makes it).
_MAKERS: dict[str, tuple[int, Callable[[_Maker], Case]]] = {
    "bytes": (10, _bytes),
    "envelope": (10, _envelope),
    "any": (15, _any),
    "command": (25, _command),
    "action": (15, _action),
    "handle": (15, _handle),
    "put": (15, _put),
    "size": (1, _size),
    "nested": (1, _nested),
    "metadata": (8, _metadata),
    "left": (5, _left),
}
CATEGORIES = tuple(_MAKERS)
