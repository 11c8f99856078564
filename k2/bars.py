"""`k2 bars`: the tables of bars, which `k2 sink` keeps: how far they are, brought up to date, made anew."""

from __future__ import annotations

import json
from pathlib import Path

import click

from common.datasets import TRADES
from common.offsets import offsets_between
from common.settings import LakeSettings
from sink.bars_rebuild import bars_named, rebuild, update
from sink.bars_table import BarsTable
from sink.bars_worker import BarsStats
from sink.table import IcebergTable

_TABLES = click.argument("tables", nargs=-1)
_DATA_DIR = click.option("--data-dir", type=click.Path(path_type=Path), help="K2's folder.  [K2_LAKE_DATA_DIR, .k2]")


@click.group()
def bars() -> None:
    """Bars of the trades: market.bars_1s, bars_1m, bars_1h and bars_1d. `k2 sink` keeps them."""


@bars.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per table.")
@_DATA_DIR
@_TABLES
def status(tables: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """How many bars each table has, in how many files, and how many trades it has not taken in yet."""
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
    update(_lake(data_dir), bars_named(tables), _tell)


@bars.command("rebuild")
@click.option("--without-deleted", is_flag=True, help="Also where trades were deleted: their bars are gone then.")
@_DATA_DIR
@_TABLES
def rebuild_(tables: tuple[str, ...], data_dir: Path | None, without_deleted: bool) -> None:
    """Make the bars anew from the trades, of all tables or of these. Queries stay exact meanwhile, and are slower."""
    rebuild(_lake(data_dir), bars_named(tables), _tell, without_deleted=without_deleted)


def _tell(stats: dict[str, BarsStats]) -> None:
    told = ", ".join(f"{one.table} {one.bars_written:,} bars, {one.behind:,} trades behind" for one in stats.values())
    click.echo(told, err=True)


def _lake(data_dir: Path | None) -> LakeSettings:
    lake = LakeSettings.load(data_dir=data_dir)
    lake.prepare()
    return lake
