"""`k2 tables`: what the operator of the lake does by hand. Each job is one of `sink.maintenance`; here it is shown.

Reports go to standard output, one line of JSON for each table with --json; progress and errors go to standard error.
Ctrl-C ends a job between two of its steps, and nothing is half done.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import pyarrow as pa

from clients.formats import write
from common.clock import SystemClock
from common.commit_files import CommitLog
from common.datasets import BARS, DATASETS
from common.errors import BrokerError, Interrupted, K2Error, Refused, SettingsError
from common.iceberg import translated
from common.log import KafkaLog
from common.offsets import PartitionOffsets
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from flight_server.storage.commit_rows import ops_rows
from k2.backup import recover
from k2.runner import EXIT_FAILED, exit_code, stop_on_signals
from k2.watching import watched
from sink.maintenance import jobs
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.jobs import Report
from sink.maintenance.manifests import rewrite_manifests
from sink.maintenance.orphans import GRACE_S, remove_orphans
from sink.maintenance.refs import plan_rollback, rollback, tag, untag
from sink.maintenance.stats import described, stats
from sink.maintenance.tables import AnyTable, open_tables
from sink.maintenance.verify import VerifyReport, verify

R = TypeVar("R", bound=Report)
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class Duration(click.ParamType[float]):
    """`90s`, `15m`, `24h` or `7d`, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 24h or 7d", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601; without an offset it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-11-28T09:30:00Z", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


_TABLES = click.argument("names", metavar="[TABLE]...", nargs=-1)
_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="K2's folder: catalog, warehouse, state.  [K2_LAKE_DATA_DIR, .k2]",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON, an object a line, instead of text.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be changed, and change nothing.")


@click.group()
def tables() -> None:
    """Look at the Iceberg tables, check them, and keep them tidy; all tables where none is named.

    TABLE is market.trades, or trades for short. Safe beside running services: a job that another commit comes before
    goes on from the new state or says so. docs/tables.md has an example of each.
    """


@tables.command("list")
@_TABLES
@_JSON
@_DATA_DIR
def list_(names: tuple[str, ...], as_json: bool, data_dir: Path | None) -> None:
    """Rows, files, bytes and snapshots of each table, as its newest snapshot says."""
    rows = [described(table) for table in _open(data_dir, names)]
    _print_rows(pa.Table.from_pylist(rows, schema=_LISTED), as_json)


@tables.command("stats")
@_TABLES
@click.option("--deep", is_flag=True, help="Read the footer of each file, for its compression.")
@_JSON
@_DATA_DIR
def stats_(names: tuple[str, ...], deep: bool, as_json: bool, data_dir: Path | None) -> None:
    """What each table is made of: files by size, partitions, manifests, snapshots, tags."""
    _each(data_dir, names, as_json, lambda table, progress: stats(table, deep=deep, progress=progress))


@tables.command("history")
@click.argument("name", metavar="TABLE")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="So many commits, newest last.")
@_JSON
@_DATA_DIR
def history(name: str, limit: int, as_json: bool, data_dir: Path | None) -> None:
    """The commits of a table, those of expired snapshots too, each with the text of its cut."""
    [table] = _open(data_dir, (name,))
    with translated(f"read the history of {table.name}"):
        log = CommitLog()
        log.update(table.iceberg_table)
        rows = log.rows()
        shown = ops_rows(table.name, rows.slice(max(0, rows.num_rows - limit)), log.kept_ids, with_cuts=True)
    _print_rows(shown if as_json else shown.select(_HISTORY_COLUMNS), as_json)


@tables.command("expire")
@_TABLES
@click.option("--keep", type=click.IntRange(1), help="The newest so many stay.  [K2_SINK_SNAPSHOTS_KEPT_MIN]")
@click.option("--older-than", type=Duration(), default="2m", show_default=True, help="Younger ones stay.")
@_DRY_RUN
@_JSON
@_DATA_DIR
def expire_(
    names: tuple[str, ...], keep: int | None, older_than: float, dry_run: bool, as_json: bool, data_dir: Path | None
) -> None:
    """Expire old snapshots, recorded in the history first; tags, and what says the Kafka offsets, stay.

    No file is deleted: `k2 tables orphans` does that later.
    """
    kept = SinkSettings.load(snapshots_kept_min=keep).snapshots_kept_min
    policy = ExpiryPolicy(kept, int(older_than * 1_000_000))

    def job(table: AnyTable, progress: jobs.Progress) -> Report:
        if table.name not in _OURS:
            raise Refused(f"{table.name} is no table of the market; whoever writes it expires its snapshots")
        return expire(table, policy, SystemClock().now_us(), dry_run=dry_run, progress=progress)

    _each(data_dir, names or _OURS, as_json, job, only_present=not names)


@tables.command("compact")
@_TABLES
@_DRY_RUN
@_JSON
@_DATA_DIR
def compact_(names: tuple[str, ...], dry_run: bool, as_json: bool, data_dir: Path | None) -> None:
    """Make few large files of many small ones, partition by partition, each group in one commit."""

    def job(table: AnyTable, progress: jobs.Progress) -> Report:
        if table.name not in _OURS:
            raise Refused(f"{table.name} is no table of the market; whoever writes it decides how its files lie")
        return compact(table, CompactionPolicy(), SystemClock().now_us(), dry_run=dry_run, progress=progress)

    _each(data_dir, names or _OURS, as_json, job, only_present=not names)


@tables.command("orphans")
@_TABLES
@click.option("--delete", is_flag=True, help="Delete what has been unused for long enough; without it: look and note.")
@click.option(
    "--older-than", type=Duration(), default=f"{GRACE_S / 3600:g}h", show_default=True, help="How long that is."
)
@_DRY_RUN
@_JSON
@_DATA_DIR
def orphans(
    names: tuple[str, ...], delete: bool, older_than: float, dry_run: bool, as_json: bool, data_dir: Path | None
) -> None:
    """Find files that nothing refers to, note them, and with --delete delete those noted long enough ago.

    Two times must have passed: since the file was written (it may be about to be committed), and since a run first
    noted it (a query may still read it).
    """
    _each(
        data_dir,
        names,
        as_json,
        lambda table, progress: remove_orphans(
            table,
            now_us=SystemClock().now_us(),
            grace_s=older_than,
            delete=delete,
            dry_run=dry_run,
            progress=progress,
        ),
    )


@tables.command("rewrite-manifests")
@_TABLES
@_DRY_RUN
@_JSON
@_DATA_DIR
def rewrite_manifests_(names: tuple[str, ...], dry_run: bool, as_json: bool, data_dir: Path | None) -> None:
    """List the files of a table in as few manifests as will do, each of files that lie together."""
    _each(data_dir, names, as_json, lambda t, p: rewrite_manifests(t, dry_run=dry_run, progress=p))


@tables.command("tag")
@click.argument("tag_name", metavar="TAG")
@_TABLES
@click.option("--snapshot", "snapshot_id", type=int, help="Of one table: this snapshot.  [the current one]")
@_DRY_RUN
@_JSON
@_DATA_DIR
def tag_(
    tag_name: str,
    names: tuple[str, ...],
    snapshot_id: int | None,
    dry_run: bool,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Name a snapshot, so that it does not expire before `untag`."""
    if snapshot_id is not None and len(names) != 1:
        raise SettingsError("--snapshot is one table's: name that table")
    _each(data_dir, names, as_json, lambda t, p: tag(t, tag_name, snapshot_id, dry_run=dry_run, progress=p))


@tables.command("untag")
@click.argument("tag_name", metavar="TAG")
@_TABLES
@_DRY_RUN
@_JSON
@_DATA_DIR
def untag_(tag_name: str, names: tuple[str, ...], dry_run: bool, as_json: bool, data_dir: Path | None) -> None:
    """Take a tag away; the snapshot expires with its like."""
    _each(data_dir, names, as_json, lambda t, p: untag(t, tag_name, dry_run=dry_run, progress=p))


@tables.command("rollback")
@click.argument("name", metavar="TABLE")
@click.option("--to-snapshot", type=int, help="Back to this snapshot.")
@click.option("--to-time", type=Moment(), help="Back to what was current then: 2026-11-28T09:30:00Z.")
@click.option("--force", is_flag=True, help="Also when rows are lost, or when the broker cannot be asked.")
@_DRY_RUN
@_JSON
@_DATA_DIR
def rollback_(
    name: str,
    to_snapshot: int | None,
    to_time: datetime | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Make an older snapshot the current one again.

    Of a table that the log feeds, the offsets go back too: the sink reads the log again from there, and the rows that
    came since come again, each once. It is refused when the log no longer has them, unless --force.
    """
    if (to_snapshot is None) == (to_time is None):
        raise SettingsError("say where to: either --to-snapshot or --to-time")
    time_ms = None if to_time is None else int(to_time.timestamp() * 1000)

    def job(table: AnyTable, progress: jobs.Progress) -> Report:
        plan = plan_rollback(table, snapshot_id=to_snapshot, time_ms=time_ms)
        progress.step("ask the broker what the log still has")
        # Bars stand on offsets too, and are made again from the trades: no log is asked for them.
        log_starts = _log_starts(table.name) if plan.back and table.name in _LOG_TABLES else plan.back
        return rollback(
            table, snapshot_id=plan.snapshot_id, log_starts=log_starts, force=force, dry_run=dry_run, progress=progress
        )

    _each(data_dir, (name,), as_json, job)


@tables.command("verify")
@_TABLES
@click.option("--quick", is_flag=True, help="Files and counts only; no rows are read.")
@click.option("--deep", is_flag=True, help="Read every column of every row.")
@_JSON
@_DATA_DIR
def verify_(names: tuple[str, ...], quick: bool, deep: bool, as_json: bool, data_dir: Path | None) -> None:
    """Check that every file is there, counts add up, each Kafka offset and each trade is in the table once.

    Ends with code 1 when something is wrong.
    """
    if quick and deep:
        raise SettingsError("--quick and --deep exclude each other; choose one")
    reports = _each(data_dir, names, as_json, lambda t, p: verify(t, quick=quick, deep=deep, progress=p))
    if any(isinstance(report, VerifyReport) and not report.is_clean for report in reports):
        sys.exit(EXIT_FAILED)


# -- what they share

#: The tables that the sink fills from the log.
_LOG_TABLES = {dataset.table: dataset for dataset in DATASETS.values()}
#: Those, and what is made of them. Users' tables are the flight server's to expire.
_OURS = (*_LOG_TABLES, *(bars.table for bars in BARS.values()))
_LISTED = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("data_files", pa.int64()),
        pa.field("data_nbytes", pa.int64()),
        pa.field("snapshots", pa.int64()),
        pa.field("tags", pa.int64()),
        pa.field("last_commit", pa.timestamp("ms", "UTC")),
        pa.field("location", pa.string()),
    ]
)
_HISTORY_COLUMNS = ["committed_at", "operation", "added_rows", "total_rows", "is_kept", "cut"]


def _open(data_dir: Path | None, names: tuple[str, ...]) -> list[AnyTable]:
    """The tables of these names, all when none; nothing is made. Raises SettingsError, TableNotFound, CatalogError."""
    lake = LakeSettings.load(data_dir=data_dir)
    if lake.catalog_uri is None and not (lake.data_dir / "catalog.db").exists():
        raise SettingsError(
            f"there are no tables in {lake.data_dir}; say where they are with --data-dir or K2_LAKE_DATA_DIR"
        )
    return open_tables(lake, names)


def _each(
    data_dir: Path | None,
    names: tuple[str, ...],
    as_json: bool,
    job: Callable[[AnyTable, jobs.Progress], R],
    *,
    only_present: bool = False,
) -> list[R]:
    """Do a job to one table after another, and print each report. One that fails does not keep the others from theirs;
    the process then ends with the first one's exit code.
    """
    opened = _open(data_dir, () if only_present else names)
    wanted = [table for table in opened if not only_present or table.name in names]
    failed: K2Error | None = None
    reports: list[R] = []
    with stop_on_signals() as stop:
        for table in wanted:
            try:
                with watched(quiet=as_json, about=table.name, stop=stop) as progress:
                    report = job(table, progress)
            except Interrupted:
                raise
            except K2Error as error:
                failed = failed or error
                _print_error(table.name, error, as_json)
                continue
            reports.append(report)
            _print_report(report, as_json)
    if failed is not None:
        sys.exit(exit_code(failed))
    return reports


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_json()))
        return
    first, *more = report.to_text().splitlines()
    prefix = "dry run: " if report.dry_run else ""
    click.echo(f"{report.table}: {prefix}{first}")
    for line in more:
        click.echo(f"    {line}")


def _print_error(table: str, error: K2Error, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"table": table, "error": str(error)}))
    click.echo(f"k2: {error}", err=True)


def _print_rows(rows: pa.Table, as_json: bool) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write(rows.schema, rows.to_batches(), "json" if as_json else "table", sys.stdout.buffer, width=width)


def _log_starts(table: str) -> PartitionOffsets | None:
    """The first offset that the log holds of each partition of the table's topics; None when the broker cannot be
    asked, which is said.
    """
    kafka = KafkaSettings.load()
    if not kafka.bootstrap_servers:
        click.echo("k2: K2_KAFKA_BOOTSTRAP_SERVERS is not set, so no broker can be asked what the log has", err=True)
        return None
    try:
        log = KafkaLog(kafka)
        return log.start_offsets(log.topics(_LOG_TABLES[table].topic_pattern).values())
    except BrokerError as error:
        click.echo(f"k2: {error}", err=True)
        return None


tables.add_command(recover)
