"""Several workers that share a table's partitions: who comes, goes, dies or wakes too late, each record lands once."""

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
from common.log import Share
from common.settings import LakeSettings
from sink.table import IcebergTable
from sink.worker import Passed, SinkWorker
from tests.support.fake_group import FakeGroup, FakeMember
from tests.support.fake_log import FakeLog
from tests.support.fake_table import FakeStore, FakeTable, Fault
from tests.support.records import trade
from tests.support.sink_bench import ENCODER, TOPIC, Crash, SinkBench

BAD = b"\x00 no Avro"
PARTITIONS = 4


class Team:
    """Workers of one group on one table. `produce` spreads over the partitions."""

    def __init__(self, open_table: Any = None) -> None:
        self.log, self.store = FakeLog(), FakeStore()
        self.log.create(TOPIC, partitions=PARTITIONS)
        self.group = FakeGroup(self.log)
        self.bench = SinkBench(self.log, open_table or (lambda: FakeTable(self.store)))
        self.workers: list[SinkWorker[Any]] = []
        self.members: list[FakeMember] = []
        self.produced = 0

    def join(self) -> SinkWorker[Any]:
        self.members.append(self.group.member())
        self.workers.append(self.bench.worker(self.members[-1]))
        return self.workers[-1]

    def produce(self, count: int) -> None:
        for _ in range(count):
            self.log.append(TOPIC, ENCODER.encode(trade(self.produced)), self.produced % PARTITIONS)
            self.produced += 1

    def settle(self) -> None:
        """Everybody knows what is his, and has committed what he held."""
        for _ in range(200):
            for worker in self.workers:
                worker.step()
            self.bench.clock.advance(0.5)
            if self.group.settled() and not any(worker.stats.holding for worker in self.workers):
                return
        raise AssertionError("the group did not settle")

    def drain(self) -> None:
        for _ in range(300):
            self.settle()
            if self.bench.committed() == self.log.end_offsets():
                return
        raise AssertionError("not drained")

    def landed(self) -> Counter[object]:
        return Counter(row["trade_id"] for row in self.store.rows())


@pytest.fixture
def team() -> Team:
    return Team()


def shares_of(worker: SinkWorker[Any]) -> int:
    return worker.stats.partitions


def test_two_workers_share_the_partitions_and_each_record_lands_once(team: Team) -> None:
    team.produce(50)
    one, two = team.join(), team.join()
    team.drain()
    assert (shares_of(one), shares_of(two)) == (2, 2)
    assert one.stats.rows_committed + two.stats.rows_committed == 50
    assert min(one.stats.rows_committed, two.stats.rows_committed) > 0
    assert team.landed() == Counter(range(50))


def test_one_worker_of_a_group_has_the_first_partition_and_a_worker_alone_always(team: Team) -> None:
    workers = [team.join(), team.join()]
    team.produce(8)
    team.drain()
    assert [worker.has_first_partition for worker in workers].count(True) == 1
    assert team.bench.worker().has_first_partition


def test_what_is_held_of_partitions_that_go_is_committed_before_they_go(team: Team) -> None:
    one = team.join()
    team.settle()
    team.produce(4)
    one.step()
    assert (one.stats.rows_held, one.stats.commits) == (4, 0)
    two = team.join()
    two.step(), one.step()
    assert one.stats.commits == 1, "nothing was due, but partitions were to go"
    team.produce(8)
    team.drain()
    assert team.landed() == Counter(range(12))
    assert one.stats.recoveries == two.stats.recoveries == 0, "nobody had to read anything again"
    assert one.stats.rows_read + two.stats.rows_read == 12


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.LATE])
def test_what_cannot_be_committed_before_partitions_go_is_read_again_by_whoever_has_them(
    team: Team, fault: Fault
) -> None:
    one = team.join()
    team.settle()
    team.produce(8)
    one.step()
    two = team.join()
    two.step()
    team.store.faults.append(fault)
    one.step()
    team.drain()
    team.store.deliver_late()
    assert team.landed() == Counter(range(8))
    assert two.stats.partitions == 2


def test_a_catalog_that_is_down_holds_no_partition_back(team: Team) -> None:
    one = team.join()
    team.settle()
    team.produce(4)
    one.step()
    two = team.join()
    two.step()
    team.store.faults.append(Fault.CATALOG_DOWN)  # met by the look before the commit
    one.step()
    assert shares_of(one) == 2
    team.drain()
    assert team.landed() == Counter(range(4))


def test_a_new_member_reads_on_from_what_the_others_committed_meanwhile(team: Team) -> None:
    """The table that it saw at its own start is old: others have committed to its partitions since."""
    one = team.join()
    team.settle()
    two = team.join()
    two.step()
    team.produce(40)
    for _ in range(12):
        one.step()
        team.bench.clock.advance(0.5)
    committed_by_one = one.stats.rows_committed
    assert committed_by_one > 0
    team.drain()
    assert one.stats.rows_read + two.stats.rows_read == 40
    assert team.landed() == Counter(range(40))


def test_a_member_that_leaves_gives_its_partitions_to_the_others(team: Team) -> None:
    one, two = team.join(), team.join()
    team.produce(20)
    team.drain()
    two.close()
    team.workers.remove(two)
    team.produce(20)
    team.drain()
    assert shares_of(one) == PARTITIONS
    assert team.landed() == Counter(range(40))


# --- zombies ----------------------------------------------------------------------------------------------------------


def zombie_that_holds_rows(team: Team) -> SinkWorker[Any]:
    """It has read and not committed; the group has thrown it out, and it does not know."""
    zombie = team.join()
    team.settle()
    team.produce(8)
    zombie.step(), zombie.step()
    assert zombie.stats.rows_held == 8
    team.group.throw_out(team.members[-1])
    return zombie


def test_a_zombie_that_wakes_after_its_partitions_moved_lands_nothing(team: Team) -> None:
    zombie = zombie_that_holds_rows(team)
    successor = team.join()
    team.workers.remove(zombie)
    team.drain()
    snapshots = len(team.store.snapshots)
    team.bench.clock.advance(60)
    zombie.step()
    assert zombie.stats.rows_committed == 0
    assert zombie.stats.conflicts == 0, "it heard that it was thrown out before it tried to commit"
    assert len(team.store.snapshots) == snapshots
    assert successor.stats.rows_committed == 8
    assert team.landed() == Counter(range(8))


@pytest.mark.parametrize("asleep", [Passed.LETTERS_WRITTEN, Passed.FILES_WRITTEN, Passed.MANIFESTS_WRITTEN])
def test_a_zombie_that_falls_asleep_in_its_commit_lands_nothing_behind_its_successors(
    team: Team, asleep: Passed
) -> None:
    """Past the last look at the group only the table can stop it, and does."""
    zombie = team.join()
    team.settle()
    team.produce(8)
    zombie.step(), zombie.step()
    successors: list[SinkWorker[Any]] = []

    def sleep(passed: Passed) -> None:
        if passed is asleep and not successors:
            team.group.throw_out(team.members[0])
            team.workers.remove(zombie)
            successors.append(team.join())
            team.drain()

    zombie._hook = sleep
    zombie._landing._manifests_written = lambda: sleep(Passed.MANIFESTS_WRITTEN)
    team.bench.clock.advance(60)
    zombie.step()
    assert zombie.stats.rows_committed == 0
    assert successors[0].stats.rows_committed == 8
    assert team.landed() == Counter(range(8))
    assert len(team.store.files) == len(team.store.snapshots), "its files are discarded, since none can refer to them"


def test_a_zombie_that_is_heard_of_again_before_its_successor_begins_is_a_member_like_any_other(team: Team) -> None:
    zombie = zombie_that_holds_rows(team)
    team.drain()
    assert zombie.stats.rows_committed == 8
    assert zombie.stats.rows_read == 16, "what it held when it was thrown out was dropped and read again"
    assert team.landed() == Counter(range(8))


# --- offsets in Kafka -------------------------------------------------------------------------------------------------


def test_the_groups_offsets_are_those_of_the_table(team: Team) -> None:
    team.join(), team.join()
    team.produce(22)
    team.drain()
    ends = {partition.partition: n for partition, n in team.log.end_offsets().items()}
    assert team.group.noted == {Share(TOPIC, number): n for number, n in ends.items()}


def test_a_worker_alone_notes_its_offsets_too_and_never_reads_them(team: Team) -> None:
    team.produce(22)
    team.bench.noted.update({Share(TOPIC, number): 999 for number in range(PARTITIONS)})
    team.bench.run(team.bench.worker())
    assert team.landed() == Counter(range(22))
    assert sum(team.bench.noted.values()) == 22


# --- the real table ---------------------------------------------------------------------------------------------------


def test_workers_in_threads_on_one_real_table_meet_and_both_go_on(tmp_path: Path) -> None:
    lake = LakeSettings.load(data_dir=tmp_path / "lake")
    team = Team(lambda: IcebergTable.open(lake, TRADES))
    team.bench.open_table()  # so that both find it
    team.produce(60)
    workers = [team.join(), team.join()]
    team.settle()
    rows_before = sum(worker.stats.rows_committed for worker in workers)
    team.produce(60)
    failures: list[BaseException] = []
    start = threading.Barrier(2)

    def run(worker: SinkWorker[Any]) -> None:
        # A policy that is always due: the manual clock is shared and stands still.
        worker._policy = type(worker._policy)(rows_max=1, bytes_max=1, age_ms_max=0)
        start.wait()
        try:
            for _ in range(40):
                worker.step()
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert rows_before < 120 == sum(worker.stats.rows_committed for worker in workers)
    assert sum(worker.stats.rows_read for worker in workers) == 120, "a conflict costs a commit, never a second read"
    table = IcebergTable.open(lake, TRADES)
    rows = Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())
    assert rows == Counter(range(120))


# --- any order --------------------------------------------------------------------------------------------------------

events = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("crash"), st.sampled_from(list(Passed))),
    st.tuples(st.just("fault"), st.sampled_from(list(Fault))),
    st.tuples(st.just("deliver"), st.none()),
    st.tuples(st.just("join"), st.none()),
    st.tuples(st.just("leave"), st.integers(0, 3)),
    st.tuples(st.just("throw out"), st.integers(0, 3)),
    st.tuples(st.just("produce"), st.integers(1, 9)),
    st.tuples(st.just("maintain"), st.none()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(events, max_size=60))
def test_any_schedule_of_members_that_come_go_die_and_wake_ends_with_each_record_once(
    schedule: list[tuple[str, Any]],
) -> None:
    team = Team()
    team.join(), team.join()

    def replace(index: int) -> None:
        """The process died: nobody says goodbye, the group finds out, another process starts."""
        team.group.throw_out(team.members[index])
        del team.workers[index], team.members[index]
        team.join()

    def step(index: int) -> None:
        worker = team.workers[index]
        try:
            if not worker.step():
                team.bench.clock.advance(0.5)
        except Crash:
            replace(index)
        except K2Error as error:
            assert error.retryable, error

    team.produce(5)
    for what, argument in schedule:
        index = argument % len(team.workers) if what in ("step", "leave", "throw out") else 0
        if what == "step":
            step(index)
        elif what == "crash":
            team.bench.crash_at = {argument: 1}
        elif what == "fault":
            team.store.faults.append(argument)
        elif what == "deliver":
            team.store.deliver_late()
        elif what == "join" and len(team.workers) < 4:
            team.join()
        elif what == "leave" and len(team.workers) > 1:
            team.workers[index].close()
            del team.workers[index], team.members[index]
        elif what == "throw out":
            team.group.throw_out(team.members[index])
        elif what == "produce":
            team.produce(argument)
            if team.produced % 3 == 0:
                team.log.append(TOPIC, BAD, 1)
                team.log.hole(TOPIC, 2)
        elif what == "maintain":
            team.store.maintain()

    team.bench.crash_at = {}
    team.store.faults.clear()
    # A hole at the very end of a partition is nothing to commit; each ends with a record.
    team.produce(PARTITIONS)
    for _ in range(200):
        for index in range(len(team.workers)):
            step(index)
        if team.bench.committed() == team.log.end_offsets():
            break
    team.store.deliver_late()
    assert team.bench.committed() == team.log.end_offsets()
    assert team.landed() == Counter(range(team.produced))
    letters = {(letter.partition, letter.offset) for letter in team.bench.dead_letters.letters}
    assert letters == {
        (partition.partition, offset)
        for partition, records in team.log._partitions.items()
        for offset, value in records.records.items()
        if value == BAD
    }
