"""Coinbase Exchange market data: frames in, typed events out, and its REST interface. Pure: no socket, no clock.

Source: Coinbase's own Exchange WebSocket channels and REST reference (2026): one subscribe message within 5 s of the
connection; the channel `matches` has every trade (`match`, and `last_match` once after subscribing), `ticker` the best
bid and ask after a trade, `heartbeat` one message a second. Times are ISO 8601 with microseconds, `side` is the
maker's. A product's trade ids are dense; its `sequence` rises over all of its messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from common.datasets import QUOTES, TRADES, Dataset
from common.errors import FeedProtocolError, SettingsError
from ingest.rest import RestRequest
from ingest.venues.events import BookTickerEvent, Event, IgnoredEvent, InstrumentInfo, TradeEvent

EXCHANGE: Final = "coinbase"
#: The streams that K2 takes, by the names in its settings: the channels that they are.
_CHANNELS: Final = {"trade": "matches", "ticker": "ticker"}
_DATASETS: Final = {"trade": TRADES, "ticker": QUOTES}
STREAMS_DEFAULT: Final = ("trade", "ticker")
#: Where each stream's messages are told by.
_STREAM_OF_TYPE: Final = {"match": "trade", "last_match": "trade", "ticker": "ticker"}

symbols_per_request_max: Final = 1
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017  (as the parsed times have it)
_SYMBOL = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}")
#: What the schemas hold: price decimal(18, 8), quantity decimal(28, 8).
_PRICE = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,8})?")
_QUANTITY = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,8})?")
_ID_MAX: Final = (1 << 63) - 1


class CoinbaseSession:
    """What K2 asks Coinbase for, and what its frames mean.

    `symbols` are products such as BTC-USD, in any case. A stream's name is `channel:product`. Raises SettingsError.
    """

    exchange: Final = EXCHANGE
    asset_class: Final = "crypto"
    #: Coinbase names no bound; a subscribe message of so many is some 20 KB.
    streams_per_connection_max: Final = 1_024
    #: Coinbase takes 100 messages a second of a connection, and 8 connections a second of an address.
    messages_per_s_max: Final = 100
    connections_max: Final = (8, 1.0)

    def __init__(self, symbols: Iterable[str], streams: Iterable[str] = STREAMS_DEFAULT) -> None:
        self.symbols = tuple(dict.fromkeys(_symbol(symbol) for symbol in symbols))
        self._kinds = tuple(dict.fromkeys(streams))
        if not self.symbols:
            raise SettingsError("no symbol is given; name at least one, such as BTC-USD")
        for kind in self._kinds or ("nothing",):
            if kind not in _CHANNELS:
                raise SettingsError(
                    f"{kind!r} is not a stream of Coinbase that K2 takes; choose among {', '.join(_CHANNELS)}"
                )
        self._symbols = frozenset(self.symbols)
        self._decode = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant).decode

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(f"{_CHANNELS[kind]}:{symbol}" for symbol in self.symbols for kind in self._kinds)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return tuple(_DATASETS[kind] for kind in self._kinds)

    def with_symbols(self, symbols: Iterable[str]) -> CoinbaseSession:
        """The same of other symbols. Raises SettingsError."""
        return CoinbaseSession(symbols, self._kinds)

    @staticmethod
    def path_of(streams: Sequence[str]) -> str:
        """Nothing: the streams are asked for by a message."""
        return ""

    @staticmethod
    def greetings(streams: Sequence[str]) -> list[str]:
        """Asks for the streams, and for heartbeats, so that a quiet market is told from a dead connection."""
        products = sorted({stream.partition(":")[2] for stream in streams})
        return [*_messages("subscribe", streams), *_messages("subscribe", [f"heartbeat:{one}" for one in products])]

    @staticmethod
    def subscribe(streams: Sequence[str]) -> list[str]:
        return _messages("subscribe", streams)

    @staticmethod
    def unsubscribe(streams: Sequence[str]) -> list[str]:
        return _messages("unsubscribe", streams)

    @staticmethod
    def dataset_of_frame(frame: bytes) -> Dataset:
        """Whose dead letter a broken frame is: QUOTES for a ticker, else TRADES."""
        return QUOTES if b'"ticker"' in frame[:200] else TRADES

    def receive_all(self, frames: Sequence[bytes], receive_time_us: int) -> list[Event | FeedProtocolError]:
        """What each frame means, or one sentence that says what is wrong with it."""
        events: list[Event | FeedProtocolError] = []
        for frame in frames:
            try:
                events.append(self.receive(frame, receive_time_us))
            except FeedProtocolError as error:
                events.append(error)
        return events

    def receive(self, frame: bytes | str, receive_time_us: int) -> Event:
        """The event of one frame. Raises FeedProtocolError with one sentence that names the field at fault."""
        try:
            data = self._decode(frame if isinstance(frame, str) else frame.decode())
        except (ValueError, RecursionError) as error:
            raise FeedProtocolError(f"a Coinbase frame is not JSON: {str(error)[:200]}") from None
        if type(data) is not dict or type(data.get("type")) is not str:
            raise FeedProtocolError("a Coinbase frame must be a JSON object with a text `type`")
        kind = data["type"]
        if kind == "error":
            raise FeedProtocolError(
                f"Coinbase refused a request: {str(data.get('message'))[:100]} ({str(data.get('reason'))[:100]})"
            )
        stream = _STREAM_OF_TYPE.get(kind)
        if stream is None or stream not in self._kinds:
            return IgnoredEvent(f"type {kind[:60]}")
        symbol = data.get("product_id")
        if symbol not in self._symbols:
            return IgnoredEvent(f"type {kind} of {str(symbol)[:40]}")
        if stream == "ticker":
            return _ticker(symbol, data, receive_time_us)
        return _trade(symbol, data, "time", data.get("side"), receive_time_us)


# --- REST -------------------------------------------------------------------------------------------------------------


def rest_url_of(websocket_url: str) -> str | None:
    """The REST interface beside a websocket; None for a host that nothing is known of."""
    parts = urlsplit(websocket_url)
    if parts.hostname in _LOOPBACK:
        return f"http://{parts.netloc}"
    return "https://api.exchange.coinbase.com" if parts.hostname == "ws-feed.exchange.coinbase.com" else None


def server_time_request() -> RestRequest:
    return RestRequest("/time", {}, 1)


def server_time_us_of(answer: Any) -> int:
    """The exchange's clock, microseconds UTC. Raises FeedProtocolError."""
    return _time_us(_object(answer), "iso")


def instrument_request(symbols: Sequence[str]) -> RestRequest:
    """One product: Coinbase has no request for some."""
    [symbol] = symbols
    return RestRequest(f"/products/{symbol}", {}, 1)


def instruments_of(answer: Any) -> list[InstrumentInfo]:
    """The product. Raises FeedProtocolError."""
    data = _object(answer)
    return [
        InstrumentInfo(
            _text(data, "id"),
            _text(data, "base_currency"),
            _text(data, "quote_currency"),
            _decimal(data, "quote_increment", _PRICE),
            _decimal(data, "base_increment", _QUANTITY),
            _text(data, "status"),
        )
    ]


# --- fields -----------------------------------------------------------------------------------------------------------


def _trade(symbol: str, data: dict[str, Any], time: str, maker_side: object, receive_time_us: int) -> TradeEvent:
    if maker_side not in ("buy", "sell"):
        _fault("side", maker_side, "is neither buy nor sell")
    time_us = _time_us(data, time)
    return TradeEvent(
        symbol,
        _integer(data, "trade_id"),
        _decimal(data, "price", _PRICE),
        _decimal(data, "size", _QUANTITY),
        time_us,
        time_us,
        maker_side == "buy",
        receive_time_us,
    )


def _ticker(symbol: str, data: dict[str, Any], receive_time_us: int) -> BookTickerEvent:
    """The best bid and ask; its id is the product's `sequence`. A side without orders is 0."""
    bid, ask = _decimal(data, "best_bid", _PRICE), _decimal(data, "best_ask", _PRICE)
    return BookTickerEvent(
        symbol,
        _integer(data, "sequence"),
        bid or None,
        _decimal(data, "best_bid_size", _QUANTITY) if bid else None,
        ask or None,
        _decimal(data, "best_ask_size", _QUANTITY) if ask else None,
        receive_time_us,
    )


def _messages(verb: str, streams: Sequence[str]) -> list[str]:
    """One message with the products of each channel; none for no stream."""
    channels: dict[str, list[str]] = {}
    for stream in streams:
        channel, _, product = stream.partition(":")
        channels.setdefault(channel, []).append(product)
    asked = [{"name": channel, "product_ids": products} for channel, products in channels.items()]
    return [json.dumps({"type": verb, "channels": asked}, separators=(",", ":"))] if asked else []


def _symbol(text: str) -> str:
    symbol = text.strip().upper()
    if not _SYMBOL.fullmatch(symbol):
        raise SettingsError(f"{text!r} cannot be a Coinbase product; write it as Coinbase does, such as BTC-USD")
    return symbol


def _decimal(data: dict[str, Any], field: str, form: re.Pattern[str]) -> Decimal:
    text = data.get(field)
    if type(text) is not str or not form.fullmatch(text):
        _fault(field, text, "is not a plain decimal number that the schema holds")
    return Decimal(text)


def _integer(data: dict[str, Any], field: str) -> int:
    number = data.get(field)
    if type(number) is not int or not 0 <= number <= _ID_MAX:
        _fault(field, number, "is not an integer of 0 or more")
    return number


def _time_us(data: dict[str, Any], field: str) -> int:
    text = data.get(field)
    try:
        if type(text) is not str or not text.endswith("Z"):
            raise ValueError
        return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        _fault(field, text, "is not a time such as 2026-11-28T18:00:00.000000Z")


def _text(data: dict[str, Any], field: str) -> str:
    text = data.get(field)
    if type(text) is not str or not text:
        _fault(field, text, "is no text")
    return text


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise FeedProtocolError("an answer of Coinbase is no object where one is due")
    return answer


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _fault(field: str, value: object, why: str) -> NoReturn:
    if value is None:
        raise FeedProtocolError(f"the field {field!r} of a Coinbase message is missing or null")
    raise FeedProtocolError(f"the field {field!r} of a Coinbase message {why}: {str(value)[:60]!r}")
