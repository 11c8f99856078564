"""What a venue tells of itself over REST: what its symbols are, and what time it is."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import FeedRefused
from common.telemetry import get_logger
from ingest.rest import RestClient
from ingest.venues.events import InstrumentInfo
from ingest.venues.session import VenueRest


class ReferenceData:
    """A venue's reference data. One event loop."""

    def __init__(self, rest: RestClient, venue: VenueRest) -> None:
        self.rest = rest
        self._venue = venue
        self._log = get_logger("ingest")

    async def instruments(self, symbols: Sequence[str]) -> dict[str, InstrumentInfo]:
        """What the symbols are. One that the venue refuses is told to the log and left out. Raises FeedError."""
        found: dict[str, InstrumentInfo] = {}
        most = self._venue.symbols_per_request_max
        for first in range(0, len(symbols), most):
            await self._ask(symbols[first : first + most], found)
        return found

    async def time_us(self) -> int:
        """The venue's clock, microseconds UTC. Raises FeedError."""
        return self._venue.server_time_us_of(await self.rest.get(self._venue.server_time_request()))

    async def _ask(self, symbols: Sequence[str], found: dict[str, InstrumentInfo]) -> None:
        """Ask for all at once. A venue refuses a request whole for one bad symbol: halves then find that one."""
        try:
            answer = await self.rest.get(self._venue.instrument_request(symbols))
        except FeedRefused as error:
            if len(symbols) == 1:
                self._log.error("the venue does not know a symbol", symbol=symbols[0], reason=str(error))
                return
            middle = len(symbols) // 2
            await self._ask(symbols[:middle], found)
            await self._ask(symbols[middle:], found)
            return
        for info in self._venue.instruments_of(answer):
            found[info.symbol] = info
