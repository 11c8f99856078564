"""window_quotes: for each trade what the quotes around it were. Pure.

Its cost does not depend on how many quotes lie in a window. Time is cut into blocks as long as the window, so that
every window is the end of one block and the beginning of the next. What the quotes from a window's start to its block's
end amount to, and those from a block's start to a window's end, are running aggregates over the blocks. A join of each
trade with each quote of its window grows with their number (docs/performance.md).
"""

from __future__ import annotations

from flight_server.engine.market.arguments import Call, Length, Taken
from flight_server.engine.market.functions import MarketFunction, of_market, trades_of
from flight_server.engine.market.joins import CLOCK, DOUBLE_MID, SPREAD, middle, quotes_near, traded
from flight_server.engine.market.widths import Width

BEFORE = Taken("before", Length(), "how long before a trade its window begins, inclusive", Width(us=1_000_000))
AFTER = Taken("after", Length(), "how long after a trade its window ends, inclusive", Width(us=1_000_000))

_TRADE = "exchange, symbol, trade_id, event_time, side, price, quantity"
#: In front of the earliest time that there is, so that whole division rounds down.
_ORIGIN_US = 10**18
#: Sums below this have digits that 64 bits hold, doubled too.
_SHORT = 40_000_000_000
_SUMS = ("count", "spread_sum", "spread_min", "spread_max", "double_sum", "double_min", "double_max")


def window_quotes(call: Call) -> str:
    """The trades, each once, in no order."""
    before_us, after_us = call["before"].us, call["after"].us
    if not before_us + after_us:
        raise ValueError("has a window of no length; write before, after or both, as in before := '1s'")
    trades = trades_of(call, f"{_TRADE}, {traded(call)} AS traded, row_number() OVER () AS row_id")
    quotes = quotes_near(call, f"quote_id, {SPREAD} AS spread, {DOUBLE_MID} AS double_mid", before_us, after_us)
    begins, ends = (
        _part(f"epoch_us(traded) {change}", before_us + after_us, is_end=is_end)
        for change, is_end in ((f"- {before_us}", False), (f"+ {after_us}", True))
    )
    total = {
        name: f"{form}(b.{name}, e.{name})"
        for form, names in (
            ("least", ("spread_min", "double_min")),
            ("greatest", ("spread_max", "double_max")),
        )
        for name in names
    } | {name: f"coalesce(b.{name}, 0) + coalesce(e.{name}, 0)" for name in ("count", "spread_sum", "double_sum")}
    sums = ", ".join(f"{total[name]} AS {name}" for name in _SUMS)
    rows = (
        f"SELECT {', '.join(f't.{name}' for name in _TRADE.split(', '))}, {sums}, "
        "coalesce(b.first_double, e.first_double) AS first_double, "
        "coalesce(e.last_double, b.last_double) AS last_double "
        f"FROM trades t LEFT JOIN ({begins}) b USING (row_id) LEFT JOIN ({ends}) e USING (row_id)"
    )
    divided = f"SELECT *, {_divided('spread_sum', 'count')}, {_divided('double_sum', '2 * count')} FROM ({rows})"
    return (
        f"WITH trades AS MATERIALIZED ({trades}), quotes AS MATERIALIZED ({_whole(quotes)}) "
        f"SELECT {_TRADE}, CAST(count AS BIGINT) AS quote_count, CAST(spread_min AS DECIMAL(19,8)) AS spread_min, "
        f"{_mean('spread_sum', 'count')} AS spread_avg, CAST(spread_max AS DECIMAL(19,8)) AS spread_max, "
        f"{middle('first_double')} AS mid_first, {middle('double_min')} AS mid_min, "
        f"{_mean('double_sum', '2 * count')} AS mid_avg, "
        f"{middle('double_max')} AS mid_max, {middle('last_double')} AS mid_last FROM ({divided})"
    )


def _divided(total: str, count: str) -> str:
    """A sum's digits by a count: the whole part and the rest, NULLs where 64 bits do not hold them."""
    digits = f"CASE WHEN abs({total}) < {_SHORT} THEN CAST(k2_digits({total}) AS BIGINT) END"
    return f"{digits} // ({count}) AS {total}_whole, {digits} % ({count}) AS {total}_rest"


def _mean(total: str, count: str) -> str:
    """The quotient rounded half to even, as k2_quotient gives it, but in 64 bits where these hold it, which costs less.
    NULL where it is too large."""
    whole, rest = f"{total}_whole", f"{total}_rest"
    up = f"2 * abs({rest}) > ({count}) OR (2 * abs({rest}) = ({count}) AND {whole} % 2 != 0)"
    steps = f"CAST({whole} + CASE WHEN {up} THEN sign({total}) ELSE 0 END AS DECIMAL(18,0))"
    short = f"CAST({steps} * CAST(0.00000001 AS DECIMAL(9,8)) AS DECIMAL(18,8))"
    long = f"k2_quotient(k2_digits({total}), CAST({count} AS HUGEINT))"
    return f"TRY(CASE WHEN count = 0 THEN NULL WHEN {whole} IS NOT NULL THEN {short} ELSE {long} END)"


def _whole(quotes: str) -> str:
    """The quotes that have a mid."""
    return f"SELECT *, epoch_us(quote_time) AS us FROM ({quotes}) WHERE double_mid IS NOT NULL"


def _part(bound: str, length_us: int, *, is_end: bool) -> str:
    """By the row_id of each trade: what its window has of the block in which it begins, or in which it ends."""
    direction = "" if is_end else " DESC"
    first, last = ("first_value", "last_value") if is_end else ("last_value", "first_value")
    aggregates = (
        "count(double_mid) OVER block AS count, sum(spread) OVER block AS spread_sum, "
        "min(spread) OVER block AS spread_min, max(spread) OVER block AS spread_max, "
        "sum(double_mid) OVER block AS double_sum, min(double_mid) OVER block AS double_min, "
        f"max(double_mid) OVER block AS double_max, {first}(double_mid IGNORE NULLS) OVER block AS first_double, "
        f"{last}(double_mid IGNORE NULLS) OVER block AS last_double"
    )
    rows = (
        "SELECT exchange, symbol, us, quote_id, NULL AS row_id, spread, double_mid FROM quotes UNION ALL "
        f"SELECT exchange, symbol, {bound}, 0, row_id, NULL, NULL FROM trades WHERE traded IS NOT NULL"
    )
    # A bound comes behind the quotes of its own microsecond from either side: both ends are inclusive.
    return (
        f"SELECT * FROM (SELECT row_id, {aggregates} FROM ({rows}) WINDOW block AS (PARTITION BY exchange, symbol, "
        f"(us + {_ORIGIN_US}) // {length_us} ORDER BY us{direction}, row_id IS NOT NULL, quote_id{direction} "
        "ROWS UNBOUNDED PRECEDING)) WHERE row_id IS NOT NULL"
    )


WINDOW_QUOTES = MarketFunction(
    name="window_quotes",
    takes=of_market(BEFORE, AFTER, CLOCK),
    returns="exchange VARCHAR, symbol VARCHAR, trade_id BIGINT, event_time TIMESTAMP WITH TIME ZONE, side VARCHAR, "
    "price DECIMAL(18,8), quantity DECIMAL(28,8), quote_count BIGINT, spread_min DECIMAL(19,8), "
    "spread_avg DECIMAL(18,8), spread_max DECIMAL(19,8), mid_first DECIMAL(19,9), mid_min DECIMAL(19,9), "
    "mid_avg DECIMAL(18,8), mid_max DECIMAL(19,9), mid_last DECIMAL(19,9)",
    help="For each trade the quotes from before it to after it that have a bid and an ask: how many, and their spreads "
    "and mids; first and last in the order of (time, quote_id). All but the count is NULL where "
    "there are none, and an average of 10^10 or more is.",
    example="SELECT * FROM window_quotes('BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z', '5s', '5s')",
    select=window_quotes,
)
