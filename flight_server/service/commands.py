"""What each Flight SQL command is answered with: its schema, its ticket, its stream. One class per concern.

A `Handler` answers one kind of command for GetFlightInfo, GetSchema and DoGet alike, so that no command can be answered
in one of them and not in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
from google.protobuf.message import Message
from pyarrow import flight

from common.clock import Clock
from common.errors import InvalidStatement, Unavailable, Unsupported
from common.settings import FlightSettings
from flight_server.engine.engine import Engine
from flight_server.engine.requests import COUNT_SCHEMA, Request
from flight_server.engine.results import ReadyResult
from flight_server.engine.running import RunningStatement
from flight_server.engine.sessions import Caller
from flight_server.engine.statements import StatementKind
from flight_server.engine.subscriptions import Subscription
from flight_server.engine.writing import Writing
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol import catalog
from flight_server.protocol.commands import name_of, wrap
from flight_server.protocol.sql_info import SQL_INFO, sql_info
from flight_server.protocol.tickets import StatementHandle, TicketSeal, fingerprint
from flight_server.protocol.xdbc import XDBC_TYPE_INFO, xdbc_type_info
from flight_server.service import server_info
from flight_server.service.prepared import PreparedStatements
from flight_server.service.streaming import stream_of, table_stream

_PRINTS_MAX = 2_048


@dataclass(frozen=True)
class Call:
    """One call as its handler sees it: whose it is, whether the client has gone, and a log that names the call."""

    caller: Caller
    is_gone: Callable[[], bool]
    log: Callable[[], Any]


@dataclass(frozen=True)
class Answer:
    """What GetFlightInfo says of a result: a ticket for each part of it; -1 where a number is not known."""

    schema: pa.Schema
    tickets: tuple[bytes, ...]
    expires_us: int | None = None
    ordered: bool = False
    cut: str | None = None
    records: int = -1
    size: int = -1


class Handler(Protocol):
    """Answers one command. Each method raises our errors."""

    def schema(self, command: Any, call: Call) -> pa.Schema:
        """The schema of the result; exactly what the stream will have. Runs nothing."""
        ...

    def announce(self, command: Any, call: Call) -> Answer:
        """What the result is, and what DoGet is to be asked with."""
        ...

    def stream(self, command: Any, call: Call) -> flight.FlightDataStream:
        """The result, for the message inside the ticket."""
        ...


class CatalogHandler:
    """A command whose answer is a small table made on the spot; its ticket is the command itself."""

    def __init__(self, schema: Callable[[Any], pa.Schema], table: Callable[[Any, Caller], pa.Table]) -> None:
        self._schema = schema
        self._table = table

    def schema(self, command: Any, call: Call) -> pa.Schema:
        return self._schema(command)

    def announce(self, command: Any, call: Call) -> Answer:
        return Answer(self._schema(command), (wrap(command),))

    def stream(self, command: Any, call: Call) -> flight.FlightDataStream:
        return table_stream(self._table(command, call.caller))


class Statements:
    """What the handlers of statements have in common: announcing a text, and making its ticket.

    A statement that changes something is run when it is announced, once, however often its ticket is read: clients
    send it as a query and may never ask for its rows. The ticket then holds the answer.
    """

    def __init__(self, engine: Engine, writing: Writing, seal: TicketSeal, clock: Clock, *, ticket_s: float) -> None:
        self.engine = engine
        self.writing = writing
        self.seal = seal
        self._clock = clock
        self._ticket_us = int(ticket_s * 1_000_000)
        #: By the schema's identity, which holds while the schema is kept here.
        self._prints: dict[int, tuple[pa.Schema, bytes]] = {}

    def fingerprint(self, schema: pa.Schema) -> bytes:
        """The print of a schema; remembered, for the engine gives the same object for the same plan."""
        known = self._prints.get(id(schema))
        if known is None:
            if len(self._prints) >= _PRINTS_MAX:
                self._prints.clear()
            known = self._prints[id(schema)] = (schema, fingerprint(schema))
        return known[1]

    def now_us(self) -> int:
        return self._clock.now_us()

    def expiry_us(self) -> int:
        """When a ticket that is made now stops being good, in whole seconds."""
        return (self._clock.now_us() + self._ticket_us) // 1_000_000 * 1_000_000

    def run(self, request: Request, call: Call) -> RunningStatement | ReadyResult | Subscription:
        """What a ticket, or a prepared statement, gives: the rows of a query, or rows as they arrive."""
        if self.engine.plans.statement(request.sql).kind is StatementKind.SUBSCRIBE:
            return self.engine.follow(request, call.caller, is_gone=call.is_gone)
        return self.engine.execute(request, call.caller, is_abandoned=call.is_gone)

    def announce(self, request: Request, call: Call) -> Answer:
        caller = call.caller
        expires_us = self.expiry_us()
        if not self.engine.plans.statement(request.sql).is_query:
            count = self.writing.run(request, caller, call.is_gone)
            result = pa.RecordBatch.from_pydict({"Count": [count]}, schema=COUNT_SCHEMA)
            handle = StatementHandle(
                request.sql,
                None,
                fingerprint(COUNT_SCHEMA),
                principal=caller.principal,
                expires_us=expires_us,
                result=result,
            )
            return Answer(COUNT_SCHEMA, (self.seal.ticket(handle),), expires_us, records=1, size=result.nbytes)
        announced = self.engine.announce(request, caller)
        handle = StatementHandle(
            request.sql,
            request.parameters,
            self.fingerprint(announced.schema),
            announced.id,
            caller.principal,
            expires_us,
            announced.cut,
            request.transaction_id,
            is_part=bool(announced.others),
        )
        handles = [*(replace(handle, id=other) for other in announced.others), handle]
        tickets = tuple(self.seal.ticket(part) for part in handles)
        return Answer(announced.schema, tickets, expires_us, announced.ordered, announced.cut)


class StatementHandler:
    """CommandStatementQuery, and the ticket that it hands out."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    def schema(self, command: sql.CommandStatementQuery, call: Call) -> pa.Schema:
        request = Request(command.query, transaction_id=transaction_of(command))
        return self._statements.engine.plans.result_schema(request, call.caller)

    def announce(self, command: sql.CommandStatementQuery, call: Call) -> Answer:
        return self._statements.announce(Request(command.query, transaction_id=transaction_of(command)), call)

    def stream(self, command: Any, call: Call) -> flight.FlightDataStream:
        raise InvalidStatement("DoGet takes the ticket that GetFlightInfo gave, not the command; ask for that first")


class TicketHandler:
    """TicketStatementQuery: runs what the handle inside says."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    def schema(self, command: Any, call: Call) -> pa.Schema:
        raise InvalidStatement("a ticket is for DoGet; GetFlightInfo takes a command")

    def announce(self, command: Any, call: Call) -> Answer:
        raise InvalidStatement("a ticket is for DoGet; GetFlightInfo takes a command")

    def stream(self, command: sql.TicketStatementQuery, call: Call) -> flight.FlightDataStream:
        statements = self._statements
        handle = statements.seal.open(
            command.statement_handle, principal=call.caller.principal, now_us=statements.now_us()
        )
        if handle.result is not None:
            return table_stream(pa.Table.from_batches([handle.result]))
        request = Request(handle.query, handle.parameters, handle.id, handle.cut, handle.transaction_id, handle.is_part)
        running = statements.run(request, call)
        if self._statements.fingerprint(running.schema) != handle.schema_fingerprint:
            running.close()
            raise Unavailable("the tables changed since GetFlightInfo was answered; run the statement again")
        return stream_of(running, call.log)


class PreparedHandler:
    """CommandPreparedStatementQuery: what was prepared, with the parameters bound last."""

    def __init__(self, statements: Statements, prepared: PreparedStatements) -> None:
        self._statements = statements
        self._prepared = prepared

    def _request(self, command: sql.CommandPreparedStatementQuery, call: Call) -> Request:
        statement = self._prepared.get(command.prepared_statement_handle, call.caller.principal)
        transaction_id = self._statements.engine.transaction_now(statement.transaction_id, call.caller)
        return Request(statement.query, statement.parameters, transaction_id=transaction_id)

    def schema(self, command: sql.CommandPreparedStatementQuery, call: Call) -> pa.Schema:
        return self._statements.engine.plans.result_schema(self._request(command, call), call.caller)

    def announce(self, command: sql.CommandPreparedStatementQuery, call: Call) -> Answer:
        return self._statements.announce(self._request(command, call), call)

    def stream(self, command: sql.CommandPreparedStatementQuery, call: Call) -> flight.FlightDataStream:
        """Some older clients make the ticket themselves, out of the command."""
        return stream_of(self._statements.run(self._request(command, call), call), call.log)


def query_handlers(
    statements: Statements, settings: FlightSettings, prepared: PreparedStatements
) -> Mapping[type[Message], Handler]:
    """Message type -> who answers it, for GetFlightInfo, GetSchema and DoGet."""
    engine = statements.engine

    def databases(caller: Caller) -> set[tuple[str, str]]:
        return {(table.catalog, table.schema) for table in engine.tables(caller)} | engine.schemas()

    return {
        sql.CommandStatementQuery: StatementHandler(statements),
        sql.TicketStatementQuery: TicketHandler(statements),
        sql.CommandPreparedStatementQuery: PreparedHandler(statements, prepared),
        sql.CommandGetCatalogs: CatalogHandler(
            lambda command: catalog.CATALOGS,
            lambda command, caller: catalog.catalogs(name for name, _ in databases(caller)),
        ),
        sql.CommandGetDbSchemas: CatalogHandler(
            lambda command: catalog.DB_SCHEMAS, lambda command, caller: catalog.db_schemas(command, databases(caller))
        ),
        sql.CommandGetTables: CatalogHandler(
            catalog.tables_schema, lambda command, caller: catalog.tables(command, engine.tables(caller))
        ),
        sql.CommandGetTableTypes: CatalogHandler(
            lambda command: catalog.TABLE_TYPES, lambda command, caller: catalog.table_types(engine.table_types())
        ),
        # The tables have no declared keys: no rows is the true answer.
        sql.CommandGetPrimaryKeys: _nothing(catalog.PRIMARY_KEYS),
        sql.CommandGetExportedKeys: _nothing(catalog.FOREIGN_KEYS),
        sql.CommandGetImportedKeys: _nothing(catalog.FOREIGN_KEYS),
        sql.CommandGetCrossReference: _nothing(catalog.FOREIGN_KEYS),
        sql.CommandGetXdbcTypeInfo: CatalogHandler(
            lambda command: XDBC_TYPE_INFO, lambda command, caller: xdbc_type_info(command)
        ),
        sql.CommandGetSqlInfo: CatalogHandler(
            lambda command: SQL_INFO,
            lambda command, caller: sql_info(command, server_info.answers(engine.plans.dialect, settings)),
        ),
    }


def handler_of(handlers: Mapping[type[Message], Handler], command: Message) -> Handler:
    """Who answers the command. Raises Unsupported, naming it, when nobody does."""
    handler = handlers.get(type(command))
    if handler is None:
        raise Unsupported(refusal_of(command))
    return handler


def refusal_of(command: Message) -> str:
    """Why a command is not answered here."""
    if isinstance(command, (sql.CommandStatementSubstraitPlan, sql.ActionCreatePreparedSubstraitPlanRequest)):
        return "K2 takes SQL and no Substrait plans, which its engine does not read; send the statement as SQL"
    if isinstance(
        command, (sql.CommandStatementUpdate, sql.CommandPreparedStatementUpdate, sql.CommandStatementIngest)
    ):
        return f"{name_of(command)} goes to DoPut; GetFlightInfo and DoGet answer queries and catalog commands"
    return f"K2 does not offer {name_of(command)}; it answers queries and catalog commands"


def transaction_of(command: Any) -> bytes | None:
    """The id of the transaction that a command is to be run in; None for one that commits by itself."""
    return bytes(command.transaction_id) if command.HasField("transaction_id") else None


def _nothing(schema: pa.Schema) -> CatalogHandler:
    return CatalogHandler(lambda command: schema, lambda command, caller: schema.empty_table())
