"""`k2 export`: the result of a statement as files, at one cut; interrupted, the same command goes on."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from clients.export import COMPRESSIONS, EXPORT_FORMATS, Compression, ExportFormat, ExportOptions, Manifest, verify
from clients.export import export as export_rows
from clients.export.run import SLICE_ROWS
from common.errors import SettingsError
from k2.runner import EXIT_FAILED, stop_on_signals
from k2.server_options import Server, server_options


@click.command(short_help="The result of a statement as files, at one cut.")
@click.argument("sql_and_folder", nargs=-1, metavar="SQL FOLDER")
@click.option("--format", "form", type=click.Choice(EXPORT_FORMATS), default="parquet", show_default=True)
@click.option("--partition-by", default="", help="Columns, comma separated; `date` is the UTC day of a row's time.")
@click.option("--compression", type=click.Choice(COMPRESSIONS), help="[zstd for parquet and iceberg, else none]")
@click.option("--parallel", type=click.IntRange(1, 64), default=2, show_default=True, help="Connections at once.")
@click.option("--at", help="A cut, a snapshot's id or a time to read at.  [now]")
@click.option(
    "--split-by", help="Cut the result in slices by this column, though the server cannot tell that it may be."
)
@click.option(
    "--slice-rows",
    type=click.IntRange(min=1),
    default=SLICE_ROWS,
    show_default=True,
    help="About so many rows are read at a time, and lost by an interruption.",
)
@click.option("--verify", "only_verify", is_flag=True, help="Read an export again and hold it against its manifest.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@server_options
def export(
    server: Server,
    sql_and_folder: tuple[str, ...],
    form: ExportFormat,
    partition_by: str,
    compression: Compression | None,
    parallel: int,
    at: str | None,
    split_by: str | None,
    slice_rows: int,
    only_verify: bool,
    quiet: bool,
) -> None:
    """Write all rows of a statement into FOLDER, at one cut; `-` reads the statement from standard input.

    After an interruption, of whatever kind, the same command goes on at the same cut. FOLDER/_k2_export.json says what
    is there: cut, columns, files with rows, bytes and SHA-256. `k2 export --verify FOLDER` checks it. With `--format
    iceberg` FOLDER has a SQLite catalog with the table export.rows.
    """
    if only_verify:
        _verify(_folder_alone(sql_and_folder))
        return
    if len(sql_and_folder) != 2:
        raise SettingsError('give a statement and a folder: k2 export "SELECT * FROM market.trades" trades/')
    sql, folder = sql_and_folder
    options = ExportOptions(
        format=form,
        compression=compression,
        partition_by=tuple(name.strip() for name in partition_by.split(",") if name.strip()),
        split_by=split_by,
        parallel=parallel,
        at=at,
        slice_rows=slice_rows,
    )
    text = sys.stdin.read() if sql == "-" else sql
    shown = sys.stderr.isatty() and not quiet
    with stop_on_signals() as stop, _Bar(shown=shown) as bar:
        manifest = export_rows(server.connect, text, Path(folder), options, progress=bar, stop=stop)
    if bar.was_complete:
        click.echo(
            f"{folder} is complete already: {_told(manifest)}, exported {manifest.finished_at}; for newer rows choose "
            "another folder",
            err=True,
        )
    else:
        click.echo(f"{folder}: {_told(manifest)}", err=True)


def _told(manifest: Manifest) -> str:
    return f"{manifest.rows:,} rows, {len(manifest.files):,} files, {manifest.bytes:,} bytes"


def _folder_alone(given: tuple[str, ...]) -> Path:
    if not 1 <= len(given) <= 2:
        raise SettingsError("give the folder of the export: k2 export --verify FOLDER")
    return Path(given[-1])


def _verify(folder: Path) -> None:
    found = verify(folder)
    for problem in found.problems:
        click.echo(f"{folder}: {problem}", err=True)
    if found.problems:
        raise click.exceptions.Exit(EXIT_FAILED)
    click.echo(
        f"{folder}: {found.rows:,} rows in {found.files:,} files ({found.bytes:,} bytes) are as they were written"
    )


class _Rate(ProgressColumn):
    """Rows a second, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} rows/s")


class _Bar:
    """The export's progress on a terminal; nothing elsewhere. Thread-safe."""

    def __init__(self, *, shown: bool) -> None:
        self.was_complete = False
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f} rows"),
            _Rate(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not shown,
            transient=True,
        )
        self._task = self._bars.add_task("counting", total=None)
        self._lock = threading.Lock()

    def planned(self, manifest: Manifest) -> None:
        self.was_complete = manifest.complete
        if manifest.rows and not manifest.complete:
            self._bars.console.print(f"going on: {manifest.rows:,} rows are there already")
        if manifest.whole_because is not None and not manifest.complete:
            self._bars.console.print(f"in one piece, on one connection: {manifest.whole_because}", style="dim")
        self._bars.reset(self._task, total=manifest.rows_planned, completed=manifest.rows, description="exporting")

    def read(self, rows: int) -> None:
        with self._lock:
            self._bars.advance(self._task, rows)

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
