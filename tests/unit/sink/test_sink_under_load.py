"""A worker that has to wait, or to do less: all that waited lands once, whatever happens to the log meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sink.load import FULL, Allowance
from tests.support.fake_group import FakeGroup
from tests.support.fake_log import FakeLog
from tests.support.fake_table import FakeStore, FakeTable
from tests.support.records import trade
from tests.support.sink_bench import ENCODER, TOPIC, SinkBench

WAITS = Allowance(reads=False, commit_share=0.5, reads_on=False)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def bench(store: FakeStore) -> SinkBench:
    bench = SinkBench(FakeLog(), lambda: FakeTable(store))
    bench.log.create(TOPIC, partitions=2)
    return bench


def fill(log: FakeLog, first: int, count: int, topic: str = TOPIC) -> None:
    for trade_id in range(first, first + count):
        log.append(topic, ENCODER.encode(trade(trade_id)), trade_id % 2)


def ids(store: FakeStore) -> list[Any]:
    return sorted(row["trade_id"] for row in store.rows())  # type: ignore[type-var]


def test_a_worker_that_waits_commits_what_it_holds_and_reads_no_more(bench: SinkBench, store: FakeStore) -> None:
    fill(bench.log, 0, 8)
    worker = bench.worker()
    worker.step()
    assert worker.stats.rows_held == 4
    bench.allowance = WAITS
    assert worker.step()
    assert (worker.stats.rows_held, len(ids(store))) == (0, 4)
    began_s = bench.clock.monotonic_s()
    assert not worker.step() and not worker.step()
    assert bench.clock.monotonic_s() > began_s, "it does not spin"
    assert worker.stats.resting and worker.stats.rows_read == 4
    assert sum(worker.stats.read.values()) == 4, "how far it is can still be seen"
    bench.allowance = FULL
    bench.run(worker)
    assert ids(store) == list(range(8))
    assert (worker.stats.rows_read, worker.stats.recoveries, worker.stats.resting) == (8, 0, False)


def test_a_worker_may_begin_with_waiting(bench: SinkBench, store: FakeStore) -> None:
    fill(bench.log, 0, 6)
    bench.run(bench.worker())
    fill(bench.log, 6, 6)
    bench.allowance = WAITS
    worker = bench.worker()
    worker.step()
    assert (worker.stats.rows_read, worker.stats.partitions) == (0, 2)
    bench.allowance = FULL
    bench.run(worker)
    assert (ids(store), worker.stats.rows_read) == (list(range(12)), 6)


def test_less_load_means_larger_commits_again(bench: SinkBench, store: FakeStore) -> None:
    fill(bench.log, 0, 60)
    bench.reads_on, bench.poll_messages_max = 3, 2
    worker = bench.worker()
    bench.allowance = Allowance(commit_share=0.2, reads_on=False)
    worker.step()
    assert (worker.stats.rows_committed, worker.stats.rows_held) == (2, 0), "nothing was read while files were written"
    bench.allowance = FULL
    for _ in range(5):
        worker.step()
    assert worker.stats.rows_committed == 12
    assert worker.stats.rows_held > 0
    bench.run(worker)
    assert ids(store) == list(range(60))


@given(
    st.lists(
        st.sampled_from(["fill", "step", "step", "wait", "less", "full", "crash", "other", "grow", "anew", "hole"]),
        max_size=40,
    )
)
@settings(max_examples=50, deadline=None)
def test_whatever_happens_while_it_waits_each_record_lands_once(happens: list[str]) -> None:
    store = FakeStore()
    bench = SinkBench(FakeLog(), lambda: FakeTable(store))
    bench.log.create(TOPIC, partitions=2)
    worker, filled, partitions, kept = bench.worker(), 0, 2, list[int]()
    for what in happens:
        if what == "fill":
            fill(bench.log, filled, 3)
            kept += range(filled, filled + 3)
            filled += 3
        elif what == "step":
            worker.step()
        elif what == "crash":
            worker = bench.worker()
        elif what == "other":
            if bench.allowance.reads:
                bench.run(bench.worker())
        elif what == "grow":
            partitions += 1
            bench.log.grow(TOPIC, partitions)
        elif what == "anew":
            if bench.allowance.reads:
                bench.run(worker)
            kept = ids(store)
            partitions = 2
            bench.log.create(TOPIC, partitions=2)
        elif what == "hole":
            bench.log.hole(TOPIC)
        else:
            bench.allowance = {"wait": WAITS, "less": Allowance(commit_share=0.1, reads_on=False), "full": FULL}[what]
    bench.allowance = FULL
    bench.run(worker)
    assert ids(store) == sorted(kept)


def test_partitions_that_come_while_it_waits_are_read_when_it_goes_on(bench: SinkBench, store: FakeStore) -> None:
    group = FakeGroup(bench.log)
    one = bench.worker(group.member())
    fill(bench.log, 0, 20)
    bench.allowance = WAITS
    two = bench.worker(group.member())
    for _ in range(5):
        one.step(), two.step()
    assert one.stats.partitions == two.stats.partitions == 1
    assert ids(store) == []
    bench.allowance = FULL
    for _ in range(40):
        one.step(), two.step()
        bench.clock.advance(0.5)
    assert ids(store) == list(range(20))
    assert one.stats.rows_read == two.stats.rows_read == 10
