"""clients.K2 and AsyncK2 on a real broker, table and server: what is there, what was there, and what arrives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

import clients
from clients import plot
from tests.support.kafka import eventually
from tests.support.live import COUNT, Live
from tests.support.records import EPOCH, trade

#: Runs until it is ended.
ENDLESS = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("lake"), subscription_keep_alive_s=0.05)
    live.grow(300)
    live.settle()
    yield live
    live.stop()


@pytest.fixture
def k2(live: Live) -> Iterator[clients.K2]:
    with clients.K2(live.service.uri) as k2:
        yield k2


def at_ms(ms: int) -> datetime:
    """The time of the trade of that id."""
    return EPOCH + timedelta(milliseconds=ms)


def test_trades_of_a_span_with_its_begin_and_without_its_end(k2: clients.K2) -> None:
    found = k2.trades("BTCUSDT", at_ms(10), at_ms(13), columns=["trade_id", "price", "event_time"])
    wanted = [{name: trade(n)[name] for name in ("trade_id", "price", "event_time")} for n in (10, 11, 12)]
    assert found.rows() == found.polars().to_dicts() == wanted
    assert found.columns == ["trade_id", "price", "event_time"]
    assert len(k2.trades(["BTCUSDT", "ETHUSDT"], None, at_ms(10))) == 10
    assert len(k2.trades("BTCUSDT", "2024-08-10")) == 0


def test_a_symbol_that_there_is_not_is_told_with_those_that_there_are(k2: clients.K2) -> None:
    with pytest.raises(clients.ClientError, match=r"market.trades has nothing of BTCUSD; its symbols are BTCUSDT"):
        k2.trades("BTCUSD")
    with pytest.raises(clients.ClientError, match="has nothing of ETHUSDT, X; its symbols are BTCUSDT"):
        k2.trades(["ETHUSDT", "X"], "2030-01-01")
    with pytest.raises(clients.QueryError, match="no symbol 'X'"):
        k2.bars("X")


def test_bars_of_a_span(k2: clients.K2) -> None:
    (bar,) = k2.bars("BTCUSDT", "2024-08-09", "2024-08-10", "1d").rows()
    total = k2.sql("SELECT count(*) AS n, max(price) AS high FROM market.trades").rows()[0]
    assert (bar["bar_start"], bar["trade_count"], bar["high"]) == (EPOCH, total["n"], total["high"])
    assert len(k2.bars("BTCUSDT", EPOCH + timedelta(days=1), interval="1s")) == 0
    filled = k2.bars("BTCUSDT", EPOCH, EPOCH + timedelta(days=2), "1d", fill="previous").rows()
    assert [(bar["close"], bar["volume"] > 0) for bar in filled] == [(bar["close"], True), (bar["close"], False)]
    with pytest.raises(clients.QueryError, match="7 parsecs"):
        k2.bars("BTCUSDT", interval="7 parsecs")
    assert "ohlcv" in k2.functions().polars()["name"]


def test_a_view_at_an_instant_stands_still(live: Live, k2: clients.K2) -> None:
    then = k2.now()
    before = then.sql(COUNT)
    trades = then.trades("BTCUSDT")
    after = live.grow(20)
    assert then.sql(COUNT).arrow().equals(before.arrow())
    assert k2.sql(COUNT).rows() == [after]
    assert before.rows() != [after]
    for instant in (then.cut, trades.cut):
        assert instant is not None
        again = k2.at(instant)
        assert again.trades("BTCUSDT").arrow().equals(trades.arrow())
        assert (again.cut, again.now()) == (instant, again)
        with again.stream("SELECT trade_id FROM market.trades ORDER BY 1") as batches:
            assert batches.read_all().num_rows == len(trades)
    assert k2.cut is None
    assert then.at(datetime(2001, 1, 1, tzinfo=UTC)).sql(COUNT).rows() == [{"n": 0, "last": None}]
    assert then.sql(COUNT).cut != k2.sql(COUNT).cut


def test_a_view_at_a_snapshot(live: Live, k2: clients.K2) -> None:
    live.grow(5)
    live.settle()
    newest = k2.snapshots().rows()[-1]
    live.grow(5)
    for instant in (newest["snapshot_id"], str(newest["snapshot_id"]), newest["cut"]):
        assert k2.at(instant).sql(COUNT).rows()[0]["n"] == newest["total_rows"]
    assert k2.snapshots("market.trades").columns == k2.snapshots().columns


@pytest.mark.parametrize(
    ("instant", "says"),
    [
        ("the day before", "the instant, 'the day before', is no time"),
        (datetime(2024, 8, 9), "has no time zone"),
        (7, "there is no snapshot 7 that can be read"),
        ("{}x", "is no cut"),
    ],
)
def test_what_is_no_instant_is_told_in_a_sentence(k2: clients.K2, instant: str, says: str) -> None:
    with pytest.raises(clients.ClientError, match=says):
        k2.at(instant).sql(COUNT)


def test_parameters_and_refusals_are_the_server_s(k2: clients.K2) -> None:
    assert k2.sql("SELECT count(*) AS n FROM market.trades WHERE trade_id < ?", (7,)).rows() == [{"n": 7}]
    with pytest.raises(clients.QueryError, match="Table with name nothing does not exist"):
        k2.sql("SELECT * FROM nothing")
    k2.sql("CREATE TABLE mine AS SELECT 7 AS n")
    assert k2.sql("FROM mine").rows() == [{"n": 7}]


def test_what_arrives_behind_an_instant(live: Live, k2: clients.K2) -> None:
    then = k2.now()
    first = then.sql(COUNT).rows()[0]["n"]
    last = live.grow(9)["n"]
    with then.subscribe("SELECT trade_id FROM market.trades") as arrivals:
        found: list[int] = []
        while len(found) < last - first:
            found += next(arrivals).batch.column("trade_id").to_pylist()
    assert sorted(found) == [*range(first, last)]


def test_candles_are_drawn_anew_as_trades_arrive(live: Live, k2: clients.K2) -> None:
    shown: list[plot.Plot] = []
    drawing = threading.Thread(
        target=lambda: plot.live_candles(k2, "BTCUSDT", "100ms", draws=2, show=shown.append), daemon=True
    )
    drawing.start()
    while drawing.is_alive():
        live.grow(2)
    assert [picture.title for picture in shown] == ["BTCUSDT, bars of 100ms"] * 2


def test_a_statement_is_ended_from_another_thread(live: Live, k2: clients.K2) -> None:
    caught: list[clients.ClientError] = []

    def run() -> None:
        try:
            k2.sql(ENDLESS)
        except clients.ClientError as error:
            caught.append(error)

    waiting = threading.Thread(target=run)
    waiting.start()
    eventually(lambda: live.service.stats().open_statements == 1)
    while waiting.is_alive():
        k2.cancel()  # again where it came between the announcement and the first rows
        waiting.join(0.05)
    assert [error.code for error in caught] == ["CANCELLED"]
    assert k2.sql("SELECT 1 AS one").rows() == [{"one": 1}]


async def _asked(live: Live) -> None:
    async with clients.AsyncK2(live.service.uri) as k2:
        span = await k2.trades("BTCUSDT", at_ms(3), at_ms(5))
        day, both = await asyncio.gather(
            k2.bars("BTCUSDT", interval="1d"),
            k2.sql("SELECT count(*) AS n FROM market.trades WHERE trade_id < ?", (5,)),
        )
        assert (len(span), len(day), both.rows()) == (2, 1, [{"n": 5}])
        then = await k2.now()
        count = (await then.sql(COUNT)).rows()
        assert await asyncio.to_thread(live.grow, 6) != count[0]
        assert (await then.sql(COUNT)).rows() == count
        assert (await (await k2.at(str(then.cut))).sql(COUNT)).rows() == count
        async with then.stream("SELECT trade_id FROM market.trades ORDER BY 1") as batches:
            found = [number async for batch in batches for number in batch.column(0).to_pylist()]
            assert batches.cut is not None
        assert found == [*range(count[0]["n"])]
        arrived: list[int] = []
        async with then.subscribe("SELECT trade_id FROM market.trades") as arrivals:
            while len(arrived) < 6:
                arrived += (await anext(arrivals)).batch.column(0).to_pylist()
        assert sorted(arrived) == [*range(count[0]["n"], count[0]["n"] + 6)]
        with pytest.raises(clients.ClientError, match="has nothing of X"):
            await k2.trades("X")
        assert len(await k2.snapshots()) > 0
    with pytest.raises(clients.ClientError, match="this AsyncK2 is closed"):
        await k2.sql(COUNT)


def test_the_same_by_await(live: Live) -> None:
    asyncio.run(_asked(live))


async def _cancelled(live: Live) -> None:
    async with clients.AsyncK2(live.service.uri) as k2:
        task = asyncio.ensure_future(k2.sql(ENDLESS))
        await asyncio.to_thread(eventually, lambda: live.service.stats().open_statements == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await k2.sql("SELECT 1 AS one")).rows() == [{"one": 1}]


def test_a_task_that_is_cancelled_ends_its_statement_and_no_other(live: Live) -> None:
    asyncio.run(_cancelled(live))


def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(clients.ConnectError, match=r"no server could be reached at grpc://127.0.0.1:1"):
        clients.K2("grpc://127.0.0.1:1")


def test_a_result_goes_into_polars_by_itself(k2: clients.K2) -> None:
    assert pl.DataFrame(k2.trades("BTCUSDT", at_ms(0), at_ms(2)))["trade_id"].to_list() == [0, 1]
