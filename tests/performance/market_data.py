"""Made-up trades in bulk: as Avro messages for the log, as Arrow rows for the table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from common.codec import Encoder
from common.datasets import TRADES
from common.registry import EmbeddedRegistry
from common.schemas.arrow import table_schema
from tests.support.records import trade

DAY_US = 86_400_000_000
START_US = 1_723_161_600_000_000


def messages(count: int) -> list[bytes]:
    """`count` distinct trades of eight symbols, framed."""
    encoder = Encoder(TRADES, EmbeddedRegistry(), topic="bench")
    symbols = [f"SYM{number}USDT" for number in range(8)]
    return [encoder.encode(trade(n, symbol=symbols[n % 8])) for n in range(count)]


def rows(first: int, count: int, *, symbols: int, days: int, total: int, by_symbol: bool = False) -> pa.Table:
    """Rows [first, first + count) of `total` trades spread evenly over `days`, in order of time.

    With `by_symbol` they are in order of symbol, and of time within each: a table that maintenance has sorted.
    """
    n = np.arange(first, first + count, dtype=np.int64)
    each = total // symbols
    number, place = (n // each, n % each * symbols) if by_symbol else (n % symbols, n)
    at = START_US + (place * (days * DAY_US // total))
    symbol = pa.DictionaryArray.from_arrays(
        pa.array(number.astype(np.int32)), pa.array([f"S{number:03d}USDT" for number in range(symbols)])
    ).cast(pa.string())
    times = pa.array(at).cast(pa.timestamp("us", tz="UTC"))
    price = decimals(60_000_00000000 + (n * 7919 % 100_000) * 1_000_000, 18)
    quantity = decimals(1_000 + (n * 104_729 % 1_000_000), 28)
    constant = {"exchange": "binance", "asset_class": "crypto", "currency": "USDT", "source": "stream"}
    columns = {
        "message_id": pa.array(n).cast(pa.string()),
        "symbol": symbol,
        "trade_id": pa.array(n),
        "event_time": times,
        "transaction_time": times,
        "receive_time": times,
        "price": price,
        "quantity": quantity,
        "side": pa.DictionaryArray.from_arrays(pa.array((n % 2).astype(np.int8)), pa.array(["BUY", "SELL"])).cast(
            pa.string()
        ),
        "_kafka_topic": pa.repeat("bench-id", count),
        "_kafka_partition": pa.array(np.zeros(count, np.int32)),
        "_kafka_offset": pa.array(n),
    } | {name: pa.repeat(value, count) for name, value in constant.items()}
    return table_of("trade", columns, count)


def table_of(schema_name: str, columns: dict[str, pa.Array], count: int) -> pa.Table:
    """`count` rows of a table of K2's: these columns, every other one empty."""
    arrays = []
    schema = table_schema(schema_name)
    for field in schema:
        if field.name == "trade_conditions":
            empty = pa.array(np.zeros(count + 1, np.int32))
            arrays.append(pa.ListArray.from_arrays(empty, pa.array([], pa.string()), type=field.type))
        elif field.name in columns:
            arrays.append(columns[field.name])
        else:
            arrays.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def decimals(unscaled: np.ndarray, precision: int) -> pa.Array:
    """Non-negative unscaled integers as decimal128(precision, 8): the low and the high word side by side."""
    words = np.zeros((len(unscaled), 2), np.int64)
    words[:, 0] = unscaled
    return pa.Array.from_buffers(pa.decimal128(precision, 8), len(unscaled), [None, pa.py_buffer(words.tobytes())])
