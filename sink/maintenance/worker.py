"""`k2 maintain`: every job of maintenance on every table of K2, by its interval, for as long as it runs.

Guarantee: what each job guarantees for itself holds whoever else is at work; any number of these workers may run. A job
that fails is told in one line, counted, and tried again when it is due next; it keeps no other job from running. The
worker remembers only when it ran what, so that one that starts runs everything soon.

Which job keeps what: expiry keeps commits cheap, compaction keeps queries cheap, both keep planning cheap together with
the rewriting of manifests; retention lets old days go; and orphans are what all of them leave behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge
from pyiceberg.catalog import Catalog

from common.clock import Clock, SystemClock
from common.datasets import BARS, DATASETS, QUOTES, TRADES
from common.errors import CommitConflict, Interrupted, K2Error, Overtaken
from common.iceberg import open_catalog, translated
from common.settings import LakeSettings, MaintenanceSettings, RetentionSettings, SinkSettings
from common.telemetry import get_logger
from sink.maintenance.compaction import CompactionPolicy, CompactionReport, compact
from sink.maintenance.expiry import ExpireReport, ExpiryPolicy, expire
from sink.maintenance.jobs import MaintainedTable, Progress, Report, Unwatched
from sink.maintenance.manifests import ManifestsPolicy, ManifestsReport, rewrite_manifests
from sink.maintenance.orphans import OrphansReport, remove_orphans
from sink.maintenance.retention import RetentionPolicy, RetentionReport, delete_old
from sink.maintenance.tables import AnyTable, table_names

_log = get_logger("maintenance")

#: How often it is looked whether a job is due.
_LOOK_S = 1.0
#: A sink's commits merge twenty manifests at a time by themselves.
_MANIFESTS_SPARE = 20

Run = Callable[[MaintainedTable, int, Progress], Report]


@dataclass(frozen=True)
class Job:
    """What is done to each of `tables` every `interval_s`: `run` is given the table, the time, and who may stop it."""

    name: str
    interval_s: float
    tables: frozenset[str]
    run: Run


def jobs_of(maintenance: MaintenanceSettings, retention: RetentionSettings, sink: SinkSettings) -> tuple[Job, ...]:
    """The jobs by these settings, in the order in which they run when several are due. Pure.

    What has gone by retention is not compacted first, and what was replaced expires with the next expiry. The tables of
    bars write their own files anew, and expire by rules of their own.
    """
    of_log = frozenset(dataset.table for dataset in DATASETS.values())
    all_tables = of_log | {bars.table for bars in BARS.values()}
    days = {TRADES: retention.trades_days, QUOTES: retention.quotes_days}
    kept = {
        dataset.table: RetentionPolicy(str(dataset.day_column), number)
        for dataset, number in days.items()
        if number is not None
    }
    compaction = CompactionPolicy(
        target_bytes=maintenance.compact_target_bytes, rows_in_memory_max=maintenance.compact_rows_in_memory_max
    )
    expiry = ExpiryPolicy(sink.snapshots_kept_min)
    manifests = ManifestsPolicy(spare=_MANIFESTS_SPARE)
    grace_s = maintenance.orphans_grace_h * 3600

    def retain(table: MaintainedTable, now_us: int, progress: Progress) -> Report:
        return delete_old(table, kept[table.name], now_us, progress=progress)

    def compacted(table: MaintainedTable, now_us: int, progress: Progress) -> Report:
        return compact(table, compaction, now_us, progress=progress)

    def relisted(table: MaintainedTable, now_us: int, progress: Progress) -> Report:
        return rewrite_manifests(table, manifests, progress=progress)

    def expired(table: MaintainedTable, now_us: int, progress: Progress) -> Report:
        return expire(table, expiry, now_us, progress=progress)

    def swept(table: MaintainedTable, now_us: int, progress: Progress) -> Report:
        return remove_orphans(table, now_us=now_us, grace_s=grace_s, delete=True, progress=progress)

    return (
        Job(RetentionReport.job, maintenance.retention_interval_s, frozenset(kept), retain),
        Job(CompactionReport.job, maintenance.compact_interval_s, of_log, compacted),
        Job(ManifestsReport.job, maintenance.manifests_interval_s, of_log, relisted),
        Job(ExpireReport.job, maintenance.expire_interval_s, of_log, expired),
        Job(OrphansReport.job, maintenance.orphans_interval_s, all_tables, swept),
    )


def due(
    jobs: Sequence[Job], tables: Sequence[str], ran_s: Mapping[tuple[str, str], float], now_s: float
) -> list[tuple[Job, str]]:
    """What is to be run now: job by job, each for its tables in their order. Pure.

    `ran_s` says when each (job, table) was begun last, on the clock of `now_s`.
    """
    return [
        (job, table)
        for job in jobs
        for table in tables
        if table in job.tables and ((job.name, table) not in ran_s or now_s - ran_s[job.name, table] >= job.interval_s)
    ]


def did_something(report: Report) -> bool:
    """Whether the job changed anything."""
    match report:
        case CompactionReport():
            return report.groups > 0
        case ExpireReport():
            return report.snapshots_expired > 0
        case ManifestsReport():
            return report.manifests_after != report.manifests_before
        case RetentionReport():
            return report.files > 0
        case OrphansReport():
            return report.files_deleted > 0
    return True


class MaintenanceWorker:
    """The jobs in a thread of their own, one after the other. One instance runs once."""

    def __init__(
        self,
        lake: LakeSettings,
        maintenance: MaintenanceSettings,
        retention: RetentionSettings,
        sink: SinkSettings,
        *,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        stopping: threading.Event | None = None,
        waits: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopping`, once set, ends the worker as `stop` does. While `waits` no job begins, but by `run_due`."""
        self._lake = lake
        self._catalog: Catalog | None = None
        self._jobs = jobs_of(maintenance, retention, sink)
        self._clock = clock or SystemClock()
        self._metrics = _Metrics(registry or CollectorRegistry())
        self._ran_s: dict[tuple[str, str], float] = {}
        self._stopping = stopping or threading.Event()
        self._waits = waits
        self._thread = threading.Thread(target=self._work, name="k2-maintenance", daemon=True)
        self._failure: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """Why the worker ended by itself; None while it runs and after `stop`."""
        return self._failure

    def start(self) -> None:
        """Raises CatalogError and SettingsError: the catalog must be there when it begins. Later it is waited for."""
        table_names(open_catalog(self._lake))
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End between two steps of the job that runs; what it had not committed yet is not done. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run_due(self, told: Callable[[Report], None] = lambda report: None) -> list[K2Error]:
        """Run what is due, each job of each table; `told` is given each report. Returns what failed.

        A new worker runs everything. Raises Interrupted when stopped, CatalogError when the catalog does not answer.
        """
        if self._catalog is None:
            self._catalog = open_catalog(self._lake)
        names = table_names(self._catalog)
        failures: list[K2Error] = []
        for job, name in due(self._jobs, names, self._ran_s, self._clock.monotonic_s()):
            self._ran_s[job.name, name] = self._clock.monotonic_s()
            try:
                told(self._run(job, self._open(name)))
            except Interrupted:
                raise
            except (Overtaken, CommitConflict) as error:
                _log.info(job.name, table=name, yielded=error.message)
            except K2Error as error:
                _log.warning("a job failed; it is tried again", job=job.name, table=name, reason=error.message)
                failures.append(error)
        return failures

    def _open(self, name: str) -> AnyTable:
        assert self._catalog is not None
        with translated(f"load the table {name}"):
            return AnyTable(self._catalog, self._catalog.load_table(name))

    def _run(self, job: Job, table: MaintainedTable) -> Report:
        began_s = self._clock.monotonic_s()
        outcome = "failed"
        try:
            report = job.run(table, self._clock.now_us(), Unwatched(self._stopping))
            outcome = "changed" if did_something(report) else "nothing to do"
        except Interrupted:
            outcome = "stopped"
            raise
        except (Overtaken, CommitConflict):
            outcome = "yielded"
            raise
        finally:
            self._metrics.note(job.name, table, outcome, self._clock.monotonic_s() - began_s)
        tell = _log.info if outcome == "changed" else _log.debug
        tell(job.name, table=table.name, done=report.to_text())
        return report

    def _work(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                if not self._waits():
                    self.run_due()
                told = False
            except Interrupted:
                return
            except K2Error as error:
                if not told:
                    _log.warning("maintenance waits for the catalog", reason=error.message)
                told = True
            except BaseException as error:  # noqa: BLE001 - a thread's last frame: the owner sees it as `failure`
                _log.exception("maintenance broke")
                self._failure = error
                return
            self._stopping.wait(_LOOK_S)


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs = Counter(
            "k2_maintenance_runs",
            "Jobs of maintenance run, by how they ended.",
            ["job", "table", "outcome"],
            registry=registry,
        )
        self._seconds = Counter(
            "k2_maintenance_seconds", "Time spent in jobs of maintenance.", ["job", "table"], registry=registry
        )
        self._of_table = {
            key: Gauge(f"k2_table_{name}", what, ["table"], registry=registry)
            for key, name, what in (
                ("total-data-files", "data_files", "Data files of the newest snapshot."),
                ("total-files-size", "bytes", "Bytes of those files."),
                ("total-records", "rows", "Rows of the newest snapshot."),
            )
        }
        self._snapshots = Gauge("k2_table_snapshots", "Snapshots that the table keeps.", ["table"], registry=registry)

    def note(self, job: str, table: MaintainedTable, outcome: str, taken_s: float) -> None:
        self._runs.labels(job, table.name, outcome).inc()
        self._seconds.labels(job, table.name).inc(taken_s)
        metadata = table.iceberg_table.metadata
        self._snapshots.labels(table.name).set(len(metadata.snapshots))
        snapshot = metadata.current_snapshot()
        if snapshot is not None and snapshot.summary is not None:
            for key, gauge in self._of_table.items():
                gauge.labels(table.name).set(int(snapshot.summary.get(key) or 0))
