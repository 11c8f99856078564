"""K2 through bare Flight calls with our own messages: every command's three calls agree, JDBC's way of working."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pyarrow as pa
import pytest
from conftest import ROWS, Served
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from pyarrow import flight

from common.errors import TailGap
from common.schemas.arrow import table_schema
from common.telemetry import CORRELATION_KEY
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol import catalog
from flight_server.protocol.commands import wrap
from flight_server.protocol.sql_info import SQL_INFO
from flight_server.protocol.xdbc import XDBC_TYPE_INFO


def descriptor(command: Message) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(wrap(command))


def fetch(client: flight.FlightClient, command: Message) -> pa.Table:
    info = client.get_flight_info(descriptor(command))
    return client.do_get(info.endpoints[0].ticket).read_all()


COMMANDS: list[tuple[Message, pa.Schema | None, int | None]] = [
    (sql.CommandStatementQuery(query="select * from market.trades"), None, ROWS),
    (sql.CommandGetCatalogs(), catalog.CATALOGS, 1),
    (sql.CommandGetDbSchemas(), catalog.DB_SCHEMAS, 3),
    (sql.CommandGetTables(), catalog.TABLES, 8),
    (sql.CommandGetTables(include_schema=True), catalog.TABLES_WITH_SCHEMA, 8),
    (sql.CommandGetTableTypes(), catalog.TABLE_TYPES, 4),
    (sql.CommandGetPrimaryKeys(table="trades"), catalog.PRIMARY_KEYS, 0),
    (sql.CommandGetExportedKeys(table="trades"), catalog.FOREIGN_KEYS, 0),
    (sql.CommandGetImportedKeys(table="trades"), catalog.FOREIGN_KEYS, 0),
    (sql.CommandGetCrossReference(pk_table="a", fk_table="b"), catalog.FOREIGN_KEYS, 0),
    (sql.CommandGetXdbcTypeInfo(), XDBC_TYPE_INFO, None),
    (sql.CommandGetSqlInfo(), SQL_INFO, None),
    (sql.CommandGetSqlInfo(info=[0, 1]), SQL_INFO, 2),
]


@pytest.mark.parametrize(("command", "schema", "rows"), COMMANDS, ids=lambda value: type(value).__name__)
def test_the_three_calls_of_a_command_agree(
    client: flight.FlightClient, command: Message, schema: pa.Schema | None, rows: int | None
) -> None:
    info = client.get_flight_info(descriptor(command))
    said = client.get_schema(descriptor(command)).schema
    (endpoint,) = info.endpoints
    reader = client.do_get(endpoint.ticket)
    got = reader.read_all()
    assert info.schema.equals(said, check_metadata=True)
    assert reader.schema.equals(said, check_metadata=True)
    assert schema is None or said.equals(schema, check_metadata=True)
    assert rows is None or got.num_rows == rows
    got.validate(full=True)
    assert endpoint.locations == [] and info.total_records == -1 and info.total_bytes == -1


def test_get_tables_gives_schemas_that_can_be_read(client: flight.FlightClient) -> None:
    rows = fetch(client, sql.CommandGetTables(include_schema=True, table_name_filter_pattern="trades")).to_pylist()
    schema = pa.ipc.read_schema(pa.py_buffer(rows[0]["table_schema"]))
    assert schema.equals(table_schema("trade"))
    assert schema.field("price").metadata[b"ARROW:FLIGHT:SQL:REMARKS"] == b"Price per unit, in currency."


def test_the_cut_comes_with_the_first_batch(client: flight.FlightClient, served: Served) -> None:
    info = client.get_flight_info(descriptor(sql.CommandStatementQuery(query="select trade_id from market.trades")))
    reader = client.do_get(info.endpoints[0].ticket)
    assert json.loads(reader.read_chunk().app_metadata.to_pybytes()) == {"cut": f"generation {served.lake.generation}"}
    empty = client.get_flight_info(descriptor(sql.CommandStatementQuery(query="from market.trades limit 0")))
    chunk = client.do_get(empty.endpoints[0].ticket).read_chunk()
    assert chunk.data.num_rows == 0 and b"generation" in chunk.app_metadata.to_pybytes()


def test_a_ticket_may_be_read_twice(client: flight.FlightClient) -> None:
    info = client.get_flight_info(descriptor(sql.CommandStatementQuery(query="select 42 as a")))
    for _ in range(2):
        assert client.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [{"a": 42}]


# -- prepared statements, as JDBC uses them


def prepare(
    client: flight.FlightClient, query: str, *, wrapped: bool = True
) -> sql.ActionCreatePreparedStatementResult:
    request = sql.ActionCreatePreparedStatementRequest(query=query)
    body = wrap(request) if wrapped else request.SerializeToString()
    (result,) = client.do_action(flight.Action("CreatePreparedStatement", body))
    answer, any_message = sql.ActionCreatePreparedStatementResult(), AnyMessage()
    any_message.ParseFromString(result.body.to_pybytes())
    assert any_message.Unpack(answer)
    return answer


def bind(client: flight.FlightClient, handle: bytes, batch: pa.RecordBatch) -> bytes:
    command = descriptor(sql.CommandPreparedStatementQuery(prepared_statement_handle=handle))
    writer, metadata = client.do_put(command, batch.schema)
    with writer:
        writer.write_batch(batch)
        writer.done_writing()
        answer = sql.DoPutPreparedStatementResult.FromString(metadata.read().to_pybytes())
    return answer.prepared_statement_handle


def close(client: flight.FlightClient, handle: bytes) -> None:
    request = sql.ActionClosePreparedStatementRequest(prepared_statement_handle=handle)
    assert list(client.do_action(flight.Action("ClosePreparedStatement", wrap(request)))) == []


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_statement_without_parameters(client: flight.FlightClient, served: Served, wrapped: bool) -> None:
    prepared = prepare(client, "select symbol, price from market.trades limit 5", wrapped=wrapped)
    schema = pa.ipc.read_schema(pa.py_buffer(prepared.dataset_schema))
    assert schema.names == ["symbol", "price"]
    assert prepared.parameter_schema == b"" and prepared.HasField("is_update") and not prepared.is_update
    command = sql.CommandPreparedStatementQuery(prepared_statement_handle=prepared.prepared_statement_handle)
    info = client.get_flight_info(descriptor(command))
    assert info.schema == schema == client.get_schema(descriptor(command)).schema
    assert client.do_get(info.endpoints[0].ticket).read_all().num_rows == 5
    close(client, prepared.prepared_statement_handle)
    close(client, prepared.prepared_statement_handle)
    assert served.service.stats().prepared_statements == 0
    with pytest.raises(pa.ArrowInvalid, match="prepare it again"):
        client.get_flight_info(descriptor(command))


def test_a_statement_with_parameters(client: flight.FlightClient) -> None:
    prepared = prepare(client, "select trade_id from market.trades where trade_id < ? and symbol = ? order by 1")
    assert pa.ipc.read_schema(pa.py_buffer(prepared.parameter_schema)).types == [pa.int64(), pa.string()]
    command = sql.CommandPreparedStatementQuery(prepared_statement_handle=prepared.prepared_statement_handle)
    with pytest.raises(pa.ArrowInvalid, match="takes 2 parameters and none was bound"):
        client.get_flight_info(descriptor(command))
    handle = bind(client, prepared.prepared_statement_handle, pa.record_batch({"1": [2], "2": ["BTCUSDT"]}))
    first = client.get_flight_info(descriptor(sql.CommandPreparedStatementQuery(prepared_statement_handle=handle)))
    handle = bind(client, handle, pa.record_batch({"1": [1], "2": ["BTCUSDT"]}))
    second = client.get_flight_info(descriptor(sql.CommandPreparedStatementQuery(prepared_statement_handle=handle)))
    close(client, handle)
    # What was on its way is untouched by binding again and by closing.
    assert client.do_get(first.endpoints[0].ticket).read_all().column(0).to_pylist() == [0, 1]
    assert client.do_get(second.endpoints[0].ticket).read_all().column(0).to_pylist() == [0]


def test_binding_what_does_not_fit(client: flight.FlightClient) -> None:
    handle = prepare(client, "select ?").prepared_statement_handle
    with pytest.raises(pa.ArrowInvalid, match="takes 1 parameter and 2 were bound"):
        bind(client, handle, pa.record_batch({"1": [1], "2": [1]}))
    with pytest.raises(pa.ArrowNotImplementedError, match="cannot be bound"):
        bind(client, handle, pa.record_batch({"1": pa.array([Decimal(1)], pa.decimal256(76, 0))}))
    with pytest.raises(flight.FlightServerError, match="may bind"):
        bind(client, handle, pa.record_batch({"1": ["x" * 5_000_000]}))
    close(client, handle)


# -- around the calls


def test_a_correlation_id_comes_back(served: Served) -> None:
    class Seen(flight.ClientMiddleware):
        def received_headers(self, headers: dict[str, list[str]]) -> None:
            seen.append(headers[CORRELATION_KEY][0])

    class Factory(flight.ClientMiddlewareFactory):
        def start_call(self, info: flight.CallInfo) -> Seen:
            return Seen()

    seen: list[str] = []
    with flight.connect(served.uri, middleware=[Factory()]) as watched:
        for given in (b"trace-7", b"not good at all", b""):
            options = flight.FlightCallOptions(headers=[(CORRELATION_KEY.encode(), given)] if given else [])
            watched.get_schema(descriptor(sql.CommandGetCatalogs()), options)
    assert seen[0] == "trace-7"
    assert all(len(made) == 16 and made.isalnum() for made in seen[1:])


def test_calls_at_once_keep_what_came_with_each(served: Served) -> None:
    """Credentials travel the same way as the correlation id: from what reads the headers to the call's handler."""

    class Kept(flight.ClientMiddleware):
        def __init__(self, came: list[str]) -> None:
            self._came = came

        def received_headers(self, headers: dict[str, list[str]]) -> None:
            self._came += headers[CORRELATION_KEY]

    class Keeping(flight.ClientMiddlewareFactory):
        def __init__(self) -> None:
            self.came: list[str] = []

        def start_call(self, info: flight.CallInfo) -> Kept:
            return Kept(self.came)

    def ask(number: int) -> tuple[list[str], list[str]]:
        keeping = Keeping()
        given = [f"client-{number}-{call}" for call in range(40)]
        with flight.connect(served.uri, middleware=[keeping]) as own:
            for one in given:
                options = flight.FlightCallOptions(headers=[(CORRELATION_KEY.encode(), one.encode())])
                info = own.get_flight_info(descriptor(sql.CommandStatementQuery(query="select 1")), options)
                assert own.do_get(info.endpoints[0].ticket, options).read_all().num_rows == 1
        return [one for one in given for _ in range(2)], keeping.came

    with ThreadPoolExecutor(8) as pool:
        for sent, came in pool.map(ask, range(8)):
            assert came == sent


def test_the_actions_are_listed(client: flight.FlightClient) -> None:
    assert {action.type for action in client.list_actions()} == {
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


def test_a_lake_that_cannot_answer_exactly(client: flight.FlightClient, served: Served) -> None:
    served.lake.gap = TailGap("the tail does not reach back to the snapshot; try again in a moment")
    try:
        with pytest.raises(flight.FlightUnavailableError, match="does not reach back"):
            fetch(client, sql.CommandStatementQuery(query="from market.trades"))
        assert fetch(client, sql.CommandStatementQuery(query="select 1 as a")).num_rows == 1
        assert fetch(client, sql.CommandGetTables()).num_rows == 8
    finally:
        served.lake.gap = None
    assert fetch(client, sql.CommandStatementQuery(query="from market.trades")).num_rows == ROWS
