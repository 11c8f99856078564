"""`k2 bars --plot`: a symbol's bars as candles in the terminal, asked of a running server."""

from __future__ import annotations

import re
import shutil
import sys

import click

from common.errors import SettingsError
from k2.console import is_coloured
from k2.server_options import Server
from k2.terminal_plot import plot_text

_LAST = re.compile(r"(\d+)\s*([smhdw])\Z")
_UNITS = {"s": "SECOND", "m": "MINUTE", "h": "HOUR", "d": "DAY", "w": "WEEK"}


def plot(server: Server, symbol: str, interval: str, last: str, *, height: int | None = None) -> None:
    """Draw them. Raises SettingsError and what clients raise."""
    with server.connect() as connection:
        table = connection.arrow(statement(symbol, interval, last))
        cut = connection.cut
    if table.num_rows == 0:
        raise SettingsError(f"there are no trades of {symbol} in the last {last}; look further back with --last")
    size = shutil.get_terminal_size()
    volume = sum(table["volume"].to_pylist())
    height = height or max(10, min(30, size.lines - 3))
    drawn = plot_text(table, width=size.columns, height=height, title=f"{symbol}  {interval}")
    click.echo(drawn if is_coloured(sys.stdout) else click.unstyle(drawn))
    close = table["close"][-1].as_py()
    click.echo(f"{table.num_rows:,} bars, volume {volume:f}, last {close:f}" + ("" if cut is None else ", UTC"))


def statement(symbol: str, interval: str, last: str) -> str:
    """The bars back from the symbol's latest one. Raises SettingsError."""
    found = _LAST.match(last.strip().lower())
    if found is None or int(found[1]) == 0:
        raise SettingsError(f"--last is a number and s, m, h, d or w, as 2h, not {last!r}")
    back = f"INTERVAL {found[1]} {_UNITS[found[2]]}"
    name, every = (text.replace("'", "''") for text in (symbol, interval))
    return (
        f"SELECT bar_start, open, high, low, close, volume FROM ohlcv('{name}', now() - {back}, every := '{every}') "
        "ORDER BY bar_start"
    )
