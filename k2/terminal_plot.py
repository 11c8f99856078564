"""Plots made of characters, of a result's columns: candles where it has open, high, low and close, else lines.

The home of plotext.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import plotext
import pyarrow as pa

from common.errors import SettingsError

_CANDLE = ("open", "high", "low", "close")
#: More lines than this cannot be told apart.
_LINES_MAX = 6
#: More points than this are not seen on any terminal, and cost seconds.
_POINTS_MAX = 5_000


def plot_text(table: pa.Table, *, width: int, height: int, title: str = "", columns: Sequence[str] = ()) -> str:
    """The plot as lines of text with colours. `columns` are the one to the right and those upwards; without them the
    first time, or the first column, and all numbers. Raises SettingsError where there is nothing to be drawn."""
    if table.num_rows == 0:
        raise SettingsError("there are no rows to plot")
    table = table.slice(max(0, table.num_rows - _POINTS_MAX))
    missing = [name for name in columns if name not in table.schema.names]
    if missing:
        raise SettingsError(f"the result has no column {missing[0]!r}; it has {', '.join(table.schema.names)}")
    if not columns and set(_CANDLE) <= set(table.schema.names) and _times(table):
        return _candles(table, _times(table)[0], width=width, height=height, title=title)
    across = columns[0] if columns else next(iter(_times(table)), table.schema.names[0])
    upwards = list(columns[1:]) or [
        field.name for field in table.schema if field.name != across and _is_number(field.type)
    ]
    if not upwards:
        raise SettingsError("the result has no column of numbers to plot; say which: \\plot TIME NUMBER")
    figure = _figure(width, height, title)
    x = _values(table, across, figure)
    for name in upwards[:_LINES_MAX]:
        y = [_number(value) for value in table.column(name).to_pylist()]
        points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
        if points:
            signal = figure.signal(*map(list, zip(*points, strict=True)))
            figure.draw(signal.lines().label(name))
    return str(figure.build())


def _candles(table: pa.Table, time: str, *, width: int, height: int, title: str) -> str:
    # An interval without trades has no prices: it is left out, and the time goes on.
    rows = [row for row in table.select([time, *_CANDLE]).to_pylist() if all(row[name] is not None for name in row)]
    if not rows:
        raise SettingsError("there are no prices to plot")
    figure = _figure(width, height, title)
    figure.date("x").activate(form=_form([row[time] for row in rows]))
    data = {name: [float(row[name]) for row in rows] for name in _CANDLE}
    figure.draw(figure.candlestick({"date": [_plain(row[time]) for row in rows], **data}))
    return str(figure.build())


def _figure(width: int, height: int, title: str) -> Any:
    figure = plotext.figure
    figure.clear()
    figure.theme("simple")
    figure.plot_size(width, height)
    if title:
        figure.title(title)
    return figure


def _values(table: pa.Table, name: str, figure: Any) -> list[Any]:
    values = table.column(name).to_pylist()
    present = [value for value in values if value is not None]
    if present and isinstance(present[0], datetime):
        figure.date("x").activate(form=_form(present))
        return [None if value is None else _plain(value) for value in values]
    if present and isinstance(present[0], int | float | Decimal):
        return [_number(value) for value in values]
    return list(range(len(values)))


def _form(times: Sequence[datetime]) -> str:
    """How much of a time its axis shows."""
    long_s = (max(times) - min(times)).total_seconds()
    return (
        "%H:%M:%S"
        if long_s < 600
        else "%H:%M"
        if long_s < 86_400
        else "%m-%d %H:%M"
        if long_s < 864_000
        else "%Y-%m-%d"
    )


def _plain(time: datetime) -> datetime:
    """In UTC, as plotext has it: without a zone."""
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo is not None else time


def _times(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if pa.types.is_timestamp(field.type)]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
