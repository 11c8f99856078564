"""What each Flight SQL command is answered with: its schema, its ticket, its stream. One class per concern.

A `Handler` answers one kind of command for GetFlightInfo, GetSchema and DoGet alike, so that no command can be answered
in one of them and not in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa
from google.protobuf.message import Message
from pyarrow import flight

from common.errors import InvalidStatement, Unavailable, Unsupported
from common.settings import FlightSettings
from flight_server.engine.engine import Engine
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol import catalog
from flight_server.protocol.commands import name_of, wrap
from flight_server.protocol.sql_info import SQL_INFO, sql_info
from flight_server.protocol.tickets import StatementHandle, TicketSeal, fingerprint
from flight_server.protocol.xdbc import XDBC_TYPE_INFO, xdbc_type_info
from flight_server.service import server_info
from flight_server.service.prepared import PreparedStatements
from flight_server.service.streaming import stream_of, table_stream

#: Says whether the client of the call is gone.
IsGone = Callable[[], bool]


class Handler(Protocol):
    """Answers one command. Each method raises our errors."""

    def schema(self, command: Any) -> pa.Schema:
        """The schema of the result; exactly what the stream will have."""
        ...

    def ticket(self, command: Any, schema: pa.Schema) -> bytes:
        """What DoGet is to be asked with."""
        ...

    def stream(self, command: Any, is_gone: IsGone, log: Any) -> flight.FlightDataStream:
        """The result, for the message inside the ticket."""
        ...


class CatalogHandler:
    """A command whose answer is a small table made on the spot; its ticket is the command itself."""

    def __init__(self, schema: Callable[[Any], pa.Schema], table: Callable[[Any], pa.Table]) -> None:
        self._schema = schema
        self._table = table

    def schema(self, command: Any) -> pa.Schema:
        return self._schema(command)

    def ticket(self, command: Any, schema: pa.Schema) -> bytes:
        return wrap(command)

    def stream(self, command: Any, is_gone: IsGone, log: Any) -> flight.FlightDataStream:
        return table_stream(self._table(command))


class StatementHandler:
    """CommandStatementQuery, and the ticket that it hands out."""

    def __init__(self, engine: Engine, seal: TicketSeal) -> None:
        self._engine = engine
        self._seal = seal

    def schema(self, command: sql.CommandStatementQuery) -> pa.Schema:
        _no_transaction(command)
        return self._engine.result_schema(command.query, None)

    def ticket(self, command: sql.CommandStatementQuery, schema: pa.Schema) -> bytes:
        return self._seal.ticket(StatementHandle(command.query, None, fingerprint(schema)))

    def stream(self, command: Any, is_gone: IsGone, log: Any) -> flight.FlightDataStream:
        raise InvalidStatement("DoGet takes the ticket that GetFlightInfo gave, not the command; ask for that first")


class TicketHandler:
    """TicketStatementQuery: runs what the handle inside says."""

    def __init__(self, engine: Engine, seal: TicketSeal) -> None:
        self._engine = engine
        self._seal = seal

    def schema(self, command: Any) -> pa.Schema:
        raise InvalidStatement("a ticket is for DoGet; GetFlightInfo takes a command")

    def ticket(self, command: Any, schema: pa.Schema) -> bytes:
        raise InvalidStatement("a ticket is for DoGet; GetFlightInfo takes a command")

    def stream(self, command: sql.TicketStatementQuery, is_gone: IsGone, log: Any) -> flight.FlightDataStream:
        handle = self._seal.open(command.statement_handle)
        running = self._engine.execute(handle.query, handle.parameters, is_abandoned=is_gone)
        if fingerprint(running.schema) != handle.schema_fingerprint:
            running.close()
            raise Unavailable("the tables changed since GetFlightInfo was answered; run the statement again")
        return stream_of(running, log)


class PreparedHandler:
    """CommandPreparedStatementQuery: what was prepared, with the parameters bound last."""

    def __init__(self, engine: Engine, seal: TicketSeal, prepared: PreparedStatements) -> None:
        self._engine = engine
        self._seal = seal
        self._prepared = prepared

    def schema(self, command: sql.CommandPreparedStatementQuery) -> pa.Schema:
        statement = self._prepared.get(command.prepared_statement_handle)
        return self._engine.result_schema(statement.query, statement.parameters)

    def ticket(self, command: sql.CommandPreparedStatementQuery, schema: pa.Schema) -> bytes:
        statement = self._prepared.get(command.prepared_statement_handle)
        return self._seal.ticket(StatementHandle(statement.query, statement.parameters, fingerprint(schema)))

    def stream(self, command: sql.CommandPreparedStatementQuery, is_gone: IsGone, log: Any) -> flight.FlightDataStream:
        """Some older clients make the ticket themselves, out of the command."""
        statement = self._prepared.get(command.prepared_statement_handle)
        return stream_of(self._engine.execute(statement.query, statement.parameters, is_abandoned=is_gone), log)


def query_handlers(
    engine: Engine, settings: FlightSettings, seal: TicketSeal, prepared: PreparedStatements
) -> Mapping[type[Message], Handler]:
    """Message type -> who answers it, for GetFlightInfo, GetSchema and DoGet."""

    def databases() -> set[tuple[str, str]]:
        return {(table.catalog, table.schema) for table in engine.tables()}

    return {
        sql.CommandStatementQuery: StatementHandler(engine, seal),
        sql.TicketStatementQuery: TicketHandler(engine, seal),
        sql.CommandPreparedStatementQuery: PreparedHandler(engine, seal, prepared),
        sql.CommandGetCatalogs: CatalogHandler(
            lambda command: catalog.CATALOGS, lambda command: catalog.catalogs(name for name, _ in databases())
        ),
        sql.CommandGetDbSchemas: CatalogHandler(
            lambda command: catalog.DB_SCHEMAS, lambda command: catalog.db_schemas(command, databases())
        ),
        sql.CommandGetTables: CatalogHandler(
            catalog.tables_schema, lambda command: catalog.tables(command, engine.tables())
        ),
        sql.CommandGetTableTypes: CatalogHandler(
            lambda command: catalog.TABLE_TYPES,
            lambda command: catalog.table_types(table.kind for table in engine.tables()),
        ),
        # The tables have no declared keys: no rows is the true answer.
        sql.CommandGetPrimaryKeys: _nothing(catalog.PRIMARY_KEYS),
        sql.CommandGetExportedKeys: _nothing(catalog.FOREIGN_KEYS),
        sql.CommandGetImportedKeys: _nothing(catalog.FOREIGN_KEYS),
        sql.CommandGetCrossReference: _nothing(catalog.FOREIGN_KEYS),
        sql.CommandGetXdbcTypeInfo: CatalogHandler(lambda command: XDBC_TYPE_INFO, xdbc_type_info),
        sql.CommandGetSqlInfo: CatalogHandler(
            lambda command: SQL_INFO,
            lambda command: sql_info(command, server_info.answers(engine.dialect, settings)),
        ),
    }


def handler_of(handlers: Mapping[type[Message], Handler], command: Message) -> Handler:
    """Who answers the command. Raises Unsupported, naming it, when nobody does."""
    handler = handlers.get(type(command))
    if handler is None:
        raise Unsupported(f"K2 does not offer {name_of(command)} yet; it answers queries and catalog commands")
    return handler


def _nothing(schema: pa.Schema) -> CatalogHandler:
    return CatalogHandler(lambda command: schema, lambda command: schema.empty_table())


def _no_transaction(command: Any) -> None:
    if command.HasField("transaction_id"):
        raise Unsupported("K2 does not offer transactions over Flight SQL yet; leave transaction_id out")
