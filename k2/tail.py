"""`k2 tail`: rows of the market as they arrive, a line each, over lost connections."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
import pyarrow as pa

from common.errors import SettingsError
from k2.console import is_coloured
from k2.runner import stop_on_signals
from k2.server_options import Server, server_options

if TYPE_CHECKING:
    from clients import Arrival, Subscription

#: What a line of each table shows.
_COLUMNS = {
    "trades": "event_time, symbol, price, quantity, side",
    "quotes": "receive_time, symbol, bid_price, bid_quantity, ask_price, ask_quantity",
}
#: Arrivals that wait to be shown; behind them the server is made to wait.
_ARRIVALS_MAX = 16
_LOOK_S = 0.1
_STYLES = {"BUY": "green", "SELL": "red"}


@click.command(short_help="Rows of the market as they arrive.")
@click.argument("symbols", nargs=-1)
@click.option("--table", type=click.Choice(tuple(_COLUMNS)), default="trades", show_default=True)
@click.option("--sql", help="A SELECT of your own over one table of market, in the place of --table and symbols.")
@click.option("--from-cut", help="Go on from a cut, as `k2 tail` says it at its end.  [what arrives from now on]")
@click.option("--count", type=click.IntRange(min=1), help="End after so many rows.")
@server_options
def tail(
    server: Server, symbols: tuple[str, ...], table: str, sql: str | None, from_cut: str | None, count: int | None
) -> None:
    """Follow SYMBOLS, or all of them: one line for each row, once, until Ctrl-C.

    A lost connection is had back, and gone on with from where it was. At the end the cut is said, to go on from another
    day.
    """
    if sql is not None and symbols:
        raise SettingsError("--sql and symbols exclude each other; put the symbols into the statement")
    shown, with_colours = 0, is_coloured(sys.stdout)
    cut, reconnects = from_cut, 0
    with server.connect() as connection, stop_on_signals() as stop:
        subscription = connection.subscribe(sql or statement(table, symbols), from_cut or "now", with_empty=True)
        with subscription:
            if sys.stderr.isatty():
                click.echo(f"k2: following {sql or ', '.join(symbols) or table}; Ctrl-C ends it", err=True)
            for arrival in _until(stop, subscription):
                if subscription.reconnects > reconnects:
                    reconnects = subscription.reconnects
                    click.echo("k2: the connection was lost and is back; no row is missing", err=True)
                left = arrival.batch if count is None else arrival.batch.slice(0, count - shown)
                for line, style in lines(left):
                    click.echo(click.style(line, fg=style) if with_colours and style else line)
                shown += left.num_rows
                # In the middle of a batch there is no cut to be named: what is left of it would be missed.
                cut = arrival.cut if left.num_rows == arrival.batch.num_rows else None
                if shown == count:
                    break
    if cut:
        click.echo(f"k2: go on with --from-cut '{cut}'", err=True)


def _until(stop: threading.Event, subscription: Subscription) -> Iterator[Arrival]:
    """The arrivals, until `stop` is set: read in a thread, for a signal does not reach one that waits for the wire."""
    arrived: queue.Queue[Arrival | BaseException | None] = queue.Queue(_ARRIVALS_MAX)

    def read() -> None:
        try:
            for arrival in subscription:
                arrived.put(arrival)
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the arrivals are taken
            arrived.put(error)

    threading.Thread(target=read, name="k2-tail", daemon=True).start()
    while not stop.is_set():
        try:
            arrival = arrived.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        if arrival is None:
            return
        if isinstance(arrival, BaseException):
            raise arrival
        yield arrival


def statement(table: str, symbols: Sequence[str]) -> str:
    """What is followed."""
    quoted = ", ".join("'" + symbol.upper().replace("'", "''") + "'" for symbol in symbols)
    return f"SELECT {_COLUMNS[table]} FROM market.{table}" + (f" WHERE symbol IN ({quoted})" if quoted else "")


def lines(batch: pa.RecordBatch) -> Iterator[tuple[str, str | None]]:
    """Each row as a line, and its colour where it has a side."""
    for row in batch.to_pylist():
        yield "  ".join(_text(value) for value in row.values()), _STYLES.get(row.get("side", ""))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%H:%M:%S.%f") if value.tzinfo else str(value)
    if isinstance(value, Decimal):
        return f"{value:>18f}"
    return f"{value:<8}" if isinstance(value, str) else str(value)
