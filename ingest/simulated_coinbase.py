"""Coinbase's protocol for the simulator, over the same random market: what a market's frames are there. Pure.

The shapes are those of Coinbase's Exchange WebSocket channels and REST reference (2026).
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from ingest.market import MarketFrame
from ingest.simulated_rest import RestAnswer
from ingest.venues.events import InstrumentInfo


def answer(request: str | bytes, streams: dict[str, None]) -> str:
    """The response to one message; subscribe and unsubscribe change `streams`, as `channel:product`."""
    try:
        message = json.loads(request)
    except (ValueError, RecursionError):
        return _error("Malformed JSON", "")
    if not isinstance(message, dict) or message.get("type") not in ("subscribe", "unsubscribe"):
        return _error("Type has to be either subscribe or unsubscribe", "")
    channels = message.get("channels")
    if not isinstance(channels, list) or not channels:
        return _error("Failed to subscribe", "no channels provided")
    for channel in channels:
        if not isinstance(channel, dict) or channel.get("name") not in ("matches", "ticker", "heartbeat"):
            return _error("Failed to subscribe", "unknown channel")
        for product in channel.get("product_ids", ()):
            name = f"{channel['name']}:{product}"
            if message["type"] == "subscribe":
                streams[name] = None
            else:
                streams.pop(name, None)
    now: dict[str, list[str]] = {}
    for name in streams:
        now.setdefault(name.partition(":")[0], []).append(name.partition(":")[2])
    return _json({"type": "subscriptions", "channels": [{"name": n, "product_ids": p} for n, p in now.items()]})


def frames_of(trade: MarketFrame, book: MarketFrame, now_us: int) -> tuple[MarketFrame, MarketFrame]:
    """A trade of the market and the book behind it as `match` and `ticker`."""
    of_trade, of_book = json.loads(trade.frame)["data"], json.loads(book.frame)["data"]
    product, time = of_trade["s"], iso_time(now_us)
    match = {
        "type": "match",
        "trade_id": of_trade["t"],
        "sequence": of_book["u"],
        "maker_order_id": "",
        "taker_order_id": "",
        "time": time,
        "product_id": product,
        "size": of_trade["q"],
        "price": of_trade["p"],
        "side": "buy" if of_trade["m"] else "sell",
    }
    ticker = {
        "type": "ticker",
        "sequence": of_book["u"],
        "product_id": product,
        "price": of_trade["p"],
        "best_bid": of_book["b"],
        "best_bid_size": of_book["B"],
        "best_ask": of_book["a"],
        "best_ask_size": of_book["A"],
        "time": time,
        "trade_id": of_trade["t"],
        "last_size": of_trade["q"],
    }
    return MarketFrame(f"matches:{product}", _json(match).encode()), MarketFrame(
        f"ticker:{product}", _json(ticker).encode()
    )


def rest_answer(target: str, instruments: list[InstrumentInfo], now_us: int) -> RestAnswer:
    """What Coinbase's REST interface says to `GET target`."""
    path = urlsplit(target).path
    if path == "/time":
        return RestAnswer(200, _json({"iso": iso_time(now_us), "epoch": now_us / 1e6}).encode(), {})
    known = {info.symbol: info for info in instruments}
    info = known.get(path.removeprefix("/products/"))
    if info is None:
        return RestAnswer(404, _json({"message": "NotFound"}).encode(), {})
    base, _, quote = info.symbol.partition("-")
    product = {
        "id": info.symbol,
        "base_currency": base,
        "quote_currency": quote,
        "quote_increment": f"{info.tick_size:.8f}",
        "base_increment": f"{info.lot_size:.8f}",
        "status": "online",
    }
    return RestAnswer(200, _json(product).encode(), {})


def iso_time(us: int) -> str:
    """As Coinbase writes an instant."""
    time = datetime.fromtimestamp(us // 1_000_000, timezone.utc)  # noqa: UP017
    return f"{time:%Y-%m-%dT%H:%M:%S}.{us % 1_000_000:06d}Z"


def _error(message: str, reason: str) -> str:
    return _json({"type": "error", "message": message, "reason": reason})


def _json(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))
