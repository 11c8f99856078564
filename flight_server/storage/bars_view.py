"""Bars at a cut, pure: what a table of bars has, and what the trades beyond it make, as SQL.

Guarantee: the SELECT gives exactly the bars of the trades that the transaction sees. The table has those of the trades
below its offsets Cb; the trades in [Cb, E) are in files and in memory, as in `read_view`. Bars that they touch are
merged, all others are read as they are. A table of bars that is ahead of E cannot be used: then, and where there is
none, all bars are computed from the trades. So is every earlier instant: bars do not say which trades are in them.

The arithmetic is the sink's (sink/bars.py), in DuckDB's words: exact decimals, a notional of 10^22 or more is NULL, the
vwap is rounded half to even. Where the sum of products that fit does not itself, from 1.7 x 10^22 on, DuckDB refuses
the statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.offsets import PartitionOffsets
from flight_server.storage.exact import digits, rounded_quotient
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import (
    Snapshot,
    Tail,
    at_or_above,
    below,
    chosen_sql,
    quoted,
    read_files,
    taken_in,
    view_sql,
)

_KEY_COLUMNS = ("exchange", "symbol", "bar_start")
_KEYS = ", ".join(_KEY_COLUMNS)
#: What of a trade goes into its bar.
TRADE_COLUMNS = ("exchange", "symbol", "trade_id", "event_time", "price", "quantity")
NOTIONAL_MAX = "CAST(9999999999999999999999.9999999999999999 AS DECIMAL(38,16))"


def bars_sql(width_us: int, columns: Mapping[str, str], held: str, beyond: str) -> str:
    """The SELECT of all bars: those of the relation `held`, with the trades of the relation `beyond` in them.

    `columns` are the types of a bar, in order; `beyond` has at least `TRADE_COLUMNS`.
    """
    listed = ", ".join(quoted(name) for name in columns if name != "vwap")
    parts = "open_trade, close_trade, high, low, volume, notional, is_whole, trade_count"
    touched = _as_part(f"SELECT {listed} FROM {held} SEMI JOIN live USING ({_KEYS})")
    merged = (
        f"SELECT {_KEYS}, min(open_trade) AS open_trade, max(close_trade) AS close_trade, max(high) AS high, "
        "min(low) AS low, sum(volume) AS volume, sum(notional) AS notional, bool_and(is_whole) AS is_whole, "
        f"CAST(sum(trade_count) AS BIGINT) AS trade_count FROM ({touched} UNION ALL SELECT {_KEYS}, {parts} FROM live) "
        f"GROUP BY {_KEYS}"
    )
    untouched = f"SELECT {_cast(columns)} FROM {held} ANTI JOIN live USING ({_KEYS})"
    live = _computed(width_us, f"FROM {beyond}")
    return f"WITH live AS MATERIALIZED ({live}) {untouched} UNION ALL {_finished(merged, columns)}"


def chosen_bars_sql(
    width_us: int,
    columns: Mapping[str, str],
    bars: Snapshot,
    trades: Snapshot,
    memory: Tail,
    trade_columns: Mapping[str, str],
    conditions: Sequence[Condition],
    *,
    files_max: int,
) -> str | None:
    """The SELECT of all bars that meet the conditions, and of others, out of few files; None: the view is as good.

    `memory` is as `remembered`; what the transaction sees of the trades must cover the offsets of `bars`. At most
    `files_max` files of a table are read by their names.
    """
    # Other columns of a bar change with further trades: what they are in a file says nothing.
    of_bars = [condition for condition in conditions if condition.column in _KEY_COLUMNS]
    of_trades = conditions_on_trades(of_bars, width_us)
    if not of_bars:
        return None
    if bars.snapshot_id is None:
        chosen = chosen_sql(trades, memory, trade_columns, of_trades, files_max=files_max)
        return None if chosen is None else from_trades_sql(width_us, columns, chosen)
    beyond = trades_beyond(bars.offsets, trades, memory, trade_columns, of_trades)
    held = _chosen_files(bars, of_bars, columns, files_max)
    if held is None:
        return from_trades_sql(width_us, columns, beyond)
    return bars_sql(width_us, columns, held, f"({beyond})")


def from_trades_sql(width_us: int, columns: Mapping[str, str], trades: str) -> str:
    """The SELECT of the bars that the trades of a SELECT make."""
    return _finished(_computed(width_us, trades), columns)


def _computed(width_us: int, trades: str) -> str:
    """Parts of bars: the columns that can be merged, out of the trades of a SELECT."""
    product = "TRY(price * quantity)"
    trade = "{'time': event_time, 'id': trade_id, 'price': price}"
    # Floor, also before 1970: DuckDB's % takes the sign of the dividend.
    start = f"epoch_us(event_time) - ((epoch_us(event_time) % {width_us}) + {width_us}) % {width_us}"
    return (
        f"SELECT exchange, symbol, make_timestamptz({start}) AS bar_start, min({trade}) AS open_trade, "
        f"max({trade}) AS close_trade, max(price) AS high, min(price) AS low, sum(quantity) AS volume, "
        f"sum({product}) AS notional, count({product}) = count(*) AS is_whole, count(*) AS trade_count "
        f"FROM ({trades}) GROUP BY 1, 2, 3"
    )


def conditions_on_trades(conditions: Sequence[Condition], width_us: int) -> list[Condition]:
    """What the trades meet whose bars meet conditions on the columns that name a bar."""
    found = []
    for condition in conditions:
        if condition.column != "bar_start":
            found += [condition] if condition.column in _KEY_COLUMNS else []
            continue
        intervals = tuple(
            (begin, end + width_us - 1 if isinstance(end, int) else end) for begin, end in condition.intervals
        )
        found.append(Condition("event_time", intervals))
    return found


def trades_beyond(
    low: PartitionOffsets,
    trades: Snapshot,
    memory: Tail,
    columns: Mapping[str, str],
    conditions: Sequence[Condition] = (),
) -> str:
    """The SELECT of the trades at or above `low` that a transaction sees, with what bars need of them.

    From memory what it has, and of files none that came before `low` or has no trade that meets the conditions. As for
    `chosen_sql`, memory has every row from its base on, or from the snapshot's end where it has no base below that.
    """
    ends = trades.offsets
    hot = PartitionOffsets({p: base for p, base in memory.base.items() if base < ends.next_offset(p)})
    floor = PartitionOffsets({**ends, **hot})
    wanted = {name: columns[name] for name in TRADE_COLUMNS}
    names = ", ".join(quoted(name) for name in wanted)
    parts = []
    if trades.relation is not None and not low.covers(floor):
        files = _files_beyond(low, trades, columns, conditions)
        old = [f"({condition})" for condition in (below(low), at_or_above(hot)) if condition]
        if files is not None:
            parts.append(f"SELECT {names} FROM {files}" + (f" WHERE NOT ({' OR '.join(old)})" if old else ""))
    above = floor.advanced(low)
    for segment in memory.segments:
        held = taken_in(segment, above)
        parts.append(f"SELECT {names} FROM {segment.relation}" + (f" WHERE NOT ({held})" if held else ""))
    return " UNION ALL ".join(parts) or view_sql(Snapshot(), (), wanted)


def _files_beyond(
    low: PartitionOffsets, trades: Snapshot, columns: Mapping[str, str], conditions: Sequence[Condition]
) -> str | None:
    """The files of a snapshot that may have trades at or above `low` that meet the conditions; None: there are none."""
    if trades.index is None:
        return trades.relation
    paths = []
    for path, added_by in trades.index.matching(conditions):
        taken = trades.taken.get(added_by)
        if taken is None or not low.covers(taken[1]):
            paths.append(path)
    if len(paths) == len(trades.index):
        return trades.relation
    return read_files(sorted(paths), trades.field_ids, columns) if paths else None


def _chosen_files(
    bars: Snapshot, conditions: Sequence[Condition], columns: Mapping[str, str], files_max: int
) -> str | None:
    """The table's bars that meet the conditions, and others, out of few files; None: there are none."""
    if bars.index is None or not conditions:
        return bars.relation
    found = bars.index.matching(conditions)
    if not found:
        return None
    if len(found) > files_max or (len(found) == len(bars.index) and bars.files):
        return bars.relation
    return read_files(sorted(path for path, _ in found), bars.field_ids, columns)


def _as_part(select: str) -> str:
    """Bars of the table in the form of computed ones."""
    return (
        f"SELECT {_KEYS}, {{'time': open_time, 'id': first_trade_id, 'price': open}} AS open_trade, "
        "{'time': close_time, 'id': last_trade_id, 'price': close} AS close_trade, high, low, volume, notional, "
        f"notional IS NOT NULL AS is_whole, trade_count FROM ({select})"
    )


def _finished(parts: str, columns: Mapping[str, str]) -> str:
    """Bars out of parts of them that are whole."""
    whole = f"CASE WHEN is_whole AND abs(notional) <= {NOTIONAL_MAX} THEN notional END"
    rows = (
        "SELECT exchange, symbol, bar_start, open_trade.price AS open, high, low, close_trade.price AS close, volume, "
        f"{whole} AS notional, trade_count, open_trade.id AS first_trade_id, close_trade.id AS last_trade_id, "
        f"open_trade.time AS open_time, close_trade.time AS close_time FROM ({parts})"
    )
    return f"SELECT {_cast(columns)} FROM (SELECT *, {VWAP} AS vwap FROM ({rows}))"


def _cast(columns: Mapping[str, str]) -> str:
    return ", ".join(f"CAST({quoted(name)} AS {kind}) AS {quoted(name)}" for name, kind in columns.items())


#: Notional by volume.
VWAP = rounded_quotient(digits("notional"), digits("volume"))
