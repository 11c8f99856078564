"""Functions of quotes: spread, mid, order flow imbalance. Pure.

Quotes are in the order of (quote_time, quote_id); quote_time is the venue's time, or that of receipt if it gives none.
"""

from __future__ import annotations

from flight_server.engine.market.arguments import Call
from flight_server.engine.market.functions import MarketFunction, of_market, quotes_of
from flight_server.engine.market.held import held
from flight_server.engine.market.ohlcv import CALENDAR, KEYS, grid_of
from flight_server.engine.market.trades import EVERY_OR_ALL

_EACH = "exchange VARCHAR, symbol VARCHAR, bar_start TIMESTAMP WITH TIME ZONE, "
_RANGE = "'BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z'"
_TIMED = "exchange, symbol, quote_id, bid_price, ask_price"
_BOTH = "bid_price IS NOT NULL AND ask_price IS NOT NULL"


def _held(call: Call, value: str) -> str:
    """The pieces of time in which quotes with two sides held, with a value in steps of 10^-8."""
    grid = grid_of(call)
    events = (
        f"SELECT exchange, symbol, quote_time AS time, quote_id AS id, {value} AS value "
        f"FROM ({quotes_of(call, _TIMED, grid)})"
    )
    return f"SELECT * FROM ({held(call, grid, events)}) WHERE value IS NOT NULL"


def _spread(call: Call) -> str:
    rows = _held(call, "k2_units(ask_price) - k2_units(bid_price)")
    return (
        f"SELECT {KEYS}, k2_quotient(sum(value * us), sum(us)) AS average, k2_decimal(min(value)) AS lowest, "
        "k2_decimal(max(value)) AS highest, k2_decimal(arg_max(value, {'time': time, 'id': id})) AS last, "
        "count(*) AS quote_count, count(*) FILTER (value < 0) AS crossed_count, CAST(sum(us) AS BIGINT) AS held_us "
        f"FROM ({rows}) GROUP BY {KEYS} ORDER BY {KEYS}"
    )


def _mid(call: Call) -> str:
    rows = _held(call, "k2_units(bid_price) + k2_units(ask_price)")

    def half(twice: str) -> str:
        return f"CAST(CAST({twice} AS DECIMAL(29,0)) * CAST(0.000000005 AS DECIMAL(9,9)) AS DECIMAL(19,9))"

    place = "{'time': time, 'id': id}"
    shown = {
        "open": f"arg_min(value, {place})",
        "high": "max(value)",
        "low": "min(value)",
        "close": f"arg_max(value, {place})",
    }
    return (
        f"SELECT {KEYS}, {', '.join(f'{half(value)} AS {name}' for name, value in shown.items())}, "
        "k2_quotient(sum(value * us), 2 * sum(us)) AS average, count(*) AS quote_count, "
        f"CAST(sum(us) AS BIGINT) AS held_us FROM ({rows}) GROUP BY {KEYS} ORDER BY {KEYS}"
    )


def _order_flow_imbalance(call: Call) -> str:
    grid = grid_of(call)
    columns = "exchange, symbol, quote_id, bid_price, bid_quantity, ask_price, ask_quantity"
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    before = ", ".join(f"lag({name}) OVER by_time AS {name}_before" for name in names)
    rows = (
        f"SELECT *, {before} FROM (SELECT * FROM ({quotes_of(call, columns, grid)}) WHERE {_BOTH}) "
        "WINDOW by_time AS (PARTITION BY exchange, symbol ORDER BY quote_time, quote_id)"
    )
    flow = (
        "CASE WHEN bid_price >= bid_price_before THEN bid_quantity ELSE 0 END - "
        "CASE WHEN bid_price <= bid_price_before THEN bid_quantity_before ELSE 0 END - "
        "CASE WHEN ask_price <= ask_price_before THEN ask_quantity ELSE 0 END + "
        "CASE WHEN ask_price >= ask_price_before THEN ask_quantity_before ELSE 0 END"
    )
    return (
        f"SELECT {KEYS}, CAST(sum({flow}) AS DECIMAL(38,8)) AS imbalance, count(*) AS change_count FROM (SELECT *, "
        f"{grid.start_of('quote_time')} AS bar_start FROM ({rows}) WHERE bid_price_before IS NOT NULL) "
        f"GROUP BY {KEYS} ORDER BY {KEYS}"
    )


SPREAD = MarketFunction(
    name="spread",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "average DECIMAL(18,8), lowest DECIMAL(28,8), highest DECIMAL(28,8), last DECIMAL(28,8), "
    "quote_count BIGINT, crossed_count BIGINT, held_us BIGINT",
    help="Ask less bid, over the time that quotes held: from one to the next, or to the end as for twap. The average "
    "is weighted by time. Counted are the quotes that held in the interval, also those that came before it; one of "
    "one side ends what was before and has no spread; crossed ones are below 0.",
    example=f"SELECT * FROM spread({_RANGE}, '1m')",
    select=_spread,
    reads=("quotes",),
)
MID = MarketFunction(
    name="mid",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "open DECIMAL(19,9), high DECIMAL(19,9), low DECIMAL(19,9), close DECIMAL(19,9), "
    "average DECIMAL(18,8), quote_count BIGINT, held_us BIGINT",
    help="Half of the sum of bid and ask, with every digit, over the time that quotes held, as for spread: the first, "
    "the highest, the lowest and the last in the interval, and the average by time.",
    example=f"SELECT * FROM mid({_RANGE}, '1s')",
    select=_mid,
    reads=("quotes",),
)
ORDER_FLOW_IMBALANCE = MarketFunction(
    name="order_flow_imbalance",
    takes=of_market(EVERY_OR_ALL, CALENDAR),
    returns=_EACH + "imbalance DECIMAL(38,8), change_count BIGINT",
    help="The sum over the changes of the best quotes, after Cont, Kukanov and Stoikov: what was added at the bid less "
    "what was taken from it, less the same of the ask. A change is from one quote with two sides to the next one of "
    "the range.",
    example=f"SELECT * FROM order_flow_imbalance({_RANGE}, '1m')",
    select=_order_flow_imbalance,
    reads=("quotes",),
)
