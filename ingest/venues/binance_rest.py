"""Binance Spot's REST interface: what is asked, and what the answers mean. Pure: no socket, no clock.

Source: Binance's own rest-api.md (2026): `exchangeInfo` weighs 20, `historicalTrades` 25, `time` 1; an address may use
6,000 a minute. Numbers are texts, times milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from common.errors import FeedProtocolError
from ingest.rest import RestRequest
from ingest.venues.binance import ID_MAX, PRICE, QUANTITY, decimal_of, integer_of, time_us_of
from ingest.venues.events import InstrumentInfo, TradeEvent

#: The most that Binance takes of one address in a minute.
WEIGHT_PER_MINUTE_MAX: Final = 6_000
#: The most trades of one answer.
TRADES_MAX: Final = 1_000
#: Code of the answer to a symbol that Binance does not have.
UNKNOWN_SYMBOL: Final = -1121
#: Symbols of one exchangeInfo: some 2,000 characters of URL, where servers stop at 8,000.
symbols_per_request_max: Final = 100
#: Where the REST interface of a market-data host is.
_REST_HOSTS: Final = {
    "data-stream.binance.vision": "https://data-api.binance.vision",
    "stream.binance.com": "https://api.binance.com",
}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def rest_url_of(websocket_url: str) -> str | None:
    """The REST interface beside a websocket: Binance's own, or the simulator's, which has both at one address.

    None for a host that nothing is known of.
    """
    parts = urlsplit(websocket_url)
    if parts.hostname in _LOOPBACK:
        return f"http://{parts.netloc}"
    return _REST_HOSTS.get(parts.hostname or "")


def server_time_request() -> RestRequest:
    return RestRequest("/api/v3/time", {}, 1)


def server_time_us_of(answer: Any) -> int:
    """The exchange's clock, microseconds UTC. Raises FeedProtocolError."""
    return time_us_of("time", _object(answer, "time"), "serverTime")


def instrument_request(symbols: Sequence[str]) -> RestRequest:
    """What to ask to learn what the symbols are. Binance refuses it whole when it lacks one of them."""
    names = json.dumps(list(symbols), separators=(",", ":"))
    return RestRequest("/api/v3/exchangeInfo", {"symbols": names}, 20)


def instruments_of(answer: Any) -> list[InstrumentInfo]:
    """The instruments of an answer to exchangeInfo. Raises FeedProtocolError that names the field at fault."""
    symbols = _object(answer, "exchangeInfo").get("symbols")
    if not isinstance(symbols, list):
        raise FeedProtocolError("Binance's exchangeInfo has no list of symbols")
    return [_instrument(_object(one, "exchangeInfo")) for one in symbols]


def historical_trades_request(symbol: str, from_id: int, limit: int = TRADES_MAX) -> RestRequest:
    """The trades of a symbol with the ids `from_id` and up, `limit` of them at most."""
    params: dict[str, str | int] = {"symbol": symbol, "fromId": from_id, "limit": min(limit, TRADES_MAX)}
    return RestRequest("/api/v3/historicalTrades", params, 25)


def trades_of(answer: Any, symbol: str, receive_time_us: int) -> list[TradeEvent]:
    """The trades of an answer to historicalTrades, in order of their ids.

    REST tells one time of a trade, when it was matched; it stands for the event's time too. Raises FeedProtocolError.
    """
    if not isinstance(answer, list):
        raise FeedProtocolError("Binance's historicalTrades is no list")
    return [_trade(_object(one, "historicalTrades"), symbol, receive_time_us) for one in answer]


def _trade(data: dict[str, Any], symbol: str, receive_time_us: int) -> TradeEvent:
    where = f"historicalTrades of {symbol}"
    buyer_is_maker = data.get("isBuyerMaker")
    if type(buyer_is_maker) is not bool:
        raise FeedProtocolError(f"the field 'isBuyerMaker' of Binance's {where} is neither true nor false")
    time_us = time_us_of(where, data, "time")
    return TradeEvent(
        symbol,
        integer_of(where, data, "id", ID_MAX),
        decimal_of(where, data, "price", PRICE),
        decimal_of(where, data, "qty", QUANTITY),
        time_us,
        time_us,
        buyer_is_maker,
        receive_time_us,
    )


def _instrument(data: dict[str, Any]) -> InstrumentInfo:
    symbol = _text(data, "symbol", "exchangeInfo")
    where = f"exchangeInfo of {symbol}"
    filters = {
        str(one.get("filterType")): one for one in data.get("filters") or () if isinstance(one, dict)
    }  # a filter that K2 does not know is no fault
    return InstrumentInfo(
        symbol=symbol,
        base_currency=_text(data, "baseAsset", where),
        quote_currency=_text(data, "quoteAsset", where),
        tick_size=_step(where, filters.get("PRICE_FILTER"), "tickSize"),
        lot_size=_step(where, filters.get("LOT_SIZE"), "stepSize"),
        status=_text(data, "status", where),
    )


def _step(where: str, data: dict[str, Any] | None, field: str) -> Decimal | None:
    """None without the filter, and for 0, which is how Binance says that a filter is off."""
    if data is None:
        return None
    return decimal_of(where, data, field, PRICE if field == "tickSize" else QUANTITY) or None


def _text(data: dict[str, Any], field: str, where: str) -> str:
    text = data.get(field)
    if type(text) is not str or not text:
        raise FeedProtocolError(f"the field {field!r} of Binance's {where} is missing or no text")
    return text


def _object(answer: Any, where: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise FeedProtocolError(f"Binance's {where} is no object where one is due")
    return answer
