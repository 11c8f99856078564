"""Queries over the files and the memory that matter give what they give over everything, on a real broker and table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from tests.support.live import COUNT, Live


@pytest.fixture(scope="module", params=[0, 2_000, 256 * 1024**2], ids=["no window", "small window", "window"])
def window(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def live(window: int, folder: Path) -> Iterator[Live]:
    live = Live(folder / str(window), hot_window_bytes=window)
    for _ in range(4):
        live.grow(25)
        live.settle()
    live.grow(10)
    yield live
    live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")


#: What is read of market.trades is written {t}, so that it can be read in another way too.
QUERIES = [
    "select trade_id from {t} where trade_id between 20 and 60",
    "select trade_id, price from {t} t where t.trade_id = 30 or t.trade_id = 55",
    "select count(*) as n, sum(quantity) as q from {t} where trade_id > 95",
    "select count(*) as n from {t} where trade_id < 0",
    "select count(*) as n from {t} where symbol = 'NONE'",
    "select max(trade_id) as m from {t} where event_time < (select max(event_time) from {t} where trade_id < 50)",
    "select a.trade_id as a, b.price as b from {t} a join {t} b on a.trade_id = b.trade_id + 1 where b.trade_id > 70",
    "select a.trade_id as a, b.trade_id as b from {t} a asof join {t} b on a.event_time > b.event_time "
    "where a.trade_id > 50 and b.price > 0",
    "with recent as (select * from {t} where trade_id >= 40) select count(*) as n from recent where trade_id < 80",
    "select trade_id from {t} where event_time > now() - interval 100 year and trade_id in (1, 50, 99, 1000)",
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_chooses_gives_what_one_that_reads_all_gives(live: Live, client: Client, query: str) -> None:
    cut = cut_of(client.info(COUNT)).replace("'", "''")
    chosen = client.rows(query.format(t="market.trades"))
    everything = client.rows(query.format(t=f"(select * from market.trades at (version => '{cut}'))"))
    assert sorted(chosen, key=repr) == sorted(everything, key=repr)
    client.set(k2__as_of=cut_of(client.info(COUNT)))
    assert sorted(client.rows(query.format(t="market.trades")), key=repr) == sorted(everything, key=repr)
    client.set(k2__as_of="")
    transaction = client.begin()
    assert sorted(client.rows(query.format(t="market.trades"), transaction), key=repr) == sorted(chosen, key=repr)
    client.end(transaction, commit=False)


def test_only_the_files_that_can_have_the_rows_are_read(live: Live, client: Client, window: int, folder: Path) -> None:
    """Without a window few of the files are read, with a large one none."""
    files = len(list((folder / str(window)).rglob("*.parquet")))
    (plan,) = client.rows("explain analyze select count(*) from market.trades where trade_id between 30 and 40")
    named = plan["explain_value"].count(".parquet'")
    if window == 0:
        assert 1 <= named < files
    if window > 10**6:
        assert named == 0 and "PARQUET" not in plan["explain_value"]
    cut = cut_of(client.info(COUNT)).replace("'", "''")
    at = f"select count(*) from market.trades at (version => '{cut}') where trade_id between 30 and 40"
    assert client.rows(f"explain analyze {at}")[0]["explain_value"].count(".parquet'") == named


def test_a_column_that_is_called_by_how_it_is_written_keeps_its_name(client: Client) -> None:
    """The name of an unnamed subquery has its tables in it: then the statement runs as it was written."""
    query = "select (select max(price) from market.trades where trade_id = 30), 1 as one from market.trades limit 1"
    info = client.info(query)
    found = client.flight.do_get(info.endpoints[0].ticket).read_all()
    assert found.schema.names == info.schema.names and found.num_rows == 1


def test_a_session_with_a_table_of_that_name_reads_its_own(client: Client) -> None:
    client.rows("create temp table trades as select 7 as trade_id")
    assert client.rows("select trade_id from trades where trade_id >= 0") == [{"trade_id": 7}]
    assert client.rows("select count(*) as n from market.trades where trade_id >= 100")[0]["n"] == 10


def test_a_wrong_operand_is_an_error_of_the_query(client: Client) -> None:
    """In DuckDB's words, without the text that was run in the place of the client's."""
    with pytest.raises(pa.ArrowInvalid, match=r"[Cc]onver|cast|compare") as refused:
        client.rows("select count(*) as n from market.trades where event_time > 'soon'")
    assert "k2.tail" not in str(refused.value) and "parquet" not in str(refused.value)
