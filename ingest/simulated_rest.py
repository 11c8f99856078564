"""Binance's REST interface as the simulator answers it: the time, what the symbols are, and past trades. Pure.

The shapes, codes and weights are those of Binance's rest-api.md (2026).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ingest.limits import RateLimiter
from ingest.venues.binance_rest import TRADES_MAX, UNKNOWN_SYMBOL, WEIGHT_PER_MINUTE_MAX
from ingest.venues.events import InstrumentInfo

_TRADES_DEFAULT: Final = 500
_WEIGHTS: Final[Mapping[str, int]] = {"/api/v3/time": 1, "/api/v3/exchangeInfo": 20, "/api/v3/historicalTrades": 25}


class RestAnswer(NamedTuple):
    """An HTTP answer. `headers` are those beside the content's own."""

    status: int
    body: bytes
    headers: dict[str, str]


class TradeHistory:
    """The last trades of each symbol by id, as their frames. Ids of a symbol come in rising order."""

    def __init__(self, per_symbol_max: int = 50_000) -> None:
        self._per_symbol_max = per_symbol_max
        self._ids: dict[str, list[int]] = {}
        self._frames: dict[str, list[bytes]] = {}

    def add(self, symbol: str, trade_id: int, frame: bytes) -> None:
        """Remember a trade; one whose id does not rise is not remembered twice."""
        ids = self._ids.setdefault(symbol, [])
        if ids and trade_id <= ids[-1]:
            return
        frames = self._frames.setdefault(symbol, [])
        ids.append(trade_id)
        frames.append(frame)
        if len(ids) >= 2 * self._per_symbol_max:
            del ids[: -self._per_symbol_max], frames[: -self._per_symbol_max]

    def since(self, symbol: str, from_id: int | None, count: int) -> list[bytes]:
        """The first `count` frames with ids of `from_id` and up; without it the last ones."""
        ids, frames = self._ids.get(symbol, []), self._frames.get(symbol, [])
        first = max(0, len(ids) - count) if from_id is None else bisect_left(ids, from_id)
        return frames[first : first + count]


class SimulatedRest:
    """Answers requests of Binance's REST interface. Weights are counted as Binance does it; beyond them 429."""

    def __init__(self, instruments: Iterable[InstrumentInfo], history: TradeHistory) -> None:
        self._instruments = {one.symbol: one for one in instruments}
        self._history = history
        self._limiter = RateLimiter(WEIGHT_PER_MINUTE_MAX, 60.0)
        self.requests = 0

    def limit(self, until_s: float) -> None:
        """Answer 429 until then (monotonic)."""
        self._limiter.hold(until_s)

    def answer(self, target: str, *, now_us: int, now_s: float) -> RestAnswer:
        """The answer to `GET target`, path and query."""
        self.requests += 1
        parts = urlsplit(target)
        weight = _WEIGHTS.get(parts.path)
        if weight is None:
            return _refusal(404, -1, f"the simulator serves {', '.join(_WEIGHTS)}, not {parts.path}")
        wait_s = self._limiter.take(now_s, weight)
        if wait_s > 0:
            refusal = _refusal(429, -1003, "Too much request weight used; 6000 a minute are allowed.")
            return refusal._replace(headers={"Retry-After": str(int(wait_s) + 1)})
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/api/v3/time":
            answer = _answer({"serverTime": now_us // 1_000})
        elif parts.path == "/api/v3/exchangeInfo":
            answer = self._exchange_info(query, now_us)
        else:
            answer = self._historical_trades(query)
        return answer._replace(headers={"X-MBX-USED-WEIGHT-1M": str(self._limiter.used(now_s))})

    def _exchange_info(self, query: dict[str, str], now_us: int) -> RestAnswer:
        try:
            names = (
                json.loads(query["symbols"]) if "symbols" in query else [query["symbol"]] if "symbol" in query else None
            )
        except ValueError:
            return _refusal(400, -1100, "Illegal characters found in parameter 'symbols'.")
        if names is None:
            names = list(self._instruments)
        if not isinstance(names, list) or any(name not in self._instruments for name in names):
            return _refusal(400, UNKNOWN_SYMBOL, "Invalid symbol.")
        symbols = [_instrument(self._instruments[name]) for name in names]
        return _answer({"timezone": "UTC", "serverTime": now_us // 1_000, "rateLimits": [], "symbols": symbols})

    def _historical_trades(self, query: dict[str, str]) -> RestAnswer:
        symbol = query.get("symbol", "")
        if symbol not in self._instruments:
            return _refusal(400, UNKNOWN_SYMBOL, "Invalid symbol.")
        try:
            from_id = int(query["fromId"]) if "fromId" in query else None
            limit = int(query.get("limit", _TRADES_DEFAULT))
        except ValueError:
            return _refusal(400, -1100, "Illegal characters found in a parameter.")
        if not 1 <= limit <= TRADES_MAX or (from_id is not None and from_id < 0):
            return _refusal(400, -1130, "Data sent for a parameter is not valid.")
        return _answer([_trade(frame) for frame in self._history.since(symbol, from_id, limit)])


def _instrument(info: InstrumentInfo) -> dict[str, Any]:
    filters = [
        {"filterType": kind, field: f"{step:.8f}"}
        for kind, field, step in (("PRICE_FILTER", "tickSize", info.tick_size), ("LOT_SIZE", "stepSize", info.lot_size))
        if step is not None
    ]
    return {
        "symbol": info.symbol,
        "status": info.status,
        "baseAsset": info.base_currency,
        "quoteAsset": info.quote_currency,
        "filters": filters,
    }


def _trade(frame: bytes) -> dict[str, Any]:
    data = json.loads(frame)["data"]
    return {
        "id": data["t"],
        "price": data["p"],
        "qty": data["q"],
        "quoteQty": f"{(Decimal(data['p']) * Decimal(data['q'])):.8f}",
        "time": data["T"],
        "isBuyerMaker": data["m"],
        "isBestMatch": True,
    }


def _answer(content: object) -> RestAnswer:
    return RestAnswer(200, json.dumps(content, separators=(",", ":")).encode(), {})


def _refusal(status: int, code: int, message: str) -> RestAnswer:
    return RestAnswer(status, json.dumps({"code": code, "msg": message}).encode(), {})
