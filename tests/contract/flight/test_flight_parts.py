"""A large scan in several endpoints: every row in exactly one of them, all at one cut, while the market goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from pyarrow import flight
from test_flight_as_of import Live
from test_flight_sessions import Client

import clients
from flight_server.engine import sources
from flight_server.storage import snapshots


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_PARTED_ROWS_MIN", 10)
        # Parts are made of files that are named. On a slow machine many rows are many commits, and so many files.
        patch.setattr(snapshots, "_FILES_MAX", 1_000)
        live = Live(tmp_path_factory.mktemp("lake"), endpoints_max=3, pin_s_max=60.0)
        for _ in range(4):
            live.grow(25)
            live.settle()
        yield live
        live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")


def read(client: Client, endpoint: flight.FlightEndpoint) -> pa.Table:
    return client.flight.do_get(endpoint.ticket).read_all()


@pytest.mark.parametrize("by_threads", [False, True])
def test_the_parts_are_disjoint_and_together_complete_at_one_cut(live: Live, client: Client, by_threads: bool) -> None:
    live.grow(10)
    info = client.info("select trade_id, price from market.trades")
    (whole,) = client.rows("select count(*) as n, max(trade_id) as last from market.trades")
    assert len(info.endpoints) == 3 and not info.ordered
    live.grow(20)
    live.settle()
    with ThreadPoolExecutor(3 if by_threads else 1) as threads:
        parts = list(threads.map(lambda endpoint: read(client, endpoint), reversed(info.endpoints)))
    ids = sorted(value for part in parts for value in part.column("trade_id").to_pylist())
    assert ids == list(range(whole["n"])) and ids[-1] == whole["last"]
    assert sum(part.num_rows > 0 for part in parts) == 3
    assert "cut" in json.loads(info.app_metadata)


def test_a_filter_and_functions_of_one_row_are_parted_too(live: Live, client: Client) -> None:
    live.grow(5)
    text = (
        "select trade_id * 2 as twice, upper(symbol) as s, price::decimal(9, 2) as p from trades where trade_id % 2 = 0"
    )
    info = client.info(text)
    assert len(info.endpoints) == 3
    ids = sorted(row["twice"] for endpoint in info.endpoints for row in read(client, endpoint).to_pylist())
    (expected,) = client.rows("select list(trade_id * 2 order by trade_id) as l from trades where trade_id % 2 = 0")
    assert ids == expected["l"]


@pytest.mark.parametrize(
    "text",
    [
        "select count(*) from market.trades",
        "select max(price) from market.trades",
        "select symbol from market.trades group by symbol",
        "select distinct symbol from market.trades",
        "select trade_id from market.trades order by trade_id",
        "select trade_id from market.trades limit 5",
        "select trade_id, row_number() over () from market.trades",
        "select a.trade_id from market.trades a join market.trades b using (trade_id)",
        "select a.trade_id from market.trades a, market.trades b",
        "select trade_id from market.trades where price > (select avg(price) from market.trades)",
        "select trade_id from market.trades union all select 1",
        "select unnest([1, 2]) from market.trades",
        "select random() from market.trades",
        "select * from market.trades using sample 5",
        "select 1 from range(10)",
        "select now() from market.trades",
        "select current_timestamp from market.trades",
        "describe market.trades",
    ],
)
def test_what_is_not_row_by_row_comes_in_one_piece(client: Client, text: str) -> None:
    info = client.info(text)
    assert len(info.endpoints) == 1
    read(client, info.endpoints[0])


def test_a_part_is_read_once(live: Live, client: Client) -> None:
    info = client.info("select trade_id from market.trades")
    read(client, info.endpoints[0])
    with pytest.raises(flight.FlightUnavailableError, match="run the statement again"):
        read(client, info.endpoints[0])


def test_adbc_reads_all_parts(live: Live) -> None:
    now = live.grow(5)
    with dbapi.connect(live.service.uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("select trade_id from market.trades")
        assert sorted(value for (value,) in cursor.fetchall()) == list(range(now["n"]))


def test_the_client_reads_all_parts_of_what_no_buffer_holds(live: Live) -> None:
    """The driver ends a part that is half read when its connection begins the next one."""
    now = live.grow(30_000)
    live.settle()
    with clients.connect(live.service.uri) as k2, k2.stream("select * from market.trades") as rows:
        assert len(rows.partitions_left) == 3
        assert sorted(value for batch in rows for value in batch["trade_id"].to_pylist()) == list(range(now["n"]))
        assert not rows.partitions_left
