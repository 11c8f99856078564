"""The feed against the simulator: losing, rotating and giving up connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from common.clock import ManualClock
from common.errors import FeedClosed
from common.settings import IngestSettings
from ingest.feed import Feed
from ingest.market import Market
from ingest.simulator import Simulator
from ingest.venues.binance import BinanceSession
from ingest.watch import Hosts
from tests.contract.ingest.ingest_support import PATIENCE_S, made_up, quick

Start = Callable[..., Any]
STREAMS = ["btcusdt@trade"]
SESSION = BinanceSession(["BTCUSDT"])


class WatchedClock(ManualClock):
    """A clock that counts how often it was asked."""

    looks = 0

    def monotonic_s(self) -> float:
        self.looks += 1
        return super().monotonic_s()


class Harness:
    """A running feed, what it handed on, and what it waited for."""

    def __init__(self, urls: Sequence[str], settings: IngestSettings, streams: Sequence[str] = STREAMS) -> None:
        self.clock = WatchedClock()
        self.waits: list[float] = []
        self.ids: list[int] = []
        self.correlation_ids: list[str] = []
        self.handling = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.feed = Feed(
            urls, SESSION, streams, self.handle, settings, clock=self.clock, sleep=self.sleep, tick_s=0.005
        )

    async def handle(self, frames: Sequence[bytes], receive_time_us: int, correlation_id: str) -> None:
        self.handling += 1
        await self.hold.wait()
        self.handling -= 1
        assert receive_time_us == self.clock.now_us()
        for message in map(json.loads, frames):
            if message.get("stream") == "!serverShutdown":
                self.feed.rotate(correlation_id)
                continue
            if "stream" not in message:
                continue
            self.ids.append(message["data"]["t"])
        if correlation_id not in self.correlation_ids:
            self.correlation_ids.append(correlation_id)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  (what it waits for happens on other threads)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(*urls: str, streams: Sequence[str] = STREAMS, **settings: Any) -> Any:
    """A feed with one connection, unless the settings say otherwise."""
    one = Harness(urls, quick(**{"backoff_s_first": 5, "backoff_s_max": 60, "connections": 1, **settings}), streams)
    await one.feed.open()
    task = asyncio.create_task(one.feed.run())
    try:
        yield one
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@pytest.fixture
def market() -> Any:
    source = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=5_000)
    source.start()
    yield source
    source.stop()
    assert source.failure is None


def test_a_lost_connection_is_made_again_with_a_new_correlation_id(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=5).path])

    async def test() -> None:
        async with running(source.url) as one:
            await one.until(lambda: one.ids == [1, 2, 3, 4, 5])
            source.drop_connections()
            await one.until(lambda: one.ids == [1, 2, 3, 4, 5] * 2)
            assert one.feed.counters.reconnects == 1
            assert len(one.correlation_ids) == 2
            assert len(one.waits) == 1
            assert 2.5 <= one.waits[0] <= 5

    run(test)


def test_waits_double_while_the_exchange_is_away_and_begin_anew_after_a_frame(tmp_path: Path) -> None:
    capture = made_up(tmp_path / "c", trades=2)
    source = Simulator.replay([capture.path])
    source.start()
    port = int(source.url.rpartition(":")[2])

    async def test() -> None:
        async with running(source.url) as one:
            await one.until(lambda: len(one.ids) == 2)
            await asyncio.to_thread(source.stop)
            await one.until(lambda: len(one.waits) >= 6)
            again = Simulator.replay([capture.path], port=port)
            await asyncio.to_thread(again.start)
            try:
                await one.until(lambda: len(one.ids) == 4)
                before = len(one.waits)
                again.drop_connections()
                await one.until(lambda: len(one.ids) == 6)
                waits = one.waits
                for attempt, full in enumerate((5, 10, 20, 40, 60, 60)):
                    assert full / 2 <= waits[attempt] <= full
                assert 2.5 <= waits[before] <= 5
            finally:
                await asyncio.to_thread(again.stop)

    run(test)


def test_a_silent_connection_is_given_up_when_it_is_stale(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=2).path])

    async def test() -> None:
        async with running(source.url, stale_after_s=120) as one:
            await one.until(lambda: len(one.ids) == 2)
            one.clock.advance(120)
            await one.until(lambda: len(one.ids) == 4)
            assert one.feed.counters.reconnects == 1

    run(test)


def test_a_connection_that_waits_for_us_is_not_stale(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=2).path])

    async def test() -> None:
        async with running(source.url, stale_after_s=120) as one:
            one.hold.clear()
            await one.until(lambda: one.handling == 1)
            one.clock.advance(1_000)
            looks = one.clock.looks
            await one.until(lambda: one.clock.looks > looks + 2)
            assert one.feed.counters.reconnects == 0
            assert one.ids == []
            one.clock.advance(-1_000)
            one.hold.set()
            await one.until(lambda: one.ids == [1, 2])

    run(test)


def test_rotation_misses_nothing_because_old_and_new_overlap(market: Simulator) -> None:
    async def test() -> None:
        async with running(market.url, rotate_after_s=1_000, stale_after_s=3_600) as one:
            for rotation in range(1, 4):
                await one.until(lambda rotation=rotation: len(one.ids) > 300 * rotation)
                one.clock.advance(1_000)
                await one.until(lambda rotation=rotation: one.feed.counters.rotations == rotation)
            seen = len(one.ids)
            await one.until(lambda: len(one.ids) > seen + 300)
            await one.until(lambda: market.stats().clients == 1)
            assert set(one.ids) == set(range(1, max(one.ids) + 1))
            assert one.feed.counters.reconnects == 0
            assert len(one.correlation_ids) == 4

    run(test)


def test_an_announced_shutdown_moves_to_a_new_connection_without_a_gap(market: Simulator) -> None:
    async def test() -> None:
        async with running(market.url) as one:
            await one.until(lambda: len(one.ids) > 100)
            market.announce_shutdown()
            await one.until(lambda: one.feed.counters.rotations == 1 and market.stats().clients == 1)
            assert set(one.ids) == set(range(1, max(one.ids) + 1))

    run(test)


def test_a_rotation_that_fails_keeps_the_old_connection(tmp_path: Path) -> None:
    source = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=1_000)
    source.start()

    async def test() -> None:
        async with running(source.url) as one:
            await one.until(lambda: len(one.ids) > 10)
            one.feed._shared.hosts = Hosts(["ws://127.0.0.1:1"])
            one.feed.lines[0].rotate()
            seen = len(one.ids)
            await one.until(lambda: len(one.ids) > seen + 500)
            assert (one.feed.counters.rotations, one.feed.counters.reconnects) == (0, 0)
            assert one.feed.connected

    try:
        run(test)
    finally:
        source.stop()


def test_what_the_handler_raises_ends_the_feed(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=2).path])

    async def handle(frames: Sequence[bytes], receive_time_us: int, correlation_id: str) -> None:
        raise ZeroDivisionError

    async def test() -> None:
        feed = Feed([source.url], SESSION, STREAMS, handle, quick())
        await feed.open()
        with pytest.raises(ZeroDivisionError):
            await feed.run()
        assert not feed.connected

    run(test)


def test_the_first_connection_has_to_succeed(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=2).path])

    async def handle(frames: Sequence[bytes], receive_time_us: int, correlation_id: str) -> None:
        raise AssertionError

    async def test() -> None:
        with pytest.raises(FeedClosed, match=r"127\.0\.0\.1:1 cannot be reached"):
            await Feed(["ws://127.0.0.1:1"], SESSION, STREAMS, handle, quick()).open()
        with pytest.raises(FeedClosed, match=r"refused the connection \(HTTP 400: .*invalid stream btcusdt@nothing"):
            await Feed([source.url], SESSION, ["btcusdt@nothing"], handle, quick()).open()
        with pytest.raises(FeedClosed, match=r"refused the connection \(HTTP 404"):
            await Feed([source.url + "/elsewhere"], SESSION, STREAMS, handle, quick()).open()

    run(test)


@asynccontextmanager
async def venue(send: Callable[[ServerConnection], Awaitable[None]]) -> Any:
    """A server that sends what it is told to each client, and then ends the connection."""
    async with serve(send, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


def trade_text(trade_id: int) -> str:
    return json.dumps({"stream": "btcusdt@trade", "data": {"t": trade_id}})


def test_messages_in_fragments_and_those_before_the_end_come_whole_and_in_order() -> None:
    async def send(connection: ServerConnection) -> None:
        await connection.send(trade_text(1))
        await connection.send([trade_text(2)[:5], "", trade_text(2)[5:]])
        await connection.ping()
        await connection.send(iter(trade_text(3)))
        await connection.send(trade_text(4).encode())

    async def test() -> None:
        async with venue(send) as url, running(url) as one:
            await one.until(lambda: one.ids[:4] == [1, 2, 3, 4] and one.feed.counters.reconnects >= 1)
            assert one.ids[:8] == [1, 2, 3, 4] * (len(one.ids[:8]) // 4) + [1, 2, 3, 4][: len(one.ids[:8]) % 4]

    run(test)


def test_a_handler_that_waits_slows_the_venue_down_and_nothing_is_lost() -> None:
    """What is read ahead is bounded: the rest waits in the venue's own socket."""
    count, body = 200_000, b"x" * 100
    sent = 0

    async def send(connection: ServerConnection) -> None:
        nonlocal sent
        for number in range(count):
            await connection.send(json.dumps({"stream": "s", "data": {"t": number}, "body": body.decode()}))
            sent = number + 1
        await connection.wait_closed()

    async def test() -> None:
        async with venue(send) as url, running(url) as one:
            one.hold.clear()
            await one.until(lambda: one.handling == 1 and sent > 1_000)
            current = one.feed.lines[0]._current
            assert current is not None
            websocket = current.websocket
            await one.until(lambda: websocket._reading_paused)
            assert websocket._waiting < 10_000
            assert sent < count
            one.hold.set()
            await one.until(lambda: len(one.ids) == count)
            assert one.ids == list(range(count))

    run(test)
