"""`k2 maintain`: the tables are kept tidy for as long as it runs, or once."""

from __future__ import annotations

import json
from pathlib import Path

import click
from prometheus_client import CollectorRegistry

from common.settings import MaintenanceSettings, RetentionSettings, SinkSettings, TelemetrySettings
from common.telemetry import configure_logging
from k2.console import DATA_DIR, prepared_lake, say, start_logging
from k2.runner import run_until_stopped, stop_on_signals
from sink.maintenance.jobs import Report
from sink.maintenance.worker import MaintenanceWorker


@click.command()
@DATA_DIR
@click.option("--once", is_flag=True, help="Run every job once, tell what was done, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: one JSON object per job and table.")
@click.pass_obj
def maintain(debug: bool, data_dir: Path | None, once: bool, as_json: bool) -> None:
    """Compact, expire, delete what is past retention, and sweep orphans, by interval, until stopped.

    Safe beside running sinks, servers and other `k2 maintain`. The intervals are K2_MAINTENANCE_..., how long rows stay
    is K2_RETENTION_...: docs/settings.md.
    """
    if as_json and not once:
        raise click.UsageError("--json goes with --once; what a running worker does is in its log and its metrics")
    settings = MaintenanceSettings.load(), RetentionSettings.load(), SinkSettings.load()
    lake = prepared_lake(data_dir)
    if not once:
        registry = start_logging("maintenance", debug)
        worker = MaintenanceWorker(lake, *settings, registry=registry)
        run_until_stopped(worker, lambda: say(f"keeping the tables of {lake.resolved_warehouse} tidy"))
        return
    configure_logging(TelemetrySettings.load(log_level="debug" if debug else "error"), service="maintenance")
    with stop_on_signals() as stop:
        worker = MaintenanceWorker(lake, *settings, registry=CollectorRegistry(), stopping=stop)
        failures = worker.run_due(lambda report: click.echo(_told(report, as_json)))
    if failures:
        raise failures[0]


def _told(report: Report, as_json: bool) -> str:
    return json.dumps(report.to_json()) if as_json else f"{report.table}: {report.job}: {report.to_text()}"
