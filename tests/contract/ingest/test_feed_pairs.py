"""Two connections at a time: the end of one, in whatever way, costs no trade and no time. And streams that change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import FeedLimited
from ingest.faults import Fault, FaultKind, FaultPlan
from ingest.feed import Feed
from ingest.market import Market, market_symbols
from ingest.reference import ReferenceData
from ingest.rest import RestClient
from ingest.simulator import Simulator
from ingest.venues import binance_rest
from ingest.venues.binance import BinanceSession
from tests.contract.ingest.ingest_support import quick
from tests.contract.ingest.test_feed import Harness, run, running, until

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT")


@pytest.fixture
def market() -> Iterator[Simulator]:
    source = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=5_000)
    source.start()
    yield source
    source.stop()
    assert source.failure is None


def pair(*urls: str, **settings: Any) -> Any:
    return running(*urls, connections=2, **settings)


async def whole(one: Harness, more: int = 300) -> None:
    """Go on for a while; then no id may be missing."""
    seen = len(one.ids)
    await one.until(lambda: len(one.ids) > seen + more)
    got = set(one.ids)
    assert got == set(range(min(got), max(got) + 1))


async def both(one: Harness, market: Simulator) -> None:
    await one.until(lambda: one.feed.connections == 2 and market.stats().clients >= 2)
    seen = len(one.ids)
    await one.until(lambda: len(one.ids) > seen + 100)


def test_each_frame_comes_twice_and_a_lost_connection_costs_none(market: Simulator) -> None:
    async def test() -> None:
        async with pair(market.url) as one:
            await both(one, market)
            for lost in range(1, 4):
                market.drop_connections(1)
                await one.until(lambda lost=lost: one.feed.counters.reconnects == lost)
                await both(one, market)
            await whole(one)
            assert one.feed.connected
            assert len(one.correlation_ids) == 5

    run(test)


def test_a_peer_that_goes_silent_is_noticed_by_its_twin_long_before_it_is_stale_by_itself(market: Simulator) -> None:
    async def test() -> None:
        async with pair(market.url, stale_after_s=3_600, ping_timeout_s=3_600) as one:
            await both(one, market)
            market.stall_connections(1)
            for _ in range(6):
                one.clock.advance(3)
                await whole(one)
            await one.until(lambda: one.feed.counters.stale == 1)
            await both(one, market)
            await whole(one)
            assert one.feed.counters.silent == 0

    run(test)


def test_a_peer_that_leaves_a_ping_without_echo_is_given_up(market: Simulator) -> None:
    async def test() -> None:
        async with pair(
            market.url, stale_after_s=3_600, stale_beside_twin_after_s=3_600, ping_interval_s=20, ping_timeout_s=30
        ) as one:
            await both(one, market)
            one.clock.advance(20)
            await one.until(lambda: one.feed.counters.ping_s is not None)
            assert one.feed.counters.silent == 0
            market.stall_connections(1)
            one.clock.advance(20)
            await one.until(lambda: any(line.unanswered for line in one.feed.lines))
            await whole(one)
            one.clock.advance(31)
            await one.until(lambda: one.feed.counters.silent == 1)
            await both(one, market)
            await whole(one)

    run(test)


def test_twins_rotate_at_different_times_and_nothing_is_missed(market: Simulator) -> None:
    async def test() -> None:
        async with pair(market.url, rotate_after_s=1_000, stale_after_s=3_600) as one:
            await both(one, market)
            for rotations, advance in ((1, 500), (2, 500), (3, 500), (4, 500)):
                one.clock.advance(advance)
                await one.until(lambda rotations=rotations: one.feed.counters.rotations == rotations)
                await both(one, market)
            await whole(one)
            assert one.feed.counters.reconnects == 0

    run(test)


def test_an_announced_shutdown_moves_each_connection_that_it_was_said_on(market: Simulator) -> None:
    async def test() -> None:
        async with pair(market.url) as one:
            await both(one, market)
            market.announce_shutdown()
            await one.until(lambda: one.feed.counters.rotations == 2 and market.stats().clients == 2)
            await whole(one)
            assert one.feed.counters.reconnects == 0

    run(test)


def test_when_a_host_fails_the_next_one_is_taken(market: Simulator) -> None:
    async def test() -> None:
        async with pair("ws://127.0.0.1:1", market.url) as one:
            await both(one, market)
            assert one.feed.hosts.failures >= 1
            market.drop_connections()
            await one.until(lambda: one.feed.counters.reconnects == 2)
            await both(one, market)

    run(test)


def test_streams_are_added_and_taken_away_while_it_runs(market: Simulator) -> None:
    """Over shards of two streams: what stays is not disturbed, and the venue's pace is kept."""
    source = Simulator.random_market(Market(SYMBOLS, seed=1), trades_per_s=5_000)
    source.start()
    heard: dict[str, int] = {}

    async def handle(frames: Any, receive_time_us: int, correlation_id: str) -> None:
        for frame in frames:
            if (name := frame[11:].partition(b'"')[0].decode()).endswith("@trade"):
                heard[name] = heard.get(name, 0) + 1

    def session(count: int) -> tuple[BinanceSession, list[str]]:
        return BinanceSession(SYMBOLS[:count]), [f"{symbol.lower()}@trade" for symbol in SYMBOLS[:count]]

    def streams_asked_for() -> list[str]:
        return sorted(name for client in list(source._clients) for name in list(client.streams))

    async def test() -> None:
        settings = quick(connections=2, streams_per_connection_max=2)
        feed = Feed([source.url], *session(1), handle, settings, tick_s=0.005)
        await feed.open()
        task = asyncio.create_task(feed.run())
        try:
            await until(lambda: len(heard) == 1 and feed.connections == 2)
            feed.change(*session(5))
            await until(lambda: len(heard) == 5 and feed.connections == 6)
            assert source.stats().connections == 6, "what was open stayed open"
            feed.change(*session(3))
            await until(lambda: streams_asked_for() == sorted(session(3)[1] * 2))
            assert source.stats().clients == 4
            assert feed.counters.reconnects == 0
        finally:
            task.cancel()
            await asyncio.wait({task})

    try:
        run(test)
    finally:
        source.stop()


def test_a_shard_of_more_streams_than_a_url_can_name_is_whole_before_its_old_connection_ends() -> None:
    """1,024 names are 18 KB, and servers take URLs of 8 KB: what a URL has no room for is subscribed to."""
    session = BinanceSession(market_symbols(512))
    source = Simulator.random_market(Market(session.symbols, seed=1), trades_per_s=500)
    source.start()
    correlation_ids: dict[str, None] = {}

    async def handle(frames: Any, receive_time_us: int, correlation_id: str) -> None:
        correlation_ids[correlation_id] = None

    def streams_of_each() -> list[int]:
        return [len(client.streams) for client in list(source._clients)]

    async def test() -> None:
        feed = Feed([source.url], session, session.streams, handle, quick(connections=1), tick_s=0.005)
        await feed.open()
        task = asyncio.create_task(feed.run())
        try:
            await until(lambda: streams_of_each() == [1_024] and bool(correlation_ids))
            feed.rotate(next(iter(correlation_ids)))
            await until(lambda: feed.counters.rotations == 1 and len(streams_of_each()) == 1)
            assert streams_of_each() == [1_024]
        finally:
            task.cancel()
            await asyncio.wait({task})

    try:
        run(test)
    finally:
        source.stop()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(0, FaultKind.CUT, share=0.9),
        Fault(0, FaultKind.HALF_FRAME, share=0.5),
        Fault(0, FaultKind.STALL, size=3_600),
        Fault(0, FaultKind.DUPLICATE, size=500),
        Fault(0, FaultKind.REORDER, size=50),
        Fault(0, FaultKind.SHUTDOWN, size=0),
    ],
    ids=lambda fault: fault.kind.value,
)
def test_what_befalls_one_connection_costs_no_trade(market: Simulator, fault: Fault) -> None:
    async def test() -> None:
        async with pair(market.url) as one:
            await both(one, market)
            market.inflict(fault)
            await one.until(lambda: market.stats().faults == {fault.kind.value: 1})
            await whole(one)
            if fault.kind is FaultKind.STALL:
                await one.until(lambda: any(client.stalled for client in list(market._clients)))
                for _ in range(6):
                    one.clock.advance(3)
                    await whole(one)
                await one.until(lambda: one.feed.counters.stale == 1)
            await both(one, market)
            await whole(one)

    run(test)


def test_a_planned_gap_is_missing_on_both_connections_and_a_clock_jump_is_seen_over_rest(market: Simulator) -> None:
    plan = FaultPlan.of([Fault(0.02, FaultKind.CLOCK_JUMP, 2_000), Fault(0.01, FaultKind.GAP, 100)])
    source = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=5_000, faults=plan)
    source.start()

    async def test() -> None:
        async with pair(source.url) as one:
            await one.until(lambda: source.stats().trades_withheld == 100 and len(source.stats().faults) == 2)
            seen = len(one.ids)
            await one.until(lambda: len(one.ids) > seen + 300)
            missing = sorted(set(range(min(one.ids), max(one.ids) + 1)) - set(one.ids))
            assert len(missing) == 100
            rest = RestClient([source.url.replace("ws", "http")], weight_per_minute_max=6_000)
            try:
                ahead_us = await ReferenceData(rest, binance_rest).time_us() - time.time_ns() // 1_000
                assert 1_000_000 < ahead_us < 2_010_000
                answer = await rest.get(binance_rest.historical_trades_request("BTCUSDT", missing[0], 100))
                filled = [trade.trade_id for trade in binance_rest.trades_of(answer, "BTCUSDT", 0)]
                assert filled == list(range(missing[0], missing[0] + 100))
                source.inflict(Fault(0, FaultKind.REST_LIMIT, 60))
                await one.until(lambda: source.stats().faults.get("rest_limit") == 1)
                with pytest.raises(FeedLimited, match="429"):
                    await rest.get(binance_rest.server_time_request())
            finally:
                await rest.close()

    try:
        run(test)
    finally:
        source.stop()
