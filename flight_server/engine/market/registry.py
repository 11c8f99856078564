"""The market functions that there are, and `k2_functions()`, which lists them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from flight_server.engine.market.arguments import Call
from flight_server.engine.market.functions import MarketFunction
from flight_server.engine.market.joins import ASOF_QUOTES, MARKOUTS
from flight_server.engine.market.latest import LATEST_ON, TOP_TRADES
from flight_server.engine.market.ohlcv import OHLCV
from flight_server.engine.market.window_quotes import WINDOW_QUOTES
from flight_server.storage.macros import MACROS
from flight_server.storage.read_view import literal

LISTING = "k2_functions"


def listing(call: Call) -> str:
    """The SELECT of all functions, in the order of their names."""
    rows = [
        (kind, one.name, one.signature, one.returns, one.help, one.example)
        for kind, ones in (("table", FUNCTIONS.values()), ("aggregate", MACROS))
        for one in ones
        if one.help
    ]
    values = ", ".join(f"({', '.join(map(literal, row))})" for row in sorted(rows, key=lambda row: row[1]))
    return f"SELECT name, kind, arguments, returns, help, example FROM (VALUES {values}) AS {_SHAPE}"


_SHAPE = "rows (kind, name, arguments, returns, help, example)"
_LISTING = MarketFunction(
    name=LISTING,
    takes=(),
    returns="name VARCHAR, kind VARCHAR, arguments VARCHAR, returns VARCHAR, help VARCHAR, example VARCHAR",
    help="What K2 adds to DuckDB's functions: this list. Of kind table are functions of FROM.",
    example=f"SELECT name, arguments FROM {LISTING}()",
    select=listing,
    reads=(),
)
#: By name, lower case.
FUNCTIONS: Mapping[str, MarketFunction] = {
    one.name: one for one in (_LISTING, OHLCV, ASOF_QUOTES, WINDOW_QUOTES, MARKOUTS, LATEST_ON, TOP_TRADES)
}
