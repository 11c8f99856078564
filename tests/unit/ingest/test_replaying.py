"""What of a dead letter can go back into the log, and why nothing of it can."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest

from common.codec import Decoder, Encoder
from common.datasets import QUOTES, TRADES
from common.dead_letters import Letter
from common.log import ConsumerBatch
from common.registry import EmbeddedRegistry
from ingest.replaying import Back, Identity, Reader
from tests.support.records import trade

TOPIC = "market.crypto.trades.binance"
VALUE = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC).encode(trade(7))


def back(value: bytes | None, **headers: str) -> Back | str:
    named = {f"k2-{name.replace('_', '-')}": text for name, text in headers.items()}
    return Reader(EmbeddedRegistry()).back(Letter(f"dead-letter.{TOPIC}", 0, 0, 0, value, named))


def test_a_message_goes_back_as_it_was_to_where_it_lay() -> None:
    assert back(VALUE, topic=TOPIC, partition="3", offset="9") == Back(
        TOPIC, VALUE, 3, None, Identity("binance", "BTCUSDT", 7)
    )


def frame(**changes: Any) -> bytes:
    data = {"e": "trade", "E": 10**12, "s": "BTCUSDT", "t": 7, "p": "1.5", "q": "2", "T": 10**12, "m": True}
    return json.dumps({"stream": "btcusdt@trade", "data": data | changes}).encode()


def decoded(dataset: Any, found: Back | str) -> dict[str, Any]:
    assert isinstance(found, Back)
    rows = Decoder(dataset, EmbeddedRegistry()).decode(ConsumerBatch(found.topic, "", "t", [0], [0], [found.value]))
    assert not rows.errors
    (row,) = rows.record_batch.to_pylist()
    return dict(row)


def test_a_frame_becomes_the_record_that_it_should_have_been() -> None:
    found = back(frame(), topic=TOPIC, exchange="binance", receive_time_us="1000000000000000")
    row = decoded(TRADES, found)
    assert isinstance(found, Back)
    assert (found.topic, found.partition, found.key) == (TOPIC, None, "BTCUSDT")
    assert found.identity == Identity("binance", "BTCUSDT", 7)
    assert (row["price"], row["side"], row["currency"]) == (Decimal("1.5"), "SELL", "USDT")
    assert row["receive_time"].timestamp() == 1_000_000_000


def test_a_frame_goes_where_its_event_belongs_and_not_where_it_was_taken_to_belong() -> None:
    data = {"u": 5, "s": "ETHBTC", "b": "1", "B": "2", "a": "3", "A": "4"}
    quote = json.dumps({"stream": "ethbtc@bookTicker", "data": data}).encode()
    found = back(quote, topic=TOPIC, exchange="binance", receive_time_us="1")
    assert decoded(QUOTES, found)["quote_id"] == 5
    assert isinstance(found, Back) and found.topic == "market.crypto.quotes.binance"


def test_a_frame_of_coinbase() -> None:
    match = {
        "type": "match", "trade_id": 10, "sequence": 50, "maker_order_id": "a", "taker_order_id": "b",
        "time": "2026-11-07T08:19:27.028459Z", "product_id": "BTC-USD",
        "size": "5.23512", "price": "400.23", "side": "sell",
    }  # fmt: skip
    found = back(json.dumps(match).encode(), topic=TOPIC.replace("binance", "coinbase"), exchange="coinbase")
    assert isinstance(found, Back), found
    assert found.identity == Identity("coinbase", "BTC-USD", 10)


@pytest.mark.parametrize(
    ("value", "headers", "why"),
    [
        (None, {"topic": TOPIC, "partition": "0", "offset": "1"}, "bytes are not there"),
        (VALUE, {"topic": "market.crypto.nothing.binance"}, "no dataset of K2"),
        (b"\0nothing", {"topic": TOPIC, "partition": "0", "offset": "1"}, "still cannot be used: schema id"),
        (VALUE[:-3], {"topic": TOPIC, "partition": "0", "offset": "1"}, "still cannot be used: the Avro bytes"),
        (b"line", {"topic": "market.equities.trades.asx", "exchange": "asx"}, "run `k2 ingest asx` again"),
        (frame(), {"topic": TOPIC, "exchange": "nyse"}, "'nyse' is none that K2 knows"),
        (frame(p="much"), {"topic": TOPIC, "exchange": "binance"}, "still cannot be used: .*'p'"),
        (b"{", {"topic": TOPIC, "exchange": "binance"}, "still cannot be used: the frame is not JSON"),
        (b"[" * 100_000, {"topic": TOPIC, "exchange": "binance"}, "still cannot be used"),
        (b"{}", {"topic": TOPIC, "exchange": "binance"}, "still cannot be used"),
        (frame(e="news"), {"topic": TOPIC, "exchange": "binance"}, "says nothing of the market"),
        (frame(E=10**18), {"topic": TOPIC, "exchange": "binance"}, "still cannot be used"),
    ],
)
def test_what_cannot_go_back_says_why(value: bytes | None, headers: dict[str, str], why: str) -> None:
    found = back(value, **headers)
    assert isinstance(found, str)

    assert re.search(why, found), found
