"""asof_quotes and markouts: each trade with the quotes that stood at it, and some time after it. Pure.

A trade and a quote meet on one clock. By `receive`, K2's own, both are where they were received: the venue's clock and
K2's may be seconds apart, and Binance gives quotes no time of its own. A trade that was not received as it happened,
because it was filled in later or came more than APART_US from its event_time, has no quote on that clock. By `event`,
the venue's, both are at event_time, and quotes without one are left out.

The quote that stands at an instant is the last one in the order of (time, quote_id) whose time is at or before it, of
the same exchange and symbol. `ties` says what a quote of the trade's own microsecond is. DuckDB's ASOF join compares
one value, so that asof_quotes compares time and id as one, as a row of two: equal times are then in the order of ids,
for a sixth more than without (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from flight_server.engine.market.arguments import EPOCH, Call, Intervals, Length, Taken, Word
from flight_server.engine.market.functions import MarketFunction, asked, check_range, of_market, trades_of
from flight_server.engine.market.widths import Width

#: How far from its event_time a trade may be received and still be taken for received as it happened.
APART_US = 300_000_000
TOLERANCE = Taken(
    "tolerance", Length(), "the age at which a quote is too old: it is then NULL", Width(us=3_600_000_000)
)
TIES = Taken(
    "ties",
    Word(("quote", "trade")),
    "which of a trade and a quote of the same microsecond was first: the quote, which then stands, or the trade",
    "quote",
)
CLOCK = Taken(
    "clock", Word(("receive", "event")), "by which clock trades and quotes meet: K2's, or the venue's", "receive"
)
HORIZONS = Taken(
    "horizons",
    Intervals(),
    "how long after each trade",
    (Width(us=1_000_000), Width(us=5_000_000), Width(us=60_000_000)),
)

_FIRST_ID, _LAST_ID = "(-9223372036854775807 - 1)", "9223372036854775807"
#: The years 1 and 10000: times beyond have no text.
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_800_000_000
#: Bid and ask together, and the spread: DuckDB adds decimals of 18 digits in 18.
DOUBLE_MID = "CAST(bid_price AS DECIMAL(19,8)) + ask_price"
SPREAD = "CAST(ask_price AS DECIMAL(19,8)) - bid_price"
_DOUBLE_OF_QUOTE = "CAST(q.bid_price AS DECIMAL(19,8)) + q.ask_price"
_QUOTE = ("quote_id", "quote_time", "bid_price", "bid_quantity", "ask_price", "ask_quantity")
_TRADE = "exchange, symbol, trade_id, event_time, side, price, quantity"


def traded(call: Call) -> str:
    """When a trade was, by the call's clock; NULL where it is not known."""
    if call["clock"] == "event":
        return "event_time"
    apart = f"abs(epoch_us(receive_time) - epoch_us(event_time)) <= {APART_US}"
    return f"CASE WHEN source != 'backfill' AND {apart} THEN receive_time END"


def quotes_near(call: Call, columns: str, before_us: int, after_us: int) -> str:
    """The SELECT of the quotes that can stand from `before_us` before the call's first trade to `after_us` behind its
    last one, with their time as `quote_time`."""
    time = f"{call['clock']}_time"
    apart_us = 0 if call["clock"] == "event" else APART_US
    low, high = check_range(call)
    near = {
        "from_time": None if low is None else _instant(low - before_us - apart_us),
        "to_time": None if high is None else _instant(high + after_us + apart_us),
    }
    known = " AND event_time IS NOT NULL" if call["clock"] == "event" else ""
    return (
        f"SELECT exchange, symbol, {time} AS quote_time, {columns} FROM {call.relation('quotes')} "
        f"WHERE {asked(replace(call, values={**call.values, **near}), time)}{known}"
    )


def _instant(us: int) -> datetime | None:
    """None for one that has no text, and bounds nothing that has."""
    return EPOCH + timedelta(microseconds=us) if _MIN_US <= us < _MAX_US else None


def asof_quotes(call: Call) -> str:
    """The trades, each once, in no order: an ORDER BY in here would be kept by DuckDB under aggregates too."""
    sign, last = (">=", _LAST_ID) if call["ties"] == "quote" else (">", _FIRST_ID)
    # A row with a NULL in it is no NULL, and compares as larger than any other.
    trades = (
        f"SELECT *, CASE WHEN traded IS NOT NULL THEN row(traded, {last}) END AS trade_key "
        f"FROM ({trades_of(call, f'{_TRADE}, receive_time, {traded(call)} AS traded')})"
    )
    near = quotes_near(call, ", ".join(name for name in _QUOTE if name != "quote_time"), call["tolerance"].us, 0)
    rows = (
        f"SELECT r.*, {', '.join(f'q.{name}' for name in _QUOTE)}, "
        f"epoch_us(r.traded) - epoch_us(q.quote_time) AS age_us FROM ({trades}) r "
        f"ASOF LEFT JOIN (SELECT *, row(quote_time, quote_id) AS quote_key FROM ({near})) q "
        f"ON r.exchange = q.exchange AND r.symbol = q.symbol AND r.trade_key {sign} q.quote_key"
    )
    shown = ", ".join(f"CASE WHEN age_us <= {call['tolerance'].us} THEN {name} END AS {name}" for name in _QUOTE)
    shown += f", CASE WHEN age_us <= {call['tolerance'].us} THEN age_us END AS quote_age_us"
    fitting = f"SELECT {_TRADE}, receive_time, {shown} FROM ({rows})"
    columns = f"{_TRADE}, receive_time, {', '.join(_QUOTE)}, quote_age_us"
    return f"SELECT {columns}, {middle(DOUBLE_MID)} AS mid FROM ({fitting})"


def middle(double: str) -> str:
    """The middle of bid and ask, out of their sum; every digit of it."""
    return f"CAST(({double}) * 0.5 AS DECIMAL(19,9))"


#: How far apart the keys of two symbols are at least: further than any length of time.
_APART_KEYS = 2**62


def pairs_of(call: Call) -> str:
    """The SELECT of the exchanges and symbols of the call's trades, each with what makes keys of its times.

    A key is a time in microseconds and this added: one number by which an ASOF join finds the quote of a symbol without
    comparing exchange and symbol, which would cost as much as the join itself. Of times that are less than a hundred
    thousand years apart, keys are so only within one exchange and symbol: how far two keys are apart tells whether they
    belong together.
    """
    listed = f"SELECT DISTINCT exchange, symbol FROM ({trades_of(call, 'exchange, symbol')})"
    return f"SELECT *, row_number() OVER () * CAST({_APART_KEYS} AS HUGEINT) AS base FROM ({listed})"


def keyed(rows: str, time: str) -> str:
    """The rows, which have exchange and symbol, with their time as `key`; needs a relation `pairs`."""
    return f"SELECT n.*, base + epoch_us({time}) AS key FROM ({rows}) n JOIN pairs USING (exchange, symbol)"


def markouts(call: Call) -> str:
    """A row for each trade and horizon, in no order.

    Of quotes of the same microsecond only the last can stand: the others are out before the joins, for the next quote's
    time is looked at in any case.
    """
    horizons = sorted({width.us for width in call["horizons"]})
    tolerance_us = call["tolerance"].us
    trades = keyed(trades_of(call, f"{_TRADE}, {traded(call)} AS traded"), "traded")
    near = quotes_near(call, "quote_id, bid_price, ask_price", tolerance_us, horizons[-1] + tolerance_us)
    quotes = (
        "SELECT key, bid_price, ask_price, next_key FROM ("
        f"SELECT *, lead(key) OVER (ORDER BY key, quote_id) AS next_key FROM ({keyed(near, 'quote_time')})) "
        "WHERE next_key IS DISTINCT FROM key"
    )

    def beside(rows: str, at: str, sign: str, name: str, *, until: str = "") -> str:
        """`rows` with bid and ask together of the quote that stands at a time of theirs."""
        double = f"CASE WHEN r.{at} - q.key <= {tolerance_us}{until} THEN {_DOUBLE_OF_QUOTE} END"
        return f"SELECT r.*, {double} AS {name} FROM ({rows}) r ASOF LEFT JOIN quotes q ON r.{at} {sign} q.key"

    if call.asks_for("mid", "mid_move"):
        rows = beside(trades, "key", ">=" if call["ties"] == "quote" else ">", "double_mid")
    else:
        rows = f"SELECT *, CAST(NULL AS DECIMAL(20,8)) AS double_mid FROM ({trades})"
    later = (
        "SELECT *, key + horizon_us AS later_key FROM ("
        f"SELECT *, CAST(unnest([{', '.join(map(str, horizons))}]) AS BIGINT) AS horizon_us FROM ({rows}))"
    )
    # Until a later quote has come nobody knows whether this one still stands.
    went_on = f" AND q.next_key - r.later_key <= {tolerance_us}"
    after = beside(later, "later_key", ">=", "later_double", until=went_on)
    sign = "CASE side WHEN 'BUY' THEN 1 WHEN 'SELL' THEN -1 WHEN 'SELL_SHORT' THEN -1 END"
    moved = f"CAST({sign} * (CAST(later_mid AS DECIMAL(20,9)) - {{}}) AS DECIMAL(20,9))"
    mids = (
        f"SELECT {_TRADE}, horizon_us, {middle('double_mid')} AS mid, {middle('later_double')} AS later_mid "
        f"FROM ({after})"
    )
    return (
        f"WITH pairs AS MATERIALIZED ({pairs_of(call)}), quotes AS MATERIALIZED ({quotes}) "
        f"SELECT *, {moved.format('mid')} AS mid_move, {moved.format('price')} AS markout FROM ({mids})"
    )


_TRADE_COLUMNS = (
    "exchange VARCHAR, symbol VARCHAR, trade_id BIGINT, event_time TIMESTAMP WITH TIME ZONE, side VARCHAR, "
    "price DECIMAL(18,8), quantity DECIMAL(28,8)"
)

ASOF_QUOTES = MarketFunction(
    name="asof_quotes",
    takes=of_market(TOLERANCE, TIES, CLOCK),
    returns=f"{_TRADE_COLUMNS}, receive_time TIMESTAMP WITH TIME ZONE, quote_id BIGINT, "
    "quote_time TIMESTAMP WITH TIME ZONE, bid_price DECIMAL(18,8), bid_quantity DECIMAL(28,8), "
    "ask_price DECIMAL(18,8), ask_quantity DECIMAL(28,8), quote_age_us BIGINT, mid DECIMAL(19,9)",
    help="Each trade with the quote that stood at it, and how old that was; NULLs where there was none.",
    example="SELECT * FROM asof_quotes('BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z', tolerance := '10s')",
    select=asof_quotes,
)
MARKOUTS = MarketFunction(
    name="markouts",
    takes=of_market(HORIZONS, TOLERANCE, TIES, CLOCK),
    returns=f"{_TRADE_COLUMNS}, horizon_us BIGINT, mid DECIMAL(19,9), later_mid DECIMAL(19,9), mid_move DECIMAL(20,9), "
    "markout DECIMAL(20,9)",
    help="For each trade and horizon the mid at the trade and so long after it. mid_move is how far the mid went, "
    "markout how far it is from the trade's price, both in the direction of who took: up for BUY, down for SELL. "
    "later_mid is NULL until a quote behind it is there.",
    example="SELECT * FROM markouts('BTCUSDT', '2024-08-09T00:00:00Z', '2024-08-09T01:00:00Z', ['1s', '5s', '60s'])",
    select=markouts,
)
