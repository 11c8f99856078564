"""The market functions that there are, and `k2_functions()`, which lists them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from flight_server.engine.market.arguments import Call
from flight_server.engine.market.functions import MarketFunction
from flight_server.engine.market.joins import ASOF_QUOTES, MARKOUTS
from flight_server.engine.market.latest import LATEST_ON, TOP_TRADES
from flight_server.engine.market.ohlcv import OHLCV
from flight_server.engine.market.quotes import MID, ORDER_FLOW_IMBALANCE, SPREAD
from flight_server.engine.market.sized_bars import DOLLAR_BARS, TICK_BARS, VOLUME_BARS
from flight_server.engine.market.trades import (
    DRAWDOWN,
    REALIZED_VOL,
    TRADE_COUNT,
    TRADE_IMBALANCE,
    TWAP,
    VOLUME_PROFILE,
    VWAP_OF_TRADES,
)
from flight_server.engine.market.window_quotes import WINDOW_QUOTES
from flight_server.storage.macros import MACROS
from flight_server.storage.read_view import literal

LISTING = "k2_functions"


def listing(call: Call) -> str:
    """The SELECT of all functions, in the order of their names."""
    rows = [
        (kind, one.name, one.signature, one.returns, one.help, one.example)
        for kind, ones in (("table", FUNCTIONS.values()), ("macro", MACROS))
        for one in ones
        if one.help
    ]
    values = ", ".join(f"({', '.join(map(literal, row))})" for row in sorted(rows, key=lambda row: (row[1], row[0])))
    return f"SELECT name, kind, arguments, returns, help, example FROM (VALUES {values}) AS {_SHAPE}"


_SHAPE = "rows (kind, name, arguments, returns, help, example)"
_LISTING = MarketFunction(
    name=LISTING,
    takes=(),
    returns="name VARCHAR, kind VARCHAR, arguments VARCHAR, returns VARCHAR, help VARCHAR, example VARCHAR",
    help="What K2 adds to DuckDB's functions. Those of kind table stand in FROM, macros in a query of one's own.",
    example=f"SELECT name, arguments FROM {LISTING}()",
    select=listing,
    reads=(),
)
#: By name, lower case.
FUNCTIONS: Mapping[str, MarketFunction] = {
    one.name: one
    for one in (
        _LISTING,
        OHLCV,
        ASOF_QUOTES,
        WINDOW_QUOTES,
        MARKOUTS,
        LATEST_ON,
        TOP_TRADES,
        VWAP_OF_TRADES,
        TWAP,
        TRADE_COUNT,
        VOLUME_PROFILE,
        TRADE_IMBALANCE,
        REALIZED_VOL,
        DRAWDOWN,
        SPREAD,
        MID,
        ORDER_FLOW_IMBALANCE,
        TICK_BARS,
        VOLUME_BARS,
        DOLLAR_BARS,
    )
}
