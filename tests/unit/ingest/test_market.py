from __future__ import annotations

from collections import defaultdict
from decimal import Decimal

import pytest

from common.errors import SettingsError
from ingest.ledger import Ledger
from ingest.market import Market, market_symbols
from ingest.venues.binance import BinanceSession, BookTickerEvent, TradeEvent

NOW_US = 1_700_000_000_123_456


def events(market: Market, steps: int) -> list[tuple[TradeEvent, BookTickerEvent]]:
    """What the real session makes of the market's frames."""
    session = BinanceSession(market.symbols)
    made = []
    for _ in range(steps):
        (trade_stream, trade_frame), (book_stream, book_frame) = market.step(NOW_US)
        trade, book = session.receive(trade_frame, 1), session.receive(book_frame, 2)
        assert isinstance(trade, TradeEvent)
        assert isinstance(book, BookTickerEvent)
        assert (trade_stream, book_stream) == (f"{trade.symbol.lower()}@trade", f"{trade.symbol.lower()}@bookTicker")
        made.append((trade, book))
    return made


def test_trade_ids_are_dense_and_quote_ids_rise_per_symbol() -> None:
    trades, quotes = defaultdict(list), defaultdict(list)
    for trade, book in events(Market(market_symbols(5), seed=1), 2_000):
        trades[trade.symbol].append(trade.trade_id)
        quotes[book.symbol].append(book.update_id)
    assert set(trades) == set(market_symbols(5))
    for symbol, ids in trades.items():
        assert ids == list(range(1, len(ids) + 1))
        assert all(a < b for a, b in zip(quotes[symbol], quotes[symbol][1:], strict=False))


def test_the_aggressor_takes_a_price_of_the_book_and_the_book_is_not_crossed() -> None:
    for trade, book in events(Market(["BTCUSDT", "DOGEUSDT", "ZZZUSDT"], seed=2), 2_000):
        assert book.bid_price is not None and book.ask_price is not None
        assert Decimal(0) < book.bid_price < book.ask_price
        assert trade.price == (book.bid_price if trade.buyer_is_maker else book.ask_price)
        assert trade.quantity > 0


def test_times_are_the_clocks_in_milliseconds() -> None:
    trade, _book = events(Market(["BTCUSDT"], seed=3), 1)[0]
    assert trade.event_time_us == trade.transaction_time_us == NOW_US // 1000 * 1000


def test_the_same_seed_gives_the_same_market_and_another_one_another() -> None:
    symbols = market_symbols(12)
    assert events(Market(symbols, seed=7), 100) == events(Market(symbols, seed=7), 100)
    assert events(Market(symbols, seed=7), 100) != events(Market(symbols, seed=8), 100)


def test_ids_go_on_behind_what_a_ledger_holds() -> None:
    after = Ledger()
    after.take_trades("binance", "BTCUSDT", [(1, 500)])
    after.take_quote("binance", "BTCUSDT", 9_000)
    before = after.to_text()
    trade, book = events(Market(["BTCUSDT"], seed=1, after=after), 1)[0]
    assert (trade.trade_id, book.update_id) == (501, 9_001)
    assert Market(["ETHUSDT"], seed=1, after=after).step(NOW_US)[0].frame.count(b'"t":1,') == 1
    assert after.to_text() == before


@pytest.mark.parametrize("count", [0, -1, 513])
def test_a_market_of_none_or_too_many_symbols_is_refused(count: int) -> None:
    with pytest.raises(SettingsError):
        market_symbols(count)


def test_every_count_of_symbols_gives_as_many_different_ones() -> None:
    for count in (1, 8, 9, 512):
        assert len(set(market_symbols(count))) == count
        BinanceSession(market_symbols(count))
    with pytest.raises(SettingsError):
        Market([], seed=1)
