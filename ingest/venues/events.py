"""What a venue's session makes of its frames: typed events, the same for every venue. Pure values."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple


class TradeEvent(NamedTuple):
    """One trade. Times are microseconds UTC; `buyer_is_maker` means that the seller was the aggressor."""

    symbol: str
    trade_id: int
    price: Decimal
    quantity: Decimal
    event_time_us: int
    transaction_time_us: int
    buyer_is_maker: bool
    receive_time_us: int


class BookTickerEvent(NamedTuple):
    """The best bid and ask after order book update `update_id`. A side without orders has price and quantity None."""

    symbol: str
    update_id: int
    bid_price: Decimal | None
    bid_quantity: Decimal | None
    ask_price: Decimal | None
    ask_quantity: Decimal | None
    receive_time_us: int


class ServerShutdown(NamedTuple):
    """The server ends this connection soon: make a new one now."""

    event_time_us: int | None


class IgnoredEvent(NamedTuple):
    """A well-formed frame that K2 has no use for: an unknown stream, an unknown event, a response to a request."""

    what: str


class InstrumentInfo(NamedTuple):
    """What a venue says of one of its symbols. Steps and status are None where it says nothing of them."""

    symbol: str
    base_currency: str | None
    quote_currency: str
    tick_size: Decimal | None
    lot_size: Decimal | None
    status: str | None


Event = TradeEvent | BookTickerEvent | ServerShutdown | IgnoredEvent
