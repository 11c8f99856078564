"""Venue events to records of the Avro schemas (common/schemas, version 2). Pure.

A record is a dict ready for common.codec.Encoder: decimals are Decimal, instants are integers of microseconds UTC.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from common.datasets import AGG_TRADES, BLOCK_TRADES, BOOK_SNAPSHOTS, DEPTH, QUOTES, TRADES, Dataset
from ingest.venues.events import (
    AggTradeEvent,
    BlockTradeEvent,
    BookSnapshotEvent,
    BookTickerEvent,
    DepthEvent,
    FurtherEvent,
    InstrumentInfo,
    TradeEvent,
)

Record = dict[str, Any]

#: Where the records of each kind of event go.
DATASET_OF: Final[Mapping[type, Dataset]] = {
    TradeEvent: TRADES,
    BookTickerEvent: QUOTES,
    AggTradeEvent: AGG_TRADES,
    BlockTradeEvent: BLOCK_TRADES,
    DepthEvent: DEPTH,
    BookSnapshotEvent: BOOK_SNAPSHOTS,
}

#: Currencies that Binance Spot quotes prices in (exchangeInfo, 2026). Where one is the tail of another (USD, BUSD,
#: FDUSD) the longest counts.
QUOTE_CURRENCIES: Final = (
    *(
        "USDT",
        "USDC",
        "FDUSD",
        "TUSD",
        "BUSD",
        "USDP",
        "USDS",
        "USD1",
        "USDE",
        "RLUSD",
        "BFUSD",
        "PAX",
        "DAI",
        "UST",
        "USD",
    ),
    *("BTC", "ETH", "BNB", "XRP", "TRX", "DOGE", "DOT", "SOL", "IDRT", "BIDR", "BKRW", "BVND", "EURI", "AEUR"),
    *(
        "EUR",
        "TRY",
        "BRL",
        "GBP",
        "AUD",
        "JPY",
        "ARS",
        "PLN",
        "RON",
        "ZAR",
        "UAH",
        "RUB",
        "NGN",
        "MXN",
        "COP",
        "CZK",
        "IDR",
        "VAI",
    ),
)
#: ISO 4217's code for "no currency": what a symbol's currency is when no known one is its tail.
UNKNOWN_CURRENCY: Final = "XXX"
_LONGEST_FIRST: Final = sorted(QUOTE_CURRENCIES, key=len, reverse=True)


def currencies(symbol: str) -> tuple[str | None, str]:
    """(base, quote) of a symbol such as BTCUSDT or BTC-USD: the quote is the longest known currency that it ends with.

    When none fits, or nothing would be left for the base, the base is None and the quote UNKNOWN_CURRENCY: an honest
    blank rather than a guess.
    """
    for currency in _LONGEST_FIRST:
        if symbol.endswith(currency) and len(symbol) > len(currency):
            return symbol.removesuffix(currency).rstrip("-"), currency
    return None, UNKNOWN_CURRENCY


class Normaliser:
    """Events of one venue to records. Deterministic: the same event gives the same record, message_id included."""

    def __init__(self, *, exchange: str, asset_class: str) -> None:
        self._exchange = exchange
        self._asset_class = asset_class
        self._currency: dict[str, str] = {}
        self._infos: dict[str, InstrumentInfo] = {}
        #: What stands in `vendor_data` of every trade and quote.
        self.vendor_data: dict[str, str] | None = None
        #: Whether optional fields are left out of all but trades, block trades and instruments.
        self.thins = False

    def learn(self, info: InstrumentInfo) -> None:
        """What the venue says of a symbol counts more than what its name tells."""
        self._infos[info.symbol] = info
        self._currency[info.symbol] = info.quote_currency

    def was_told(self, symbol: str) -> bool:
        """Has the venue said what the symbol is?"""
        return symbol in self._infos

    def trade(self, event: TradeEvent) -> Record:
        """A record of trade.avsc. The side is the aggressor's: when the buyer was the maker, the seller took: SELL."""
        symbol, trade_id, price, quantity, event_time_us, transaction_time_us, buyer_is_maker, receive_time_us = event
        return {
            "message_id": f"{self._exchange}:{symbol}:{trade_id}",
            "exchange": self._exchange,
            "symbol": symbol,
            "trade_id": trade_id,
            "asset_class": self._asset_class,
            "event_time": event_time_us,
            "transaction_time": transaction_time_us,
            "receive_time": receive_time_us,
            "price": price,
            "quantity": quantity,
            "currency": self._currency.get(symbol) or self._guess(symbol),
            "side": "SELL" if buyer_is_maker else "BUY",
            "trade_conditions": [],
            "source": "stream",
            "source_sequence": None,
            "vendor_data": self.vendor_data,
        }

    def quote(self, event: BookTickerEvent) -> Record:
        """A record of quote.avsc. Its quote_id is the update id; event_time is None because Binance gives none."""
        symbol, update_id, bid_price, bid_quantity, ask_price, ask_quantity, receive_time_us = event
        return {
            "message_id": f"{self._exchange}:{symbol}:{update_id}",
            "exchange": self._exchange,
            "symbol": symbol,
            "quote_id": update_id,
            "asset_class": self._asset_class,
            "event_time": None,
            "receive_time": receive_time_us,
            "bid_price": bid_price,
            "bid_quantity": bid_quantity,
            "ask_price": ask_price,
            "ask_quantity": ask_quantity,
            "currency": self._currency.get(symbol) or self._guess(symbol),
            "source": "stream",
            "source_sequence": None,
            "vendor_data": None if self.thins else self.vendor_data,
        }

    def further(self, event: FurtherEvent) -> Record:
        """A record of agg_trade.avsc, block_trade.avsc, depth.avsc or book_snapshot.avsc."""
        values = event._asdict()
        symbol = event.symbol
        record: Record = {
            "message_id": f"{self._exchange}:{symbol}:{event[1]}",
            "exchange": self._exchange,
            "asset_class": self._asset_class,
            "currency": self._currency.get(symbol) or self._guess(symbol),
            "source": "stream",
            "vendor_data": None if self.thins and type(event) is not BlockTradeEvent else self.vendor_data,
        }
        for name, value in values.items():
            if name == "buyer_is_maker":
                record["side"] = "SELL" if value else "BUY"
            else:
                record[name.removesuffix("_us")] = value
        return record

    def instrument(self, symbol: str, updated_time_us: int) -> Record:
        """A record of instrument.avsc: what the venue said of the symbol, or as far as its name tells.

        The same content has the same message_id, always.
        """
        base, currency = currencies(symbol)
        info = self._infos.get(symbol) or InstrumentInfo(symbol, base, currency, None, None, None)
        content: Record = {
            "exchange": self._exchange,
            "symbol": symbol,
            "asset_class": self._asset_class,
            "name": None,
            "base_currency": info.base_currency,
            "quote_currency": info.quote_currency,
            "tick_size": info.tick_size,
            "lot_size": info.lot_size,
            "status": info.status,
            "company_id": info.company_id,
            "vendor_data": None,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return {"message_id": f"{self._exchange}:{symbol}:{digest}", **content, "updated_time": updated_time_us}

    def _guess(self, symbol: str) -> str:
        self._currency[symbol] = currency = currencies(symbol)[1]
        return currency
