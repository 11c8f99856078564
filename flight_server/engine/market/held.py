"""Values that hold from one event to the next, cut at the ends of intervals. Pure."""

from __future__ import annotations

from flight_server.engine.market.arguments import Call, instant_sql
from flight_server.engine.market.functions import check_range
from flight_server.engine.market.grids import Grid
from flight_server.engine.market.ohlcv import KEYS, check_count


def held(call: Call, grid: Grid, events: str) -> str:
    """The SELECT of the pieces of time in which an event's value held: KEYS, `us` long, `time`, `id` and `value`.

    `events` is a SELECT of exchange, symbol, time, id and value; of equal times the higher id holds. The last one holds
    until to_time, or if there is none for 0 microseconds. Closed times are left out. Raises ValueError when there are
    too many intervals.
    """
    check_count(call, grid)
    _, high = check_range(call, grid.calendar.zone)
    after = "lead(time) OVER (PARTITION BY exchange, symbol ORDER BY time, id)"
    until = "NULL" if high is None else instant_sql(high)
    spans = f"SELECT *, time AS begins, {after} AS after, coalesce({after}, {until}, time) AS ends FROM ({events})"
    pieces = grid.pieces("begins", "last_us")
    cut = (
        f"SELECT exchange, symbol, time, id, value, after, begins, ends, unnest({pieces}) AS piece FROM "
        f"(SELECT *, greatest(begins, ends - to_microseconds(1)) AS last_us FROM ({spans}) "
        "WHERE begins < ends OR after IS NULL)"
    )
    piece_ends = "least(ends, piece.ends)" if grid.width is not None or grid.calendar.has_sessions else "ends"
    us = f"epoch_us({piece_ends}) - epoch_us(greatest(begins, piece.begins))"
    keys = KEYS.replace("bar_start", "piece.bar_start AS bar_start")
    return (
        f"SELECT * FROM (SELECT {keys}, time, id, value, CAST({us} AS HUGEINT) AS us, after FROM ({cut})) "
        "WHERE us > 0 OR (us = 0 AND after IS NULL)"
    )
