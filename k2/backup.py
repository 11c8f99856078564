"""`k2 backup`, `k2 restore` and `k2 tables recover`: what survives a lake, and a lake out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from common.errors import K2Error
from common.settings import BackupSettings, LakeSettings
from k2.watching import watched
from sink.maintenance.jobs import in_bytes
from sink.recovery.archive import Archive, Backup
from sink.recovery.backup import back_up
from sink.recovery.folders import Folder
from sink.recovery.recover import recover as recover_tables
from sink.recovery.restore import restore as restore_lake
from sink.recovery.upkeep import prune_backups, verify_backups

_DATA_DIR = click.option("--data-dir", type=click.Path(path_type=Path), help="K2's folder.  [K2_LAKE_DATA_DIR, .k2]")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, and no bars.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
_PLACE = click.argument("place")
_BACKUP = click.option("--backup", "backup_id", metavar="ID", help="Which one, as `k2 backup list` names it.")


class _Takes(click.Group):
    """A group whose first word may be the place itself: `k2 backup DEST` is `k2 backup take DEST`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["take", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Takes)
def backup() -> None:
    """Back up every table: `k2 backup DEST`, a folder or s3://bucket/prefix.

    Only files that no earlier backup at DEST has are copied. Nothing counts as a backup before it is complete; after an
    interruption the next one goes on from there. Services may go on running.
    """


@backup.command()
@click.argument("place", metavar="DEST")
@_DATA_DIR
@_DRY_RUN
@_JSON
def take(place: str, data_dir: Path | None, dry_run: bool, as_json: bool) -> None:
    """Take a backup; also `k2 backup DEST`."""
    lake, settings = LakeSettings.load(data_dir=data_dir), BackupSettings.load()
    with watched(quiet=as_json) as progress:
        report = back_up(
            lake, _archive(place, lake, settings), threads=settings.threads, progress=progress, dry_run=dry_run
        )
    _say(report.to_json(), report.to_text(), as_json)


@backup.command("list")
@_PLACE
@_JSON
def list_(place: str, as_json: bool) -> None:
    """The backups of a place, the newest last."""
    backups = _archive(place, LakeSettings.load(), BackupSettings.load()).backups()
    if as_json:
        click.echo(json.dumps([found.to_json() for found in backups]))
    elif backups:
        Console().print(_table(backups))
    else:
        click.echo(f"there is no complete backup in {place}")


@backup.command()
@_PLACE
@_BACKUP
@_JSON
def verify(place: str, backup_id: str | None, as_json: bool) -> None:
    """Read every file of the backups and compare it with its checksum; ends with 1 when one is not what it was."""
    settings = BackupSettings.load()
    with watched(quiet=as_json) as progress:
        report = verify_backups(
            _archive(place, LakeSettings.load(), settings),
            backup_id=backup_id,
            threads=settings.threads,
            progress=progress,
        )
    _say(report.to_json(), report.to_text(), as_json)
    if report.findings:
        raise K2Error(f"{len(report.findings)} files or lists of {place} are not what they were; take another backup")


@backup.command()
@_PLACE
@click.option("--keep", type=click.IntRange(min=1), help="How many of the newest ones stay.")
@click.option("--older-than-days", type=click.FloatRange(min=0), help="Only those that were taken before that go.")
@click.option(
    "--interrupted", is_flag=True, help="Nothing is at work there: what was left by backups that were killed goes too."
)
@_DRY_RUN
@_JSON
def prune(
    place: str, keep: int | None, older_than_days: float | None, interrupted: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove old backups, and the files that only they have. The newest one always stays."""
    archive = _archive(place, LakeSettings.load(), BackupSettings.load())
    with watched(quiet=as_json) as progress:
        report = prune_backups(
            archive,
            keep=keep,
            older_than_days=older_than_days,
            interrupted=interrupted,
            progress=progress,
            dry_run=dry_run,
        )
    _say(report.to_json(), report.to_text(), as_json)


@click.command()
@click.argument("place", metavar="SRC")
@_BACKUP
@_DATA_DIR
@_DRY_RUN
@_JSON
def restore(place: str, backup_id: str | None, data_dir: Path | None, dry_run: bool, as_json: bool) -> None:
    """Restore a backup, the newest one by default, into a lake that is empty: the settings say where it is.

    Its tables may come to lie at another place than where they were. The sink then goes on from their offsets.
    """
    lake, settings = LakeSettings.load(data_dir=data_dir), BackupSettings.load()
    with watched(quiet=as_json) as progress:
        report = restore_lake(
            _archive(place, lake, settings),
            lake,
            backup_id=backup_id,
            threads=settings.threads,
            progress=progress,
            dry_run=dry_run,
        )
    _say(report.to_json(), report.to_text(), as_json)


@click.command()
@click.argument("names", metavar="[TABLE]...", nargs=-1)
@click.option("--uuid", help="Which one is meant, where a folder has the metadata of two tables.")
@_DATA_DIR
@_DRY_RUN
@_JSON
def recover(names: tuple[str, ...], uuid: str | None, data_dir: Path | None, dry_run: bool, as_json: bool) -> None:
    """Find the tables of a lost catalog again, from the files of the warehouse alone; all where none is named.

    Stop the services that write to the lake first. Of each table the newest version is registered that is whole.
    """
    with watched(quiet=as_json) as progress:
        reports = recover_tables(
            LakeSettings.load(data_dir=data_dir), names, uuid=uuid, progress=progress, dry_run=dry_run
        )
    for report in reports:
        _say(report.to_json(), f"{report.table}: {report.to_text()}", as_json)
    if not reports and not as_json:
        click.echo("the catalog has every table of the warehouse already; nothing is lost")


def _archive(place: str, lake: LakeSettings, settings: BackupSettings) -> Archive:
    """The place of backups, reached as the lake is unless the settings say otherwise."""
    return Archive(Folder(place, {**lake.catalog_properties, **settings.store_properties}))


def _say(tree: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(tree) if as_json else text)


def _table(backups: list[Backup]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("backup", "tables", "rows", "files", "size", "copied for it"):
        table.add_column(name, justify="left" if name == "backup" else "right", no_wrap=True)
    for found in backups:
        rows = sum(each.rows for each in found.tables)
        sizes = (in_bytes(found.nbytes), in_bytes(found.nbytes_copied))
        table.add_row(found.id, f"{len(found.tables)}", f"{rows:,}", f"{found.files:,}", *sizes)
    return table
