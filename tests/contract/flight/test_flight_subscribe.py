"""SUBSCRIBE over the wire, on a real broker and a real table: each row once as it arrives, and an end on every path."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from pyarrow import flight
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from flight_server.protocol import Flight_pb2 as messages
from tests.support import jdbc
from tests.support.kafka import eventually
from tests.support.live import COUNT, Live
from tests.support.served import ServedProcess

IDS = "SELECT trade_id FROM market.trades"
#: 2 KB a row: what gRPC holds for a reader that does not read is soon full.
WIDE = "SELECT trade_id, rpad('', 2000, 'x') AS wide FROM market.trades"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(
        tmp_path_factory.mktemp("lake"),
        subscription_keep_alive_s=0.01,
        statement_timeout_s=3.0,
        statements_max=1,
        subscriptions_max=3,
    )
    yield live
    live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")
    eventually(lambda: live.service.stats().open_statements == 0, what="every subscription ends with its client")


class Follower:
    """A subscriber by hand: the rows that came, and the cut that came with the last of them."""

    def __init__(self, client: Client, sql: str) -> None:
        self.info = client.info(sql)
        self.cut = cut_of(self.info)
        self.rows: list[dict[str, Any]] = []
        self.batches = 0
        self._reader = client.flight.do_get(self.info.endpoints[0].ticket)
        assert self._reader.schema == self.info.schema

    def read(self) -> int:
        """One more batch; how many rows it had."""
        chunk = self._reader.read_chunk()
        self.rows += chunk.data.to_pylist()
        self.cut = json.loads(chunk.app_metadata.to_pybytes())["cut"]
        self.batches += 1
        return int(chunk.data.num_rows)

    def until(self, count: int) -> list[int]:
        """The ids of all rows, once there are so many."""
        while len(self.rows) < count:
            self.read()
        return sorted(row["trade_id"] for row in self.rows)

    def leave(self) -> None:
        self._reader.cancel()


def follow(client: Client, sql: str) -> Follower:
    return Follower(client, sql)


def test_every_row_once_while_the_sink_commits(live: Live, client: Client) -> None:
    begun = live.grow(40)["n"]
    follower = follow(client, f"SUBSCRIBE ({IDS})")
    assert cut_of(follower.info) == '{"market.trades":{"snapshot":null,"next":{}}}'
    assert follower.until(begun) == [*range(begun)]
    end = begun
    for count in (1, 7, 30, 3, 60):
        end = live.grow(count)["n"]
        assert follower.until(end) == [*range(end)]
        live.settle()
    follower.leave()
    assert end == begun + 101


def test_from_now_and_on_from_a_cut_after_the_connection_was_lost(live: Live, client: Client) -> None:
    begun = live.grow(20)["n"]
    follower = follow(client, f"subscribe ({IDS} where trade_id % 2 = 0) from now;")
    end = live.grow(20)["n"]
    ids = follower.until(10)
    follower.leave()
    for _ in range(3):
        end = live.grow(11)["n"]
        follower = follow(client, f"SUBSCRIBE ({IDS} WHERE trade_id % 2 IN (0, 4)) FROM CUT '{follower.cut}'")
        wanted = [number for number in range(begun, end) if number % 2 == 0]
        ids += follower.until(len(wanted) - len(ids))
        assert sorted(ids) == wanted
        follower.leave()


def test_rows_come_in_the_order_of_offsets_whatever_is_selected(live: Live, client: Client) -> None:
    begun = live.grow(200)["n"]
    shadowed = "-t.trade_id AS _kafka_offset, _kafka_partition + 0 AS p"
    follower = follow(client, f"SUBSCRIBE (FROM market.trades AS t SELECT {shadowed} WHERE t.price > 0)")
    while len(follower.rows) < begun:
        follower.read()
    for partition in range(4):
        found = [-row["_kafka_offset"] for row in follower.rows if row["p"] == partition]
        assert found == sorted(found)
    follower.leave()


def test_keep_alive_has_no_end_no_timeout_and_takes_no_statement_s_place(live: Live, client: Client) -> None:
    live.grow(1)
    followers = [follow(client, f"SUBSCRIBE ({IDS}) FROM NOW") for _ in range(3)]
    follower = followers[0]
    while follower.batches < 400:  # at 10 ms each, beyond the statement timeout; 128 empty tables would end a stream
        assert follower.read() == 0
    listed = client.rows("from ops.statements where kind = 'subscribe'")
    assert [row["text"] for row in listed] == [f"SUBSCRIBE ({IDS}) FROM NOW"] * 3
    assert client.rows("select 1 as one") == [{"one": 1}]
    with pytest.raises(flight.FlightUnavailableError, match="K2_FLIGHT_SUBSCRIPTIONS_MAX"):
        follow(client, f"SUBSCRIBE ({IDS}) FROM NOW")
    end = live.grow(5)["n"]
    for each in followers:
        assert each.until(5) == [*range(end - 5, end)]
        each.leave()


def test_kill_cancel_and_vanish(live: Live, client: Client) -> None:
    live.grow(1)
    killed = follow(client, f"SUBSCRIBE ({IDS}) FROM NOW")
    killed.read()
    (row,) = client.rows("from ops.statements where kind = 'subscribe'")
    client.rows(f"kill statement '{row['statement_id']}'")
    assert "was ended by anonymous" in ended(killed)
    cancelled = follow(client, f"SUBSCRIBE ({IDS}) FROM NOW")
    cancelled.read()
    request = messages.CancelFlightInfoRequest(info=messages.FlightInfo.FromString(cancelled.info.serialize()))
    client.act("CancelFlightInfo", request.SerializeToString())
    assert "was cancelled" in ended(cancelled)
    other = Client(live.service.uri)
    follow(other, f"SUBSCRIBE ({IDS}) FROM NOW").read()
    other.flight.close()


def test_adbc_streams_it_and_binds_its_parameters(live: Live, client: Client) -> None:
    end = live.grow(8)["n"]
    with dbapi.connect(live.service.uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"SUBSCRIBE ({IDS} WHERE trade_id >= ? AND side = ?)", (end - 8, "BUY"))
        reader = cursor.fetch_record_batch()
        found: list[int] = []
        while len(found) < 4:
            found += reader.read_next_batch().column("trade_id").to_pylist()
        live.grow(2)
        while len(found) < 5:
            found += reader.read_next_batch().column("trade_id").to_pylist()
        assert sorted(found) == [n for n in range(end - 8, end + 2) if n % 2]


def test_jdbc_reads_rows_as_they_come(live: Live, client: Client) -> None:
    jdbc.start_jvm()
    end = live.grow(8)["n"]
    with jdbc.connected(live.service.uri) as connection:
        statement = connection.createStatement()
        rows = statement.executeQuery(f"SUBSCRIBE ({IDS} WHERE trade_id >= {end - 8})")
        found = []
        for count in (8, 10):
            while len(found) < count:
                assert rows.next()
                found.append(int(rows.getLong(1)))
            if count == 8:
                live.grow(2)
        statement.close()
    assert sorted(found) == [*range(end - 8, end + 2)]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SUBSCRIBE SELECT 1", "SUBSCRIBE is written"),
        ("SUBSCRIBE (SELECT 1", "SUBSCRIBE is written"),
        ("SUBSCRIBE ()", "holds no SQL statement"),
        (f"SUBSCRIBE ({IDS}) FROM YESTERDAY", "SUBSCRIBE is written"),
        (f"SUBSCRIBE ({IDS}) FROM CUT ?", "SUBSCRIBE is written"),
        (f"SUBSCRIBE ({IDS}) FROM CUT 'yesterday'", "no instant of the past"),
        (f"SUBSCRIBE ({IDS}); SELECT 1", "SUBSCRIBE is written"),
        (f"SUBSCRIBE ({IDS}; SELECT 1)", "2 statements"),
        ("SUBSCRIBE (SELECT 1)", "one table of market"),
        ("SUBSCRIBE (SELECT count(*) FROM market.trades)", "count"),
        ("SUBSCRIBE (SELECT symbol, max(price) FROM market.trades GROUP BY symbol)", "GROUP"),
        ("SUBSCRIBE (SELECT DISTINCT symbol FROM market.trades)", "DISTINCT"),
        (f"SUBSCRIBE ({IDS} ORDER BY 1)", "ORDER"),
        (f"SUBSCRIBE ({IDS} LIMIT 3)", "LIMIT"),
        ("SUBSCRIBE (SELECT sum(price) OVER () FROM market.trades)", "row by row"),
        ("SUBSCRIBE (SELECT random() FROM market.trades)", "random"),
        ("SUBSCRIBE (SELECT now() FROM market.trades)", "NOW"),
        ("SUBSCRIBE (SELECT k2_cut() FROM market.trades)", "K2_CUT"),
        ("SUBSCRIBE (FROM k2_snapshots('market.trades'))", "k2_snapshots"),
        ("SUBSCRIBE (SELECT * FROM market.trades JOIN market.quotes USING (symbol))", "JOIN"),
        ("SUBSCRIBE (SELECT * FROM market.trades, market.quotes)", "one table of market"),
        ("SUBSCRIBE (SELECT * FROM market.trades, range(3))", "range"),
        ("SUBSCRIBE (SELECT unnest([1, 2]) FROM market.trades)", "UNNEST"),
        (f"SUBSCRIBE ({IDS} UNION ALL {IDS})", "UNION"),
        (f"SUBSCRIBE (WITH t AS ({IDS}) FROM t)", "WITH"),
        (f"SUBSCRIBE ({IDS} WHERE price > (SELECT max(price) FROM market.trades))", "max"),
        (f"SUBSCRIBE ({IDS} WHERE symbol IN (SELECT symbol FROM market.quotes))", "one table of market"),
        (f"SUBSCRIBE ({IDS} WHERE trade_id IN (FROM range(3)))", "range"),
        ("SUBSCRIBE (SELECT * FROM market.trades AT (VERSION => 1))", "AT"),
        ("SUBSCRIBE (SELECT * FROM ops.statements)", "one table of market"),
        ("SUBSCRIBE (SELECT * FROM k2_changes('market.trades'))", "k2_changes"),
        ("SUBSCRIBE (SUBSCRIBE (SELECT * FROM market.trades))", "takes a SELECT"),
        ("SUBSCRIBE (DESCRIBE market.trades)", "DESCRIBE"),
        ("SUBSCRIBE (EXPLAIN SELECT * FROM market.trades)", "takes a SELECT"),
        ("SUBSCRIBE (DELETE FROM market.trades)", "takes a SELECT"),
        (f"EXPLAIN SUBSCRIBE ({IDS})", "Parser Error"),
        (f"CREATE TABLE mine AS SUBSCRIBE ({IDS})", "Parser Error"),
        ("SUBSCRIBE (SELECT nothing FROM market.trades)", "nothing"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(client: Client, sql: str, says: str) -> None:
    with pytest.raises(pa.ArrowInvalid, match=says):
        client.info(sql)


def test_a_session_of_its_own_is_told_why_not(live: Live, client: Client) -> None:
    live.grow(1)
    cut = cut_of(client.info(COUNT))
    transaction = client.begin()
    with pytest.raises(pa.ArrowInvalid, match="outside of transactions"):
        client.info(f"SUBSCRIBE ({IDS})", transaction)
    client.end(transaction, commit=False)
    client.rows("create temp table trades as select 1 as trade_id")
    with pytest.raises(pa.ArrowInvalid, match="the session's own tables"):
        client.info("SUBSCRIBE (SELECT trade_id FROM trades)")
    client.rows("drop table trades")
    assert client.set(k2__as_of=cut) == {}
    with pytest.raises(pa.ArrowInvalid, match=r"set k2\.as_of back"):
        client.info(f"SUBSCRIBE ({IDS})")


def test_a_cut_of_another_cluster_is_refused(client: Client) -> None:
    foreign = '{"market.trades":{"snapshot":1,"next":{"another":{"topic":{"0":5}}}}}'
    with pytest.raises(pa.ArrowKeyError, match="Kafka cluster another"):
        client.info(f"SUBSCRIBE ({IDS}) FROM CUT '{foreign}'")


def ended(follower: Follower) -> str:
    """What the subscription ends with."""
    with pytest.raises((flight.FlightError, pa.ArrowException)) as caught:
        while True:
            follower.read()
    return str(caught.value)


def gone_on_from(message: str) -> str:
    """The cut that an error names."""
    return message.partition("FROM CUT '")[2].partition("'")[0].replace('\\"', '"')


def test_a_reader_that_stops_is_let_go_and_may_come_back(tmp_path: Path) -> None:
    live = Live(tmp_path, subscription_stall_s_max=0.2)
    try:
        client = Client(live.service.uri)
        begun = live.grow(30_000)["n"]
        follower = follow(client, f"SUBSCRIBE ({WIDE})")
        eventually(lambda: live.service.stats().open_statements == 0, what="who reads nothing is let go")
        message = ended(follower)
        assert "K2_FLIGHT_SUBSCRIPTION_STALL_S_MAX" in message
        assert gone_on_from(message) == follower.cut
        again = follow(client, f"SUBSCRIBE ({WIDE}) FROM CUT '{follower.cut}'")
        rows = len(follower.rows)
        assert 0 < rows < begun
        eventually(lambda: live.service.stats().open_statements == 0, what="and again")
        ended(again)
        ids = {row["trade_id"] for row in follower.rows} | {row["trade_id"] for row in again.rows}
        assert len(ids) == rows + len(again.rows)
    finally:
        live.stop()


def test_a_reader_that_falls_behind_is_ended(tmp_path: Path) -> None:
    live = Live(tmp_path, subscription_rows_behind_max=100, subscription_keep_alive_s=0.01)
    try:
        live.grow(1_000)
        follower = follow(Client(live.service.uri), f"SUBSCRIBE ({IDS})")
        follower.until(1_000)  # being behind from the start is no falling behind
        while follower.read():
            pass
        live.grow_unseen(5_000)
        assert "rows behind, more than the 100" in ended(follower)
    finally:
        live.stop()


def test_a_server_that_stops_says_where_to_go_on(tmp_path: Path) -> None:
    live = Live(tmp_path, drain_s_max=300.0)
    try:
        live.grow(10)
        follower = follow(Client(live.service.uri), f"SUBSCRIBE ({IDS})")
        follower.until(10)
        messages_: list[str] = []
        reading = threading.Thread(target=lambda: messages_.append(ended(follower)))
        reading.start()
    finally:
        live.stop()
    reading.join()
    assert "the server is stopping" in messages_[0]
    assert gone_on_from(messages_[0]) == follower.cut


def test_who_does_not_read_costs_the_server_a_few_batches() -> None:
    served = ServedProcess(rows=40_000)
    try:
        followers = [follow(Client(served.uri), f"SUBSCRIBE ({WIDE})")]
        followers[0].until(40_000)
        before = served.memory_mib()
        for _ in range(8):
            followers.append(follow(Client(served.uri), f"SUBSCRIBE ({WIDE})"))
            followers[-1].read()
        grown = (served.memory_mib() - before) / 8
        assert grown < 20, f"{grown:.0f} MiB each"
        for follower in followers:
            follower.leave()
        eventually(lambda: served.stats()["open_statements"] == 0, what="they end with their clients")
    finally:
        served.stop()


def test_many_at_once_each_get_each_row(tmp_path: Path) -> None:
    live = Live(tmp_path, subscriptions_max=24, statements_max=2)
    try:
        begun = live.grow(500)["n"]
        found: list[list[int]] = []

        def read(number: int) -> None:
            follower = follow(Client(live.service.uri), f"SUBSCRIBE ({IDS} WHERE trade_id % 24 <= {number})")
            wanted = sum(trade_id % 24 <= number for trade_id in range(begun + 1_000))
            found.append(follower.until(wanted))
            follower.leave()

        readers = [threading.Thread(target=read, args=(number,)) for number in range(24)]
        for reader in readers:
            reader.start()
        for _ in range(20):
            live.grow(50)
        for reader in readers:
            reader.join()
        everything = range(begun + 1_000)
        wanted = [[trade_id for trade_id in everything if trade_id % 24 <= number] for number in range(24)]
        assert sorted(found, key=len) == wanted
        eventually(lambda: live.service.stats().open_statements == 0, what="all of them end")
    finally:
        live.stop()


def test_who_never_reads_does_not_hold_a_stop_up(tmp_path: Path) -> None:
    live = Live(tmp_path)
    try:
        live.grow(30_000)
        follow(Client(live.service.uri), f"SUBSCRIBE ({WIDE})")
    finally:
        live.stop()
