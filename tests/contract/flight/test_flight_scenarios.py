"""The integration scenarios of the Arrow project, under the names they have there, written anew from their description.

Arrow runs each of them between a client and a server that both only play their parts; here the server is K2 and answers
with what it really has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pyarrow as pa
import pytest
from conftest import ROWS, Served
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry
from pyarrow import flight
from test_flight_sessions import Client, unpacked

from common.clock import ManualClock
from common.settings import FlightSettings
from flight_server.protocol import Flight_pb2 as messages
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol import catalog
from flight_server.protocol.commands import wrap
from flight_server.protocol.sql_info import SQL_INFO
from flight_server.protocol.xdbc import XDBC_TYPE_INFO
from flight_server.service.service import FlightService
from tests.support.fake_lake import FakeLake

UPDATE_ROWS = 10_000


@pytest.fixture
def me(served: Served) -> Iterator[Client]:
    client = Client(served.uri)
    with client.flight:
        yield client


def descriptor(command: Message) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(wrap(command))


def answer(me: Client, command: Message) -> pa.Table:
    """The result of a command through GetFlightInfo and DoGet, whose schemas are one."""
    info = me.flight.get_flight_info(descriptor(command))
    reader = me.flight.do_get(info.endpoints[0].ticket)
    assert reader.schema.equals(info.schema, check_metadata=True)
    assert me.flight.get_schema(descriptor(command)).schema.equals(info.schema, check_metadata=True)
    return reader.read_all()


def put(me: Client, command: Message, *batches: pa.RecordBatch) -> bytes:
    """What DoPut answers a command and these batches with."""
    schema = batches[0].schema if batches else pa.schema([])
    writer, metadata = me.flight.do_put(descriptor(command), schema)
    with writer:
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()
        return bytes(metadata.read().to_pybytes())


def update(me: Client, query: str, transaction_id: bytes | None = None) -> int:
    command = sql.CommandStatementUpdate(query=query, transaction_id=transaction_id)
    return sql.DoPutUpdateResult.FromString(put(me, command)).record_count


def prepare(me: Client, query: str, transaction_id: bytes | None = None) -> sql.ActionCreatePreparedStatementResult:
    request = sql.ActionCreatePreparedStatementRequest(query=query, transaction_id=transaction_id)
    (body,) = me.act("CreatePreparedStatement", wrap(request))
    prepared: sql.ActionCreatePreparedStatementResult = unpacked(body, sql.ActionCreatePreparedStatementResult)
    return prepared


# -- flight_sql


METADATA: list[tuple[Message, pa.Schema]] = [
    (sql.CommandGetCatalogs(), catalog.CATALOGS),
    (sql.CommandGetDbSchemas(catalog="k2", db_schema_filter_pattern="%"), catalog.DB_SCHEMAS),
    (sql.CommandGetTables(catalog="k2", table_types=["TABLE", "VIEW"]), catalog.TABLES),
    (sql.CommandGetTables(catalog="k2", include_schema=True), catalog.TABLES_WITH_SCHEMA),
    (sql.CommandGetTableTypes(), catalog.TABLE_TYPES),
    (sql.CommandGetPrimaryKeys(catalog="k2", db_schema="market", table="trades"), catalog.PRIMARY_KEYS),
    (sql.CommandGetExportedKeys(catalog="k2", db_schema="market", table="trades"), catalog.FOREIGN_KEYS),
    (sql.CommandGetImportedKeys(catalog="k2", db_schema="market", table="trades"), catalog.FOREIGN_KEYS),
    (sql.CommandGetCrossReference(pk_table="trades", fk_table="quotes"), catalog.FOREIGN_KEYS),
    (sql.CommandGetXdbcTypeInfo(), XDBC_TYPE_INFO),
    (sql.CommandGetXdbcTypeInfo(data_type=sql.XDBC_VARCHAR), XDBC_TYPE_INFO),
    (sql.CommandGetSqlInfo(info=[sql.FLIGHT_SQL_SERVER_NAME, sql.FLIGHT_SQL_SERVER_READ_ONLY]), SQL_INFO),
]


@pytest.mark.flight_sql("CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTables", client="pyarrow")
@pytest.mark.flight_sql("CommandGetTableTypes", "CommandGetXdbcTypeInfo", "CommandGetSqlInfo", client="pyarrow")
@pytest.mark.flight_sql("CommandGetPrimaryKeys", "CommandGetExportedKeys", client="pyarrow")
@pytest.mark.flight_sql("CommandGetImportedKeys", "CommandGetCrossReference", client="pyarrow")
def test_flight_sql_metadata(me: Client) -> None:
    for command, schema in METADATA:
        assert answer(me, command).schema.equals(schema, check_metadata=True), command


@pytest.mark.flight_sql("GetFlightInfo", "GetSchema", "DoGet", "DoPut", client="pyarrow")
@pytest.mark.flight_sql("CommandStatementQuery", "TicketStatementQuery", "CommandStatementUpdate", client="pyarrow")
def test_flight_sql_statements(me: Client) -> None:
    assert answer(me, sql.CommandStatementQuery(query="select 1 as id")).to_pydict() == {"id": [1]}
    assert update(me, f"create table scenario as select range as id from range({UPDATE_ROWS})") == UPDATE_ROWS
    assert update(me, "update scenario set id = id + 1") == UPDATE_ROWS
    assert update(me, "delete from scenario where id = 1") == 1
    assert update(me, "drop table scenario") == 0


@pytest.mark.flight_sql("CreatePreparedStatement", client="pyarrow")
@pytest.mark.flight_sql("ClosePreparedStatement", client="pyarrow")
@pytest.mark.flight_sql("CommandPreparedStatementQuery", "CommandPreparedStatementUpdate", client="pyarrow")
def test_flight_sql_prepared_statements(me: Client) -> None:
    query = prepare(me, "select trade_id from market.trades where trade_id between ? and ? order by 1")
    assert [str(kind) for kind in pa.ipc.read_schema(pa.py_buffer(query.parameter_schema)).types] == ["int64"] * 2
    assert pa.ipc.read_schema(pa.py_buffer(query.dataset_schema)).names == ["trade_id"]
    assert not query.is_update
    command = sql.CommandPreparedStatementQuery(prepared_statement_handle=query.prepared_statement_handle)
    bound = put(me, command, pa.record_batch({"0": [3, 10], "1": [4, 10]}))
    handle = sql.DoPutPreparedStatementResult.FromString(bound).prepared_statement_handle
    assert handle == query.prepared_statement_handle
    assert answer(me, command).to_pydict() == {"trade_id": [3, 4, 10]}

    update(me, "create table scenario (id bigint)")
    insert = prepare(me, "insert into scenario values (?)")
    assert insert.is_update and not insert.dataset_schema
    change = sql.CommandPreparedStatementUpdate(prepared_statement_handle=insert.prepared_statement_handle)
    batches = [pa.record_batch({"0": range(start, start + 500)}) for start in (0, 500)]
    assert sql.DoPutUpdateResult.FromString(put(me, change, *batches)).record_count == 1_000
    assert me.rows("select count(distinct id) as n from scenario") == [{"n": 1_000}]
    for closed in (query, insert):
        request = sql.ActionClosePreparedStatementRequest(prepared_statement_handle=closed.prepared_statement_handle)
        assert me.act("ClosePreparedStatement", wrap(request)) == []
    with pytest.raises(pa.ArrowException, match="prepared"):
        me.flight.get_flight_info(descriptor(command))


# -- flight_sql:extension


@pytest.mark.flight_sql("CommandGetSqlInfo", client="pyarrow")
def test_flight_sql_extension_sql_info(me: Client) -> None:
    wanted = [
        sql.FLIGHT_SQL_SERVER_SQL,
        sql.FLIGHT_SQL_SERVER_SUBSTRAIT,
        sql.FLIGHT_SQL_SERVER_TRANSACTION,
        sql.FLIGHT_SQL_SERVER_CANCEL,
        sql.FLIGHT_SQL_SERVER_STATEMENT_TIMEOUT,
        sql.FLIGHT_SQL_SERVER_TRANSACTION_TIMEOUT,
    ]
    rows = answer(me, sql.CommandGetSqlInfo(info=wanted)).to_pylist()
    found = {row["info_name"]: row["value"] for row in rows}
    assert set(found) == set(wanted)
    assert found[sql.FLIGHT_SQL_SERVER_SQL] is True and found[sql.FLIGHT_SQL_SERVER_SUBSTRAIT] is False
    assert found[sql.FLIGHT_SQL_SERVER_TRANSACTION] == sql.SQL_SUPPORTED_TRANSACTION_TRANSACTION
    assert found[sql.FLIGHT_SQL_SERVER_CANCEL] is True


@pytest.mark.flight_sql("CommandStatementSubstraitPlan", client="pyarrow")
@pytest.mark.flight_sql("CreatePreparedSubstraitPlan", client="pyarrow")
def test_flight_sql_extension_substrait_is_refused(me: Client) -> None:
    plan = sql.SubstraitPlan(plan=b"plan", version="0.6.0")
    with pytest.raises(NotImplementedError, match="Substrait"):
        me.flight.get_flight_info(descriptor(sql.CommandStatementSubstraitPlan(plan=plan)))
    with pytest.raises(NotImplementedError, match="Substrait"):
        put(me, sql.CommandStatementSubstraitPlan(plan=plan))
    with pytest.raises(NotImplementedError, match="Substrait"):
        me.act("CreatePreparedSubstraitPlan", wrap(sql.ActionCreatePreparedSubstraitPlanRequest(plan=plan)))


@pytest.mark.flight_sql("BeginTransaction", "EndTransaction", client="pyarrow")
def test_flight_sql_extension_transactions(me: Client) -> None:
    update(me, "create table scenario (id bigint)")
    for commit in (False, True):
        transaction_id = me.begin()
        assert update(me, "insert into scenario values (1), (2)", transaction_id) == 2
        statement = prepare(me, "select count(*) as n from scenario", transaction_id)
        handle = statement.prepared_statement_handle
        assert answer(me, sql.CommandPreparedStatementQuery(prepared_statement_handle=handle)).to_pydict() == {"n": [2]}
        assert me.rows("select id from scenario order by id", transaction_id) == [{"id": 1}, {"id": 2}]
        me.end(transaction_id, commit=commit)
        assert me.rows("select count(*) as n from scenario") == [{"n": 2 * commit}]
        with pytest.raises(pa.ArrowException, match="transaction"):
            update(me, "insert into scenario values (3)", transaction_id)


@pytest.mark.flight_sql("BeginSavepoint", "EndSavepoint", client="pyarrow")
def test_flight_sql_extension_savepoints_are_refused(me: Client) -> None:
    transaction_id = me.begin()
    begin = sql.ActionBeginSavepointRequest(transaction_id=transaction_id, name="savepoint")
    end = sql.ActionEndSavepointRequest(savepoint_id=b"1", action=sql.ActionEndSavepointRequest.END_SAVEPOINT_RELEASE)
    for name, request in (("BeginSavepoint", begin), ("EndSavepoint", end)):
        with pytest.raises(NotImplementedError, match="DuckDB, has none"):
            me.act(name, wrap(request))
    me.end(transaction_id, commit=False)


@pytest.mark.flight_sql("CancelQuery", client="pyarrow")
def test_flight_sql_extension_cancel_query(me: Client) -> None:
    info = me.info("select trade_id from market.trades")
    (body,) = me.act("CancelQuery", wrap(sql.ActionCancelQueryRequest(info=info.serialize())))
    result = unpacked(body, sql.ActionCancelQueryResult).result
    assert result == sql.ActionCancelQueryResult.CANCEL_RESULT_CANCELLED
    with pytest.raises(flight.FlightCancelledError):
        me.flight.do_get(info.endpoints[0].ticket).read_all()


# -- flight_sql:ingestion


@pytest.mark.flight_sql("CommandStatementIngest", client="pyarrow")
def test_flight_sql_ingestion(me: Client) -> None:
    """Create, append, replace and fail, into a temporary table, in and out of a transaction."""
    options = sql.CommandStatementIngest.TableDefinitionOptions
    batch = pa.record_batch({"number": [1, 2, 3], "text": ["a", None, "ü"]})

    def ingest(
        there: Any, absent: Any = options.TABLE_NOT_EXIST_OPTION_CREATE, transaction: bytes | None = None
    ) -> int:
        command = sql.CommandStatementIngest(
            table_definition_options=options(if_not_exist=absent, if_exists=there),
            table="taken_in",
            temporary=True,
            transaction_id=transaction,
        )
        return sql.DoPutUpdateResult.FromString(put(me, command, batch, batch)).record_count

    with pytest.raises(pa.ArrowException, match="taken_in"):
        ingest(options.TABLE_EXISTS_OPTION_APPEND, options.TABLE_NOT_EXIST_OPTION_FAIL)
    assert ingest(options.TABLE_EXISTS_OPTION_FAIL) == 6
    with pytest.raises(pa.ArrowException, match="taken_in"):
        ingest(options.TABLE_EXISTS_OPTION_FAIL)
    assert ingest(options.TABLE_EXISTS_OPTION_APPEND) == 6
    assert me.rows("select count(*) as n, count(text) as t from taken_in") == [{"n": 12, "t": 8}]
    transaction = me.begin()
    assert ingest(options.TABLE_EXISTS_OPTION_REPLACE, transaction=transaction) == 6
    assert me.rows("select count(*) as n from taken_in", transaction) == [{"n": 6}]
    me.end(transaction, commit=False)
    assert me.rows("select count(*) as n from taken_in") == [{"n": 12}]


# -- session_options


@pytest.mark.flight_sql("SetSessionOptions", "GetSessionOptions", "CloseSession", client="pyarrow")
def test_session_options(me: Client) -> None:
    """Set, read, set wrong, set back, close; a closed session's options are gone."""
    errors = messages.SetSessionOptionsResult
    assert me.set(schema="research", statement_timeout=30.0, timezone="Asia/Tokyo") == {}
    found = me.options()
    assert (found["schema"], found["statement_timeout"], found["timezone"]) == ("research", 30.0, "Asia/Tokyo")
    assert me.set(catalog="nope", nonsense="x", timezone=5) == {
        "catalog": errors.INVALID_VALUE,
        "nonsense": errors.INVALID_NAME,
        "timezone": errors.INVALID_VALUE,
    }
    request = messages.SetSessionOptionsRequest()
    request.session_options["timezone"].SetInParent()  # no value: back to the default
    (body,) = me.act("SetSessionOptions", request.SerializeToString())
    assert not errors.FromString(body).errors
    assert (me.options()["timezone"], me.options()["schema"]) == ("UTC", "research")
    (body,) = me.act("CloseSession", b"")
    assert messages.CloseSessionResult.FromString(body).status == messages.CloseSessionResult.CLOSED
    assert me.options()["schema"] == "market"


# -- expiration_time


class Timed:
    """A server whose clock stands still until it is told to go on."""

    def __init__(self) -> None:
        settings = FlightSettings(port=0)
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.lake = FakeLake(ROWS, settings)
        self.service = FlightService(self.lake, settings, registry=self.registry, clock=self.clock)
        self.service.start()
        self.client = Client(self.service.uri)

    def close(self) -> None:
        self.client.flight.close()
        self.service.stop()
        self.lake.close()


@pytest.fixture
def timed() -> Iterator[Timed]:
    timed = Timed()
    yield timed
    timed.close()


def seconds_left(endpoint: flight.FlightEndpoint, clock: ManualClock) -> float:
    return float((endpoint.expiration_time.value - clock.now_us() * 1_000) / 1e9)


def test_expiration_time_do_get(timed: Timed) -> None:
    """Before it expires an endpoint may be read again and again; afterwards not once more."""
    info = timed.client.info("select 42 as a")
    (endpoint,) = info.endpoints
    left_s = seconds_left(endpoint, timed.clock)
    assert left_s > 0
    for _ in range(2):
        assert timed.client.flight.do_get(endpoint.ticket).read_all().to_pydict() == {"a": [42]}
    timed.clock.advance(left_s + 1)
    with pytest.raises(pa.ArrowException, match="expired"):
        timed.client.flight.do_get(endpoint.ticket).read_all()


@pytest.mark.flight_sql("ListActions", "DoAction", client="pyarrow")
def test_expiration_time_list_actions(me: Client) -> None:
    names = {action.type for action in me.flight.list_actions()}
    assert {"CancelFlightInfo", "RenewFlightEndpoint"} <= names
    with pytest.raises(NotImplementedError, match="is not known"):
        me.act("NoSuchAction", b"")


@pytest.mark.flight_sql("CancelFlightInfo", client="pyarrow")
def test_expiration_time_cancel_flight_info(me: Client) -> None:
    info = me.info("select trade_id from market.trades")
    request = messages.CancelFlightInfoRequest(info=messages.FlightInfo.FromString(info.serialize()))
    (body,) = me.act("CancelFlightInfo", request.SerializeToString())
    assert messages.CancelFlightInfoResult.FromString(body).status == messages.CANCEL_STATUS_CANCELLED
    with pytest.raises(flight.FlightCancelledError):
        me.flight.do_get(info.endpoints[0].ticket).read_all()


@pytest.mark.flight_sql("RenewFlightEndpoint", client="pyarrow")
def test_expiration_time_renew_flight_endpoint(timed: Timed) -> None:
    """A renewed endpoint is good where the one before it is not."""
    (first,) = timed.client.info("select 42 as a").endpoints
    left_s = seconds_left(first, timed.clock)
    timed.clock.advance(left_s / 2)
    request = messages.RenewFlightEndpointRequest(endpoint=messages.FlightEndpoint.FromString(first.serialize()))
    (body,) = timed.client.act("RenewFlightEndpoint", request.SerializeToString())
    renewed = flight.FlightEndpoint.deserialize(body)
    assert seconds_left(renewed, timed.clock) == pytest.approx(left_s)
    timed.clock.advance(left_s / 2 + 1)
    assert timed.client.flight.do_get(renewed.ticket).read_all().to_pydict() == {"a": [42]}
    with pytest.raises(pa.ArrowException, match="expired"):
        timed.client.flight.do_get(first.ticket).read_all()


# -- ordered, app_metadata, locations


def test_ordered(me: Client) -> None:
    """Where `ordered` is said, the endpoints one after the other give the rows in order."""
    info = me.info("select trade_id from market.trades order by trade_id")
    assert info.ordered
    parts = [me.flight.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
    assert pa.concat_tables(parts).column(0).to_pylist() == list(range(ROWS))


def test_app_metadata_flight_info_endpoint(me: Client, served: Served) -> None:
    """The cut is told before anything is read, and again with the rows."""
    info = me.info("select count(*) as n from market.trades")
    assert json.loads(info.app_metadata) == {"cut": f"generation {served.lake.generation}"}
    chunk = me.flight.do_get(info.endpoints[0].ticket).read_chunk()
    assert chunk.app_metadata.to_pybytes() == info.app_metadata


def test_location_reuse_connection(me: Client) -> None:
    """No location, or the URI that says so: the connection that asked is the one to read from."""
    for endpoint in me.info("select 1 as a").endpoints:
        assert [location.uri for location in endpoint.locations] in ([], [b"arrow-flight-reuse-connection://?"])


# -- what Flight has and K2 does not


@pytest.mark.flight_sql("PollFlightInfo", client="grpc")
@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [("PollFlightInfo", wrap(sql.CommandStatementQuery(query="select 1"))), ("ListFlights", b"")],
)
def test_poll_and_list_flights(served: Served, method: str, request_bytes: bytes) -> None:
    """PollFlightInfo is not offered by pyarrow's server; ListFlights has nothing to list in Flight SQL."""
    body = messages.FlightDescriptor(type=messages.FlightDescriptor.CMD, cmd=request_bytes).SerializeToString()
    with grpc.insecure_channel(served.uri.rpartition("/")[2]) as channel:
        call = channel.unary_stream(
            f"/arrow.flight.protocol.FlightService/{method}",
            request_serializer=lambda data: data,
            response_deserializer=lambda data: data,
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(call(body if method == "PollFlightInfo" else b""))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.flight_sql("ListFlights", "DoExchange", client="pyarrow")
def test_list_flights_and_do_exchange_are_refused(me: Client) -> None:
    with pytest.raises(NotImplementedError, match="GetTables"):
        list(me.flight.list_flights())
    with pytest.raises(NotImplementedError, match="DoExchange"):
        writer, reader = me.flight.do_exchange(flight.FlightDescriptor.for_command(b""))
        with writer:
            reader.read_chunk()


def test_what_is_offered_is_listed(me: Client) -> None:
    offered = {action.type for action in me.flight.list_actions()}
    assert offered == {
        "CreatePreparedStatement",
        "ClosePreparedStatement",
        "BeginTransaction",
        "EndTransaction",
        "CancelFlightInfo",
        "CancelQuery",
        "RenewFlightEndpoint",
        "SetSessionOptions",
        "GetSessionOptions",
        "CloseSession",
    }


def test_the_clock_of_tickets_is_the_wall_clock(me: Client) -> None:
    (endpoint,) = me.info("select 1 as a").endpoints
    assert endpoint.expiration_time.as_py().replace(tzinfo=UTC) > datetime.now(UTC)
