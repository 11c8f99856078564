"""A made-up day of trades and quotes of many symbols, few of them busy, as K2's tables have them.

Quotes walk at random in ticks; each trade takes the bid or the ask that stood when it was received, or trades
between them. The same seed and count give the same rows. Rows come in order of symbol and time: tables that
maintenance has sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tests.performance.market_data import DAY_US, START_US, decimals, table_of

SYMBOLS = 100
#: The day's beginning: midnight UTC behind START_US.
BEGIN_US = (START_US // DAY_US + 1) * DAY_US
_TICK = 1_000_000
_CHUNK = 1_000_000


@dataclass(frozen=True)
class SymbolDay:
    """One symbol's day; prices in 1e-8, times in microseconds."""

    symbol: str
    quote_us: np.ndarray
    bid: np.ndarray
    ask: np.ndarray
    event_us: np.ndarray
    receive_us: np.ndarray
    price: np.ndarray
    quantity: np.ndarray
    buy: np.ndarray


def symbol_name(number: int) -> str:
    return f"S{number:03d}USDT"


def symbol_days(count: int, *, seed: int = 7) -> Iterator[SymbolDay]:
    """The symbols in order, `count` rows altogether: a third are trades; the busiest symbol comes first."""
    share = 1 / np.arange(1, SYMBOLS + 1)
    rows = np.floor(count * share / share.sum()).astype(np.int64)
    rows[0] += count - rows.sum()
    for number in range(SYMBOLS):
        rng = np.random.default_rng([seed, number])
        yield _symbol_day(rng, symbol_name(number), int(rows[number]) // 3, int(rows[number]) - int(rows[number]) // 3)


def _symbol_day(rng: np.random.Generator, symbol: str, trades: int, quotes: int) -> SymbolDay:
    quote_us = BEGIN_US + np.sort(rng.integers(0, DAY_US, quotes))
    middle = 5_000 + np.abs(np.cumsum(rng.integers(-1, 2, quotes)))
    bid = (middle - rng.integers(1, 3, quotes)) * _TICK
    ask = (middle + rng.integers(1, 3, quotes)) * _TICK
    event_us = BEGIN_US + np.sort(rng.integers(0, DAY_US - 1_000_000, trades))
    receive_us = event_us + rng.integers(100, 900, trades)
    stands = np.clip(np.searchsorted(quote_us, receive_us, side="right") - 1, 0, max(0, quotes - 1))
    buy = rng.random(trades) < 0.5
    inside = rng.random(trades) < 0.1
    taken = np.where(buy, ask[stands], bid[stands]) if quotes else np.full(trades, 5_000 * _TICK)
    price = np.where(inside, (bid[stands] + ask[stands]) // 2, taken) if quotes else taken
    quantity = rng.integers(1, 1_000, trades) * 100_000
    return SymbolDay(symbol, quote_us, bid, ask, event_us, receive_us, price, quantity, buy)


def trades(days: Iterator[SymbolDay]) -> Iterator[pa.Table]:
    """The rows of market.trades, a symbol at a time."""
    first = 0
    for day in days:
        count = len(day.event_us)
        times = _times(day.event_us)
        side = pa.DictionaryArray.from_arrays(pa.array(day.buy.astype(np.int8)), pa.array(["SELL", "BUY"]))
        columns = _common(day.symbol, first, count) | {
            "trade_id": pa.array(np.arange(count, dtype=np.int64)),
            "event_time": times,
            "transaction_time": times,
            "receive_time": _times(day.receive_us),
            "price": decimals(day.price, 18),
            "quantity": decimals(day.quantity, 28),
            "side": side.cast(pa.string()),
        }
        yield table_of("trade", columns, count)
        first += count


def quotes(days: Iterator[SymbolDay]) -> Iterator[pa.Table]:
    """The rows of market.quotes, a symbol at a time; without event_time, as Binance sends them."""
    first = 0
    for day in days:
        count = len(day.quote_us)
        size = decimals(_TICK * (1 + day.bid // _TICK % 50), 28)
        columns = _common(day.symbol, first, count) | {
            "quote_id": pa.array(np.arange(count, dtype=np.int64)),
            "receive_time": _times(day.quote_us),
            "bid_price": decimals(day.bid, 18),
            "bid_quantity": size,
            "ask_price": decimals(day.ask, 18),
            "ask_quantity": size,
        }
        yield table_of("quote", columns, count)
        first += count


def in_chunks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, a million at a time."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(part.num_rows for part in held) >= _CHUNK:
            whole = pa.concat_tables(held)
            yield whole.slice(0, _CHUNK)
            held = [whole.slice(_CHUNK)]
    if rest := [part for part in held if part.num_rows]:
        yield pa.concat_tables(rest)


def _common(symbol: str, first: int, count: int) -> dict[str, pa.Array]:
    constant = {
        "symbol": symbol,
        "exchange": "binance",
        "asset_class": "crypto",
        "currency": "USDT",
        "source": "stream",
        "_kafka_topic": "bench-id",
    }
    return {name: pa.repeat(value, count) for name, value in constant.items()} | {
        "message_id": pa.array(np.arange(first, first + count)).cast(pa.string()),
        "_kafka_partition": pa.array(np.zeros(count, np.int32)),
        "_kafka_offset": pa.array(np.arange(first, first + count)),
    }


def _times(micros: np.ndarray) -> pa.Array:
    return pa.array(micros).cast(pa.timestamp("us", tz="UTC"))
