"""Bars by plain Python: one trade at a time, decimals of any length, fractions for the one division."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pyarrow as pa

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def oracle(trades: Iterable[Mapping[str, Any]], width_us: int) -> list[dict[str, Any]]:
    """The bars of the trades, in the order of (exchange, symbol, bar_start)."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for trade in trades:
        time_us = (trade["event_time"] - EPOCH) // timedelta(microseconds=1)
        groups.setdefault((trade["exchange"], trade["symbol"], time_us // width_us), []).append(trade)
    return [_bar(key, found, width_us) for key, found in sorted(groups.items())]


def _bar(key: tuple[str, str, int], trades: list[Mapping[str, Any]], width_us: int) -> dict[str, Any]:
    first = min(trades, key=lambda trade: (trade["event_time"], trade["trade_id"]))
    last = max(trades, key=lambda trade: (trade["event_time"], trade["trade_id"]))
    prices = [trade["price"] for trade in trades]
    with localcontext() as context:
        context.prec = 200
        volume = sum((trade["quantity"] for trade in trades), Decimal(0))
        notional = sum((trade["price"] * trade["quantity"] for trade in trades), Decimal(0))
    fits = abs(notional) < 10**22
    # round() of a fraction is half to even.
    vwap = round(Fraction(notional) / Fraction(volume) * 10**8) if fits and volume else None
    return {
        "exchange": key[0],
        "symbol": key[1],
        "bar_start": EPOCH + timedelta(microseconds=key[2] * width_us),
        "open": first["price"],
        "high": max(prices),
        "low": min(prices),
        "close": last["price"],
        "volume": volume,
        "notional": notional if fits else None,
        "vwap": None if vwap is None else Decimal(vwap).scaleb(-8),
        "trade_count": len(trades),
        "first_trade_id": first["trade_id"],
        "last_trade_id": last["trade_id"],
        "open_time": first["event_time"],
        "close_time": last["event_time"],
    }


def in_order(bars: pa.Table) -> list[dict[str, Any]]:
    """A table of bars as the oracle gives them."""
    rows: list[dict[str, Any]] = bars.to_pylist()
    return sorted(rows, key=lambda row: (row["exchange"], row["symbol"], row["bar_start"]))
