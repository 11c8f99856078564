"""Coinbase's frames as its documents have them, and what is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from common.datasets import QUOTES, TRADES
from common.errors import FeedProtocolError, SettingsError
from ingest.venues.coinbase import (
    CoinbaseSession,
    instrument_request,
    instruments_of,
    rest_url_of,
    server_time_us_of,
)
from ingest.venues.events import BookTickerEvent, IgnoredEvent, TradeEvent

RECEIVED_US = 1_700_000_000_500_000
MATCH = {
    "type": "match", "trade_id": 10, "sequence": 50, "maker_order_id": "ac928c66", "taker_order_id": "132fb6ae",
    "time": "2014-11-07T08:19:27.028459Z", "product_id": "BTC-USD", "size": "5.23512", "price": "400.23",
    "side": "sell",
}  # fmt: skip
TICKER = {
    "type": "ticker", "sequence": 37475248783, "product_id": "BTC-USD", "price": "1285.22", "best_bid": "1285.04",
    "best_bid_size": "0.46688654", "best_ask": "1285.27", "best_ask_size": "1.56637040", "side": "buy",
    "time": "2022-10-19T23:28:22.061769Z", "trade_id": 370843401, "last_size": "11.4396987",
}  # fmt: skip


def session() -> CoinbaseSession:
    return CoinbaseSession(["btc-usd", "ETH-EUR", "BTC-USD"])


def receive(message: dict[str, Any]) -> Any:
    return session().receive(json.dumps(message), RECEIVED_US)


def test_a_match_is_a_trade_whose_side_is_the_makers() -> None:
    time_us = 1_415_348_367_028_459
    expected = TradeEvent("BTC-USD", 10, Decimal("400.23"), Decimal("5.23512"), time_us, time_us, False, RECEIVED_US)
    assert receive(MATCH) == expected
    assert receive(MATCH | {"type": "last_match", "side": "buy"}) == expected._replace(buyer_is_maker=True)


def test_a_ticker_is_the_best_bid_and_ask_by_its_sequence() -> None:
    event = receive(TICKER)
    assert isinstance(event, BookTickerEvent)
    assert (event.update_id, event.bid_price, event.ask_quantity) == (
        37475248783,
        Decimal("1285.04"),
        Decimal("1.5663704"),
    )
    assert receive(TICKER | {"best_bid": "0", "best_bid_size": "0"})[2:4] == (None, None)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "subscriptions", "channels": []},
        {"type": "heartbeat", "sequence": 90, "last_trade_id": 20, "product_id": "BTC-USD"},
        {"type": "something_new"},
        MATCH | {"product_id": "DOGE-USD"},
    ],
)
def test_what_is_of_no_use_is_ignored(message: dict[str, Any]) -> None:
    assert isinstance(receive(message), IgnoredEvent)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (MATCH | {"trade_id": "10"}, "'trade_id'.*is not an integer"),
        (MATCH | {"price": "1e5"}, "'price'.*is not a plain decimal"),
        (MATCH | {"size": None}, "'size'.*is missing or null"),
        (MATCH | {"side": "SELL"}, "'side'.*neither buy nor sell"),
        (MATCH | {"time": "yesterday"}, "'time'.*is not a time"),
        (TICKER | {"best_ask": 5}, "'best_ask'"),
        (
            {"type": "error", "message": "Failed to subscribe", "reason": "no such product"},
            "refused a request",
        ),
        ({"kind": "match"}, "with a text `type`"),
    ],
)
def test_a_broken_message_names_its_field(message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FeedProtocolError, match=complaint):
        receive(message)
    [event] = session().receive_all([json.dumps(message).encode()], RECEIVED_US)
    assert isinstance(event, FeedProtocolError)


@pytest.mark.parametrize("frame", [b"", b"{", b"[]", b"\xff", b'{"type":NaN}'])
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(FeedProtocolError):
        session().receive(frame, RECEIVED_US)


def test_streams_are_asked_for_in_coinbases_own_words() -> None:
    one = session()
    assert one.streams == ("matches:BTC-USD", "ticker:BTC-USD", "matches:ETH-EUR", "ticker:ETH-EUR")
    first, second = map(json.loads, one.greetings(one.streams))
    assert first == {
        "type": "subscribe",
        "channels": [
            {"name": "matches", "product_ids": ["BTC-USD", "ETH-EUR"]},
            {"name": "ticker", "product_ids": ["BTC-USD", "ETH-EUR"]},
        ],
    }
    assert second["channels"] == [{"name": "heartbeat", "product_ids": ["BTC-USD", "ETH-EUR"]}]
    assert json.loads(one.unsubscribe(["ticker:ETH-EUR"])[0])["type"] == "unsubscribe"
    assert CoinbaseSession(["BTC-USD"], ["trade"]).datasets == (TRADES,)
    assert one.datasets == (TRADES, QUOTES)
    assert one.dataset_of_frame(json.dumps(TICKER).encode()[:-3]) is QUOTES


@pytest.mark.parametrize(("symbols", "streams"), [([], ["trade"]), (["BTCUSD"], ["trade"]), (["BTC-USD"], ["depth"])])
def test_what_cannot_be_asked_for_is_a_settings_error(symbols: list[str], streams: list[str]) -> None:
    with pytest.raises(SettingsError):
        CoinbaseSession(symbols, streams)


def test_rest_tells_the_time_and_products() -> None:
    assert server_time_us_of({"iso": "2015-01-07T23:47:25.201Z", "epoch": 1420674445.201}) == 1_420_674_445_201_000
    product = {
        "id": "BTC-USD", "base_currency": "BTC", "quote_currency": "USD", "quote_increment": "0.01",
        "base_increment": "0.00000001", "status": "online",
    }  # fmt: skip
    [info] = instruments_of(product)
    assert info == ("BTC-USD", "BTC", "USD", Decimal("0.01"), Decimal("0.00000001"), "online", None)
    assert instrument_request(["BTC-USD"]).path == "/products/BTC-USD"
    assert rest_url_of("wss://ws-feed.exchange.coinbase.com") == "https://api.exchange.coinbase.com"
    with pytest.raises(FeedProtocolError):
        instruments_of([])
