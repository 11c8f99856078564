"""Brings missing trades back: asks the venue's REST interface for exactly the ids that gaps miss.

Guarantee: what comes back goes through the ledger like any trade, in the order of its ids within a gap, so each is once
in the log, whoever brings it first. A gap is closed as lost only after the venue answered that it has no such trades,
several times; while the venue cannot be asked, it stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from tenacity import AsyncRetrying, retry_if_exception, stop_never, wait_random_exponential

from common.clock import Clock
from common.errors import FeedProtocolError, FeedRefused
from common.resilience import is_retryable
from common.settings import IngestSettings
from common.telemetry import get_logger
from ingest.gap_watch import GapWatch
from ingest.gaps import Gap, Key
from ingest.ledger import IdRange
from ingest.venues.events import TradeEvent

Sleep = Callable[[float], Awaitable[None]]
#: Takes trades of one symbol that are missing, in the order of their ids.
Take = Callable[[Sequence[TradeEvent]], Awaitable[None]]

#: How often gaps are looked for that nobody fills.
_LOOK_S: Final = 0.1
#: Waits before the venue is asked again: after a failure; and when it answered, but not with what is missing, for its
#: history may lag behind its stream.
_AGAIN_S_MAX: Final = 60.0
_ABSENT_S_FIRST: Final = 1.0
#: How long a gap is left alone about which the venue answered with what cannot be used.
_REFUSED_S: Final = 60.0


class PastTrades(Protocol):
    """A venue's trades of the past."""

    async def __call__(self, symbol: str, from_id: int, limit: int) -> Sequence[TradeEvent]:
        """The trades with the ids `from_id` and up in rising order, `limit` of them unless the venue has fewer.

        Raises FeedClosed and FeedLimited, which may be tried again; FeedRefused and FeedProtocolError, which may not.
        """
        ...


class Backfill:
    """Fills the open gaps of a GapWatch, the oldest first; of a symbol one at a time, of several symbols a few at once.
    One event loop.
    """

    def __init__(
        self,
        watch: GapWatch,
        past: PastTrades,
        take: Take,
        settings: IngestSettings,
        *,
        page_trades_max: int,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        gone_codes: frozenset[Any] = frozenset(),
    ) -> None:
        """`gone_codes` are the codes of refusals that mean that the venue does not have the symbol any more."""
        self._watch = watch
        self._past = past
        self._take = take
        self._settings = settings
        self._page_trades_max = page_trades_max
        self._clock = clock
        self._sleep = sleep
        self._gone_codes = gone_codes
        self._log = get_logger("ingest")
        self._filling: dict[Key, asyncio.Task[None]] = {}
        self._not_before_s: dict[tuple[str, str, int], float] = {}
        self._look_s = float("-inf")
        self._failure: BaseException | None = None
        self.requests = 0

    def look(self) -> None:
        """Begin with gaps that nobody fills, as far as there is room. Raises what a filling failed with."""
        if self._failure is not None:
            raise self._failure
        now_s = self._clock.monotonic_s()
        if now_s - self._look_s < _LOOK_S:
            return
        self._look_s = now_s
        for gap in self._watch.gaps.open_gaps():
            if len(self._filling) >= self._settings.backfill_requests_max:
                return
            place = (gap.exchange, gap.symbol, gap.first_id)
            if gap.key in self._filling or now_s < self._not_before_s.get(place, now_s):
                continue
            if gap.last_id - gap.first_id >= self._settings.backfill_ids_max:
                self._too_large(gap, place)
                continue
            task = asyncio.create_task(self._fill(gap, place))
            self._filling[gap.key] = task
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """End every filling; what they have brought stays."""
        tasks = list(self._filling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._filling = {key: other for key, other in self._filling.items() if other is not task}
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    def _too_large(self, gap: Gap, place: tuple[str, str, int]) -> None:
        self._not_before_s[place] = float("inf")
        self._log.error(
            "a gap is larger than K2_INGEST_BACKFILL_IDS_MAX and stays open; raise the setting and start again",
            symbol=gap.symbol,
            first_id=gap.first_id,
            last_id=gap.last_id,
        )

    async def _fill(self, gap: Gap, place: tuple[str, str, int]) -> None:
        try:
            for attempt in range(self._settings.backfill_attempts_max):
                if attempt:
                    await self._sleep(_ABSENT_S_FIRST * 2 ** (attempt - 1))
                await self._once_through(gap)
                if not self._watch.missing(gap):
                    self._watch.look()
                    return
            self._watch.lose(gap, "the exchange has no trades with these ids")
        except FeedRefused as error:
            if error.code in self._gone_codes:
                self._watch.lose(gap, error.message)
                return
            self._refused(gap, place, error)
        except FeedProtocolError as error:
            self._refused(gap, place, error)

    def _refused(self, gap: Gap, place: tuple[str, str, int], error: FeedRefused | FeedProtocolError) -> None:
        self._not_before_s[place] = self._clock.monotonic_s() + _REFUSED_S
        self._log.error("missing trades cannot be asked for", symbol=gap.symbol, reason=error.message)

    async def _once_through(self, gap: Gap) -> None:
        """Ask for what the gap misses, from its first id to its last, a page at a time.

        An answer costs the same however many trades it has, so that what other gaps miss close behind comes along.
        """
        next_id = gap.first_id
        while True:
            missing = [one for one in self._watch.missing(gap) if one.last_id >= next_id]
            if not missing:
                return
            first_id = max(next_id, missing[0].first_id)
            all_missing = self._watch.ledger.gaps(*gap.key)
            most = first_id + self._page_trades_max - 1
            limit = max(min(last, most) for first, last in all_missing if first <= most) - first_id + 1
            trades = await self._ask(gap.symbol, first_id, limit)
            ids = self._watch.ledger.trade_ids(*gap.key)
            last_id = all_missing[-1].last_id
            wanted = [one for one in trades if first_id <= one.trade_id <= last_id and one.trade_id not in ids]
            if wanted:
                self._watch.about_to_fill(gap.key, IdRange(wanted[0].trade_id, wanted[-1].trade_id))
            await self._take(wanted)
            if len(trades) < limit or trades[-1].trade_id < first_id:
                return
            next_id = trades[-1].trade_id + 1

    async def _ask(self, symbol: str, first_id: int, limit: int) -> Sequence[TradeEvent]:
        """The venue's answer, however long that takes. Raises FeedRefused, FeedProtocolError."""
        attempts = AsyncRetrying(
            retry=retry_if_exception(is_retryable),
            wait=wait_random_exponential(multiplier=self._settings.backoff_s_first / 5, max=_AGAIN_S_MAX),
            stop=stop_never,
            sleep=self._sleep,
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                self.requests += 1
                return await self._past(symbol, first_id, limit)
        raise AssertionError("it is asked until there is an answer")
