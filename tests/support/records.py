"""Trades, quotes and instruments for tests: as records for the encoder, and as rows of the table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from common.offsets import topic_short
from common.schemas.arrow import table_schema

EPOCH = datetime(2024, 8, 9, tzinfo=UTC)


def trade(trade_id: int, *, symbol: str = "BTCUSDT", exchange: str = "binance", **changes: Any) -> dict[str, Any]:
    """A trade record in the encoder's terms; every value follows from the id."""
    at = EPOCH + timedelta(milliseconds=trade_id)
    return {
        "message_id": f"{exchange}:{symbol}:{trade_id}",
        "exchange": exchange,
        "symbol": symbol,
        "trade_id": trade_id,
        "asset_class": "crypto",
        "event_time": at,
        "transaction_time": at,
        "receive_time": at + timedelta(microseconds=700),
        "price": Decimal(6_000_000_000 + trade_id).scaleb(-8),
        "quantity": Decimal(1 + trade_id % 1000).scaleb(-8),
        "currency": "USDT",
        "side": "BUY" if trade_id % 2 else "SELL",
        "trade_conditions": [],
        "source": "stream",
        "source_sequence": None,
        "vendor_data": None,
    } | changes


def quote(quote_id: int, *, symbol: str = "BTCUSDT", exchange: str = "binance", **changes: Any) -> dict[str, Any]:
    return {
        "message_id": f"{exchange}:{symbol}:{quote_id}",
        "exchange": exchange,
        "symbol": symbol,
        "quote_id": quote_id,
        "asset_class": "crypto",
        "event_time": None,
        "receive_time": EPOCH + timedelta(milliseconds=quote_id),
        "bid_price": Decimal("60000.10"),
        "bid_quantity": Decimal("1.5"),
        "ask_price": Decimal("60000.20"),
        "ask_quantity": Decimal("0.00000001"),
        "currency": "USDT",
        "source": "stream",
        "source_sequence": None,
        "vendor_data": None,
    } | changes


def instrument(
    symbol: str, digest: str, *, exchange: str = "binance", minute: int = 0, **changes: Any
) -> dict[str, Any]:
    return {
        "message_id": f"{exchange}:{symbol}:{digest}",
        "exchange": exchange,
        "symbol": symbol,
        "asset_class": "crypto",
        "name": None,
        "base_currency": "BTC",
        "quote_currency": "USDT",
        "tick_size": Decimal("0.01"),
        "lot_size": Decimal("0.00001"),
        "status": "TRADING",
        "company_id": None,
        "updated_time": EPOCH + timedelta(minutes=minute),
        "vendor_data": None,
    } | changes


def table_rows(
    schema_name: str,
    records: Iterable[dict[str, Any]],
    *,
    topic_id: str = "topic-id-1",
    partition: int = 0,
    first_offset: int = 0,
) -> pa.Table:
    """The records as rows of the table, at consecutive offsets of one partition."""
    rows = [
        record | {"_kafka_topic": topic_short(topic_id), "_kafka_partition": partition, "_kafka_offset": offset}
        for offset, record in enumerate(records, first_offset)
    ]
    return pa.Table.from_pylist(rows, schema=table_schema(schema_name))
