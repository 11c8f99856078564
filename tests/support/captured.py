"""Trades and quotes off a recorded Binance feed, read with nothing of K2's but the form of its records."""

from __future__ import annotations

import gzip
import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support.market import at
from tests.support.records import quote, trade

_QUOTE = {"bid_price": "b", "bid_quantity": "B", "ask_price": "a", "ask_quantity": "A"}


def recorded(
    path: Path, *, lines: int | None = None, quotes_max: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The trades and the quotes of so many lines, or of those to this quote; each id once, the last one of it."""
    trades, quotes = {}, {}
    with gzip.open(path, "rt") as content:
        for line in itertools.islice(content, lines):
            received_ns, _, text = line.partition(" ")
            message, received = json.loads(text), at(int(received_ns) // 1_000)
            data, stream = message.get("data", {}), str(message.get("stream", ""))
            if stream.endswith("@trade"):
                trades[data["t"]] = trade(
                    data["t"],
                    symbol=data["s"],
                    event_time=at(data["E"] * 1_000),
                    receive_time=received,
                    price=Decimal(data["p"]),
                    quantity=Decimal(data["q"]),
                    side="SELL" if data["m"] else "BUY",
                )
            elif stream.endswith("@bookTicker"):
                prices = {name: Decimal(data[key]) for name, key in _QUOTE.items()}
                quotes[data["u"]] = quote(data["u"], symbol=data["s"], receive_time=received, **prices)
                if len(quotes) == quotes_max:
                    break
    return list(trades.values()), list(quotes.values())
