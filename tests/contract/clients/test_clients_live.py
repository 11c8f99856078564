"""Cuts and subscriptions through the client helpers, on a real broker, table and server, over a line that breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

import clients
from tests.support.kafka import eventually
from tests.support.live import COUNT, Live
from tests.support.proxy import Proxy

IDS = "SELECT trade_id FROM market.trades"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("lake"), subscription_keep_alive_s=0.05)
    yield live
    live.stop()


@pytest.fixture
def line(live: Live) -> Iterator[Proxy]:
    proxy = Proxy(live.service.port)
    yield proxy
    proxy.close()


@pytest.fixture
def k2(live: Live, line: Proxy) -> Iterator[clients.Connection]:
    with clients.connect(line.uri) as connection:
        yield connection
    eventually(lambda: live.service.stats().open_statements == 0, what="every subscription ends with its client")


def until(arrivals: Iterator[clients.Arrival], count: int) -> list[int]:
    """The ids of the next rows, once there are so many."""
    found: list[int] = []
    while len(found) < count:
        found += next(arrivals).batch.column("trade_id").to_pylist()
    return found


def test_a_result_has_its_cut_and_is_read_again_at_it(live: Live, k2: clients.Connection) -> None:
    then = live.grow(20)
    with k2.stream(COUNT) as stream:
        assert stream.read_all().to_pylist() == [then]
        cut = stream.cut
    assert cut is not None
    assert k2.cut == cut
    live.grow(15)
    live.settle()
    now = live.grow(5)
    assert k2.arrow(COUNT).to_pylist() == [now]
    assert k2.arrow(COUNT, at=cut).to_pylist() == [then]
    assert k2.cut is not None
    assert '"market.trades"' in k2.cut
    sql = "SELECT count(*) AS n FROM market.trades WHERE trade_id >= ?"
    assert k2.arrow(sql, (0,), at=cut).to_pylist() == [{"n": then["n"]}]
    assert k2.polars(COUNT, at=cut).to_dicts() == [then]
    assert k2.arrow(COUNT).to_pylist() == [now]
    assert k2.arrow("SELECT 1 AS one").to_pylist() == [{"one": 1}]
    assert k2.cut is None


def test_at_a_snapshot_and_at_a_time(live: Live, k2: clients.Connection) -> None:
    then = live.grow(10)
    live.settle()
    assert live.snapshot_id is not None
    with k2.stream(COUNT) as stream:
        assert stream.read_all().to_pylist() == [then]
    snapshot = live.snapshot_id
    live.grow(10)
    assert k2.arrow(COUNT, at=snapshot).to_pylist() == [then]
    assert k2.arrow(COUNT, at=datetime(2001, 1, 1)).to_pylist() == [{"n": 0, "last": None}]
    later = k2.arrow(COUNT, at=datetime.now(UTC) + timedelta(days=1)).to_pylist()[0]
    assert later["n"] >= then["n"]
    with pytest.raises(clients.QueryError, match="no instant of the past"):
        k2.arrow(COUNT, at="the day before")
    assert k2.arrow(COUNT).to_pylist()[0]["n"] == then["n"] + 10


def test_an_option_that_the_session_had_stays(live: Live, k2: clients.Connection) -> None:
    then = live.grow(5)
    k2.arrow(COUNT)
    first = k2.cut
    assert first is not None
    live.grow(5)
    k2.arrow(f"SET \"k2.as_of\" = '{first}'")
    assert k2.arrow(COUNT, at=datetime(2001, 1, 1, tzinfo=UTC)).to_pylist() == [{"n": 0, "last": None}]
    assert k2.arrow(COUNT).to_pylist() == [then]


def test_rows_arrive_once_each_over_a_line_that_breaks(live: Live, line: Proxy, k2: clients.Connection) -> None:
    end = live.grow(20)["n"]
    with k2.subscribe(IDS + " -- all of them") as arrivals:
        found = until(arrivals, end)
        for count in (10, 25, 7):
            line.cut()
            end = live.grow(count)["n"]
            found += until(arrivals, end - len(found))
        assert arrivals.reconnects == 3
        assert sorted(found) == [*range(end)]
        cut = arrivals.cut
    end_then, end = end, live.grow(9)["n"]
    with k2.subscribe(IDS, cut) as arrivals:
        assert sorted(until(arrivals, 9)) == [*range(end_then, end)]


def test_from_now_can_be_gone_on_from_before_anything_came(live: Live, line: Proxy, k2: clients.Connection) -> None:
    live.grow(10)
    with k2.subscribe(f"{IDS};", "now") as arrivals:
        line.cut()
        end = live.grow(6)["n"]
        assert sorted(until(arrivals, 6)) == [*range(end - 6, end)]


def positions(cut: str | None) -> list[str]:
    """What a cut says of the log, whatever it says of the table."""
    return [] if cut is None else [cut.partition('"next"')[2]]


def test_empty_batches_tell_how_far_it_is(live: Live, k2: clients.Connection) -> None:
    live.grow(10)
    with k2.subscribe(f"{IDS} WHERE false", "now", with_empty=True) as arrivals:
        live.grow(4)
        k2.arrow(COUNT)
        [end] = positions(k2.cut)
        for arrival in arrivals:  # what was produced may have been published in parts
            assert arrival.batch.num_rows == 0
            assert arrival.cut == arrivals.cut
            if positions(arrival.cut) == [end]:
                break


def test_a_line_that_stays_broken_is_given_up_with_the_place_to_go_on(
    live: Live, line: Proxy, k2: clients.Connection
) -> None:
    end = live.grow(10)["n"]
    arrivals = k2.subscribe(IDS, resume_s_max=0.2)
    until(arrivals, end)
    cut = arrivals.cut
    line.cut(refusing=True)
    with pytest.raises(clients.QueryError) as caught:
        next(arrivals)
    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.retryable
    assert arrivals.cut == cut
    with pytest.raises(StopIteration):
        next(arrivals)
    line.cut()


@pytest.mark.parametrize(
    ("sql", "from_", "code", "says"),
    [
        ("SELECT count(*) FROM market.trades", None, "INVALID_ARGUMENT", "count(...) cannot be answered row by row"),
        ("SELECT nothing FROM market.trades", None, "INVALID_ARGUMENT", "nothing"),
        (IDS, "yesterday", "INVALID_ARGUMENT", "no instant of the past"),
    ],
)
def test_a_refusal_is_the_server_s_sentence(
    k2: clients.Connection, sql: str, from_: str | None, code: str, says: str
) -> None:
    with pytest.raises(clients.QueryError) as caught:
        k2.subscribe(sql, from_)
    assert caught.value.code == code
    assert says in str(caught.value)
    assert "Detail" not in str(caught.value)


def test_close_from_another_thread_ends_the_wait(live: Live, k2: clients.Connection) -> None:
    arrivals = k2.subscribe(IDS, "now")
    left: list[clients.Arrival] = []
    waiting = threading.Thread(target=lambda: left.extend(arrivals))
    waiting.start()
    eventually(lambda: live.service.stats().open_statements == 1)
    arrivals.close()
    waiting.join()
    assert left == []


def test_one_that_is_forgotten_ends(live: Live, k2: clients.Connection) -> None:
    arrivals = k2.subscribe(IDS, "now")
    eventually(lambda: live.service.stats().open_statements == 1)
    del arrivals
    eventually(lambda: live.service.stats().open_statements == 0)


async def _some(k2: clients.Connection, live: Live, line: Proxy) -> tuple[list[int], int]:
    end = await asyncio.to_thread(live.grow, 10)
    found: list[int] = []
    wanted = int(end["n"])
    async with k2.asubscribe(IDS) as arrivals:
        async for arrival in arrivals:
            found += arrival.batch.column("trade_id").to_pylist()
            if len(found) == end["n"] and wanted == end["n"]:
                line.cut()
                wanted += 5
                await asyncio.to_thread(live.grow, 5)
            elif len(found) == wanted:
                break
        assert arrivals.reconnects == 1
        assert arrivals.cut is not None
    return found, wanted


def test_the_same_as_an_async_iterator(live: Live, line: Proxy, k2: clients.Connection) -> None:
    found, wanted = asyncio.run(_some(k2, live, line))
    assert sorted(found) == [*range(wanted)]


async def _cancelled(k2: clients.Connection, live: Live) -> None:
    arrivals = k2.asubscribe(IDS, "now")
    task = asyncio.ensure_future(anext(arrivals))
    await asyncio.to_thread(eventually, lambda: live.service.stats().open_statements == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(StopAsyncIteration):
        await anext(arrivals)


def test_a_task_that_is_cancelled_ends_its_subscription(live: Live, k2: clients.Connection) -> None:
    asyncio.run(_cancelled(k2, live))
