"""Bars out of trades, and bars out of bars. Pure.

Guarantee: merging is associative and independent of order, and every figure is exact: bars of any parts of the trades,
merged in any grouping, are the bars of all of them. Sums are made in 256-bit decimals and must fit into the table's
type at the end: a notional that does not (10^22 and more) is null, and then stays null; a volume that does not is an
error. Only the vwap is rounded, half to even, and it is computed anew from the two sums it is made of. (Of notionals of
both signs, which only negative prices make, one may be null in one grouping and fit in another; none is ever wrong.)

The first and the last trade of a bar are so in the order of (event_time, trade_id). All tables of bars have the columns
of common/schemas/bar.avsc; parts of bars have them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import K2Error
from common.schemas.arrow import table_schema

BAR_SCHEMA = table_schema("bar")
#: What of a trade goes into its bar.
TRADE_COLUMNS = ("exchange", "symbol", "trade_id", "event_time", "price", "quantity")

_Ints = npt.NDArray[np.int64]
_VWAP_STEP = Decimal("0.00000001")
#: Sums of 10^13 products of a price and a quantity fit.
_SUM_PRECISION = 76
#: A quotient of two sums of 38 digits that is no tie is at least 10^-39 away from one: 100 digits tell them apart.
_QUOTIENT_PRECISION = 100


def bars_of(trades: pa.Table, width_us: int) -> pa.Table:
    """The bars of these trades, in no order. `trades` has TRADE_COLUMNS, each trade once. Raises K2Error."""
    if trades.num_rows == 0:
        return BAR_SCHEMA.empty_table()
    time_us = _ints(trades, "event_time")
    start_us = time_us - time_us % width_us
    group, count = _groups(trades, start_us)
    first, last = _ends(group, time_us, _ints(trades, "trade_id"), time_us, _ints(trades, "trade_id"))
    price = trades.column("price")
    wide_price = price.cast(pa.decimal256(18, 8))
    quantity = trades.column("quantity").cast(pa.decimal256(28, 8))
    return _assembled(
        trades,
        start_us,
        first,
        last,
        group,
        count,
        ends={"price": ("open", "close"), "trade_id": ("first_trade_id", "last_trade_id")}
        | {"event_time": ("open_time", "close_time")},
        sums={
            "high": price,
            "low": price,
            "volume": quantity,
            "notional": pc.multiply(wide_price, quantity),
            "trade_count": pa.array(np.ones(trades.num_rows, np.int64)),
        },
    )


def merged(bars: Sequence[pa.Table], width_us: int) -> pa.Table:
    """The bars of this width that the trades of all of these bars make, in no order. Each of their widths must divide
    `width_us`, and no trade may be in two of them. Raises K2Error.
    """
    table = pa.concat_tables([BAR_SCHEMA.empty_table(), *bars])
    if table.num_rows == 0:
        return table
    begin_us = _ints(table, "bar_start")
    start_us = begin_us - begin_us % width_us
    group, count = _groups(table, start_us)
    first, last = _ends(
        group,
        _ints(table, "open_time"),
        _ints(table, "first_trade_id"),
        _ints(table, "close_time"),
        _ints(table, "last_trade_id"),
    )
    ends = {name: (name, None) for name in ("open", "first_trade_id", "open_time")} | {
        name: (None, name) for name in ("close", "last_trade_id", "close_time")
    }
    sums = {name: table.column(name) for name in ("high", "low", "trade_count")}
    sums["volume"] = table.column("volume").cast(pa.decimal256(38, 8))
    sums["notional"] = table.column("notional").cast(pa.decimal256(38, 16))
    return _assembled(table, start_us, first, last, group, count, ends=ends, sums=sums)


def folded(held: pa.Table, more: pa.Table, width_us: int) -> pa.Table:
    """The bars of a table with the bars of further trades in them, in no order: what is not touched is as it was."""
    table = pa.concat_tables([held, more])
    if table.num_rows == 0:
        return table
    touched = touched_rows(held, more)
    changed = merged([held.filter(pa.array(touched)), more], width_us)
    return pa.concat_tables([held.filter(pa.array(~touched)), changed])


def touched_rows(held: pa.Table, more: pa.Table) -> npt.NDArray[np.bool_]:
    """Which of the held bars have a bar of the same exchange, symbol and start among the others."""
    if held.num_rows == 0 or more.num_rows == 0:
        return np.zeros(held.num_rows, np.bool_)
    both = pa.concat_tables([held, more])
    group, count = _groups(both, _ints(both, "bar_start"))
    is_touched = np.zeros(count, np.bool_)
    is_touched[group[held.num_rows :]] = True
    return np.asarray(is_touched[group[: held.num_rows]])


# -- inside


def _ints(table: pa.Table, column: str) -> _Ints:
    """A column of integers or times, as 64-bit integers."""
    return np.asarray(table.column(column).cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=False), np.int64)


def _groups(table: pa.Table, start_us: _Ints) -> tuple[_Ints, int]:
    """The number of each row's (exchange, symbol, start), from 0 on, and how many there are."""
    exchange, symbol = (table.column(name).combine_chunks().dictionary_encode() for name in ("exchange", "symbol"))
    key = exchange.indices.to_numpy().astype(np.int64) * len(symbol.dictionary) + symbol.indices.to_numpy()
    order = np.lexsort((start_us, key))
    is_new = np.empty(len(order), np.bool_)
    is_new[0] = True
    is_new[1:] = (np.diff(key[order]) != 0) | (np.diff(start_us[order]) != 0)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(is_new) - 1
    return group, int(is_new.sum())


def _ends(
    group: _Ints, open_us: _Ints, first_id: _Ints, close_us: _Ints, last_id: _Ints
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each group the row that opens it, and the row that closes it."""
    order = np.lexsort((first_id, open_us, group))
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    first = order[begins]
    if open_us is not close_us:
        order = np.lexsort((last_id, close_us, group))
    return first, order[np.append(begins[1:], len(order)) - 1]


def _assembled(
    table: pa.Table,
    start_us: _Ints,
    first: npt.NDArray[np.intp],
    last: npt.NDArray[np.intp],
    group: _Ints,
    count: int,
    *,
    ends: Mapping[str, tuple[str | None, str | None]],
    sums: dict[str, Any],
) -> pa.Table:
    """`ends`: column of `table` -> the bar's column that has it of the first row, and of the last row."""
    opening, closing = pa.array(first), pa.array(last)
    columns: dict[str, Any] = {name: table.column(name).take(opening) for name in ("exchange", "symbol")}
    columns["bar_start"] = pa.array(start_us[first]).cast(pa.timestamp("us", tz="UTC"))
    for name, (of_first, of_last) in ends.items():
        if of_first is not None:
            columns[of_first] = table.column(name).take(opening)
        if of_last is not None:
            columns[of_last] = table.column(name).take(closing)
    every = pc.ScalarAggregateOptions(skip_nulls=False, min_count=0)
    found = (
        pa.table({"group": pa.array(group), **sums})
        .group_by("group")
        .aggregate(
            [("high", "max"), ("low", "min"), ("volume", "sum"), ("trade_count", "sum"), ("notional", "sum", every)]
        )
    )
    assert found.num_rows == count
    found = found.take(pc.sort_indices(found, sort_keys=[("group", "ascending")]))
    columns |= {"high": found["high_max"], "low": found["low_min"], "trade_count": found["trade_count_sum"]}
    columns["volume"] = _volumes(found["volume_sum"])
    columns["notional"] = _fitting(found["notional_sum"], BAR_SCHEMA.field("notional").type)
    columns["vwap"] = _vwaps(columns["notional"], columns["volume"])
    return pa.table([columns[name] for name in BAR_SCHEMA.names], schema=BAR_SCHEMA)


def _fitting(sums: pa.ChunkedArray, kind: pa.Decimal128Type) -> pa.ChunkedArray:
    """The sums in the table's type; null where one does not fit."""
    bound = pa.scalar(Decimal(10) ** (kind.precision - kind.scale), pa.decimal256(_SUM_PRECISION, kind.scale))
    return pc.if_else(pc.less(pc.abs(sums), bound), sums, None).cast(kind)


def _volumes(sums: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = BAR_SCHEMA.field("volume").type
    found = _fitting(sums, kind)
    if found.null_count:
        raise K2Error(
            f"the volume of a bar does not fit into DECIMAL({kind.precision},{kind.scale}): it takes 10^10 trades of "
            "the largest quantity to get there; look for wrong quantities in market.trades"
        )
    return found


def _vwaps(notionals: pa.ChunkedArray, volumes: pa.ChunkedArray) -> pa.Array:
    """Notional by volume, null where there is none of either. Python's decimals: Arrow's division cuts off, and its
    result has more digits than there are."""
    with localcontext() as context:
        context.prec = _QUOTIENT_PRECISION
        found = [
            None if notional is None or not volume else (notional / volume).quantize(_VWAP_STEP, ROUND_HALF_EVEN)
            for notional, volume in zip(notionals.to_pylist(), volumes.to_pylist(), strict=True)
        ]
    return pa.array(found, BAR_SCHEMA.field("vwap").type)
