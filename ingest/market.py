"""A seeded random market that speaks Binance: trades with dense ids, and the best bid and ask after each. Pure.

Each symbol's middle price walks on a tick grid; a trade takes the bid or the ask, which says who the aggressor was.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from common.errors import SettingsError
from ingest.ledger import Ledger
from ingest.normaliser import currencies
from ingest.venues.binance import EXCHANGE
from ingest.venues.events import InstrumentInfo

#: Amounts are counted in units of 1e-8, which is how many decimals Binance writes.
_ONE: Final = 100_000_000


class _Grid(NamedTuple):
    """Where a symbol's walk begins and the steps it goes in."""

    middle: int
    tick: int
    lot: int


#: Round numbers near the market of 2024. Further symbols are made up.
_KNOWN: Final[Mapping[str, _Grid]] = {
    "BTCUSDT": _Grid(61_685 * _ONE, _ONE // 100, _ONE // 100_000),
    "ETHUSDT": _Grid(2_683 * _ONE, _ONE // 100, _ONE // 10_000),
    "SOLUSDT": _Grid(155 * _ONE, _ONE // 100, _ONE // 1_000),
    "BNBUSDT": _Grid(510 * _ONE, _ONE // 10, _ONE // 1_000),
    "XRPUSDT": _Grid(_ONE * 6 // 10, _ONE // 10_000, _ONE),
    "DOGEUSDT": _Grid(_ONE // 10, _ONE // 100_000, _ONE),
    "ETHBTC": _Grid(_ONE * 435 // 10_000, _ONE // 100_000, _ONE // 10_000),
    "BNBEUR": _Grid(467 * _ONE, _ONE // 10, _ONE // 1_000),
}
SYMBOLS_MAX: Final = 512


class MarketFrame(NamedTuple):
    """One frame and the stream that it belongs to."""

    stream: str
    frame: bytes


@dataclass(slots=True)
class _Instrument:
    symbol: str
    trade_stream: str
    quote_stream: str
    middle_ticks: int
    tick: int
    lot: int
    next_trade_id: int
    next_update_id: int


def market_symbols(count: int) -> tuple[str, ...]:
    """The first `count` symbols of the random market. Raises SettingsError when that is none or too many."""
    if not 1 <= count <= SYMBOLS_MAX:
        raise SettingsError(f"the random market can have 1 to {SYMBOLS_MAX} symbols, not {count}")
    made_up = (f"K{number:03d}USDT" for number in range(count - len(_KNOWN)))
    return (*list(_KNOWN)[:count], *made_up)


class Market:
    """The same seed, symbols and times give the same frames.

    Ids go on behind the last ones of `after`: a market that is started again on a warehouse it filled before must not
    repeat the ids of other trades.
    """

    def __init__(self, symbols: Iterable[str], *, seed: int, after: Ledger | None = None) -> None:
        self._random = random.Random(seed)
        #: Symbol and id of the last step's trade.
        self.last_trade = ("", 0)
        self._instruments = []
        for symbol in dict.fromkeys(symbol.upper() for symbol in symbols):
            grid = _KNOWN.get(symbol) or _Grid(self._random.randrange(1, 500) * _ONE, _ONE // 100, _ONE // 100)
            last_trade_id = after.last_trade_id(EXCHANGE, symbol) if after is not None else None
            last_quote_id = after.last_quote_id(EXCHANGE, symbol) if after is not None else None
            self._instruments.append(
                _Instrument(
                    symbol=symbol,
                    trade_stream=f"{symbol.lower()}@trade",
                    quote_stream=f"{symbol.lower()}@bookTicker",
                    middle_ticks=grid.middle // grid.tick,
                    tick=grid.tick,
                    lot=grid.lot,
                    next_trade_id=(last_trade_id or 0) + 1,
                    next_update_id=(last_quote_id or 0) + 1,
                )
            )
        if not self._instruments:
            raise SettingsError("the random market needs at least one symbol")

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(one.symbol for one in self._instruments)

    def instruments(self) -> list[InstrumentInfo]:
        """What the market's symbols are, by its own grid."""
        return [_info(one) for one in self._instruments]

    def next_symbol(self) -> int:
        """The number of the symbol whose trade comes next. A market of another kind draws otherwise."""
        draw = self._random.random
        return int(draw() * draw() * len(self._instruments))  # the first symbols trade most

    def step(self, now_us: int) -> tuple[MarketFrame, MarketFrame]:
        """One trade of one symbol, and the book behind it, both as of now."""
        draw = self._random.random
        one = self._instruments[self.next_symbol()]
        move = draw()
        if move < 0.2:
            one.middle_ticks = max(2, one.middle_ticks - 1)
        elif move > 0.8:
            one.middle_ticks += 1
        bid = (one.middle_ticks - 1) * one.tick
        ask = (one.middle_ticks + (draw() < 0.1)) * one.tick
        seller_takes = draw() < 0.5
        price = bid if seller_takes else ask
        quantity = one.lot * (1 + int(1_000 * draw() ** 4))
        now_ms, buyer_is_maker = now_us // 1_000, "true" if seller_takes else "false"
        trade = (
            f'{{"stream":"{one.trade_stream}","data":{{"e":"trade","E":{now_ms},"s":"{one.symbol}","t":{one.next_trade_id},'
            f'"p":"{_text(price)}","q":"{_text(quantity)}","T":{now_ms},"m":{buyer_is_maker},"M":true}}}}'
        )
        bid_quantity, ask_quantity = one.lot * (1 + int(5_000 * draw())), one.lot * (1 + int(5_000 * draw()))
        book = (
            f'{{"stream":"{one.quote_stream}","data":{{"u":{one.next_update_id},"s":"{one.symbol}","b":"{_text(bid)}",'
            f'"B":"{_text(bid_quantity)}","a":"{_text(ask)}","A":"{_text(ask_quantity)}"}}}}'
        )
        self.last_trade = (one.symbol, one.next_trade_id)
        one.next_trade_id += 1
        one.next_update_id += 1 + int(draw() * 20)
        return MarketFrame(one.trade_stream, trade.encode()), MarketFrame(one.quote_stream, book.encode())


def _info(one: _Instrument) -> InstrumentInfo:
    base, quote = currencies(one.symbol)
    tick, lot = Decimal(_text(one.tick)), Decimal(_text(one.lot))
    return InstrumentInfo(one.symbol, base or one.symbol, quote, tick, lot, "TRADING")


def _text(units: int) -> str:
    """An amount in units of 1e-8 as Binance writes it."""
    return f"{units // _ONE}.{units % _ONE:08d}"
