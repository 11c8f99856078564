"""Bars over the wire, on a real broker, table and sink: at every moment what the trades of the same cut make."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from common.clock import SystemClock
from common.datasets import BARS, Bars, Dataset
from common.offsets import PartitionOffsets
from common.schemas.arrow import table_schema
from flight_server.storage.read_view import Snapshot
from sink.bars_rebuild import rebuild
from sink.bars_service import open_worker
from sink.bars_table import BarsTable
from tests.support.bars_oracle import in_order, oracle
from tests.support.kafka import eventually
from tests.support.live import Live
from tests.support.records import EPOCH, trade

SECONDS, MINUTES = BARS["bars_1s"], BARS["bars_1m"]


def made(trade_id: int, chance: random.Random) -> dict[str, Any]:
    """A trade of one of three symbols, mostly of now, in one case of ten of any time of the two hours before."""
    late_s = chance.random() * 7_200 if chance.random() < 0.1 else 0.0
    return trade(
        trade_id,
        symbol=f"S{trade_id % 3}",
        event_time=EPOCH + timedelta(seconds=7_200 + trade_id / 100 - late_s),
        price=Decimal(chance.randrange(1, 10**9)).scaleb(-4),
        quantity=Decimal(chance.randrange(10**14)).scaleb(-8),
    )


def both(connection: dbapi.Connection, bars: Bars) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The bars, and what plain Python makes of the trades, in one transaction."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {bars.table}")
        found = cursor.fetch_arrow_table()
        cursor.execute("SELECT exchange, symbol, trade_id, event_time, price, quantity FROM market.trades")
        trades = cursor.fetch_arrow_table().to_pylist()
    connection.rollback()
    return in_order(found), oracle(trades, bars.width_us)


def seen(live: Live, name: str) -> int | None:
    """The snapshot of a table of bars that the server shows."""
    shown = live._lake._publisher._bars._shown  # type: ignore[union-attr]
    return shown[name].snapshot_id if name in shown else None


def take_in(live: Live) -> None:
    """Every table of bars takes in what is committed, and the server shows it."""
    live.settle()
    worker = open_worker(live.lake_settings, SystemClock())
    while worker.step():
        pass
    newest = {bars.name: BarsTable.open(live.lake_settings, bars).snapshot_id for bars in BARS.values()}
    while any(seen(live, name) != snapshot_id for name, snapshot_id in newest.items()):
        threading.Event().wait(0.01)


@pytest.fixture(scope="module", params=[0, 256 * 1024**2], ids=["no window", "window"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The sink keeps the bars, as often as it can."""
    live = Live(tmp_path_factory.mktemp("lake"), bars_interval_ms=100, hot_window_bytes=request.param)
    yield live
    live.stop()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Bars take in trades when `take_in` says so."""
    live = Live(tmp_path)
    yield live
    live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")


def test_bars_equal_the_trades_of_the_same_transaction_while_trades_arrive(running: Live) -> None:
    """At random moments: before and after commits of trades and of bars, with late trades among them."""
    chance = random.Random(7)
    done = threading.Event()

    def market() -> None:
        for first in itertools.count(0, 20):
            running.produce([made(first + i, chance) for i in range(20)], partition=(first // 20) % 4)
            if done.wait(0.02):
                return

    thread = threading.Thread(target=market)
    thread.start()
    snapshots: set[int | None] = set()
    try:
        with dbapi.connect(running.service.uri) as connection:
            rounds = 0
            while rounds < 12 or len(snapshots) < 3:
                snapshots.add(seen(running, SECONDS.name))
                for bars in random.Random(rounds).sample(list(BARS.values()), 2):
                    found, wanted = both(connection, bars)
                    assert found == wanted
                rounds += 1
    finally:
        done.set()
        thread.join()
    assert running._sink.bars is not None
    assert sum(stats.commits for stats in running._sink.bars.stats().values()) > 0


def test_ohlcv_out_of_bars_is_what_the_trades_of_the_same_transaction_make(running: Live) -> None:
    """Whatever part of them is in bars, in files of trades, and in memory."""
    chance = random.Random(11)
    tables = frozenset(table.name for table in running._lake.tables() if table.schema == "market")
    assert set(BARS) <= tables  # so that they are what is read: test_the_coarsest_bars_that_fit_are_read
    with dbapi.connect(running.service.uri) as connection:
        running.produce([made(10_000_000 + i, chance) for i in range(3)])
        while len({trade["symbol"] for trade in both(connection, SECONDS)[1]}) < 3:
            pass  # a symbol without any trade is refused
        for number in range(8):
            first = 10_000_100 + 20 * number
            running.produce([made(first + i, chance) for i in range(20)], partition=number % 4)
            every, width_s = (("1s", 1), ("5s", 5), ("5m", 300), ("4h", 14_400))[number % 4]
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM ohlcv(['S0', 'S1', 'S2'], every := '{every}')")
                found = cursor.fetch_arrow_table().to_pylist()
                cursor.execute("SELECT exchange, symbol, trade_id, event_time, price, quantity FROM market.trades")
                wanted = oracle(cursor.fetch_arrow_table().to_pylist(), width_s * 1_000_000)
            connection.rollback()
            assert wanted
            assert found == [{name: bar[name] for name in found[0]} for bar in wanted]


def test_a_late_backfill_corrects_bars(live: Live) -> None:
    """Live at once, and then for good: the day before yesterday had one trade, and gets two before and after it."""
    chance = random.Random(1)
    old = [trade(i, event_time=EPOCH + timedelta(seconds=i), source="backfill") for i in (10, 5, 20)]
    live.produce([*(made(1_000 + i, chance) for i in range(30)), old[0]])
    with dbapi.connect(live.service.uri) as connection:
        while len(both(connection, MINUTES)[1]) < 2 or both(connection, MINUTES)[1][0]["trade_count"] < 1:
            pass
        take_in(live)
        live.produce(old[1:], partition=1)
        first: dict[str, Any] = {}
        while first.get("trade_count") != 3:
            found, wanted = both(connection, MINUTES)
            assert found == wanted
            first = next(bar for bar in found if bar["symbol"] == "BTCUSDT")
        assert (first["first_trade_id"], first["last_trade_id"]) == (5, 20)
        take_in(live)
        found, wanted = both(connection, MINUTES)
        assert found == wanted
    table = BarsTable.open(live.lake_settings, MINUTES).iceberg_table.scan().to_arrow()
    assert in_order(table) == wanted


def test_the_last_bar_is_live_and_the_cut_is_the_trades(live: Live, client: Client) -> None:
    live.grow(900)
    take_in(live)
    live.grow(50)
    info = client.info("select * from market.bars_1s")
    cut = json.loads(cut_of(info))
    assert sum(n for t in cut["market.trades"]["next"].values() for p in t.values() for n in p.values()) == 950
    (bar,) = client.rows("select trade_count, last_trade_id from market.bars_1s order by bar_start desc limit 1")
    assert bar == {"trade_count": 950, "last_trade_id": 949}


@pytest.mark.parametrize("table", ["market.bars_1s", "market.bars_1d"])
def test_an_earlier_instant_has_the_bars_of_its_trades(live: Live, client: Client, table: str) -> None:
    """Also when the bars have taken in trades behind it: by a cut, in a session, by the snapshot, by a ticket."""
    live.grow(1_400)
    take_in(live)
    live.grow(100)
    info = client.info(f"select * from {table} order by bar_start")
    then = client.rows(f"select * from {table} order by bar_start")
    cut = cut_of(info)
    live.grow(1_000)
    take_in(live)
    assert client.rows(f"select * from {table} order by bar_start") != then
    quoted = cut.replace("'", "''")
    at = f"select * from {table} at (version => '{quoted}') order by bar_start"
    assert client.rows(at) == then
    assert cut_of(client.info(at)) == json.dumps(
        {"market.trades": json.loads(cut)["market.trades"]}, separators=(",", ":")
    )
    # The trades beside them are those of the same instant, and the ticket from before gives what it was made for.
    joined = f"select sum(trade_count) as n, (select count(*) from market.trades) as m from {table}"
    client.set(k2__as_of=cut)
    assert client.rows(f"select * from {table} order by bar_start") == then
    assert client.rows(joined) == [{"n": Decimal(1_500), "m": 1_500}]
    client.set(k2__as_of="")
    assert list(client.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist()) == then
    filtered = f"select count(*) as n from {table} at (version => '{quoted}') where bar_start < '2024-08-09T00:00:01Z'"
    assert client.rows(filtered) == [{"n": 1}]


def test_a_filter_reads_the_files_of_its_time(live: Live, client: Client) -> None:
    """Two files of bars, a day apart: of one, and of the trades nothing, when memory has them."""
    live.produce([trade(i, event_time=EPOCH + timedelta(days=i % 2, seconds=i)) for i in range(40)])
    with dbapi.connect(live.service.uri) as connection:
        while sum(bar["trade_count"] for bar in both(connection, SECONDS)[0]) < 40:
            pass
    take_in(live)
    assert len(BarsTable.open(live.lake_settings, SECONDS)._files()) == 2
    asked = "select count(*) as n from market.bars_1s where symbol = 'BTCUSDT' and bar_start < '2024-08-09T12:00:00Z'"
    text = client.rows(f"explain analyze {asked}")[0]["explain_value"]
    assert set(re.findall(r"bar_start_day=([0-9-]{10})/", text)) == {"2024-08-09"}
    assert "market/trades/" not in text
    assert client.rows(asked) == [{"n": 20}]
    assert client.rows(asked.replace("BTCUSDT", "NONE")) == [{"n": 0}]


def test_while_bars_are_made_anew_they_are_computed(live: Live) -> None:
    live.grow(1_200)
    take_in(live)
    rebuild(live.lake_settings, [SECONDS], lambda stats: None)
    BarsTable.open(live.lake_settings, MINUTES).empty("emptied")
    live.grow(10)
    with dbapi.connect(live.service.uri) as connection:
        for bars in (SECONDS, MINUTES):
            found, wanted = both(connection, bars)
            assert found == wanted and found


def test_bars_ahead_of_the_trades_are_not_shown(live: Live) -> None:
    """The trades were rolled back below them: until these have come again, bars are made of what is there."""
    live.grow(1_000)
    take_in(live)
    publisher = live._lake._publisher
    assert publisher is not None and publisher.bars is not None
    shown = publisher.bars._shown[SECONDS.name]
    assert publisher.bars._usable(SECONDS.name, shown.offsets) is shown
    behind = PartitionOffsets({p: n - (p.partition == 2) for p, n in shown.offsets.items()})
    assert publisher.bars._usable(SECONDS.name, behind).snapshot_id is None


def test_bars_that_cannot_be_read_hold_up_nobody(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new snapshot's files are gone when the server comes to it: until the next one, its bars are computed."""
    live.grow(1_000)
    take_in(live)
    newest = live._lake._snapshots.newest
    gone = (live.lake_settings.data_dir / "warehouse" / "gone.parquet").resolve()

    def without_files(dataset: Dataset, locations: Mapping[str, str | None]) -> Snapshot:
        found = newest(dataset, locations)
        if dataset is not MINUTES or found.snapshot_id == before:
            return found
        return replace(found, relation=f"read_parquet(['file://{gone}'])", index=None)

    before = seen(live, MINUTES.name)
    monkeypatch.setattr(live._lake._snapshots, "newest", without_files)
    live.grow(500)
    live.settle()
    worker = open_worker(live.lake_settings, SystemClock())
    worker.step()
    newest_id = BarsTable.open(live.lake_settings, SECONDS).snapshot_id
    eventually(lambda: seen(live, SECONDS.name) == newest_id, timeout_s=120, what="the server sees newer bars")
    live.grow(10)
    live.settle()
    with dbapi.connect(live.service.uri) as connection:
        found, wanted = both(connection, MINUTES)
    assert found == wanted
    assert sum(bar["trade_count"] for bar in found) == 1_510
    assert live._lake._publisher is not None and live._lake._publisher.gap is None
    monkeypatch.undo()
    take_in(live)


def test_the_catalog_shows_the_tables_with_their_types_and_remarks(live: Live) -> None:
    live.grow(1)
    with dbapi.connect(live.service.uri, autocommit=True) as connection:
        objects = connection.adbc_get_objects(db_schema_filter="market", table_name_filter="bars%").read_all()
        schemas = objects.to_pylist()[0]["catalog_db_schemas"]
        tables = {table["table_name"]: table for table in schemas[0]["db_schema_tables"]}
        assert sorted(tables) == sorted(BARS)
        for name in BARS:
            found = connection.adbc_get_table_schema(name, db_schema_filter="market")
            assert [(field.name, field.type) for field in found] == [
                (field.name, field.type) for field in table_schema("bar")
            ]
            remarks = found.field("notional").metadata[b"ARROW:FLIGHT:SQL:REMARKS"]
            assert remarks == table_schema("bar").field("notional").metadata[b"doc"]
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM market.bars_1h")
            assert pa.schema(cursor.fetch_arrow_table().schema).types == table_schema("bar").types


@pytest.mark.parametrize(
    "query",
    [
        "from k2_changes('market.bars_1s')",
        "from k2_snapshots('bars_1m')",
        "subscribe (select * from market.bars_1s)",
    ],
)
def test_what_needs_rows_of_the_log_is_refused(live: Live, client: Client, query: str) -> None:
    live.grow(1)
    with pytest.raises(pa.ArrowNotImplementedError, match=r"market\.bars_1. is computed from market\.trades"):
        client.rows(query)
