"""A venue's past trades by REST, as the backfill asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from common.clock import Clock
from ingest.rest import RestClient, RestRequest
from ingest.venues.events import TradeEvent


class PastTradesRest(Protocol):
    """How a venue is asked for its past trades by their ids, and what the answers mean. Pure."""

    @property
    def TRADES_MAX(self) -> int:  # noqa: N802  (a module's constant)
        """The most trades of one answer."""
        ...

    @property
    def UNKNOWN_SYMBOL(self) -> int:  # noqa: N802
        """The code of the refusal of a symbol that the venue does not have."""
        ...

    def historical_trades_request(self, symbol: str, from_id: int, limit: int) -> RestRequest: ...

    def trades_of(self, answer: Any, symbol: str, receive_time_us: int) -> list[TradeEvent]:
        """In order of their ids. Raises FeedProtocolError."""
        ...


class RestPastTrades:
    """`PastTrades` over the venue's REST interface, whose limits the client keeps."""

    def __init__(self, rest: RestClient, venue: PastTradesRest, clock: Clock) -> None:
        self._rest = rest
        self._venue = venue
        self._clock = clock

    async def __call__(self, symbol: str, from_id: int, limit: int) -> Sequence[TradeEvent]:
        answer = await self._rest.get(self._venue.historical_trades_request(symbol, from_id, limit))
        return self._venue.trades_of(answer, symbol, self._clock.now_us())
