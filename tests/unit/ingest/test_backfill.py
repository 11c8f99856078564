"""The backfill against a venue that the test scripts: what it asks for, when it gives up, what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from common.errors import BrokerError, FeedClosed, FeedLimited, FeedProtocolError, FeedRefused
from common.settings import IngestSettings
from ingest.backfill import Backfill
from ingest.gap_watch import GapWatch
from ingest.gaps import GapBook, GapLimits, GapState
from ingest.ledger import Ledger
from ingest.venues.events import TradeEvent

KEY = ("binance", "BTCUSDT")
PAGE = 10


def trade(trade_id: int, symbol: str = "BTCUSDT") -> TradeEvent:
    return TradeEvent(symbol, trade_id, Decimal(1), Decimal(1), trade_id, trade_id, False, 0)


class Venue:
    """Has the trades `has`; each entry of `fails` is raised by one request before it answers."""

    def __init__(self, has: set[int], fails: Sequence[Exception] = ()) -> None:
        self.has = has
        self.fails = list(fails)
        self.asked: list[tuple[int, int]] = []
        self.now = self.most = 0

    async def __call__(self, symbol: str, from_id: int, limit: int) -> list[TradeEvent]:
        assert 1 <= limit <= PAGE
        self.asked.append((from_id, limit))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if self.fails:
            raise self.fails.pop(0)
        return [trade(one, symbol) for one in sorted(self.has) if one >= from_id][:limit]


class World:
    """A ledger with gaps, a clock that the backfill's own waits move, and what was taken, in its order."""

    def __init__(
        self,
        venue: Venue,
        present: Sequence[int],
        *,
        symbols: Sequence[str] = ("BTCUSDT",),
        grace_s: float = 0.0,
        **more: int,
    ) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger()
        self.watch = GapWatch(self.ledger, GapBook(GapLimits(grace_s, 10, 100)), self.clock)
        for symbol in symbols:
            for one in present:
                self.ledger.take("binance", symbol, one)
        self.taken: list[int] = []
        self.waits: list[float] = []
        self.on_take: Callable[[], None] = lambda: None
        settings = IngestSettings(**more)
        self.backfill = Backfill(
            self.watch, venue, self._take, settings, page_trades_max=PAGE, clock=self.clock, sleep=self._sleep,
            gone_codes=frozenset({-1121}),
        )  # fmt: skip

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    async def _take(self, trades: Sequence[TradeEvent]) -> None:
        self.on_take()
        for one in trades:
            key = ("binance", one.symbol)
            if one.trade_id in self.ledger.trade_ids(*key):
                continue
            self.ledger.take(*key, one.trade_id)
            self.watch.backfilled(key, one.trade_id)
            self.taken.append(one.trade_id)

    def run(self, *, rounds: int = 300) -> None:
        async def run() -> None:
            for _ in range(rounds):
                self.clock.advance(0.11)
                self.watch.look()
                self.backfill.look()
                await asyncio.sleep(0)
            await self.backfill.close()

        asyncio.run(run())

    @property
    def told(self) -> list[GapState]:
        return [gap.state for gap in self.watch.untold]


def test_exactly_what_is_missing_comes_back_in_order() -> None:
    venue = Venue(set(range(100)))
    world = World(venue, [1, 2, 40, 44], backfill_requests_max=1)
    world.run()
    assert world.taken == [*range(3, 40), 41, 42, 43]
    assert venue.asked == [(3, 10), (13, 10), (23, 10), (33, 10), (43, 1)]
    assert world.told.count(GapState.OPEN) == world.told.count(GapState.FILLED) == 2
    assert {gap.closed_by for gap in world.watch.untold if gap.is_closed} == {"backfill"}
    assert world.watch.gaps.open_gaps() == []


def test_what_comes_along_with_an_older_gap_is_a_gap_of_its_own_although_its_grace_is_not_over() -> None:
    world = World(Venue(set(range(20))), [0, 2, 3, 5, 7], grace_s=0.2)
    world.watch.look()
    world.clock.advance(0.1)
    for late in (9, 10, 12):
        world.ledger.take(*KEY, late)
    world.run()
    assert world.taken == [1, 4, 6, 8, 11]
    for first_id in (1, 4, 6, 8, 11):
        told = [(gap.last_id, gap.state, gap.closed_by) for gap in world.watch.untold if gap.first_id == first_id]
        assert told == [(first_id, GapState.OPEN, None), (first_id, GapState.FILLED, "backfill")]


@given(st.sets(st.integers(0, 60), min_size=2), st.sets(st.integers(0, 60)))
def test_whatever_the_venue_has_of_it_comes_back_and_the_rest_is_lost(present: set[int], has: set[int]) -> None:
    world = World(Venue(has), sorted(present))
    world.run(rounds=400)
    missing = set(range(min(present), max(present))) - present
    assert sorted(world.taken) == sorted(missing & has)
    assert world.watch.gaps.open_gaps() == []
    assert world.watch.gaps.lost_ids() == len(missing - has)


def test_what_the_stream_brings_meanwhile_is_not_taken_twice() -> None:
    world = World(Venue(set(range(50))), [0, 30])
    world.on_take = lambda: world.ledger.take_trades(*KEY, [(11, 19)])
    world.run()
    assert world.taken == [*range(1, 11), *range(20, 30)]
    assert [gap.closed_by for gap in world.watch.untold if gap.is_closed] == ["backfill and stream"]


def test_a_failure_is_tried_again_and_never_makes_a_trade_lost() -> None:
    failures = [FeedClosed("gone"), FeedLimited("429"), FeedLimited("418"), FeedClosed("gone")] * 5
    world = World(Venue(set(range(50)), failures), [0, 15])
    world.run(rounds=600)
    assert world.taken == list(range(1, 15))
    assert GapState.LOST not in world.told
    assert len(world.waits) == len(failures)


def test_a_history_that_lags_is_asked_again_before_a_trade_is_lost() -> None:
    venue = Venue({0, 1})
    world = World(venue, [0, 5], backfill_attempts_max=3)

    def later() -> None:
        if len(venue.asked) == 2:
            venue.has |= {2, 3, 4}

    world.on_take = later
    world.run()
    assert world.taken == [1, 2, 3, 4]
    assert world.waits == [1.0, 2.0]
    assert world.told[-1] is GapState.FILLED


def test_what_the_venue_no_longer_has_is_lost_after_so_many_attempts() -> None:
    venue = Venue({0, 9, 10, 11})
    world = World(venue, [0, 5], backfill_attempts_max=3)
    world.run()
    assert len(venue.asked) == 3
    (lost,) = [gap for gap in world.watch.untold if gap.is_closed]
    assert (lost.state, lost.missing_ids, lost.reason) == (
        GapState.LOST,
        4,
        "the exchange has no trades with these ids",
    )


def test_a_symbol_that_the_venue_does_not_have_any_more_is_lost_at_once() -> None:
    venue = Venue(set(), [FeedRefused("Invalid symbol.", code=-1121)])
    world = World(venue, [0, 5])
    world.run()
    assert len(venue.asked) == 1
    assert world.watch.gaps.lost_ids() == 4


@pytest.mark.parametrize("error", [FeedRefused("no key", code=-2014), FeedProtocolError("not JSON")])
def test_an_answer_of_no_use_leaves_the_gap_open_and_is_asked_again_later(error: Exception) -> None:
    venue = Venue(set(range(10)), [error])
    world = World(venue, [0, 5])
    world.run(rounds=200)
    assert len(venue.asked) == 1
    assert [gap.state for gap in world.watch.gaps.open_gaps()] == [GapState.OPEN]
    world.run(rounds=500)
    assert world.taken == [1, 2, 3, 4]


def test_a_gap_beyond_the_bound_is_not_asked_for_and_stays_open() -> None:
    venue = Venue(set(range(50)))
    world = World(venue, [0, 30, 32], backfill_ids_max=10)
    world.run()
    assert world.taken == [31]
    assert [gap.first_id for gap in world.watch.gaps.open_gaps()] == [1]


def test_no_more_are_filled_at_once_than_the_bound_says() -> None:
    venue = Venue(set(range(50)))
    world = World(venue, [0, 30], symbols=[f"S{n}" for n in range(9)], backfill_requests_max=3)
    world.run()
    assert venue.most == 3
    assert sorted(world.taken) == sorted([*range(1, 30)] * 9)


def test_a_venue_that_answers_nonsense_does_not_keep_us_for_ever() -> None:
    class Wrong(Venue):
        async def __call__(self, symbol: str, from_id: int, limit: int) -> list[TradeEvent]:
            self.asked.append((from_id, limit))
            await asyncio.sleep(0)
            return [trade(0)] * limit

    venue = Wrong(set())
    world = World(venue, [0, 30], backfill_attempts_max=2)
    world.run()
    assert len(venue.asked) == 2
    assert world.told[-1] is GapState.LOST


def test_what_cannot_be_taken_ends_whoever_looks() -> None:
    world = World(Venue(set(range(50))), [0, 5])

    def fail() -> None:
        raise BrokerError("the broker is gone")

    world.on_take = fail
    with pytest.raises(BrokerError, match="the broker is gone"):
        world.run()
