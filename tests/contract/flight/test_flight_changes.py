"""k2_changes over the wire: the rows between two cuts, in files, in memory and in both, on a real broker and table."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from pyarrow import flight
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.settings import LakeSettings
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


def cut_now(client: Client) -> str:
    return cut_of(client.info(COUNT))


def ids(client: Client, arguments: str) -> list[int]:
    return sorted(row["trade_id"] for row in client.rows(f"select trade_id from k2_changes({arguments})"))


def test_rows_between_two_cuts_wherever_they_lie(live: Live, client: Client) -> None:
    cuts, ends = [cut_now(client)], [live.grow(0)["n"]]
    for count in (40, 30, 20):
        ends.append(live.grow(count)["n"])
        cuts.append(cut_now(client))
        if count != 20:
            live.settle()
    for low in range(4):
        for high in range(low, 4):
            assert ids(client, f"'market.trades', '{cuts[low]}', '{cuts[high]}'") == [*range(ends[low], ends[high])]
        since = ids(client, f"'trades', from_cut => '{cuts[low]}'")
        assert since == ids(client, f"'market.trades', '{cuts[low]}', NULL") == [*range(ends[low], ends[-1])]
    assert ids(client, f"'k2.market.trades', NULL, '{cuts[2]}'") == [*range(ends[2])]
    assert ids(client, "'market.trades'") == [*range(ends[3])]


def test_it_stands_where_a_table_may_stand(live: Live, client: Client) -> None:
    low = cut_now(client)
    end = live.grow(8)["n"]
    (row,) = client.rows(
        "with new as (select c.trade_id, k.symbol from market.trades k join "
        f"k2_changes('market.trades', '{low}') as c using (trade_id)) select count(*) as n, max(trade_id) as m from new"
    )
    assert row == {"n": 8, "m": end - 1}
    (row,) = client.rows(
        f"select count(k2_changes.price) as n from k2_changes('market.trades', '{low}') where side='BUY'"
    )
    assert row == {"n": 4}
    explained = client.rows(f"explain select * from k2_changes('market.trades', '{low}')")
    assert "iceberg" not in str(explained).lower()
    assert "parquet" not in str(explained).lower()


def test_the_cut_of_the_answer_is_where_it_ends(live: Live, client: Client) -> None:
    low = cut_now(client)
    live.grow(8)
    high = cut_now(client)
    last = live.grow(4)["n"]
    info = client.info(f"from k2_changes('market.trades', '{low}', '{high}')")
    assert cut_of(info) == high
    for _ in range(2):  # the second time not from a pin
        assert client.flight.do_get(info.endpoints[0].ticket).read_all().num_rows == 8
    info = client.info(f"select max(trade_id) as m, count(*) as n from k2_changes('market.trades', '{low}')")
    live.grow(5)
    for _ in range(2):
        answer = client.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist()
        assert answer == [{"m": last - 1, "n": 12}]
    again = cut_of(info)
    assert ids(client, f"'market.trades', '{again}'") == [*range(last, last + 5)]


def test_cuts_as_parameters(live: Live, client: Client) -> None:
    low = cut_now(client)
    end = live.grow(6)["n"]
    high = cut_now(client)
    live.grow(1)
    with dbapi.connect(live.service.uri, autocommit=True) as connection, connection.cursor() as cursor:
        sql = "select count(*), max(trade_id) from k2_changes('market.trades', ?, to_cut => ?) where trade_id >= ?"
        cursor.execute(sql, (low, high, 0))
        assert cursor.fetchall() == [(6, end - 1)]
        cursor.execute("select count(*) from k2_changes('market.trades', $1) where trade_id >= $2", (high, end))
        assert cursor.fetchall() == [(1,)]
        with pytest.raises(dbapi.Error, match="one set of parameters at a time"):
            several = pa.record_batch({"0": [low, high]})
            cursor.execute("select count(*) from k2_changes('market.trades', ?)", several)
    for arguments, says in (("'trades', lower(?)", "is to stand by itself"), ("?", "write the name of its table")):
        with (
            dbapi.connect(live.service.uri, autocommit=True) as connection,
            connection.cursor() as cursor,
            pytest.raises(dbapi.Error, match=says),
        ):
            cursor.execute(f"select count(*) from k2_changes({arguments})", (low,))


def test_as_of_is_where_it_ends_when_nothing_else_is_said(live: Live, client: Client) -> None:
    low = cut_now(client)
    end = live.grow(4)["n"]
    assert client.set(k2__as_of=cut_now(client)) == {}
    live.grow(4)
    assert ids(client, f"'market.trades', '{low}'") == [*range(end - 4, end)]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ("", pa.ArrowInvalid, "needs a table"),
        ("'market.nothing'", pa.ArrowKeyError, "has no table 'market.nothing'"),
        ("'research.trades'", pa.ArrowKeyError, "has no table 'research.trades'"),
        ("'market.trades', 'yesterday'", pa.ArrowInvalid, "no instant of the past"),
        ("'market.trades', '{}'", pa.ArrowKeyError, "says nothing about market.trades"),
        ("'market.trades', trade_id", pa.ArrowInvalid, "no constant"),
        ("'market.trades', now()", pa.ArrowNotImplementedError, "stay the same"),
        ("'market.trades', NULL, NULL, NULL", pa.ArrowInvalid, "takes table, from_cut, to_cut"),
        ("'market.trades', since => NULL", pa.ArrowInvalid, "takes table, from_cut, to_cut"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    live: Live, client: Client, arguments: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        client.rows(f"from k2_changes({arguments})")


def test_cuts_the_wrong_way_round_and_of_elsewhere(live: Live, client: Client) -> None:
    low = cut_now(client)
    live.grow(4)
    high = cut_now(client)
    with pytest.raises(pa.ArrowInvalid, match="give the earlier cut first"):
        client.rows(f"from k2_changes('market.trades', '{high}', '{low}')")
    foreign = '{"market.trades":{"snapshot":1,"next":{"another":{"topic":{"0":5}}}}}'
    with pytest.raises(pa.ArrowKeyError, match="Kafka cluster another"):
        client.rows(f"from k2_changes('market.trades', '{foreign}')")
    ahead = high.replace('"0":', '"0":9')
    with pytest.raises(flight.FlightUnavailableError, match="try again"):
        client.rows(f"from k2_changes('market.trades', '{ahead}')")
    with pytest.raises(pa.ArrowInvalid, match="name k2_nothing does not exist"):
        client.rows("from k2_nothing('market.trades')")


def test_rows_that_were_deleted_since_are_not_left_out_in_silence(tmp_path: Path) -> None:
    live = Live(tmp_path)
    try:
        client = Client(live.service.uri)
        live.grow(20)
        low = cut_now(client)
        live.grow(10)
        live.settle()
        high = cut_now(client)
        assert ids(client, f"'market.trades', '{low}', '{high}'") == [*range(20, 30)]
        before = live.snapshot_id
        table = open_catalog(LakeSettings.load(data_dir=tmp_path)).load_table(TRADES.table)
        table.delete("trade_id = 25")
        while live.snapshot_id == before:
            threading.Event().wait(0.01)
        with pytest.raises(pa.ArrowKeyError, match="were deleted since"):
            ids(client, f"'market.trades', '{low}', '{high}'")
        assert ids(client, f"'market.trades', '{low}'") == [*range(20, 25), *range(26, 30)]
    finally:
        live.stop()
