"""Binance Spot market data: combined-stream frames in, typed events out. Pure: no socket, no clock.

Source: Binance's own web-socket-streams.md (2026): streams `<symbol>@trade` and `<symbol>@bookTicker`, each frame
wrapped as `{"stream": ..., "data": ...}`; times are milliseconds, or microseconds with `timeUnit=MICROSECOND` on the
URL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import quote

import msgspec

from common.datasets import AGG_TRADES, BLOCK_TRADES, BOOK_SNAPSHOTS, DEPTH, QUOTES, TRADES, Dataset
from common.errors import FeedProtocolError, SettingsError
from ingest.venues.events import (
    AggTradeEvent,
    BlockTradeEvent,
    BookSnapshotEvent,
    BookTickerEvent,
    DepthEvent,
    Event,
    IgnoredEvent,
    ServerShutdown,
    TradeEvent,
)

EXCHANGE: Final = "binance"
ASSET_CLASS: Final = "crypto"
SHUTDOWN_STREAM: Final = "!serverShutdown"
#: Binance serves at most this many streams on one connection.
STREAMS_MAX: Final = 1024

#: A count of milliseconds reaches this number in the year 5138, a count of microseconds reached it in 1973.
_MICROSECONDS_FROM: Final = 100_000_000_000_000
#: 9999-12-31T23:59:59.999999, the last instant that every client can show.
_TIME_US_MAX: Final = 253_402_300_799_999_999
ID_MAX: Final = (1 << 63) - 1
#: A trade has about 160 bytes. json refuses integers of more than 4,300 digits.
_ORDINARY_BYTES_MAX: Final = 2_048
_NO_STREAM: Final = ("", "")

# What the schemas hold: price decimal(18, 8), quantity decimal(28, 8). Plain digits only: no sign, no exponent, no NaN.
PRICE = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,8})?")
QUANTITY = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,8})?")
_PLAIN_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
_SYMBOL = re.compile(r"[\w.-]{1,50}")


class _Kind(NamedTuple):
    """A stream: its name at Binance, the event that it brings, the dataset that this goes into."""

    name: str
    event: str
    dataset: Dataset


#: The streams that K2 takes, by the names in its settings.
_KINDS: Final = {
    "trade": _Kind("trade", "trade", TRADES),
    "bookTicker": _Kind("bookTicker", "", QUOTES),
    "aggTrade": _Kind("aggTrade", "aggTrade", AGG_TRADES),
    "depth": _Kind("depth@100ms", "depthUpdate", DEPTH),
    "depth20": _Kind("depth20@100ms", "", BOOK_SNAPSHOTS),
    "blockTrade": _Kind("blockTrade", "blockTrade", BLOCK_TRADES),
}
STREAMS_KNOWN: Final = tuple(_KINDS)
STREAMS_DEFAULT: Final = ("trade", "bookTicker")


class _Data(msgspec.Struct, gc=False):
    """The data of a trade or a book ticker as they should be. A default stands for a missing field; none is valid."""

    s: str = ""
    e: str = ""
    E: int = -1
    T: int = -1
    t: int = -1
    p: str = ""
    q: str = ""
    m: bool | msgspec.UnsetType = msgspec.UNSET
    u: int = -1
    b: str = ""
    B: str = ""
    a: str = ""
    A: str = ""


class _Frame(msgspec.Struct, gc=False):
    stream: str
    data: _Data


class BinanceSession:
    """What K2 asks Binance for, and what Binance's frames mean.

    `symbols` in any case, doubles dropped, order kept. Raises SettingsError when there is none, or one that cannot be a
    symbol. Holds no state of the connection, so that one session serves any number of them.
    """

    exchange: Final = EXCHANGE
    asset_class: Final = ASSET_CLASS
    streams_per_connection_max: Final = STREAMS_MAX
    messages_per_s_max: Final = 5
    connections_max: Final = (300, 300.0)

    def __init__(self, symbols: Iterable[str], streams: Iterable[str] = STREAMS_DEFAULT) -> None:
        self.symbols = tuple(dict.fromkeys(_symbol(symbol) for symbol in symbols))
        if not self.symbols:
            raise SettingsError("no symbol is given; name at least one, such as BTCUSDT")
        self._kinds = tuple(dict.fromkeys(streams))
        unknown = [kind for kind in self._kinds if kind not in _KINDS]
        if unknown or not self._kinds:
            raise SettingsError(
                f"{unknown[0] if unknown else 'nothing'!r} is not a stream of Binance that K2 takes; "
                f"choose among {', '.join(_KINDS)}"
            )
        self.datasets = tuple(dict.fromkeys(_KINDS[kind].dataset for kind in self._kinds))
        self._streams: dict[str, tuple[str, str]] = {}
        for symbol in self.symbols:
            for kind in self._kinds:
                self._streams[f"{symbol.lower()}@{_KINDS[kind].name}"] = (kind, symbol)
        self._decode = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant).decode
        self._decode_typed = msgspec.json.Decoder(_Frame).decode

    def with_symbols(self, symbols: Iterable[str]) -> BinanceSession:
        """The same of other symbols. Raises SettingsError."""
        return BinanceSession(symbols, self._kinds)

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the streams of all symbols."""
        return tuple(self._streams)

    @staticmethod
    def path_of(streams: Sequence[str]) -> str:
        """What follows the host in the URL: the combined stream of the names."""
        return "/stream?streams=" + "/".join(quote(name, safe="@") for name in streams)

    @staticmethod
    def greetings(streams: Sequence[str]) -> list[str]:
        """Nothing: the URL says it all."""
        return []

    @staticmethod
    def subscribe(streams: Sequence[str]) -> list[str]:
        return [json.dumps({"method": "SUBSCRIBE", "params": list(streams), "id": 1})]

    @staticmethod
    def unsubscribe(streams: Sequence[str]) -> list[str]:
        return [json.dumps({"method": "UNSUBSCRIBE", "params": list(streams), "id": 2})]

    @staticmethod
    def dataset_of_frame(frame: bytes) -> Dataset:
        """Whose dead letter a broken frame is, by the stream that it names; TRADES where it names none."""
        head = frame[:200]
        for kind in _KINDS.values():
            if b"@" + kind.name.encode() + b'"' in head:
                return kind.dataset
        return TRADES

    def receive_all(self, frames: Sequence[bytes], receive_time_us: int) -> list[Event | FeedProtocolError]:
        """For each frame what `receive` returns or raises. Frames as they ought to be take a third of the time."""
        events: list[Event | FeedProtocolError] = []
        ordinary, take = self._ordinary, events.append
        for frame in frames:
            event: Event | FeedProtocolError | None = ordinary(frame, receive_time_us)
            if event is None:
                try:
                    event = self.receive(frame, receive_time_us)
                except FeedProtocolError as error:
                    event = error
            take(event)
        return events

    def receive(self, frame: bytes | str, receive_time_us: int) -> Event:
        """The event of one frame that was read off the socket at `receive_time_us`.

        Raises FeedProtocolError with one sentence that names the field at fault; the session stays usable.
        """
        message = self._parse(frame)
        stream = message.get("stream")
        if stream is None:
            return _unwrapped(message)
        data = message.get("data")
        if type(stream) is not str or type(data) is not dict:
            raise FeedProtocolError("a Binance frame must have a text `stream` and an object `data`")
        known = self._streams.get(stream)
        if known is None:
            if stream == SHUTDOWN_STREAM or data.get("e") == "serverShutdown":
                return _shutdown(data)
            return IgnoredEvent(f"stream {stream[:60]}")
        kind, symbol = known
        if kind == "depth20":
            return self._book_snapshot(stream, symbol, data, receive_time_us)
        if data.get("s") != symbol:
            _fault(stream, "s", data.get("s"), f"is not the stream's symbol {symbol}")
        if kind == "bookTicker":
            return self._book_ticker(stream, symbol, data, receive_time_us)
        event = data.get("e")
        if event != _KINDS[kind].event:
            return IgnoredEvent(f"event {str(event)[:60]} on stream {stream}")
        if kind == "depth":
            return self._depth(stream, symbol, data, receive_time_us)
        buyer_is_maker = data.get("m")
        if type(buyer_is_maker) is not bool:
            _fault(stream, "m", buyer_is_maker, "is neither true nor false")
        price, quantity = decimal_of(stream, data, "p", PRICE), decimal_of(stream, data, "q", QUANTITY)
        event_time_us, transaction_time_us = time_us_of(stream, data, "E"), time_us_of(stream, data, "T")
        if kind == "aggTrade":
            return AggTradeEvent(
                symbol,
                integer_of(stream, data, "a", ID_MAX),
                price,
                quantity,
                integer_of(stream, data, "f", ID_MAX),
                integer_of(stream, data, "l", ID_MAX),
                event_time_us,
                transaction_time_us,
                buyer_is_maker,
                receive_time_us,
            )
        made = TradeEvent if kind == "trade" else BlockTradeEvent
        trade_id = integer_of(stream, data, "t", ID_MAX)
        return made(
            symbol, trade_id, price, quantity, event_time_us, transaction_time_us, buyer_is_maker, receive_time_us
        )

    def _ordinary(self, frame: bytes, receive_time_us: int) -> TradeEvent | BookTickerEvent | None:
        """The event of a trade or book ticker without any fault; None for all else: `receive` then says what it is.

        The typed parse skips fields that it does not know without looking into them, as far as text and the length of
        numbers go. So that it takes nothing that `receive` refuses, only short frames of plain ASCII come to it.
        """
        if len(frame) > _ORDINARY_BYTES_MAX or not frame.isascii():
            return None
        try:
            message = self._decode_typed(frame)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        kind, symbol = self._streams.get(message.stream, _NO_STREAM)
        data = message.data
        if data.s != symbol:
            return None
        if kind == "trade":
            price, quantity, maker = data.p, data.q, data.m
            event_time, transaction_time = data.E, data.T
            if (
                data.e != "trade"
                or not 0 <= data.t <= ID_MAX
                or not 0 <= event_time <= _TIME_US_MAX
                or not 0 <= transaction_time <= _TIME_US_MAX
                or maker is msgspec.UNSET
                or not PRICE.fullmatch(price)
                or not QUANTITY.fullmatch(quantity)
            ):
                return None
            return TradeEvent(
                symbol,
                data.t,
                Decimal(price),
                Decimal(quantity),
                event_time if event_time >= _MICROSECONDS_FROM else event_time * 1000,
                transaction_time if transaction_time >= _MICROSECONDS_FROM else transaction_time * 1000,
                maker,
                receive_time_us,
            )
        if (
            kind != "bookTicker"
            or not 0 <= data.u <= ID_MAX
            or not PRICE.fullmatch(data.b)
            or not QUANTITY.fullmatch(data.B)
            or not PRICE.fullmatch(data.a)
            or not QUANTITY.fullmatch(data.A)
        ):
            return None
        bid_price, ask_price = Decimal(data.b), Decimal(data.a)
        return BookTickerEvent(
            symbol,
            data.u,
            bid_price or None,
            Decimal(data.B) if bid_price else None,
            ask_price or None,
            Decimal(data.A) if ask_price else None,
            receive_time_us,
        )

    def _parse(self, frame: bytes | str) -> dict[str, Any]:
        try:
            message = self._decode(frame if isinstance(frame, str) else frame.decode())
        except (ValueError, RecursionError) as error:
            raise FeedProtocolError(f"a Binance frame is not JSON: {str(error)[:200]}") from None
        if type(message) is not dict:
            raise FeedProtocolError(f"a Binance frame must be a JSON object, not {type(message).__name__}")
        return message

    @staticmethod
    def _depth(stream: str, symbol: str, data: dict[str, Any], receive_time_us: int) -> DepthEvent:
        first_update_id, update_id = integer_of(stream, data, "U", ID_MAX), integer_of(stream, data, "u", ID_MAX)
        if first_update_id > update_id:
            _fault(stream, "U", first_update_id, f"is above u, which is {update_id}")
        return DepthEvent(
            symbol,
            update_id,
            first_update_id,
            time_us_of(stream, data, "E"),
            *_levels(stream, data, "b"),
            *_levels(stream, data, "a"),
            receive_time_us,
        )

    @staticmethod
    def _book_snapshot(stream: str, symbol: str, data: dict[str, Any], receive_time_us: int) -> BookSnapshotEvent:
        """Its symbol is the stream's: the data names none."""
        update_id = integer_of(stream, data, "lastUpdateId", ID_MAX)
        levels = (*_levels(stream, data, "bids"), *_levels(stream, data, "asks"))
        return BookSnapshotEvent(symbol, update_id, *levels, receive_time_us)

    @staticmethod
    def _book_ticker(stream: str, symbol: str, data: dict[str, Any], receive_time_us: int) -> BookTickerEvent:
        bid_price: Decimal | None = decimal_of(stream, data, "b", PRICE)
        bid_quantity: Decimal | None = decimal_of(stream, data, "B", QUANTITY)
        ask_price: Decimal | None = decimal_of(stream, data, "a", PRICE)
        ask_quantity: Decimal | None = decimal_of(stream, data, "A", QUANTITY)
        if not bid_price:  # Binance writes a side without orders as zeros
            bid_price = bid_quantity = None
        if not ask_price:
            ask_price = ask_quantity = None
        update_id = integer_of(stream, data, "u", ID_MAX)
        return BookTickerEvent(symbol, update_id, bid_price, bid_quantity, ask_price, ask_quantity, receive_time_us)


def _levels(stream: str, data: dict[str, Any], field: str) -> tuple[list[Decimal], list[Decimal]]:
    """The prices and the quantities of a side of an order book."""
    levels = data.get(field)
    if type(levels) is not list or not all(type(level) is list and len(level) == 2 for level in levels):
        _fault(stream, field, levels, "is no list of pairs of price and quantity")
    pairs = [{"price": price, "quantity": quantity} for price, quantity in levels]
    prices = [decimal_of(stream, pair, "price", PRICE) for pair in pairs]
    return prices, [decimal_of(stream, pair, "quantity", QUANTITY) for pair in pairs]


def _symbol(text: str) -> str:
    symbol = text.strip().upper()
    if not _SYMBOL.fullmatch(symbol):
        raise SettingsError(f"{text!r} cannot be a Binance symbol; write it as Binance does, such as BTCUSDT")
    return symbol


def _unwrapped(message: dict[str, Any]) -> Event:
    """A frame outside of the streams: a response to a request, an error, or the announcement of a shutdown."""
    inner = message.get("event", message)
    if isinstance(inner, dict) and inner.get("e") == "serverShutdown":
        return _shutdown(inner)
    error = message.get("error", message)
    if isinstance(error, dict) and "code" in error and "msg" in error:
        raise FeedProtocolError(
            f"Binance refused a request: {str(error['msg'])[:200]} (code {str(error['code'])[:20]})"
        )
    if "result" in message and "id" in message:
        return IgnoredEvent("response to a request")
    raise FeedProtocolError("a Binance frame has no `stream`, and is no response either")


def _shutdown(data: dict[str, Any]) -> ServerShutdown:
    return ServerShutdown(time_us_of(SHUTDOWN_STREAM, data, "E") if "E" in data else None)


def decimal_of(stream: str, data: dict[str, Any], field: str, form: re.Pattern[str]) -> Decimal:
    text = data.get(field)
    if type(text) is not str:
        _fault(stream, field, text, "is not a text")
    if not form.fullmatch(text):
        _fault(stream, field, text, _why_not_decimal(text, 10 if form is PRICE else 20))
    return Decimal(text)


def _why_not_decimal(text: str, digits_max: int) -> str:
    plain = _PLAIN_NUMBER.fullmatch(text)
    if plain is None:
        return "is not a plain decimal number"
    if len(plain[1]) > digits_max:
        return f"has {len(plain[1])} digits before the point, more than the {digits_max} that the schema holds"
    return f"has {len(plain[2])} decimals, more than the 8 that the schema holds"


def integer_of(stream: str, data: dict[str, Any], field: str, most: int) -> int:
    number = data.get(field)
    if type(number) is not int:
        _fault(stream, field, number, "is not an integer")
    if not 0 <= number <= most:
        _fault(stream, field, number, f"is not between 0 and {most}")
    return number


def time_us_of(stream: str, data: dict[str, Any], field: str) -> int:
    time = integer_of(stream, data, field, _TIME_US_MAX)
    return time if time >= _MICROSECONDS_FROM else time * 1000


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _fault(stream: str, field: str, value: object, why: str) -> NoReturn:
    if value is None:
        raise FeedProtocolError(f"the field {field!r} of a Binance frame on {stream} is missing or null")
    raise FeedProtocolError(f"the field {field!r} of a Binance frame on {stream} {why}: {str(value)[:60]!r}")
