from __future__ import annotations

import io
from decimal import Decimal

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.avro_writer import compiled_writer
from common.schemas.arrow import avro_schema
from ingest.normaliser import UNKNOWN_CURRENCY, Normaliser, Record, currencies
from ingest.venues.events import (
    AggTradeEvent,
    BlockTradeEvent,
    BookSnapshotEvent,
    BookTickerEvent,
    DepthEvent,
    TradeEvent,
)

NORMALISER = Normaliser(exchange="binance", asset_class="crypto")


def fits(schema_name: str, record: Record) -> bool:
    """Does fastavro, strictly, write exactly this record?"""
    schema = fastavro.parse_schema(dict(avro_schema(schema_name)))
    fastavro.schemaless_writer(io.BytesIO(), schema, record, strict=True)
    return True


def trade(**changes: object) -> TradeEvent:
    values = {
        "symbol": "BTCUSDT",
        "trade_id": 7,
        "price": Decimal("61602.02"),
        "quantity": Decimal("0.5"),
        "event_time_us": 3_000_000,
        "transaction_time_us": 2_000_000,
        "buyer_is_maker": False,
        "receive_time_us": 1_000_000,
    }
    return TradeEvent(**{**values, **changes})  # type: ignore[arg-type]


def test_a_trade_record() -> None:
    record = NORMALISER.trade(trade())
    assert record == {
        "message_id": "binance:BTCUSDT:7",
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "trade_id": 7,
        "asset_class": "crypto",
        "event_time": 3_000_000,
        "transaction_time": 2_000_000,
        "receive_time": 1_000_000,
        "price": Decimal("61602.02"),
        "quantity": Decimal("0.5"),
        "currency": "USDT",
        "side": "BUY",
        "trade_conditions": [],
        "source": "stream",
        "source_sequence": None,
        "vendor_data": None,
    }
    assert fits("trade", record)


def test_the_side_is_the_aggressors() -> None:
    assert NORMALISER.trade(trade(buyer_is_maker=True))["side"] == "SELL"
    assert NORMALISER.trade(trade(buyer_is_maker=False))["side"] == "BUY"


def test_a_quote_record_has_no_event_time_and_may_lack_a_side() -> None:
    record = NORMALISER.quote(BookTickerEvent("ETHBTC", 9, None, None, Decimal("0.04"), Decimal("3"), 1_000_000))
    assert fits("quote", record)
    assert (record["message_id"], record["quote_id"], record["currency"]) == ("binance:ETHBTC:9", 9, "BTC")
    assert (record["event_time"], record["bid_price"], record["ask_price"]) == (None, None, Decimal("0.04"))


def test_under_load_optional_fields_are_left_out_of_all_but_trades() -> None:
    normaliser, one = Normaliser(exchange="binance", asset_class="crypto"), Decimal(1)
    normaliser.vendor_data, normaliser.thins = {"clock_offset_ms": "3"}, True
    kept = [
        normaliser.trade(trade()),
        normaliser.further(BlockTradeEvent("ETHBTC", 1, one, one, 1, 1, True, 5)),
    ]
    thinned = {
        "quote": normaliser.quote(BookTickerEvent("ETHBTC", 9, one, one, one, one, 5)),
        "depth": normaliser.further(DepthEvent("ETHBTC", 9, 7, 1, [one], [one], [], [], 5)),
        "book_snapshot": normaliser.further(BookSnapshotEvent("ETHBTC", 1, [one], [one], [], [], 5)),
        "agg_trade": normaliser.further(AggTradeEvent("ETHBTC", 1, one, one, 1, 2, 1, 1, True, 5)),
    }
    assert [record["vendor_data"] for record in kept] == [{"clock_offset_ms": "3"}] * 2
    assert all(record["vendor_data"] is None and fits(schema, record) for schema, record in thinned.items())
    normaliser.thins = False
    whole = normaliser.quote(BookTickerEvent("ETHBTC", 9, one, one, one, one, 5))
    assert whole == thinned["quote"] | {"vendor_data": {"clock_offset_ms": "3"}}


def test_an_instruments_message_id_is_its_content_whenever_it_is_made() -> None:
    early, late = NORMALISER.instrument("BTCUSDT", 1), NORMALISER.instrument("BTCUSDT", 2)
    assert fits("instrument", early)
    assert early["message_id"] == late["message_id"]
    assert early["message_id"].startswith("binance:BTCUSDT:")
    assert (early["base_currency"], early["quote_currency"]) == ("BTC", "USDT")
    assert NORMALISER.instrument("ETHUSDT", 1)["message_id"].split(":")[2] != early["message_id"].split(":")[2]


@pytest.mark.parametrize(
    ("symbol", "base", "quote"),
    [
        ("BTCUSDT", "BTC", "USDT"),
        ("ETHBTC", "ETH", "BTC"),
        ("BNBEUR", "BNB", "EUR"),
        ("BTCFDUSD", "BTC", "FDUSD"),
        ("BTCTUSD", "BTC", "TUSD"),
        ("BTCUSD", "BTC", "USD"),
        ("USDTTRY", "USDT", "TRY"),
        ("FDUSDUSDT", "FDUSD", "USDT"),
        ("1000SATSUSDT", "1000SATS", "USDT"),
        ("USDT", None, UNKNOWN_CURRENCY),
        ("WHATEVER", None, UNKNOWN_CURRENCY),
        ("", None, UNKNOWN_CURRENCY),
    ],
)
def test_currencies_by_the_longest_known_tail(symbol: str, base: str | None, quote: str) -> None:
    assert currencies(symbol) == (base, quote)


@given(st.text("ABCDEFUSDTRYB", min_size=1, max_size=12))
def test_base_and_quote_make_up_the_symbol_or_nothing_is_claimed(symbol: str) -> None:
    base, quote = currencies(symbol)
    assert (base is None and quote == UNKNOWN_CURRENCY) or f"{base}{quote}" == symbol


@given(
    price=st.decimals(0, Decimal("9999999999.99999999"), places=8),
    quantity=st.decimals(0, Decimal("99999999999999999999.99999999"), places=8),
    trade_id=st.integers(0, (1 << 63) - 1),
    time_us=st.integers(0, 253_402_300_799_999_999),
)
def test_every_trade_that_the_session_lets_through_fits_the_schema(
    price: Decimal, quantity: Decimal, trade_id: int, time_us: int
) -> None:
    event = trade(price=price, quantity=quantity, trade_id=trade_id, event_time_us=time_us)
    assert fits("trade", NORMALISER.trade(event))
    assert NORMALISER.trade(event) == NORMALISER.trade(event)


def test_the_compiled_writer_takes_what_the_normaliser_makes() -> None:
    """Else all would still be right, and slow: fastavro would write it."""
    empty_side = BookTickerEvent("ETHBTC", 9, None, None, Decimal("0.04"), Decimal("3"), 1_000_000)
    for schema_name, record in (
        ("trade", NORMALISER.trade(trade())),
        ("quote", NORMALISER.quote(empty_side)),
        ("instrument", NORMALISER.instrument("BTCUSDT", 1)),
    ):
        assert compiled_writer(avro_schema(schema_name), b"head")(record).startswith(b"head")
