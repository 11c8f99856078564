"""Bars by what was traded, not by time: so many trades, units or so much money each. Pure."""

from __future__ import annotations

from decimal import Decimal

from flight_server.engine.market.arguments import Call, Integer, Number, Taken
from flight_server.engine.market.functions import MarketFunction, of_market, trades_of
from flight_server.engine.market.ohlcv import CALENDAR, VWAP, grid_of
from flight_server.storage.bars_view import NOTIONAL_MAX

_RANGE = "'BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z'"


def _bars(call: Call, size: int, amount: str) -> str:
    """Bars of trades in the order of (event_time, trade_id), each of `size` of the integer `amount`."""
    trades = trades_of(
        call,
        "exchange, symbol, event_time, trade_id, price, quantity, TRY(price * quantity) AS product, "
        f"CASE WHEN TRY(price * quantity) IS NULL THEN 0 ELSE {amount} END AS amount",
        grid_of(call),
    )
    order = "PARTITION BY exchange, symbol ORDER BY event_time, trade_id ROWS UNBOUNDED PRECEDING"
    summed = f"SELECT *, sum(amount) OVER ({order}) AS reached FROM ({trades})"
    place = "{'time': event_time, 'id': trade_id}"
    bars = (
        f"SELECT exchange, symbol, (reached - amount) // {size} AS multiple, min(event_time) AS open_time, "
        f"max(event_time) AS close_time, arg_min(price, {place}) AS open, max(price) AS high, min(price) AS low, "
        f"arg_max(price, {place}) AS close, CAST(sum(quantity) AS DECIMAL(38,8)) AS volume, sum(product) AS notional, "
        "count(product) = count(*) AS is_whole, count(*) AS trade_count, max(reached) AS reached "
        f"FROM ({summed}) GROUP BY exchange, symbol, multiple"
    )
    whole = f"CASE WHEN is_whole AND abs(notional) <= {NOTIONAL_MAX} THEN notional END AS notional"
    return (
        "SELECT exchange, symbol, row_number() OVER (PARTITION BY exchange, symbol ORDER BY multiple) AS bar_number, "
        f"open_time, close_time, open, high, low, close, volume, {VWAP} AS vwap, trade_count, "
        f"reached // {size} > multiple AS is_complete FROM (SELECT * REPLACE ({whole}) FROM ({bars})) "
        "ORDER BY exchange, symbol, bar_number"
    )


def _tick_bars(call: Call) -> str:
    return _bars(call, call["size"], "CAST(1 AS HUGEINT)")


def _volume_bars(call: Call) -> str:
    return _bars(call, _digits(call["size"], 8), "k2_units(quantity)")


def _dollar_bars(call: Call) -> str:
    return _bars(call, _digits(call["size"], 16), "TRY(k2_units(price) * k2_units(quantity))")


def _digits(size: Decimal, decimals: int) -> int:
    return int(size.scaleb(decimals))


_RETURNS = (
    "exchange VARCHAR, symbol VARCHAR, bar_number BIGINT, open_time TIMESTAMP WITH TIME ZONE, "
    "close_time TIMESTAMP WITH TIME ZONE, open DECIMAL(18,8), high DECIMAL(18,8), low DECIMAL(18,8), "
    "close DECIMAL(18,8), volume DECIMAL(38,8), vwap DECIMAL(18,8), trade_count BIGINT, is_complete BOOLEAN"
)
_HELP = (
    " counted from the first trade of the range on. A bar ends with the trade that reaches the next multiple of the "
    "size, which is not divided: one that reaches several multiples still ends one bar. The last may be incomplete."
)
TICK_BARS = MarketFunction(
    name="tick_bars",
    takes=of_market(Taken("size", Integer(), "how many trades a bar has"), CALENDAR),
    returns=_RETURNS,
    help="Bars of so many trades," + _HELP,
    example=f"SELECT * FROM tick_bars({_RANGE}, 100)",
    select=_tick_bars,
)
VOLUME_BARS = MarketFunction(
    name="volume_bars",
    takes=of_market(Taken("size", Number(), "how many units are traded in a bar"), CALENDAR),
    returns=_RETURNS,
    help="Bars of so many units traded," + _HELP,
    example=f"SELECT * FROM volume_bars({_RANGE}, 10)",
    select=_volume_bars,
)
DOLLAR_BARS = MarketFunction(
    name="dollar_bars",
    takes=of_market(
        Taken("size", Number(), "for how much money is traded in a bar, in the currency of prices"), CALENDAR
    ),
    returns=_RETURNS,
    help="Bars of so much money," + _HELP + " A trade of 10^22 or more counts for nothing.",
    example=f"SELECT * FROM dollar_bars({_RANGE}, 1000000)",
    select=_dollar_bars,
)
