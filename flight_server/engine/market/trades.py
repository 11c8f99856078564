"""Functions of trades: averages, counts, profiles, imbalance, volatility, drawdown. Pure.

Trades are in the order of (event_time, trade_id).
"""

from __future__ import annotations

from dataclasses import replace

from flight_server.engine.market.arguments import Call, Integer, Number, Taken
from flight_server.engine.market.functions import MarketFunction, of_market, trades_of
from flight_server.engine.market.held import held
from flight_server.engine.market.ohlcv import CALENDAR, EVERY, KEYS, VWAP, grid_of, parts_of

#: Of functions that give one row for all time when it is left out.
EVERY_OR_ALL = replace(EVERY, default=None, help="the length of an interval; NULL: one row for the whole range")
_EACH = "exchange VARCHAR, symbol VARCHAR, bar_start TIMESTAMP WITH TIME ZONE, "
_RANGE = "'BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z'"
_ORDER = "PARTITION BY exchange, symbol ORDER BY event_time, trade_id"


def _vwap(call: Call) -> str:
    parts = parts_of(call, grid_of(call))
    return f"SELECT {KEYS}, {VWAP} AS vwap, volume, notional, trade_count FROM ({parts}) ORDER BY {KEYS}"


def _trade_count(call: Call) -> str:
    return f"SELECT {KEYS}, trade_count FROM ({parts_of(call, grid_of(call))}) ORDER BY {KEYS}"


def _twap(call: Call) -> str:
    grid = grid_of(call)
    trades = trades_of(call, "exchange, symbol, event_time AS time, trade_id AS id, k2_units(price) AS value", grid)
    return (
        f"SELECT {KEYS}, k2_quotient(sum(value * us), sum(us)) AS twap, CAST(sum(us) AS BIGINT) AS held_us "
        f"FROM ({held(call, grid, trades)}) GROUP BY {KEYS} ORDER BY {KEYS}"
    )


def _volume_profile(call: Call) -> str:
    tick, bins = call["tick"], call["bins"]
    if tick is not None and bins is not None:
        raise ValueError("takes a tick or a number of bins, and not both; leave one out")
    trades = trades_of(call, "exchange, symbol, k2_units(price) AS price, quantity, side", grid_of(call))
    if tick is not None:
        step = int(tick.scaleb(8))
        level = f"(price - (price % {step} + {step}) % {step}) // {step}"
        rows = f"SELECT *, {level} AS level, NULL AS low, NULL AS high FROM ({trades})"
        begins, ends = (f"k2_decimal({one} * {step})" for one in ("level", "(level + 1)"))
    else:
        count = bins or 50
        level = f"CASE WHEN high = low THEN 0 ELSE least({count - 1}, (price - low) * {count} // (high - low)) END"
        bounds = "min(price) OVER each AS low, max(price) OVER each AS high"
        bounded = f"SELECT *, {bounds} FROM ({trades}) WINDOW each AS (PARTITION BY exchange, symbol)"
        rows = f"SELECT *, {level} AS level FROM ({bounded})"
        begins, ends = (
            f"CAST(k2_quotient(low * {count} + {one} * (high - low), {count}) AS DECIMAL(28,8))"
            for one in ("level", "(level + 1)")
        )
    return (
        f"SELECT exchange, symbol, {begins} AS price_from, {ends} AS price_to, "
        "CAST(volume AS DECIMAL(38,8)) AS volume, CAST(buy_volume AS DECIMAL(38,8)) AS buy_volume, "
        "CAST(sell_volume AS DECIMAL(38,8)) AS sell_volume, trade_count FROM (SELECT exchange, symbol, level, low, "
        f"high, sum(quantity) AS volume, {_SIDES}, count(*) AS trade_count FROM ({rows}) GROUP BY ALL) "
        "ORDER BY exchange, symbol, level"
    )


_SIDES = (
    "coalesce(sum(quantity) FILTER (side = 'BUY'), 0) AS buy_volume, "
    "coalesce(sum(quantity) FILTER (side IN ('SELL', 'SELL_SHORT')), 0) AS sell_volume"
)


def _trade_imbalance(call: Call) -> str:
    grid = grid_of(call)
    trades = trades_of(call, f"exchange, symbol, {grid.start_of('event_time')} AS bar_start, quantity, side", grid)
    sums = f"SELECT {KEYS}, {_SIDES}, count(*) AS trade_count FROM ({trades}) GROUP BY {KEYS}"
    ratio = (
        "TRY(k2_quotient((k2_digits(buy_volume) - k2_digits(sell_volume)) * 100000000, "
        "k2_digits(buy_volume) + k2_digits(sell_volume)))"
    )
    volumes = ", ".join(f"CAST({one} AS DECIMAL(38,8)) AS {one}" for one in ("buy_volume", "sell_volume"))
    return (
        f"SELECT {KEYS}, {ratio} AS imbalance, buy_volume, sell_volume, trade_count "
        f"FROM (SELECT * REPLACE ({volumes}) FROM ({sums})) ORDER BY {KEYS}"
    )


def _realized_vol(call: Call) -> str:
    bars = parts_of(call, grid_of(call))
    before = "lag(close) OVER (PARTITION BY exchange, symbol ORDER BY bar_start)"
    # In order, so that the same doubles are added in the same way each time.
    variance = "sum(step * step ORDER BY bar_start)"
    steps = (
        f"SELECT *, CASE WHEN close > 0 AND close_before > 0 THEN ln(CAST(close AS DOUBLE)) - "
        f"ln(CAST(close_before AS DOUBLE)) END AS step FROM (SELECT *, {before} AS close_before FROM ({bars}))"
    )
    return (
        f"SELECT exchange, symbol, sqrt({variance}) AS realized_vol, {variance} AS realized_variance, "
        f"count(step) AS return_count FROM ({steps}) GROUP BY exchange, symbol ORDER BY exchange, symbol"
    )


def _drawdown(call: Call) -> str:
    trades = trades_of(call, "exchange, symbol, event_time, trade_id, price", grid_of(call))
    peaks = f"SELECT *, max(price) OVER ({_ORDER} ROWS UNBOUNDED PRECEDING) AS peak_price FROM ({trades})"
    # The first trade at a new highest price is the first of those that have it before them.
    falls = (
        "SELECT exchange, symbol, peak_price, min(event_time) AS peak_time, "
        f"min({{'price': price, 'time': event_time, 'id': trade_id}}) AS trough FROM ({peaks}) GROUP BY ALL"
    )
    fallen = "(k2_digits(peak_price) - k2_digits(trough.price))"
    # To 16 decimals; of equal ones the first.
    depth = f"{fallen} * 10000000000000000 // k2_digits(peak_price)"
    ranked = (
        f"SELECT *, row_number() OVER (PARTITION BY exchange, symbol ORDER BY {depth} DESC, peak_time, peak_price) "
        f"AS place FROM ({falls}) WHERE peak_price > 0"
    )
    return (
        f"SELECT exchange, symbol, k2_quotient({fallen} * 100000000, k2_digits(peak_price)) AS drawdown, peak_price, "
        f"peak_time, trough.price AS trough_price, trough.time AS trough_time FROM ({ranked}) WHERE place = 1 "
        "ORDER BY exchange, symbol"
    )


VWAP_OF_TRADES = MarketFunction(
    name="vwap",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "vwap DECIMAL(18,8), volume DECIMAL(38,8), notional DECIMAL(38,16), trade_count BIGINT",
    help="The volume-weighted average price: notional by volume, rounded half to even; NULL without volume.",
    example=f"SELECT * FROM vwap({_RANGE}, '5m')",
    select=_vwap,
)
TRADE_COUNT = MarketFunction(
    name="trade_count",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "trade_count BIGINT",
    help="How many trades there were.",
    example=f"SELECT * FROM trade_count({_RANGE})",
    select=_trade_count,
)
TWAP = MarketFunction(
    name="twap",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "twap DECIMAL(18,8), held_us BIGINT",
    help="The time-weighted average price. A price holds from its trade to the next one, the last one to to_time, or "
    "without to_time for no time; before the first trade of the range nothing holds, and closed times count for "
    "nothing. Rounded half to even; NULL where no time passes. held_us are the microseconds that it is made of.",
    example=f"SELECT * FROM twap({_RANGE}, '5m')",
    select=_twap,
)
VOLUME_PROFILE = MarketFunction(
    name="volume_profile",
    takes=of_market(
        Taken("tick", Number(), "the height of a level of prices; levels are its multiples", None),
        Taken("bins", Integer(100_000), "so many levels of one height from the lowest to the highest price (50)", None),
        CALENDAR,
    ),
    returns="exchange VARCHAR, symbol VARCHAR, price_from DECIMAL(28,8), price_to DECIMAL(28,8), "
    "volume DECIMAL(38,8), buy_volume DECIMAL(38,8), sell_volume DECIMAL(38,8), trade_count BIGINT",
    help="Volume by price. A level has the trades from price_from on to below price_to, the highest bin with its end; "
    "the bounds of bins are rounded to 8 decimals, and trades counted by the exact ones. Levels without trades have no "
    "row.",
    example=f"SELECT * FROM volume_profile({_RANGE}, tick := 0.5)",
    select=_volume_profile,
)
TRADE_IMBALANCE = MarketFunction(
    name="trade_imbalance",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "imbalance DECIMAL(18,8), buy_volume DECIMAL(38,8), sell_volume DECIMAL(38,8), trade_count BIGINT",
    help="(bought - sold) / (bought + sold), by the side of who took: 1 is all bought, -1 all sold. Short sales are "
    "sales, trades of unknown side neither; NULL without volume, and from volumes of 10^22 on.",
    example=f"SELECT * FROM trade_imbalance({_RANGE}, '1m')",
    select=_trade_imbalance,
)
REALIZED_VOL = MarketFunction(
    name="realized_vol",
    takes=of_market(replace(EVERY, help="how far apart prices are taken"), CALENDAR),
    returns="exchange VARCHAR, symbol VARCHAR, realized_vol DOUBLE, realized_variance DOUBLE, return_count BIGINT",
    help="The root of the sum of the squared logarithmic returns from close to close of the bars of `every`, not "
    "annualised. Bars without trades give no return; NULL with fewer than two bars.",
    example=f"SELECT * FROM realized_vol({_RANGE}, '1m')",
    select=_realized_vol,
)
DRAWDOWN = MarketFunction(
    name="drawdown",
    takes=of_market(CALENDAR),
    returns="exchange VARCHAR, symbol VARCHAR, drawdown DECIMAL(18,8), peak_price DECIMAL(18,8), "
    "peak_time TIMESTAMP WITH TIME ZONE, trough_price DECIMAL(18,8), trough_time TIMESTAMP WITH TIME ZONE",
    help="The deepest fall of the price from the highest one before it, as a part of that; of equally deep ones, to 16 "
    "decimals, the first. The peak is the first trade at its price.",
    example=f"SELECT * FROM drawdown({_RANGE})",
    select=_drawdown,
)
