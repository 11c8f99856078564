"""Sessions over the wire: scratch, transactions, options, tickets, cancelling; each is one client's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from conftest import ROWS, Served
from google.protobuf.any_pb2 import Any as AnyMessage
from pyarrow import flight

from flight_server.protocol import Flight_pb2 as messages
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from tests.support.fake_lake import trades


class Client:
    """A Flight SQL client by hand, which keeps its session's cookie."""

    def __init__(self, uri: str, *, cookies: bool = True) -> None:
        self._jar = _Jar() if cookies else None
        self.flight = flight.connect(uri, middleware=[self._jar] if self._jar else [])

    def info(self, query: str, transaction_id: bytes | None = None) -> flight.FlightInfo:
        command = wrap(sql.CommandStatementQuery(query=query, transaction_id=transaction_id))
        return self.flight.get_flight_info(flight.FlightDescriptor.for_command(command))

    def rows(self, query: str, transaction_id: bytes | None = None) -> list[dict[str, Any]]:
        info = self.info(query, transaction_id)
        return list(self.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist())

    def act(self, name: str, body: bytes) -> list[bytes]:
        return [result.body.to_pybytes() for result in self.flight.do_action(flight.Action(name, body))]

    def begin(self) -> bytes:
        (answer,) = self.act("BeginTransaction", wrap(sql.ActionBeginTransactionRequest()))
        return unpacked(answer, sql.ActionBeginTransactionResult).transaction_id

    def end(self, transaction_id: bytes, *, commit: bool) -> None:
        verbs = sql.ActionEndTransactionRequest
        action = verbs.END_TRANSACTION_COMMIT if commit else verbs.END_TRANSACTION_ROLLBACK
        self.act("EndTransaction", wrap(verbs(transaction_id=transaction_id, action=action)))

    def set(self, **options: Any) -> dict[str, int]:
        request = messages.SetSessionOptionsRequest()
        for name, value in options.items():
            option = request.session_options[name.replace("__", ".")]
            if isinstance(value, str):
                option.string_value = value
            elif isinstance(value, float):
                option.double_value = value
            elif isinstance(value, int):
                option.int64_value = value
        (answer,) = self.act("SetSessionOptions", request.SerializeToString())
        errors = messages.SetSessionOptionsResult.FromString(answer).errors
        return {name: error.value for name, error in errors.items()}

    def options(self) -> dict[str, Any]:
        (answer,) = self.act("GetSessionOptions", b"")
        found = messages.GetSessionOptionsResult.FromString(answer).session_options
        return {name: getattr(option, str(option.WhichOneof("option_value"))) for name, option in found.items()}


class _Jar(flight.ClientMiddlewareFactory):  # type: ignore[misc]
    """Keeps the cookies of one client."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies: dict[str, str] = {}

    def start_call(self, info: flight.CallInfo) -> _Keep:
        return _Keep(self.cookies)


class _Keep(flight.ClientMiddleware):  # type: ignore[misc]
    def __init__(self, cookies: dict[str, str]) -> None:
        super().__init__()
        self._cookies = cookies

    def sending_headers(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{n}={v}" for n, v in self._cookies.items())} if self._cookies else {}

    def received_headers(self, headers: dict[str, list[str]]) -> None:
        for header in headers.get("set-cookie", []):
            name, _, value = header.partition(";")[0].partition("=")
            self._cookies[name] = value


def unpacked(body: bytes, kind: Any) -> Any:
    answer = kind()
    assert AnyMessage.FromString(body).Unpack(answer)
    return answer


@pytest.fixture
def one(served: Served) -> Iterator[Client]:
    client = Client(served.uri)
    yield client
    client.act("CloseSession", b"")


@pytest.fixture
def two(served: Served) -> Iterator[Client]:
    client = Client(served.uri)
    yield client
    client.act("CloseSession", b"")


# -- scratch


def test_scratch_is_the_sessions_own(one: Client, two: Client) -> None:
    one.rows("create table mine as select trade_id from market.trades where trade_id < 3")
    assert one.rows("select count(*) as n from mine") == [{"n": 3}]
    for text in ("from mine", "from temp.main.mine", "from temp.mine"):
        with pytest.raises(pa.ArrowKeyError, match="does not exist"):
            two.rows(text)
    two.rows("create table mine as select 'other' as a")
    assert two.rows("from mine") == [{"a": "other"}]
    assert "mine" not in str(Client.rows(two, "select * from duckdb_tables() where schema_name = 'x'"))
    assert one.rows("select count(*) as n from mine") == [{"n": 3}]


def test_scratch_ends_with_its_session(served: Served, one: Client) -> None:
    sessions = served.service.stats().sessions
    one.rows("create table mine as select 1 as a")
    assert served.service.stats().sessions == sessions + 1
    (answer,) = one.act("CloseSession", b"")
    assert messages.CloseSessionResult.FromString(answer).status == messages.CloseSessionResult.CLOSED
    assert served.service.stats().sessions == sessions
    with pytest.raises(pa.ArrowKeyError):
        one.rows("from mine")


def test_a_change_sent_as_a_query_is_made_once(one: Client) -> None:
    one.rows("create table mine as select 1 as a")
    info = one.info("insert into mine values (2), (3)")
    assert info.total_records == 1
    for _ in range(2):
        assert one.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [{"Count": 2}]
    assert one.rows("select count(*) as n from mine") == [{"n": 3}]


def test_describing_a_change_does_not_make_it(one: Client) -> None:
    one.rows("create table mine as select 1 as a")
    command = flight.FlightDescriptor.for_command(wrap(sql.CommandStatementQuery(query="drop table mine")))
    assert one.flight.get_schema(command).schema.names == ["Count"]
    assert one.rows("from mine") == [{"a": 1}]


@pytest.mark.parametrize(
    "text",
    [
        "delete from market.trades",
        "update trades set price = 0",
        "insert into k2.market.trades select * from market.trades",
        "drop view market.trades",
        "drop table if exists market.trades",
        "create or replace view market.trades as select 1",
        "create table market.more as select 1 as a",
        "create table tail.more as select 1 as a",
        "truncate market.trades",
        "alter view market.trades rename to gone",
        "insert into tail.positions values (1, 1)",
        "with x as (select 1) delete from market.trades",
        "merge into market.trades using (select 1 as a) on true when matched then delete",
    ],
)
def test_market_is_read_only(one: Client, text: str) -> None:
    with pytest.raises(flight.FlightUnauthorizedError, match="read-only"):
        one.rows(text)
    assert one.rows("select count(*) > 0 as some from market.trades") == [{"some": True}]


def test_a_session_is_found_again_without_cookies(served: Served) -> None:
    with (
        dbapi.connect(served.uri, autocommit=True) as first,
        first.cursor() as cursor,
        dbapi.connect(served.uri, autocommit=True) as second,
        second.cursor() as other,
    ):
        cursor.executescript("create table mine as select 1 as a")
        cursor.execute("from mine")
        assert cursor.fetchall() == [(1,)]
        with pytest.raises(dbapi.Error, match="does not exist"):
            other.execute("from mine")


# -- transactions


def test_a_transaction_sees_one_cut_of_a_live_market(served: Served, one: Client, two: Client) -> None:
    transaction = one.begin()
    count = "select count(*) as n from market.trades"
    (before,) = one.rows(count, transaction)
    served.lake.publish(trades(range(before["n"], before["n"] + 10)))
    info = one.info(count, transaction)
    assert one.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [before]
    assert json.loads(info.app_metadata)["cut"] == f"generation {served.lake.generation - 1}"
    assert two.rows(count) == [{"n": before["n"] + 10}]
    one.end(transaction, commit=True)
    assert one.rows(count) == [{"n": before["n"] + 10}]


def test_scratch_commits_and_rolls_back(one: Client) -> None:
    one.rows("create table kept as select 1 as a")
    transaction = one.begin()
    one.rows("insert into kept values (2)", transaction)
    one.rows("create table gone as select 1 as a", transaction)
    assert one.rows("select count(*) as n from kept", transaction) == [{"n": 2}]
    one.end(transaction, commit=False)
    assert one.rows("from kept") == [{"a": 1}]
    with pytest.raises(pa.ArrowKeyError):
        one.rows("from gone")
    transaction = one.begin()
    one.rows("insert into kept values (2)", transaction)
    one.end(transaction, commit=True)
    assert one.rows("select count(*) as n from kept") == [{"n": 2}]


def test_a_transaction_is_ended_once_and_by_its_own_id(one: Client) -> None:
    transaction = one.begin()
    with pytest.raises(pa.ArrowInvalid, match="open already"):
        one.begin()
    with pytest.raises(pa.ArrowInvalid, match="not known"):
        one.rows("select 1", b"another")
    one.end(transaction, commit=True)
    with pytest.raises(pa.ArrowInvalid, match="not known"):
        one.end(transaction, commit=True)


def test_transactions_in_sql(served: Served, one: Client) -> None:
    count = "select count(*) as n from market.trades"
    one.rows("begin")
    (before,) = one.rows(count)
    served.lake.publish(trades(range(before["n"], before["n"] + 10)))
    assert one.rows(count) == [before]
    one.rows("create table gone as select 1 as a")
    one.rows("rollback")
    assert one.rows(count) == [{"n": before["n"] + 10}]
    with pytest.raises(pa.ArrowKeyError):
        one.rows("from gone")
    with pytest.raises(pa.ArrowInvalid, match="no transaction"):
        one.rows("commit")


def test_the_results_of_one_transaction_may_be_read_by_turns(served: Served) -> None:
    with dbapi.connect(served.uri) as connection, connection.cursor() as first, connection.cursor() as second:
        first.execute("select range as a from range(500000), (select 1 from market.trades limit 1)")
        reader = first.fetch_record_batch()
        got = reader.read_next_batch().num_rows
        second.execute("select count(*) from market.trades")
        assert second.fetchone()[0] >= ROWS
        assert got + sum(batch.num_rows for batch in reader) == 500_000


# -- ingest


@pytest.mark.parametrize("rows", [1, 100_000])
def test_rows_are_taken_into_a_temporary_table(served: Served, rows: int) -> None:
    data = pa.table({"a": range(rows), "b": [str(i) for i in range(rows)]})
    with dbapi.connect(served.uri, autocommit=True) as connection, connection.cursor() as cursor:
        assert cursor.adbc_ingest("t", data, mode="create", temporary=True) == rows
        with pytest.raises(dbapi.Error, match="has a table 't' already"):
            cursor.adbc_ingest("t", data, mode="create", temporary=True)
        assert cursor.adbc_ingest("t", data, mode="append", temporary=True) == rows
        cursor.execute("select count(*), count(distinct b) from t")
        assert cursor.fetchone() == (2 * rows, rows)
        assert cursor.adbc_ingest("t", data, mode="replace", temporary=True) == rows
        cursor.execute("from t order by a")
        assert cursor.fetch_arrow_table().cast(data.schema) == data
        with pytest.raises(dbapi.Error, match="no table 'other'"):
            cursor.adbc_ingest("other", data, mode="append", temporary=True)


def test_ingest_is_part_of_a_transaction(served: Served) -> None:
    data = pa.table({"a": [1, 2, 3]})
    with dbapi.connect(served.uri) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("t", data, mode="create", temporary=True)
        cursor.execute("select count(*) from t")
        assert cursor.fetchone() == (3,)
        connection.rollback()
        with pytest.raises(dbapi.Error, match="does not exist"):
            cursor.execute("select count(*) from t")


# -- options


def test_options_are_read_back_and_wrong_ones_named(one: Client, two: Client) -> None:
    assert one.options() == {
        "catalog": "k2",
        "schema": "market",
        "k2.as_of": "",
        "statement_timeout": 300.0,
        "timezone": "UTC",
    }
    error = messages.SetSessionOptionsResult
    assert one.set(schema="research", timezone="Asia/Tokyo", statement_timeout=5, catalog="other", colour="red") == {
        "catalog": error.INVALID_VALUE,
        "colour": error.INVALID_NAME,
    }
    assert one.set(timezone="Mars/Olympus", statement_timeout=-1.0) == {
        "timezone": error.INVALID_VALUE,
        "statement_timeout": error.INVALID_VALUE,
    }
    mine = one.options()
    assert (mine["schema"], mine["timezone"], mine["statement_timeout"]) == ("research", "Asia/Tokyo", 5.0)
    assert two.options()["timezone"] == "UTC"
    request = messages.SetSessionOptionsRequest()
    request.session_options["timezone"].SetInParent()
    one.act("SetSessionOptions", request.SerializeToString())
    assert one.options()["timezone"] == "UTC"


def test_a_time_zone_is_used_where_times_become_text(one: Client, two: Client) -> None:
    text = "select (timestamptz '2024-08-08 12:00:00+00')::varchar as t, timestamptz '2024-08-08 12:00:00+00' as u"
    assert one.set(timezone="Asia/Tokyo") == {}
    (tokyo,) = one.rows(text)
    (utc,) = two.rows(text)
    assert tokyo["t"] == "2024-08-08 21:00:00+09" and utc["t"] == "2024-08-08 12:00:00+00"
    assert tokyo["u"] == utc["u"]
    one.rows("set timezone = 'Australia/Sydney'")
    assert one.rows(text)[0]["t"] == "2024-08-08 22:00:00+10"
    one.rows("reset timezone")
    assert one.rows(text)[0]["t"] == utc["t"]


def test_a_statement_timeout_of_the_sessions_own(one: Client) -> None:
    assert one.set(statement_timeout="200ms") == {}
    with pytest.raises(flight.FlightTimedOutError, match=r"longer than 0\.2 s"):
        one.rows("select sum(a.range * b.range) from range(10000000) a, range(10000000) b")


# -- tickets


def test_a_ticket_is_its_principals_and_expires(one: Client) -> None:
    info = one.info("select 1 as a")
    (endpoint,) = info.endpoints
    assert endpoint.expiration_time is not None
    request = messages.RenewFlightEndpointRequest(endpoint=messages.FlightEndpoint.FromString(endpoint.serialize()))
    (answer,) = one.act("RenewFlightEndpoint", request.SerializeToString())
    renewed = flight.FlightEndpoint.deserialize(answer)
    assert renewed.expiration_time.value >= endpoint.expiration_time.value
    assert one.flight.do_get(renewed.ticket).read_all().to_pylist() == [{"a": 1}]


def test_the_announced_cut_is_the_one_that_is_read(served: Served, one: Client) -> None:
    info = one.info("select count(*) as n from market.trades")
    before = served.lake.generation
    served.lake.publish(trades(range(50_000, 50_010)))
    reader = one.flight.do_get(info.endpoints[0].ticket)
    chunk = reader.read_chunk()
    assert (
        json.loads(chunk.app_metadata.to_pybytes()) == json.loads(info.app_metadata) == {"cut": f"generation {before}"}
    )
    assert one.rows("select count(*) as n from market.trades")[0]["n"] == chunk.data.column(0)[0].as_py() + 10


def test_order_is_said(one: Client) -> None:
    assert one.info("select * from market.trades order by trade_id").ordered
    assert not one.info("select * from (from market.trades order by trade_id)").ordered


# -- cancelling


def reading(client: Client, info: flight.FlightInfo) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that reads the result, and what it was told instead."""
    told: list[BaseException] = []

    def read() -> None:
        try:
            client.flight.do_get(info.endpoints[0].ticket).read_all()
        except (pa.ArrowException, KeyboardInterrupt) as error:
            told.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    return reader, told


def long_info(client: Client) -> flight.FlightInfo:
    return client.info("select sum(a.range * b.range) as n from range(10000000) a, range(10000000) b, market.trades")


@pytest.mark.parametrize("action", ["CancelFlightInfo", "CancelQuery"])
def test_a_running_statement_is_cancelled(served: Served, one: Client, action: str) -> None:
    info = long_info(one)
    reader, told = reading(one, info)
    while not served.service.stats().open_statements:
        threading.Event().wait(0.005)
    cancel(one, action, info)
    reader.join()
    assert len(told) == 1 and "cancelled" in str(told[0])
    assert served.service.stats().open_statements == 0
    with pytest.raises(flight.FlightCancelledError, match="was cancelled"):
        one.flight.do_get(info.endpoints[0].ticket).read_all()


def test_a_statement_is_cancelled_before_it_is_read(served: Served, one: Client, two: Client) -> None:
    before = served.service.stats().pinned_statements
    info = long_info(one)
    assert served.service.stats().pinned_statements == before + 1
    assert cancel(one, "CancelFlightInfo", info) == messages.CANCEL_STATUS_CANCELLED
    assert served.service.stats().pinned_statements == before
    assert cancel(one, "CancelFlightInfo", info) == messages.CANCEL_STATUS_NOT_CANCELLABLE


def cancel(client: Client, action: str, info: flight.FlightInfo) -> int:
    if action == "CancelQuery":
        (answer,) = client.act(action, wrap(sql.ActionCancelQueryRequest(info=info.serialize())))
        return int(unpacked(answer, sql.ActionCancelQueryResult).result)
    request = messages.CancelFlightInfoRequest(info=messages.FlightInfo.FromString(info.serialize()))
    (answer,) = client.act(action, request.SerializeToString())
    return int(messages.CancelFlightInfoResult.FromString(answer).status)


# -- administration


def test_sessions_and_statements_are_tables(served: Served, one: Client, two: Client) -> None:
    one.rows("create table mine as select 1 as a")
    one.set(timezone="Asia/Tokyo")
    (mine,) = [row for row in two.rows("from ops.sessions") if row["scratch"] == ["mine"]]
    assert (mine["principal"], mine["timezone"], mine["in_transaction"]) == ("anonymous", "Asia/Tokyo", False)
    cookies = {client._jar.cookies["k2_session"] for client in (one, two) if client._jar}
    assert mine["session_id"] not in cookies and not any(cookie in str(mine) for cookie in cookies)
    info = one.info("select s.text, s.kind from ops.statements s join ops.sessions using (session_id)")
    assert info.schema.names == ["text", "kind"]
    assert one.rows("select count(*) as n from ops.statements") == [{"n": 0}]


def test_a_running_statement_is_listed_and_killed(served: Served, one: Client, two: Client) -> None:
    info = long_info(one)
    reader, told = reading(one, info)
    found: list[dict[str, Any]] = []
    while not found:
        found = two.rows("select * from ops.statements where text like '%range(10000000)%'")
    two.rows(f"kill statement '{found[0]['statement_id']}'")
    reader.join()
    assert len(told) == 1 and "was ended by anonymous" in str(told[0])
    with pytest.raises(pa.ArrowInvalid, match=r"ops\.statements lists"):
        two.rows(f"kill statement '{found[0]['statement_id']}'")


def test_a_session_is_killed_with_all_it_has(one: Client, two: Client) -> None:
    one.rows("create table mine as select 1 as a")
    (mine,) = [row for row in two.rows("from ops.sessions") if row["scratch"] == ["mine"]]
    two.rows(f"kill session '{mine['session_id']}'")
    with pytest.raises(pa.ArrowKeyError):
        one.rows("from mine")
    with pytest.raises(pa.ArrowInvalid, match=r"ops\.sessions lists"):
        two.rows(f"kill session '{mine['session_id']}'")
