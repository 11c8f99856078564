"""window_quotes: for each trade what the quotes around it were. Pure.

Quotes are numbered in the order of (time, quote_id). The first and the last quote of each window are found by two ASOF
joins; how many there are, and their sums, are differences of what runs along with the numbers. So the cost of all that
does not grow with the quotes in a window.

What the least and the most are does not follow from numbers. Where windows have few quotes on average, each is looked
at. Where they have many, time is cut into blocks as long as the window, so that every window is the end of one block
and the beginning of the next, and the extremes from each quote to either end of its block are computed once. The data
decides, of the call's own rows: the other way is there too, and gets none. It is not there at all where the statement
asks for no extremes (docs/performance.md has what either costs).
"""

from __future__ import annotations

from flight_server.engine.market.arguments import Call, Length, Taken
from flight_server.engine.market.functions import MarketFunction, of_market, trades_of
from flight_server.engine.market.joins import CLOCK, DOUBLE_MID, SPREAD, keyed, middle, pairs_of, quotes_near, traded
from flight_server.engine.market.widths import Width

BEFORE = Taken("before", Length(), "how long before a trade its window begins, inclusive", Width(us=1_000_000))
AFTER = Taken("after", Length(), "how long after a trade its window ends, inclusive", Width(us=1_000_000))

_TRADE = "exchange, symbol, trade_id, event_time, side, price, quantity"
#: So many quotes in a window, on average, are looked at one by one.
_FEW = 32
#: Sums below this have digits that 64 bits hold, doubled too.
_SHORT = 40_000_000_000
#: Sums below this are less than 2^51 steps of 10^-8: as a double, times 10^8 and rounded, they are that whole number
#: exactly, without a multiplication and a division in 128 bits.
_SHORTER = 20_000_000
_ASKED_EXTREMES = ("spread_min", "spread_max", "mid_min", "mid_max")
_OF_PRICES = (*_ASKED_EXTREMES, "spread_avg", "mid_avg", "mid_first", "mid_last")
_EXTREMES = {"spread_min": SPREAD, "spread_max": SPREAD, "double_min": DOUBLE_MID, "double_max": DOUBLE_MID}


def window_quotes(call: Call) -> str:
    """The trades, each once, in no order."""
    before_us, after_us = call["before"].us, call["after"].us
    if not before_us + after_us:
        raise ValueError("has a window of no length; write before, after or both, as in before := '1s'")
    extremes = call.asks_for(*_ASKED_EXTREMES)
    parts = {"pairs": pairs_of(call), "quotes": _numbered(call), "windows": _windows(call, numbered=extremes)}
    rows = "SELECT *, " + ", ".join(f"CAST(NULL AS DECIMAL(20,8)) AS {name}" for name in _EXTREMES) + " FROM windows"
    if extremes:
        parts |= _extremes(before_us + after_us)
        rows = "SELECT * FROM windows LEFT JOIN extremes USING (row_id)"
    named = ", ".join(
        f"{name} AS {'MATERIALIZED ' if extremes or name != 'windows' else ''}({select})"
        for name, select in parts.items()
    )
    divided = f"SELECT *, {_divided('spread_sum', 'count')}, {_divided('double_sum', '2 * count')} FROM ({rows})"
    return (
        f"WITH {named} "
        f"SELECT {_TRADE}, CAST(count AS BIGINT) AS quote_count, CAST(spread_min AS DECIMAL(19,8)) AS spread_min, "
        f"{_mean('spread_sum', 'count')} AS spread_avg, CAST(spread_max AS DECIMAL(19,8)) AS spread_max, "
        f"{middle('first_double')} AS mid_first, {middle('double_min')} AS mid_min, "
        f"{_mean('double_sum', '2 * count')} AS mid_avg, "
        f"{middle('double_max')} AS mid_max, {middle('last_double')} AS mid_last FROM ({divided})"
    )


def _numbered(call: Call) -> str:
    """The quotes that have a mid, in their order, with what has summed up by then."""
    near = quotes_near(call, "quote_id, bid_price, ask_price", call["before"].us, call["after"].us)
    whole = f"SELECT * FROM ({near}) WHERE bid_price IS NOT NULL AND ask_price IS NOT NULL"
    prices, sums = "bid_price, ask_price", ""
    if not call.asks_for(*_OF_PRICES):
        prices = "CAST(NULL AS DECIMAL(18,8)) AS bid_price, CAST(NULL AS DECIMAL(18,8)) AS ask_price"
    if call.asks_for("spread_avg", "mid_avg"):
        sums = "".join(
            f", sum({side}_price) OVER (place ROWS UNBOUNDED PRECEDING) AS {side}s" for side in ("bid", "ask")
        )
    return (
        f"SELECT key, {prices}, row_number() OVER place AS number{sums}, "
        "lag(key) OVER place IS DISTINCT FROM key AS is_first, lead(key) OVER place IS DISTINCT FROM key AS is_last "
        f"FROM ({keyed(whole, 'quote_time')}) WINDOW place AS (ORDER BY key, quote_id)"
    )


def _windows(call: Call, *, numbered: bool) -> str:
    """The trades with the numbers of their first and last quote, and what these two tell. With `numbered` each has a
    row_id."""
    trades = keyed(trades_of(call, f"{_TRADE}, {traded(call)} AS traded"), "traded")
    sums = "CAST(NULL AS DECIMAL(38,8)) AS bids, CAST(NULL AS DECIMAL(38,8)) AS asks"
    if call.asks_for("spread_avg", "mid_avg"):
        sums = ", ".join(f"e.{side}s - b.{side}s + b.{side}_price AS {side}s" for side in ("bid", "ask"))
    # Of quotes at the same microsecond: the first where a window begins, the last where it ends.
    rows = (
        "SELECT r.*, b.number AS first_number, e.number AS last_number, "
        "greatest(e.number - b.number + 1, 0) AS count, b.bid_price AS first_bid, b.ask_price AS first_ask, "
        f"e.bid_price AS last_bid, e.ask_price AS last_ask, {sums} "
        f"FROM (SELECT *, key - {call['before'].us} AS low, key + {call['after'].us} AS high FROM ({trades})) r "
        "ASOF LEFT JOIN (SELECT * FROM quotes WHERE is_first) b ON r.low <= b.key "
        "ASOF LEFT JOIN (SELECT * FROM quotes WHERE is_last) e ON r.high >= e.key"
    )
    row_id = ", row_number() OVER () AS row_id" if numbered else ""
    double = "CASE WHEN count > 0 THEN CAST({0}_bid AS DECIMAL(19,8)) + {0}_ask END AS {0}_double"
    return (
        f"SELECT *, asks - bids AS spread_sum, asks + bids AS double_sum, {double.format('first')}, "
        f"{double.format('last')}{row_id} FROM ({rows})"
    )


def _extremes(length_us: int) -> dict[str, str]:
    """By the row_id of each trade whose window has quotes: the least and the most of them."""
    is_many = "(SELECT is_many FROM size)"
    each = ", ".join(f"{name[-3:]}({value}) AS {name}" for name, value in _EXTREMES.items())
    few = (
        f"SELECT row_id, {each} FROM (SELECT row_id, unnest(range(first_number, last_number + 1)) AS number "
        f"FROM windows WHERE count > 0 AND NOT {is_many}) JOIN quotes USING (number) GROUP BY row_id"
    )
    running = ", ".join(
        f"{name[-3:]}({value}) OVER {frame} AS {frame}_{name}"
        for frame in ("up", "down")
        for name, value in _EXTREMES.items()
    )
    place = f"PARTITION BY key // {length_us} ORDER BY number"
    blocks = (
        f"SELECT number, key // {length_us} AS block, {running} FROM (SELECT * FROM quotes WHERE {is_many}) "
        f"WINDOW up AS ({place} ROWS UNBOUNDED PRECEDING), "
        f"down AS ({place} ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)"
    )
    # The first quote may lie in the window's second block already, or the last one in its first: then that one has all.
    met = ", ".join(
        f"{'least' if name.endswith('min') else 'greatest'}(CASE WHEN b.block = low // {length_us} "
        f"THEN b.down_{name} END, CASE WHEN e.block = high // {length_us} THEN e.up_{name} END) AS {name}"
        for name in _EXTREMES
    )
    many = (
        f"SELECT row_id, {met} FROM windows JOIN blocks b ON b.number = first_number "
        f"JOIN blocks e ON e.number = last_number WHERE count > 0 AND {is_many}"
    )
    return {
        "size": f"SELECT coalesce(sum(count) > {_FEW} * count(*), false) AS is_many FROM windows",
        "blocks": blocks,
        "extremes": f"{few} UNION ALL {many}",
    }


def _divided(total: str, count: str) -> str:
    """A sum's digits by a count: the whole part and the rest, NULLs where 64 bits do not hold them."""
    digits = (
        f"CASE WHEN abs({total}) < {_SHORTER} THEN CAST(CAST({total} AS DOUBLE) * 1e8 AS BIGINT) "
        f"WHEN abs({total}) < {_SHORT} THEN CAST(k2_units({total}) AS BIGINT) END"
    )
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
