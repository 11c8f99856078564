"""A crash between every two steps of the sink, on a real table: after the restart each record is there, once."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.datasets import TRADES
from common.errors import K2Error
from common.settings import LakeSettings
from sink.table import IcebergTable
from sink.worker import Passed, SinkWorker
from tests.support.fake_log import FakeLog
from tests.support.fake_table import FakeStore, FakeTable, Fault
from tests.support.records import trade
from tests.support.sink_bench import ENCODER, TOPIC, Crash, SinkBench

BAD = b"\x00 no Avro"
TRADES_SENT = 36


def a_log_with_everything() -> FakeLog:
    """Two partitions, 36 trades, holes, and bad records at the start, at the end and in stretches."""
    log = FakeLog()
    log.create(TOPIC, partitions=2)
    log.append(TOPIC, BAD, 0)
    for trade_id in range(TRADES_SENT):
        log.append(TOPIC, ENCODER.encode(trade(trade_id)), trade_id % 2)
        if trade_id % 7 == 3:
            log.hole(TOPIC, trade_id % 2)
        if trade_id % 11 == 5:
            for _ in range(5):
                log.append(TOPIC, BAD, 1)
    log.append(TOPIC, None, 1)
    log.hole(TOPIC, 0)
    return log


def bad_positions(log: FakeLog) -> set[tuple[int, int]]:
    return {
        (partition.partition, offset)
        for partition, records in log._partitions.items()
        for offset, value in records.records.items()
        if value is None or value == BAD
    }


def ids_in(table: IcebergTable) -> Counter[int]:
    table.reload()
    return Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())


def files_in(lake: LakeSettings) -> int:
    return len(list(lake.data_dir.rglob("*.parquet")))


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def bench(lake: LakeSettings) -> SinkBench:
    return SinkBench(a_log_with_everything(), lambda: IcebergTable.open(lake, TRADES))


def assert_whole(bench: SinkBench, lake: LakeSettings) -> None:
    table = IcebergTable.open(lake, TRADES)
    assert ids_in(table) == Counter(range(TRADES_SENT))
    letters = {(letter.partition, letter.offset) for letter in bench.dead_letters.letters}
    assert letters == bad_positions(bench.log)


@pytest.mark.parametrize("reads_on", [0, 2])
@pytest.mark.parametrize("occurrence", [1, 2, 3])
@pytest.mark.parametrize("point", list(Passed), ids=lambda point: point.name.lower())
def test_a_crash_at_any_point_neither_loses_nor_doubles(
    bench: SinkBench, lake: LakeSettings, point: Passed, occurrence: int, reads_on: int
) -> None:
    bench.reads_on = reads_on
    bench.crash_at = {point: occurrence}
    assert bench.run_with_crashes() == 1
    assert_whole(bench, lake)


def test_a_crash_at_every_point_in_turn(bench: SinkBench, lake: LakeSettings) -> None:
    for point in Passed:
        bench.crash_at = {point: 1}
        with pytest.raises(Crash):
            bench.run(bench.worker())
    bench.crash_at = {}
    bench.run(bench.worker())
    assert_whole(bench, lake)


def test_without_a_crash_each_dead_letter_is_written_once(bench: SinkBench, lake: LakeSettings) -> None:
    bench.run(bench.worker())
    assert_whole(bench, lake)
    assert len(bench.dead_letters.letters) == len(bad_positions(bench.log))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("occurrence", [0, 1])
def test_a_crash_inside_the_catalogs_commit(
    bench: SinkBench, lake: LakeSettings, monkeypatch: pytest.MonkeyPatch, when: str, occurrence: int
) -> None:
    """The process dies while the catalog works: the snapshot may be there or not."""
    calls = 0
    table = IcebergTable.open(lake, TRADES)
    catalog = table.iceberg_table.catalog
    real_commit = catalog.commit_table

    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def deadly_commit(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != occurrence:
            return real_commit(*arguments)
        if when == "after":
            real_commit(*arguments)
        raise Killed

    monkeypatch.setattr(catalog, "commit_table", deadly_commit)
    bench.open_table = lambda: table
    with pytest.raises(Killed):
        bench.run(bench.worker())
    bench.open_table = lambda: IcebergTable.open(lake, TRADES)
    bench.run(bench.worker())
    assert_whole(bench, lake)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_unknown_outcome_is_looked_up_and_lands_once(
    bench: SinkBench, lake: LakeSettings, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    table = IcebergTable.open(lake, TRADES)
    catalog = table.iceberg_table.catalog
    real_commit = catalog.commit_table
    lost: list[str] = []

    def lossy_commit(*arguments: Any) -> Any:
        if len(lost) >= 2:
            return real_commit(*arguments)
        lost.append(when)
        if when == "after":
            real_commit(*arguments)
        raise ConnectionResetError("the connection to the catalog was lost")

    monkeypatch.setattr(catalog, "commit_table", lossy_commit)
    bench.open_table = lambda: table
    worker = bench.worker()
    bench.run(worker)
    bench.open_table = lambda: IcebergTable.open(lake, TRADES)
    assert_whole(bench, lake)
    assert len(lost) == 2
    assert worker.stats.rows_committed == TRADES_SENT
    # Landed unseen: its files are the table's. Not landed: they stay on disk as orphans, because nobody could know.
    assert files_in(lake) == worker.stats.commits - bad_only_commits(lake) + (2 if when == "before" else 0)


def bad_only_commits(lake: LakeSettings) -> int:
    snapshots = IcebergTable.open(lake, TRADES).iceberg_table.metadata.snapshots
    return sum(1 for snapshot in snapshots if (snapshot.summary or {}).get("added-data-files") is None)


def test_a_zombie_and_its_successor_on_one_table_double_nothing(bench: SinkBench, lake: LakeSettings) -> None:
    """Two workers, step by step in turn, each sure to be the only one."""
    zombie, successor = bench.worker(), bench.worker()
    end = bench.log.end_offsets()
    for _ in range(400):
        for worker in (zombie, successor):
            if not worker.step():
                bench.clock.advance(0.3)
        if zombie.stats.drained(end) and successor.stats.drained(end):
            break
    assert zombie.stats.conflicts + successor.stats.conflicts > 0
    assert zombie.stats.rows_committed + successor.stats.rows_committed == TRADES_SENT
    assert_whole(bench, lake)


def test_two_sinks_at_once_in_threads_double_nothing(bench: SinkBench, lake: LakeSettings) -> None:
    bench.open_table()  # so that both find it
    failures: list[BaseException] = []
    start = threading.Barrier(2)
    workers = [bench.worker(), bench.worker()]

    def run(worker: SinkWorker[Any]) -> None:
        start.wait()
        try:
            for _ in range(1000):
                if worker.stats.drained(bench.log.end_offsets()):
                    return
                try:
                    worker.step()
                except K2Error as error:
                    if not error.retryable:
                        raise
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            failures.append(error)

    # A policy that is always due: the manual clock is shared and stands still.
    for worker in workers:
        worker._policy = type(worker._policy)(rows_max=1, bytes_max=1, age_ms_max=0)
    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert_whole(bench, lake)


events = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 2)),
    st.tuples(st.just("crash"), st.sampled_from(list(Passed))),
    st.tuples(st.just("fault"), st.sampled_from(list(Fault))),
    st.tuples(st.just("deliver"), st.none()),
    st.tuples(st.just("restart"), st.integers(0, 2)),
    st.tuples(st.just("produce"), st.integers(1, 9)),
    st.tuples(st.just("maintain"), st.none()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(events, max_size=60))
def test_any_schedule_of_crashes_faults_and_zombies_ends_with_each_record_once(schedule: list[tuple[str, Any]]) -> None:
    """Up to three workers believe to own the table; crashes, conflicts, lost and late answers come in any order."""
    store, log = FakeStore(), FakeLog()
    log.create(TOPIC, partitions=2)
    bench = SinkBench(log, lambda: FakeTable(store))
    workers = [bench.worker() for _ in range(3)]
    produced = 0

    def produce(count: int) -> None:
        nonlocal produced
        for _ in range(count):
            log.append(TOPIC, ENCODER.encode(trade(produced)), produced % 2)
            produced += 1
            if produced % 5 == 0:
                log.append(TOPIC, BAD, 1)
            if produced % 6 == 0:
                log.hole(TOPIC, 0)

    def step(worker: SinkWorker[Any]) -> None:
        try:
            if not worker.step():
                bench.clock.advance(0.5)
        except Crash:
            workers[workers.index(worker)] = bench.worker()
        except K2Error as error:
            assert error.retryable, error

    produce(5)
    for what, argument in schedule:
        if what == "step":
            step(workers[argument])
        elif what == "crash":
            bench.crash_at = {argument: 1}
        elif what == "fault":
            store.faults.append(argument)
        elif what == "deliver":
            store.deliver_late()
        elif what == "restart":
            workers[argument] = bench.worker()
        elif what == "produce":
            produce(argument)
        else:
            store.maintain()

    bench.crash_at = {}
    store.faults.clear()
    for _ in range(200):
        if all(worker.stats.drained(log.end_offsets()) for worker in workers):
            break
        for worker in workers:
            step(worker)
    store.deliver_late()
    assert all(worker.stats.drained(log.end_offsets()) for worker in workers)
    assert Counter(row["trade_id"] for row in store.rows()) == Counter(range(produced))
    assert {(letter.partition, letter.offset) for letter in bench.dead_letters.letters} == bad_positions(log)
