"""The venues that K2 knows. A new one is a file of pure code beside this one, and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.settings import IngestSettings
from ingest.past_trades import PastTradesRest
from ingest.venues import binance_rest, coinbase
from ingest.venues.binance import STREAMS_DEFAULT, STREAMS_KNOWN, BinanceSession
from ingest.venues.session import Session, VenueRest


@dataclass(frozen=True)
class Venue:
    """A venue: its name in records, how a session of some symbols is made, its REST interface, its addresses."""

    name: str
    title: str
    session: Callable[[Iterable[str], Iterable[str]], Session]
    #: What is asked for when nothing else is said, and all that may be.
    streams: tuple[str, ...]
    streams_known: tuple[str, ...]
    rest: VenueRest
    url: Callable[[IngestSettings], str]
    rest_url: Callable[[IngestSettings], str | None]
    symbols: str
    #: How past trades are asked for by their ids; None: the venue has no such thing, and what is missing stays so.
    past: PastTradesRest | None = None


BINANCE = Venue(
    name="binance",
    title="Binance Spot",
    session=BinanceSession,
    streams=STREAMS_DEFAULT,
    streams_known=STREAMS_KNOWN,
    rest=binance_rest,
    url=lambda settings: settings.binance_url,
    rest_url=lambda settings: settings.binance_rest_url,
    symbols="BTCUSDT,ETHUSDT",
    past=binance_rest,
)

COINBASE = Venue(
    name="coinbase",
    title="Coinbase Exchange",
    session=coinbase.CoinbaseSession,
    streams=coinbase.STREAMS_DEFAULT,
    streams_known=coinbase.STREAMS_DEFAULT,
    rest=coinbase,
    url=lambda settings: settings.coinbase_url,
    rest_url=lambda settings: None,
    symbols="BTC-USD,ETH-USD",
)

VENUES: dict[str, Venue] = {venue.name: venue for venue in (BINANCE, COINBASE)}
