"""The worker: what runs when, that one job's failure keeps no other from running, and what the tables are like then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from common.clock import ManualClock, SystemClock
from common.errors import CatalogError, Interrupted
from common.settings import MaintenanceSettings, RetentionSettings, SinkSettings
from sink.maintenance import worker as module
from sink.maintenance.jobs import Report
from sink.maintenance.worker import Job, MaintenanceWorker, due, jobs_of
from tests.support.lake_tables import Filled
from tests.support.records import EPOCH


def worker_of(filled: Filled, clock: ManualClock, **retention: int) -> tuple[MaintenanceWorker, CollectorRegistry]:
    registry = CollectorRegistry()
    settings = MaintenanceSettings(), RetentionSettings(**retention), SinkSettings(snapshots_kept_min=5)
    return MaintenanceWorker(filled.settings, *settings, registry=registry, clock=clock), registry


@pytest.fixture
def clock() -> ManualClock:
    """Iceberg stamps snapshots with the machine's time, so this one begins there."""
    return ManualClock(SystemClock().now_us())


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path)


def job(name: str, interval_s: float, *tables: str) -> Job:
    def run(*_: Any) -> Report:
        raise AssertionError

    return Job(name, interval_s, frozenset(tables), run)


@given(
    st.dictionaries(st.tuples(st.sampled_from("xy"), st.sampled_from("abc")), st.floats(0, 100)),
    st.floats(100, 200),
)
def test_a_job_is_due_once_its_interval_is_over(ran_s: dict[tuple[str, str], float], now_s: float) -> None:
    jobs = [job("x", 30, "a", "b"), job("y", 150, "b", "c")]
    found = [(each.name, table) for each, table in due(jobs, ["a", "b", "d"], ran_s, now_s)]
    assert found == [
        (name, table)
        for name, table, interval_s in [("x", "a", 30), ("x", "b", 30), ("y", "b", 150)]
        if now_s - ran_s.get((name, table), -1_000) >= interval_s
    ]


def test_only_what_the_settings_say_is_ever_deleted() -> None:
    def retained(**days: int) -> frozenset[str]:
        retention, *_ = jobs_of(MaintenanceSettings(), RetentionSettings(**days), SinkSettings())
        return retention.tables

    assert retained() == frozenset()
    assert retained(quotes_days=7) == {"market.quotes"}
    assert retained(quotes_days=7, trades_days=900) == {"market.quotes", "market.trades"}


def test_everything_is_done_to_a_table_and_then_nothing(filled: Filled, clock: ManualClock) -> None:
    today = (datetime.fromtimestamp(clock.now_us() / 1e6, UTC) - EPOCH).days
    for number in range(40):
        filled.append(2, day=today - (3 if number < 20 else 0))
    clock.advance(600)
    worker, registry = worker_of(filled, clock, trades_days=2)
    reports: list[Report] = []
    assert worker.run_due(reports.append) == []
    done = {report.job: report.to_text() for report in reports}
    assert list(done) == ["retention", "compact", "rewrite-manifests", "expire", "orphans"]
    assert done["retention"].startswith("40 rows in 20 files")
    assert done["compact"].startswith("20 files of ")
    assert done["expire"].startswith("37 snapshots expired")
    assert filled.ids() == list(range(40, 80))
    assert len(filled.files()) == 1
    value: Callable[..., Any] = registry.get_sample_value
    labels = {"job": "compact", "table": "market.trades", "outcome": "changed"}
    assert value("k2_maintenance_runs_total", labels) == 1
    assert value("k2_table_data_files", {"table": "market.trades"}) == 1
    assert value("k2_table_rows", {"table": "market.trades"}) == 40

    again: list[Report] = []
    assert worker.run_due(again.append) == []
    assert again == []
    clock.advance(60)
    worker.run_due(again.append)
    assert [report.job for report in again] == ["compact", "expire"]
    assert again[0].to_text() == "nothing to compact"


def test_a_job_that_fails_is_told_and_keeps_no_other_from_running(
    filled: Filled, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(8):
        filled.append(2)

    def fail(*_: Any, **__: Any) -> Report:
        raise CatalogError("the store is full")

    monkeypatch.setattr(module, "rewrite_manifests", fail)
    worker, registry = worker_of(filled, clock)
    reports: list[Report] = []
    (error,) = worker.run_due(reports.append)
    assert str(error) == "the store is full"
    assert [report.job for report in reports] == ["compact", "expire", "orphans"]
    labels = {"job": "rewrite-manifests", "table": "market.trades", "outcome": "failed"}
    assert registry.get_sample_value("k2_maintenance_runs_total", labels) == 1


def test_a_stopped_worker_ends_between_two_steps(filled: Filled, clock: ManualClock) -> None:
    for _ in range(8):
        filled.append(2)
    stop = threading.Event()
    settings = MaintenanceSettings(), RetentionSettings(), SinkSettings()
    worker = MaintenanceWorker(filled.settings, *settings, clock=clock, stopping=stop)
    stop.set()
    with pytest.raises(Interrupted):
        worker.run_due()
    assert len(filled.files()) == 8
    worker.start()
    worker.stop()
    assert worker.failure is None


def test_the_thread_works_until_it_is_stopped(filled: Filled) -> None:
    for _ in range(8):
        filled.append(2)
    worker, registry = worker_of(filled, ManualClock(SystemClock().now_us()))
    seen = threading.Event()
    note = module._Metrics.note

    def noted(self: Any, name: str, *rest: Any) -> None:
        note(self, name, *rest)
        if name == "orphans":
            seen.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Metrics, "note", noted)
        worker.start()
        assert seen.wait(30)
        worker.stop()
    assert worker.failure is None
    assert len(filled.files()) == 1
    labels = {"job": "compact", "table": "market.trades", "outcome": "changed"}
    assert registry.get_sample_value("k2_maintenance_runs_total", labels) == 1
