"""ohlcv: bars of any width, out of the trades, or of K2's own bars where these give the same. Pure."""

from __future__ import annotations

from common.datasets import BARS
from flight_server.engine.market.arguments import Call, Interval, Taken, Word
from flight_server.engine.market.functions import MarketFunction, asked, check_range, of_market, trades_of
from flight_server.engine.market.grids import CALENDARS, Grid, count_of
from flight_server.storage.bars_view import NOTIONAL_MAX

EVERY = Taken("every", Interval(), "how long a bar is: 100ms, 5m, 1h, 1d, 1 month", also=("interval", "width"))
FILL = Taken(
    "fill",
    Word(("none", "null", "previous", "linear")),
    "what stands for an interval without trades: nothing, NULLs, the close before it, or a line between its neighbours",
    "none",
)
CALENDAR = Taken("calendar", Word(tuple(CALENDARS)), "whose sessions count", "24/7")
#: More filled bars of one symbol than this are a mistake: 100 ms for 11 days, or 1 s for 115.
FILLED_MAX = 10_000_000

KEYS = "exchange, symbol, bar_start"
#: Of what `parts_of` gives.
VWAP = "k2_quotient(k2_digits(notional), k2_digits(volume))"
_COLUMNS = "open, high, low, close, volume, vwap, trade_count"


def ohlcv(call: Call) -> str:
    """The bars in the order of exchange, symbol and time."""
    grid = grid_of(call)
    shown = _COLUMNS.replace("vwap", f"{VWAP} AS vwap")
    bars = f"SELECT {KEYS}, {shown} FROM ({parts_of(call, grid)})"
    if call["fill"] != "none":
        bars = _filled(call, grid, bars)
    return f"{bars} ORDER BY {KEYS}"


def grid_of(call: Call) -> Grid:
    """How a call divides time."""
    return Grid(call.values.get("every"), CALENDARS[call["calendar"]])


def check_count(call: Call, grid: Grid) -> None:
    """Raises ValueError when there are more intervals in the call's range than anybody wants to have."""
    low, high = check_range(call, grid.calendar.zone)
    if low is not None and high is not None and count_of(grid, low, high) > FILLED_MAX:
        count = f"{count_of(grid, low, high):,}"
        raise ValueError(f"would fill {count} intervals of {grid.width}; ask for a shorter time, or longer ones")


def parts_of(call: Call, grid: Grid) -> str:
    """The SELECT of the bars without their vwap, but with `notional`, which is NULL where it does not fit."""
    table = bars_for(call, grid)
    if table is None:
        sums = (
            "arg_min(price, place) AS open, max(price) AS high, min(price) AS low, arg_max(price, place) AS close, "
            "sum(quantity) AS volume, sum(product) AS notional, count(product) = count(*) AS is_whole, "
            "count(*) AS trade_count"
        )
        rows = trades_of(
            call,
            f"exchange, symbol, {grid.start_of('event_time')} AS bar_start, price, quantity, "
            "TRY(price * quantity) AS product, {'time': event_time, 'id': trade_id} AS place",
            grid,
        )
    else:
        sums = (
            "arg_min(open, piece_start) AS open, max(high) AS high, min(low) AS low, "
            "arg_max(close, piece_start) AS close, sum(volume) AS volume, sum(notional) AS notional, "
            "count(notional) = count(*) AS is_whole, sum(trade_count) AS trade_count"
        )
        rows = (
            f"SELECT * EXCLUDE (bar_start), bar_start AS piece_start, {grid.start_of('bar_start')} AS bar_start "
            f"FROM {call.relation(table)} WHERE {asked(call, 'bar_start', grid)}"
        )
    summed = f"SELECT {KEYS}, {sums} FROM ({rows}) GROUP BY {KEYS}"
    return (
        f"SELECT {KEYS}, open, high, low, close, CAST(volume AS DECIMAL(38,8)) AS volume, "
        f"CASE WHEN is_whole AND abs(notional) <= {NOTIONAL_MAX} THEN notional END AS notional, "
        f"CAST(trade_count AS BIGINT) AS trade_count FROM ({summed})"
    )


def bars_for(call: Call, grid: Grid) -> str | None:
    """The coarsest table of bars out of which the call's bars can be made whole: every interval and both bounds begin
    where one of its bars does."""
    bounds = [us for us in check_range(call, grid.calendar.zone) if us is not None]
    for bars in reversed(BARS.values()):
        if bars.name in call.tables and not any(us % bars.width_us for us in (grid.resolution_us, *bounds)):
            return bars.name
    return None


def _filled(call: Call, grid: Grid, bars: str) -> str:
    """The bars, and one for each interval of the range without trades. Raises ValueError when these are too many."""
    low, high = check_range(call, grid.calendar.zone)
    check_count(call, grid)
    starts = f"SELECT exchange, symbol, unnest({grid.starts(low, high)}) AS bar_start FROM ends"
    ends = "SELECT exchange, symbol, min(bar_start) AS first_start, max(bar_start) AS last_start FROM bars GROUP BY ALL"
    rows = (
        f"SELECT {KEYS}, open, high, low, close, coalesce(volume, 0) AS volume, vwap, "
        "coalesce(trade_count, 0) AS trade_count "
        f"FROM ({starts}) LEFT JOIN bars USING ({KEYS})"
    )
    if call["fill"] != "null":
        price = _PREVIOUS if call["fill"] == "previous" else _LINEAR
        shown = ", ".join(f"CASE WHEN trade_count = 0 THEN {price} ELSE {name} END AS {name}" for name in _PRICES)
        order = "PARTITION BY exchange, symbol ORDER BY bar_start"
        numbered = f"SELECT *, row_number() OVER ({order}) AS place FROM ({rows})"
        around = (
            "last_value(close IGNORE NULLS) OVER earlier AS close_before, "
            "last_value(CASE WHEN trade_count > 0 THEN place END IGNORE NULLS) OVER earlier AS place_before, "
            "first_value(open IGNORE NULLS) OVER later AS open_behind, "
            "first_value(CASE WHEN trade_count > 0 THEN place END IGNORE NULLS) OVER later AS place_behind"
        )
        rows = (
            f"SELECT {KEYS}, {shown}, volume, vwap, trade_count FROM (SELECT *, {around} FROM ({numbered}) "
            f"WINDOW earlier AS ({order} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW), "
            f"later AS ({order} ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING))"
        )
    return f"WITH bars AS MATERIALIZED ({bars}), ends AS ({ends}) SELECT {KEYS}, {_COLUMNS} FROM ({rows})"


_PRICES = ("open", "high", "low", "close")
_PREVIOUS = "close_before"
#: In equal steps from the close before to the open behind: one step for each interval in between, and one more.
_LINEAR = (
    "k2_quotient(k2_digits(close_before) * (place_behind - place) + k2_digits(open_behind) * (place - place_before), "
    "place_behind - place_before)"
)

OHLCV = MarketFunction(
    name="ohlcv",
    takes=of_market(EVERY, FILL, CALENDAR),
    returns="exchange VARCHAR, symbol VARCHAR, bar_start TIMESTAMP WITH TIME ZONE, open DECIMAL(18,8), "
    "high DECIMAL(18,8), low DECIMAL(18,8), close DECIMAL(18,8), volume DECIMAL(38,8), vwap DECIMAL(18,8), "
    "trade_count BIGINT",
    help="Bars of trades. Open and close are of the first and the last trade in the order of (event_time, trade_id).",
    example="SELECT * FROM ohlcv('BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z', '1m')",
    select=ohlcv,
)
