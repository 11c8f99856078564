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


class AggTradeEvent(NamedTuple):
    """The trades of one taker at one price and moment, ids inclusive. Times are microseconds UTC."""

    symbol: str
    agg_trade_id: int
    price: Decimal
    quantity: Decimal
    first_trade_id: int
    last_trade_id: int
    event_time_us: int
    transaction_time_us: int
    buyer_is_maker: bool
    receive_time_us: int


class BlockTradeEvent(NamedTuple):
    """A trade that was agreed on beside the order book. Its ids are apart from those of trades."""

    symbol: str
    trade_id: int
    price: Decimal
    quantity: Decimal
    event_time_us: int
    transaction_time_us: int
    buyer_is_maker: bool
    receive_time_us: int


class DepthEvent(NamedTuple):
    """What changed in an order book by the updates `first_update_id` to `update_id`; a quantity of 0 takes a level
    away."""

    symbol: str
    update_id: int
    first_update_id: int
    event_time_us: int
    bid_prices: list[Decimal]
    bid_quantities: list[Decimal]
    ask_prices: list[Decimal]
    ask_quantities: list[Decimal]
    receive_time_us: int


class BookSnapshotEvent(NamedTuple):
    """The best levels of an order book after update `update_id`, the best first."""

    symbol: str
    update_id: int
    bid_prices: list[Decimal]
    bid_quantities: list[Decimal]
    ask_prices: list[Decimal]
    ask_quantities: list[Decimal]
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
    #: A history vendor's company id.
    company_id: str | None = None


#: Events of the streams that are taken when they are asked for.
FurtherEvent = AggTradeEvent | BlockTradeEvent | DepthEvent | BookSnapshotEvent
Event = TradeEvent | BookTickerEvent | FurtherEvent | ServerShutdown | IgnoredEvent
