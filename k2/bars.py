"""`k2 bars`: the tables of bars, which `k2 sink` keeps: how far they are, brought up to date, made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.errors import SettingsError
from common.settings import LakeSettings
from k2.server_options import Server, server_options

if TYPE_CHECKING:
    from sink.bars_worker import BarsStats

_TABLES = click.argument("tables", nargs=-1)
_DATA_DIR = click.option("--data-dir", type=click.Path(path_type=Path), help="K2's folder.  [K2_LAKE_DATA_DIR, .k2]")


@click.group(invoke_without_command=True)
@click.option(
    "--plot", "symbol", metavar="SYMBOL", help="Draw the symbol's bars as candles, asked of a running server."
)
@click.option("--interval", default="1m", show_default=True, help="Of --plot: 100ms to months.")
@click.option("--last", default="2h", show_default=True, help="Of --plot: how far back, as 90s, 30m, 2h, 5d.")
@server_options
@click.pass_context
def bars(context: click.Context, server: Server, symbol: str | None, interval: str, last: str) -> None:
    """Bars of the trades: market.bars_1s, bars_1m, bars_1h and bars_1d. `k2 sink` keeps them."""
    if symbol is None:
        if context.invoked_subcommand is None:
            click.echo(context.get_help())
        return
    if context.invoked_subcommand is not None:
        raise SettingsError(f"--plot stands alone: k2 bars --plot {symbol}, without {context.invoked_subcommand}")
    from k2.bars_plot import plot

    plot(server, symbol, interval, last)


@bars.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per table.")
@_DATA_DIR
@_TABLES
def status(tables: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """How many bars each table has, in how many files, and how many trades it has not taken in yet."""
    from common.datasets import TRADES
    from common.offsets import offsets_between
    from sink.bars_rebuild import bars_named
    from sink.bars_table import BarsTable
    from sink.table import IcebergTable

    named = bars_named(tables)
    lake = _lake(data_dir)
    stands = IcebergTable.open(lake, TRADES).committed_offsets()
    for each in named:
        table = BarsTable.open(lake, each)
        behind = offsets_between(table.committed_offsets(), stands)
        found = {"table": table.name, "bars": table.rows, "files": table.files, "trades_behind": behind}
        if as_json:
            click.echo(json.dumps(found))
        else:
            click.echo(f"{table.name}: {table.rows:,} bars in {table.files:,} files, {behind:,} trades behind")


@bars.command("update")
@_DATA_DIR
@_TABLES
def update_(tables: tuple[str, ...], data_dir: Path | None) -> None:
    """Take in all trades that are committed by now, once; for where `k2 sink` runs with K2_SINK_BARS=false."""
    from sink.bars_rebuild import bars_named, update

    update(_lake(data_dir), bars_named(tables), _tell)


@bars.command("rebuild")
@click.option("--without-deleted", is_flag=True, help="Also where trades were deleted: their bars are gone then.")
@_DATA_DIR
@_TABLES
def rebuild_(tables: tuple[str, ...], data_dir: Path | None, without_deleted: bool) -> None:
    """Make the bars anew from the trades, of all tables or of these. Queries stay exact meanwhile, and are slower."""
    from sink.bars_rebuild import bars_named, rebuild

    rebuild(_lake(data_dir), bars_named(tables), _tell, without_deleted=without_deleted)


def _tell(stats: dict[str, BarsStats]) -> None:
    told = ", ".join(f"{one.table} {one.bars_written:,} bars, {one.behind:,} trades behind" for one in stats.values())
    click.echo(told, err=True)


def _lake(data_dir: Path | None) -> LakeSettings:
    lake = LakeSettings.load(data_dir=data_dir)
    lake.prepare()
    return lake
