"""clients.connect against the real ADBC driver and a scripted Flight SQL server: results, refusals, wrong addresses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import polars as pl
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

import clients
from clients.errors import server_message

Answer = Callable[[], Iterator[pa.RecordBatch]]
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(numbers, pa.int64())], schema=SCHEMA)


class RecordHeaders(flight.ServerMiddlewareFactory):
    def __init__(self) -> None:
        self.seen: list[dict[str, list[str]]] = []

    def start_call(self, info: object, headers: dict[str, list[str]]) -> None:
        self.seen.append(headers)


class ScriptedServer(flight.FlightServerBase):
    """`refuse[word]` is raised when a statement holds the word; `answers[word]` streams its result, else one row."""

    def __init__(self) -> None:
        self.headers = RecordHeaders()
        super().__init__("grpc://127.0.0.1:0", middleware={"headers": self.headers})
        self.refuse: dict[str, Exception] = {}
        self.answers: dict[str, Answer] = {}

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def get_flight_info(self, context: object, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        command = AnyMessage()
        command.ParseFromString(descriptor.command)
        if not command.type_url.endswith("CommandStatementQuery"):
            raise NotImplementedError("statements only")
        # Field 1 (the SQL) of a short message: one tag byte, one length byte.
        sql = command.value[2 : 2 + command.value[1]].decode()
        for word, error in self.refuse.items():
            if word in sql:
                raise error
        return flight.FlightInfo(SCHEMA, descriptor, [flight.FlightEndpoint(sql.encode(), [])], -1, -1)

    def do_get(self, context: object, ticket: flight.Ticket) -> flight.GeneratorStream:
        sql = ticket.ticket.decode()
        answer = next((answer for word, answer in self.answers.items() if word in sql), lambda: iter([batch(1)]))
        return flight.GeneratorStream(SCHEMA, answer())

    def do_action(self, context: object, action: flight.Action) -> None:
        raise NotImplementedError("statements only")


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.shutdown()


@pytest.fixture
def server(running: ScriptedServer) -> Iterator[ScriptedServer]:
    yield running
    running.refuse.clear()
    running.answers.clear()
    running.headers.seen.clear()


@pytest.fixture
def k2(server: ScriptedServer) -> Iterator[clients.Connection]:
    with clients.connect(server.uri) as connection:
        yield connection


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_result_comes_as_an_arrow_table_in_the_server_s_types(k2: clients.Connection) -> None:
    assert k2.arrow("SELECT n").equals(pa.Table.from_batches([batch(1)]))


def test_a_result_comes_as_a_polars_frame(k2: clients.Connection) -> None:
    assert k2.polars("SELECT n").equals(pl.DataFrame({"n": [1]}))


def test_a_result_comes_as_an_arrow_backed_pandas_frame(k2: clients.Connection) -> None:
    frame = k2.pandas("SELECT n")
    assert (list(frame["n"]), str(frame["n"].dtype)) == ([1], "int64[pyarrow]")


def test_a_stream_gives_the_batches_as_they_come_and_the_schema_before_them(
    server: ScriptedServer, k2: clients.Connection
) -> None:
    server.answers["two"] = lambda: iter([batch(1, 2), batch(3)])
    with k2.stream("SELECT two") as stream:
        assert stream.schema == SCHEMA
        assert [rows.to_pydict()["n"] for rows in stream] == [[1, 2], [3]]


def test_an_empty_result_keeps_its_schema(server: ScriptedServer, k2: clients.Connection) -> None:
    server.answers["none"] = lambda: iter([])
    assert (k2.arrow("SELECT none").num_rows, k2.arrow("SELECT none").schema) == (0, SCHEMA)


def test_a_stream_may_be_left_half_read_and_the_connection_goes_on(
    server: ScriptedServer, k2: clients.Connection
) -> None:
    server.answers["many"] = lambda: (batch(number) for number in range(100_000))
    with k2.stream("SELECT many") as stream:
        assert next(iter(stream)).num_rows == 1
    stream.close()
    assert k2.arrow("SELECT n").num_rows == 1


def test_a_connection_closes_with_streams_left_open(server: ScriptedServer) -> None:
    server.answers["many"] = lambda: (batch(number) for number in range(100_000))
    with clients.connect(server.uri) as connection:
        read, left = connection.stream("SELECT n"), connection.stream("SELECT many")
        assert [rows.num_rows for rows in read] == [1]
        assert [rows.num_rows for rows in read] == []
        assert next(iter(left)).num_rows == 1
    with pytest.raises(clients.ClientError, match="closed"):
        next(iter(left))
    with pytest.raises(clients.ClientError, match="closed"):
        connection.arrow("SELECT n")


POSITION = 'Parser Error: syntax error at or near "FORM"\n\nLINE 1: SELECT * FORM t\n                 ^'


@pytest.mark.parametrize(
    ("refusal", "code", "message", "retryable"),
    [
        (pa.ArrowInvalid(POSITION), "INVALID_ARGUMENT", POSITION, False),
        (pa.ArrowKeyError("no table market.foo"), "NOT_FOUND", "no table market.foo", False),
        (NotImplementedError("no savepoints; use none"), "UNIMPLEMENTED", "no savepoints; use none", False),
        (flight.FlightUnavailableError("starting"), "UNAVAILABLE", "starting", True),
        (flight.FlightTimedOutError("ran longer than 3 s"), "DEADLINE_EXCEEDED", "ran longer than 3 s", True),
        (flight.FlightUnauthenticatedError("who are you"), "UNAUTHENTICATED", "who are you", False),
        (flight.FlightUnauthorizedError("not yours"), "PERMISSION_DENIED", "not yours", False),
        (flight.FlightInternalError("incident 7f3a"), "INTERNAL", "incident 7f3a", False),
        (flight.FlightServerError("out of luck (really; yes)"), "UNKNOWN", "out of luck (really; yes)", False),
    ],
)
def test_a_refusal_is_the_server_s_own_sentence(
    server: ScriptedServer, k2: clients.Connection, refusal: Exception, code: str, message: str, retryable: bool
) -> None:
    server.refuse["refused"] = refusal
    with pytest.raises(clients.QueryError) as caught:
        k2.arrow("SELECT refused")
    assert (caught.value.code, str(caught.value), caught.value.retryable) == (code, message, retryable)
    assert k2.arrow("SELECT n").num_rows == 1


def test_a_failure_in_the_middle_of_a_stream_is_told_after_the_rows_before_it(
    server: ScriptedServer, k2: clients.Connection
) -> None:
    def breaks() -> Iterator[pa.RecordBatch]:
        yield batch(1)
        raise flight.FlightServerError("the statement needed more memory than 1 GiB; ask for less")

    server.answers["breaks"] = breaks
    seen = []
    with k2.stream("SELECT breaks") as stream, pytest.raises(clients.QueryError) as caught:
        for rows in stream:
            seen.append(rows.num_rows)
    assert (seen, str(caught.value)) == ([1], "the statement needed more memory than 1 GiB; ask for less")
    with pytest.raises(clients.QueryError):
        k2.arrow("SELECT breaks")


@pytest.mark.parametrize(
    "uri", ["", "market", "http://127.0.0.1:1", "127.0.0.1:50051", "grpc://", "grpc://host", "grpc://h:99999"]
)
def test_a_wrong_address_says_how_to_write_one(uri: str) -> None:
    with pytest.raises(clients.ConnectError) as caught:
        clients.connect(uri)
    assert str(caught.value) == (
        f"'{uri}' is no address of a Flight SQL server; write it as grpc://host:port, or grpc+tls://host:port with TLS"
    )


def test_nobody_listening_is_one_sentence_at_once() -> None:
    uri = f"grpc://127.0.0.1:{free_port()}"
    with pytest.raises(clients.ConnectError) as caught:
        clients.connect(uri)
    assert str(caught.value) == (
        f"no server could be reached at {uri} (connection refused); start one with `k2 serve`, or correct the address"
    )
    assert caught.value.retryable


def test_a_server_without_tls_is_told_from_one_that_is_down(server: ScriptedServer) -> None:
    uri = server.uri.replace("grpc://", "grpc+tls://")
    with pytest.raises(
        clients.ConnectError, match=r"does not answer as a Flight SQL server: .*TLS handshake"
    ) as caught:
        clients.connect(uri)
    assert "\n" not in str(caught.value)


def test_a_server_that_lets_nobody_in_is_told_apart(server: ScriptedServer) -> None:
    server.refuse["SELECT 1"] = flight.FlightUnauthenticatedError("send a bearer token")
    with pytest.raises(clients.ConnectError, match="did not let this client in: send a bearer token") as caught:
        clients.connect(server.uri)
    assert caught.value.code == "UNAUTHENTICATED"


def test_headers_and_a_token_go_with_each_call(server: ScriptedServer) -> None:
    with clients.connect(server.uri, token="t0ken", headers={"k2-correlation-id": "abc"}) as k2:
        server.headers.seen.clear()
        k2.arrow("SELECT n")
        assert server.headers.seen
        for headers in server.headers.seen:
            assert (headers["authorization"], headers["k2-correlation-id"]) == (["Bearer t0ken"], ["abc"])


def test_closing_twice_is_fine(server: ScriptedServer) -> None:
    k2 = clients.connect(server.uri)
    k2.close()
    k2.close()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            "INVALID_ARGUMENT: [FlightSQL] bad SQL (InvalidArgument; ExecuteQuery). Vendor code: 3",
            "INVALID_ARGUMENT",
            "bad SQL",
        ),
        (
            "IO: [FlightSQL] full. Detail: Failed (ResourceExhausted; DoGet: endpoint 0: [])",
            "RESOURCE_EXHAUSTED",
            "full",
        ),
        (
            "NOT_FOUND: [FlightSQL] no t. Detail: Python exception: KeyError: 'no t'\n (NotFound; GetInfo(GetSqlInfo))",
            "NOT_FOUND",
            "no t",
        ),
        ("ERROR: what (the server; said): stays", "UNKNOWN", "ERROR: what (the server; said): stays"),
        ("", "UNKNOWN", "the server gave no reason"),
    ],
)
def test_the_driver_s_wrapping_comes_off_even_without_trailers(text: str, code: str, message: str) -> None:
    assert server_message(text) == (code, message)


def test_the_trailer_with_the_untouched_message_wins() -> None:
    text = "INVALID_ARGUMENT: [FlightSQL] cut sh (InvalidArgument; Prepare)"
    assert server_message(text, [(b"x-arrow-status-message-bin", b"cut short?")]) == ("INVALID_ARGUMENT", "cut short?")
