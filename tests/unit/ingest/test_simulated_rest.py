"""What the simulator's REST interface answers, as text, and what Binance's client makes of it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import pytest

from common.errors import FeedProtocolError
from ingest.market import Market
from ingest.rest import RestRequest
from ingest.simulated_rest import SimulatedRest, TradeHistory
from ingest.venues.binance import BinanceSession
from ingest.venues.binance_rest import (
    historical_trades_request,
    instrument_request,
    instruments_of,
    rest_url_of,
    server_time_request,
    server_time_us_of,
    trades_of,
)
from ingest.venues.events import TradeEvent

NOW_US = 1_700_000_000_123_000


def rest_of(market: Market, steps: int = 0, per_symbol_max: int = 50_000) -> tuple[SimulatedRest, list[TradeEvent]]:
    """The REST interface of a market after so many steps, and what its stream's client would have got."""
    session, history, events = BinanceSession(market.symbols), TradeHistory(per_symbol_max), []
    for _ in range(steps):
        trade, _book = market.step(NOW_US)
        history.add(*market.last_trade, trade.frame)
        events.append(session.receive(trade.frame, NOW_US))
    return SimulatedRest(market.instruments(), history), events  # type: ignore[return-value]


def ask(rest: SimulatedRest, request: RestRequest, *, now_s: float = 0.0) -> Any:
    answer = rest.answer(f"{request.path}?{urlencode(request.params)}", now_us=NOW_US, now_s=now_s)
    assert answer.status == 200, answer
    return json.loads(answer.body, parse_float=Decimal)


def test_past_trades_are_the_stream_s_own() -> None:
    rest, events = rest_of(Market(["BTCUSDT", "ETHBTC"], seed=3), steps=3_000)
    streamed = [event for event in events if event.symbol == "BTCUSDT"]
    assert len(streamed) > 1_500
    got: list[TradeEvent] = []
    while len(got) < len(streamed):
        got += trades_of(ask(rest, historical_trades_request("BTCUSDT", len(got) + 1)), "BTCUSDT", NOW_US)
        assert len(got) in (1_000, len(streamed)) or len(got) % 1_000 == 0
    assert got == streamed
    assert trades_of(ask(rest, historical_trades_request("BTCUSDT", 5, 3)), "BTCUSDT", NOW_US) == streamed[4:7]
    assert ask(rest, historical_trades_request("BTCUSDT", 10**9)) == []


def test_old_trades_are_forgotten_and_what_is_left_is_given() -> None:
    rest, events = rest_of(Market(["BTCUSDT"], seed=3), steps=250, per_symbol_max=100)
    left = trades_of(ask(rest, historical_trades_request("BTCUSDT", 1)), "BTCUSDT", NOW_US)
    assert 100 <= len(left) < 200
    assert left == events[-len(left) :]


def test_instruments_have_their_currencies_steps_and_status() -> None:
    market = Market(["BTCUSDT", "ETHBTC", "BNBEUR"], seed=1)
    rest, _ = rest_of(market)
    infos = instruments_of(ask(rest, instrument_request(market.symbols)))
    assert infos == market.instruments()
    assert infos[1]._replace(status=None) == (
        "ETHBTC", "ETH", "BTC", Decimal("0.00001"), Decimal("0.0001"), None, None,
    )  # fmt: skip
    assert infos[0].status == "TRADING"


def test_the_time_is_the_simulator_s() -> None:
    rest, _ = rest_of(Market(["BTCUSDT"], seed=1))
    assert server_time_us_of(ask(rest, server_time_request())) == NOW_US


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/api/v3/historicalTrades?symbol=NOPE", 400, -1121),
        ("/api/v3/historicalTrades?symbol=BTCUSDT&fromId=x", 400, -1100),
        ("/api/v3/historicalTrades?symbol=BTCUSDT&limit=1001", 400, -1130),
        ("/api/v3/exchangeInfo?symbols=%5B%22BTCUSDT%22%2C%22NOPE%22%5D", 400, -1121),
        ("/api/v3/exchangeInfo?symbols=%5B", 400, -1100),
        ("/api/v3/order", 404, -1),
    ],
)
def test_a_wrong_request_is_refused_with_binance_s_code(target: str, status: int, code: int) -> None:
    rest, _ = rest_of(Market(["BTCUSDT"], seed=1))
    answer = rest.answer(target, now_us=NOW_US, now_s=0.0)
    assert (answer.status, json.loads(answer.body)["code"]) == (status, code)


def test_weights_are_counted_and_beyond_6000_a_minute_it_is_429() -> None:
    rest, _ = rest_of(Market(["BTCUSDT"], seed=1))
    target = "/api/v3/historicalTrades?symbol=BTCUSDT"
    answers = [rest.answer(target, now_us=NOW_US, now_s=float(number) / 10) for number in range(241)]
    assert [answer.status for answer in answers] == [200] * 240 + [429]
    assert answers[239].headers == {"X-MBX-USED-WEIGHT-1M": "6000"}
    assert answers[240].headers == {"Retry-After": "37"}
    assert rest.answer(target, now_us=NOW_US, now_s=61.0).status == 200


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": "7"}, "'id'.*is not an integer"),
        ({"price": 1.5}, "'price'.*is not a text"),
        ({"qty": "-1"}, "'qty'.*is not a plain decimal number"),
        ({"isBuyerMaker": None}, "'isBuyerMaker'"),
        ({"time": -1}, "'time'"),
    ],
)
def test_a_malformed_past_trade_names_its_field(change: dict[str, Any], complaint: str) -> None:
    trade = {"id": 7, "price": "1.5", "qty": "2", "time": 1_700_000_000_000, "isBuyerMaker": True}
    assert len(trades_of([trade], "BTCUSDT", NOW_US)) == 1
    with pytest.raises(FeedProtocolError, match=complaint):
        trades_of([trade | change], "BTCUSDT", NOW_US)


@pytest.mark.parametrize("answer", [{}, [], {"symbols": [7]}, {"symbols": [{"symbol": "A", "baseAsset": ""}]}])
def test_a_malformed_exchange_info_is_refused(answer: Any) -> None:
    with pytest.raises(FeedProtocolError):
        instruments_of(answer)


def test_a_filter_that_is_off_or_missing_is_no_step() -> None:
    symbol: dict[str, Any] = {"symbol": "A", "baseAsset": "B", "quoteAsset": "C", "status": "BREAK"}
    [info] = instruments_of({"symbols": [symbol]})
    assert (info.tick_size, info.lot_size, info.status) == (None, None, "BREAK")
    filters = [{"filterType": "PRICE_FILTER", "tickSize": "0.00000000"}, {"filterType": "NEW"}, 5]
    [info] = instruments_of({"symbols": [symbol | {"filters": filters}]})
    assert info.tick_size is None


def test_the_rest_interface_beside_a_websocket() -> None:
    assert rest_url_of("wss://data-stream.binance.vision") == "https://data-api.binance.vision"
    assert rest_url_of("wss://stream.binance.com:9443") == "https://api.binance.com"
    assert rest_url_of("ws://127.0.0.1:9443") == "http://127.0.0.1:9443"
    assert rest_url_of("wss://example.org") is None
