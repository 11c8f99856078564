"""Requests that no driver sends: each gets one sentence and the right status, and the server goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from conftest import Served
from google.protobuf.any_pb2 import Any as AnyMessage
from pyarrow import flight

from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap

GARBAGE = b"\xff\xfe\x00garbage" + bytes(range(256))
TRUNCATED = wrap(sql.CommandStatementQuery(query="select 1"))[:-3]
UNKNOWN = AnyMessage(type_url="type.googleapis.com/arrow.flight.protocol.sql.CommandFly").SerializeToString()
FOREIGN = wrap(sql.TicketStatementQuery(statement_handle=b"somebody else's handle"))
SUBSTRAIT = wrap(sql.CommandStatementSubstraitPlan())
QUERY = wrap(sql.CommandStatementQuery(query="select 1"))
IN_TRANSACTION = wrap(sql.CommandStatementQuery(query="select 1", transaction_id=b"t"))

INVALID, UNIMPLEMENTED = pa.ArrowInvalid, pa.ArrowNotImplementedError


END = sql.ActionEndTransactionRequest(
    transaction_id=b"x", action=sql.ActionEndTransactionRequest.END_TRANSACTION_COMMIT
)


def info(data: bytes) -> Callable[[flight.FlightClient], Any]:
    return lambda client: client.get_flight_info(flight.FlightDescriptor.for_command(data))


def schema(data: bytes) -> Callable[[flight.FlightClient], Any]:
    return lambda client: client.get_schema(flight.FlightDescriptor.for_command(data))


def get(data: bytes) -> Callable[[flight.FlightClient], Any]:
    return lambda client: client.do_get(flight.Ticket(data)).read_all()


def act(name: str, body: bytes = b"") -> Callable[[flight.FlightClient], Any]:
    return lambda client: list(client.do_action(flight.Action(name, body)))


def put(data: bytes) -> Callable[[flight.FlightClient], Any]:
    def call(client: flight.FlightClient) -> None:
        batch = pa.record_batch({"a": [1]})
        writer, metadata = client.do_put(flight.FlightDescriptor.for_command(data), batch.schema)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            metadata.read()

    return call


CASES: list[tuple[str, Callable[[flight.FlightClient], Any], type[Exception], str]] = [
    ("garbage info", info(GARBAGE), INVALID, "google.protobuf.Any"),
    ("garbage schema", schema(GARBAGE), INVALID, "google.protobuf.Any"),
    ("garbage ticket", get(GARBAGE), INVALID, "google.protobuf.Any"),
    ("garbage put", put(GARBAGE), INVALID, "google.protobuf.Any"),
    ("truncated info", info(TRUNCATED), INVALID, "google.protobuf.Any"),
    ("nothing", info(b""), INVALID, "holds no message"),
    ("nothing to get", get(b""), INVALID, "holds no message"),
    ("a path", lambda c: c.get_flight_info(flight.FlightDescriptor.for_path("a")), INVALID, "holds no message"),
    ("unknown info", info(UNKNOWN), UNIMPLEMENTED, "CommandFly"),
    ("unknown schema", schema(UNKNOWN), UNIMPLEMENTED, "CommandFly"),
    ("foreign ticket", get(FOREIGN), INVALID, "not made by this server"),
    ("command as ticket", get(QUERY), INVALID, "GetFlightInfo"),
    ("ticket as command", info(FOREIGN), INVALID, "ticket is for DoGet"),
    ("substrait", info(SUBSTRAIT), UNIMPLEMENTED, "no Substrait plans"),
    ("substrait schema", schema(SUBSTRAIT), UNIMPLEMENTED, "no Substrait plans"),
    ("transaction", info(IN_TRANSACTION), INVALID, "begin a new one"),
    ("ingest", put(wrap(sql.CommandStatementIngest())), INVALID, "names no table"),
    ("select as update", put(wrap(sql.CommandStatementUpdate(query="select 1"))), INVALID, "as a query"),
    (
        "insert as update",
        put(wrap(sql.CommandStatementUpdate(query="insert into trades values (1)"))),
        flight.FlightUnauthorizedError,
        "market.trades is read-only",
    ),
    (
        "unknown handle",
        info(wrap(sql.CommandPreparedStatementQuery(prepared_statement_handle=b"x"))),
        INVALID,
        "prepare it again",
    ),
    ("unknown action", act("LaunchRocket"), UNIMPLEMENTED, "LaunchRocket"),
    ("savepoint", act("BeginSavepoint", wrap(sql.ActionBeginSavepointRequest())), UNIMPLEMENTED, "no savepoints"),
    ("end of none", act("EndTransaction", wrap(END)), INVALID, "begin a new one"),
    ("end without a verb", act("EndTransaction", b""), INVALID, "neither commit nor roll back"),
    ("cancel of garbage", act("CancelQuery", wrap(sql.ActionCancelQueryRequest(info=b"x"))), INVALID, "FlightInfo"),
    ("garbage action", act("CreatePreparedStatement", b"\xff\xff"), INVALID, "truncated or damaged"),
    ("other action's body", act("ClosePreparedStatement", QUERY), INVALID, "ActionClosePreparedStatementRequest"),
    ("no flights", lambda c: list(c.list_flights()), UNIMPLEMENTED, "GetTables"),
    ("long error", info(wrap(sql.CommandStatementQuery(query="select " + "x" * 50_000))), INVALID, "[...]"),
]


@pytest.mark.parametrize(("call", "kind", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_bad_request(
    client: flight.FlightClient, call: Callable[[flight.FlightClient], Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    told = str(caught.value)
    assert says in told
    assert "Traceback" not in told and 'File "' not in told and "site-packages" not in told
    assert info(QUERY)(client).schema.names == ["1"]


def test_an_exchange_is_refused(client: flight.FlightClient) -> None:
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(QUERY))
    with pytest.raises(pa.ArrowNotImplementedError, match="DoExchange"), writer:
        reader.read_chunk()


def test_a_failure_inside_is_an_incident(
    client: flight.FlightClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError(f"secret of {os.getpid()}")

    monkeypatch.setattr(served.lake, "check_ready", broken)
    with pytest.raises(flight.FlightInternalError, match=r"incident [0-9a-f]{12}") as caught:
        info(wrap(sql.CommandStatementQuery(query="from market.trades")))(client)
    assert "secret" not in str(caught.value)
    assert served.service.stats().open_statements == 0
