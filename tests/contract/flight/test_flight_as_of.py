"""The market read again over the wire, as of a cut, a snapshot and a time: on a real broker and a real table."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest
from pyarrow import flight
from test_flight_sessions import Client

from tests.support.live import COUNT, Live


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("lake"))
    yield live
    live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")


def cut_of(info: flight.FlightInfo) -> str:
    return str(json.loads(info.app_metadata)["cut"])


def test_a_cut_gives_the_same_rows_after_the_market_has_gone_on(live: Live, client: Client) -> None:
    then = live.grow(40)
    cut = cut_of(client.info(COUNT))
    live.grow(30)
    live.settle()
    now = live.grow(10)
    quoted = cut.replace("'", "''")
    at = f"select count(*) as n, max(trade_id) as last from market.trades at (version => '{quoted}')"
    assert client.rows(at) == [then]
    assert cut_of(client.info(at)) == json.dumps(
        {"market.trades": json.loads(cut)["market.trades"]}, separators=(",", ":")
    )
    both = (
        f"select old.n as old, new.n as new from (select count(*) as n from trades at (version => '{quoted}')) as old, "
        "(select count(*) as n from trades) as new"
    )
    assert client.rows(both) == [{"old": then["n"], "new": now["n"]}]


def test_a_session_reads_everything_as_of_its_option(live: Live, client: Client) -> None:
    then = live.grow(10)
    cut = cut_of(client.info(COUNT))
    live.grow(10)
    assert client.set(k2__as_of=cut) == {}
    assert client.options()["k2.as_of"] == cut
    assert client.rows(COUNT) == [then]
    assert client.rows("select count(*) as n from trades join (from trades) as again using (trade_id)") == [
        {"n": then["n"]}
    ]
    assert client.rows("set \"k2.as_of\" = ''") == [{"Count": 0}]
    assert client.rows(COUNT)[0]["n"] == then["n"] + 10


def test_a_snapshot_and_a_time(live: Live, client: Client) -> None:
    then = live.grow(10)
    live.settle()
    info = client.info(COUNT)
    (row,) = client.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist()
    assert row == then
    snapshot = json.loads(cut_of(info))["market.trades"]["snapshot"]
    live.grow(10)
    live.settle()
    trades = f"from (select count(*) as n, max(trade_id) as last from market.trades at (version => {snapshot}))"
    assert client.rows(trades) == [then]
    assert client.rows("select count(*) as n from market.trades at (timestamp => '2001-01-01 00:00:00')") == [{"n": 0}]
    assert client.rows("select count(*) as n from trades at (timestamp => now())")[0]["n"] >= then["n"]
    with pytest.raises(pa.ArrowKeyError, match="no snapshot 12345"):
        client.rows("from market.trades at (version => 12345)")
    with pytest.raises(pa.ArrowInvalid, match="no instant of the past"):
        client.rows("from market.trades at (version => 'yesterday')")


def test_a_ticket_gives_the_announced_rows_however_often_and_late_it_is_read(live: Live, client: Client) -> None:
    live.grow(10)
    info = client.info(COUNT)
    (first,) = client.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist()
    live.grow(10)
    live.settle()
    for _ in range(2):
        reader = client.flight.do_get(info.endpoints[0].ticket)
        chunk = reader.read_chunk()
        assert chunk.data.to_pylist() == [first]
        assert json.loads(chunk.app_metadata.to_pybytes())["cut"] is not None
    late = client.info(COUNT)
    (before,) = client.rows(COUNT)
    while live.service.stats().pinned_statements:
        threading.Event().wait(0.01)
    live.grow(10)
    assert client.flight.do_get(late.endpoints[0].ticket).read_all().to_pylist() == [before]


def test_the_newest_row_of_each_group_at_a_cut(live: Live, client: Client) -> None:
    """DuckDB's own way of making these loses the condition of the cut, or fails inside (decision 0002)."""
    then = live.grow(10)
    cut = cut_of(client.info(COUNT)).replace("'", "''")
    live.grow(10)
    at = f"market.trades at (version => '{cut}')"
    for columns in ("symbol, trade_id", "symbol, trade_id, asset_class", "*"):
        found = client.rows(
            f"select {columns} from {at} qualify row_number() over (partition by symbol order by event_time desc) = 1"
        )
        assert [row["trade_id"] for row in found] == [then["last"]], columns
    newest = (
        f"select symbol, trade_id, asset_class from market.trades where source = 'stream' "
        f"and trade_id < {then['last']} qualify row_number() over (partition by symbol order by event_time desc) = 1"
    )
    assert [row["trade_id"] for row in client.rows(newest)] == [then["last"] - 1]


def test_a_wrong_option_is_not_taken(client: Client) -> None:
    assert client.set(k2__as_of="the day before") == {"k2.as_of": 2}
    assert client.options()["k2.as_of"] == ""


def test_as_of_in_a_transaction_and_beside_scratch(live: Live, client: Client) -> None:
    then = live.grow(10)
    cut = cut_of(client.info(COUNT)).replace("'", "''")
    live.grow(10)
    client.rows("create table mine as select 1 as a")
    transaction = client.begin()
    at = f"select count(*) as n from market.trades at (version => '{cut}'), mine"
    assert client.rows(at, transaction) == [{"n": then["n"]}]
    client.end(transaction, commit=False)
    assert client.rows(at) == [{"n": then["n"]}]


def test_a_view_of_the_sessions_own_is_not_read_as_of_now_by_mistake(live: Live, client: Client) -> None:
    cut = cut_of(client.info(COUNT))
    client.rows("create view recent as select count(*) as n from market.trades")
    assert client.set(k2__as_of=cut) == {}
    with pytest.raises(pa.ArrowNotImplementedError, match="its view recent"):
        client.rows("from recent")


def test_scratch_is_made_of_the_rows_of_then(live: Live, client: Client) -> None:
    then = live.grow(10)["n"]
    cut = cut_of(client.info(COUNT)).replace("'", "''")
    counted = "select count(*) as n from market.trades"
    live.grow(10)
    client.rows(f"create table old as {counted} at (version => '{cut}')")
    client.rows(f"insert into old {counted} at (version => '{cut}') where trade_id >= 0;")
    client.rows("create table seen as select count(*) as n from ops.statements")
    client.rows(f"create table new as select count(*) as n from k2_changes('market.trades', '{cut}', null)")
    client.rows(f"set \"k2.as_of\" = '{cut}'")
    client.rows(f"insert into old {counted}")
    for change in (f"update old set n = ({counted})", f"delete from old where n < ({counted})"):
        with pytest.raises(pa.ArrowNotImplementedError, match="the session reads everything as of an instant"):
            client.rows(change)
    assert client.rows("from old") == [{"n": then}] * 3
    client.rows('reset "k2.as_of"')
    assert client.rows("from new") == [{"n": 10}] and client.rows("from seen")[0]["n"] >= 0


@pytest.mark.parametrize(
    "query",
    [
        "select * from market.trades at (timestamp => now())",
        "from ops.statements",
        "from k2_changes('market.trades', null)",
    ],
)
def test_a_view_reads_tables_of_now_only(client: Client, query: str) -> None:
    with pytest.raises(pa.ArrowNotImplementedError, match="a view is read at the cut of the query that reads it"):
        client.rows(f"create view v as {query}")


def test_a_research_table_as_of_its_snapshot(live: Live, client: Client) -> None:
    client.rows("create table research.notes as select 1 as a")
    with pytest.raises(pa.ArrowKeyError, match="no such snapshot"):
        client.rows("from notes at (version => 12345)")
    assert client.rows("select count(*) as n from notes at (timestamp => now())") == [{"n": 1}]
    client.rows("drop table research.notes")
