"""The loop: what it holds, when it commits, and what it does when another writer or the log gets in its way."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from common.errors import BrokerError, CatalogError, CommitConflict, LogTruncated
from common.log import ConsumerBatch
from common.offsets import KafkaPartition, PartitionOffsets
from sink.commit_policy import CommitPolicy
from sink.worker import Passed
from tests.support.fake_log import FakeLog, FakeReader
from tests.support.fake_table import FakeStore, FakeTable, Fault
from tests.support.records import trade
from tests.support.sink_bench import ENCODER, TOPIC, SinkBench

BAD = b"\x00\x00\x00"


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def bench(store: FakeStore) -> SinkBench:
    return SinkBench(FakeLog(), lambda: FakeTable(store))


def fill(log: FakeLog, first: int, count: int, *, topic: str = TOPIC, partition: int = 0) -> None:
    for trade_id in range(first, first + count):
        log.append(topic, ENCODER.encode(trade(trade_id)), partition)


def ids(store: FakeStore) -> list[Any]:
    return sorted(row["trade_id"] for row in store.rows())  # type: ignore[type-var]


def test_every_record_lands_once_and_the_offsets_with_it(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC, partitions=3)
    for trade_id in range(40):
        fill(bench.log, trade_id, 1, partition=trade_id % 3)
    worker = bench.worker()
    bench.run(worker)
    assert ids(store) == list(range(40))
    assert bench.committed() == bench.log.end_offsets()
    assert worker.stats.rows_committed == worker.stats.rows_read == 40
    assert worker.stats.commits == len(store.snapshots) == 4
    assert not worker.stats.holding
    positions = {(row["_kafka_partition"], row["_kafka_offset"]) for row in store.rows()}
    assert positions == {(n % 3, n // 3) for n in range(40)}


def test_rows_make_a_commit_due(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 11)
    worker = bench.worker()
    worker.step(), worker.step()
    assert (worker.stats.rows_held, worker.stats.commits) == (8, 0)
    worker.step()
    assert (worker.stats.rows_held, worker.stats.commits) == (0, 1)
    assert ids(store) == list(range(11))


def test_behind_the_first_message_a_turn_waits_for_more(bench: SinkBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for each that comes, while the age bound of the first runs."""
    filled = []
    poll = FakeReader.poll

    def polled(reader: FakeReader, messages_max: int, timeout_s: float, *, fill: bool = False) -> list[ConsumerBatch]:
        filled.append(fill)
        return poll(reader, messages_max, timeout_s, fill=fill)

    monkeypatch.setattr(FakeReader, "poll", polled)
    bench.log.create(TOPIC)
    worker = bench.worker()
    worker.step()
    fill(bench.log, 0, 3)
    worker.step(), worker.step()
    assert worker.stats.rows_held == 3
    assert filled == [False, False, True]


@pytest.mark.parametrize("reads_on", [1, 2, 3, 50])
def test_while_files_are_written_the_log_is_read_on_up_to_the_next_commit(
    bench: SinkBench, store: FakeStore, reads_on: int
) -> None:
    bench.reads_on = reads_on
    bench.log.create(TOPIC)
    fill(bench.log, 0, 60)
    worker = bench.worker()
    worker.step(), worker.step(), worker.step()
    assert ids(store) == list(range(12))
    assert bench.committed() == PartitionOffsets(dict.fromkeys(bench.log.end_offsets(), 12))
    assert worker.stats.rows_held == min(4 * reads_on, 12), "no more than what the next commit takes"
    bench.run(worker)
    assert ids(store) == list(range(60))
    assert worker.stats.rows_read == 60


def test_what_was_read_meanwhile_goes_with_a_commit_that_does_not_land(bench: SinkBench, store: FakeStore) -> None:
    bench.reads_on = 2
    bench.log.create(TOPIC)
    fill(bench.log, 0, 30)
    other, worker = bench.worker(), bench.worker()
    worker.step(), worker.step()
    bench.run(other)
    worker.step()
    assert worker.stats.rows_held == 0
    bench.run(worker)
    assert ids(store) == list(range(30))


def test_a_read_that_fails_while_files_are_written_leaves_neither_rows_nor_files(
    bench: SinkBench, store: FakeStore
) -> None:
    bench.reads_on = 2
    bench.log.create(TOPIC)
    fill(bench.log, 0, 30)
    worker = bench.worker()
    worker.step(), worker.step()

    def break_the_broker(passed: Passed) -> None:
        if passed is Passed.DECODED and worker.stats.rows_read == 12:
            bench.log.down = True

    bench.on_passed = break_the_broker
    with pytest.raises(BrokerError):
        worker.step()
    assert (ids(store), store.files) == ([], {})
    bench.log.down = False
    bench.run(worker)
    assert ids(store) == list(range(30))


def test_bytes_make_a_commit_due(bench: SinkBench, store: FakeStore) -> None:
    bench.policy = CommitPolicy(rows_max=1 << 40, bytes_max=200, age_ms_max=1 << 40)
    bench.log.create(TOPIC)
    fill(bench.log, 0, 4)
    worker = bench.worker()
    worker.step()
    assert worker.stats.bytes_read >= 200
    assert ids(store) == [0, 1, 2, 3]


def test_age_makes_a_commit_due_without_new_messages(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 1)
    worker = bench.worker()
    worker.step()
    assert ids(store) == []
    bench.clock.advance(0.999)
    assert not worker.step()
    bench.clock.advance(0.001)
    assert worker.step()
    assert ids(store) == [0]


def test_a_flush_commits_what_is_held(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    worker = bench.worker()
    worker.step()
    assert worker.flush()
    assert ids(store) == [0, 1, 2]
    assert worker.flush()
    assert len(store.snapshots) == 1


def test_a_worker_without_topics_waits_for_them(bench: SinkBench, store: FakeStore) -> None:
    worker = bench.worker()
    assert not worker.step()
    bench.log.create(TOPIC, partitions=2)
    fill(bench.log, 0, 2, partition=1)
    bench.run(worker)
    assert ids(store) == [0, 1]


def test_a_topic_made_later_is_picked_up_and_the_others_go_on(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    worker = bench.worker()
    worker.step()
    second = "market.crypto.trades.other"
    bench.log.create(second)
    fill(bench.log, 100, 3, topic=second)
    bench.run(worker)
    assert ids(store) == [0, 1, 2, 100, 101, 102]
    assert worker.stats.rows_read == 6
    assert worker.stats.recoveries == 0


def test_a_topic_made_anew_is_another_source(bench: SinkBench, store: FakeStore) -> None:
    old = bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    worker = bench.worker()
    bench.run(worker)
    new = bench.log.create(TOPIC)
    fill(bench.log, 50, 2)
    bench.run(worker)
    assert ids(store) == [0, 1, 2, 50, 51]
    assert bench.committed() == PartitionOffsets(
        {
            KafkaPartition(bench.log.cluster_id, old.topic_id, 0): 3,
            KafkaPartition(bench.log.cluster_id, new.topic_id, 0): 2,
        }
    )
    assert len({row["_kafka_topic"] for row in store.rows()}) == 2


def test_records_of_a_new_incarnation_never_land_as_those_of_the_old_one(bench: SinkBench, store: FakeStore) -> None:
    """Between the deletion and its discovery the reader, which fetches by name, gives new records at old positions."""
    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    worker = bench.worker()
    bench.run(worker)
    bench.discovery_lags = True
    new = bench.log.create(TOPIC)
    fill(bench.log, 50, 6)
    worker.step()
    assert worker.stats.rows_held == 3, "offsets 3 to 5 of the new topic came at the old one's position"
    bench.run(worker)
    assert ids(store) == [0, 1, 2, *range(50, 56)]
    assert bench.committed()[KafkaPartition(bench.log.cluster_id, new.topic_id, 0)] == 6
    assert worker.stats.conflicts == 0


def test_records_held_of_a_topic_that_was_deleted_are_dropped_and_other_topics_lose_nothing(
    bench: SinkBench, store: FakeStore
) -> None:
    other = "market.crypto.trades.other"
    bench.log.create(TOPIC)
    bench.log.create(other)
    fill(bench.log, 0, 2)
    fill(bench.log, 100, 2, topic=other)
    worker = bench.worker()
    worker.step()
    assert worker.stats.rows_held == 4
    bench.log.delete(TOPIC)
    bench.run(worker)
    assert ids(store) == [100, 101]


def test_what_is_new_to_a_table_is_said_at_the_start(
    bench: SinkBench, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that starts on a table of another cluster, or of a topic that was made anew while no sink ran."""
    monkeypatch.setattr("sink.worker._log", structlog.wrap_logger(None, wrapper_class=structlog.BoundLogger))

    def said_at_the_start() -> list[str]:
        with capture_logs() as lines:
            bench.run(bench.worker())
        return [line["event"] for line in lines if line["log_level"] == "warning"]

    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    assert said_at_the_start() == [], "a new table says nothing"
    assert said_at_the_start() == []
    bench.log.create("market.crypto.trades.other")
    assert said_at_the_start() == ["a topic is new to the table: it is read from its beginning, as a new source"]
    bench.log.delete("market.crypto.trades.other")
    bench.log.create(TOPIC)
    fill(bench.log, 3, 3)
    (said,) = said_at_the_start()
    assert said.endswith("topics that the table was filled from are gone, so it may have been made anew")
    bench.log = FakeLog("second-cluster")
    bench.log.create(TOPIC)
    fill(bench.log, 6, 3)
    (said,) = said_at_the_start()
    assert said.startswith("the table was filled from another Kafka cluster")
    assert ids(store) == list(range(9))


def test_another_cluster_is_another_source(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    bench.run(bench.worker())
    bench.log = FakeLog("second-cluster")
    bench.log.create(TOPIC)
    fill(bench.log, 3, 2)
    bench.run(bench.worker())
    assert ids(store) == [0, 1, 2, 3, 4]
    assert len(bench.committed()) == 2


def test_holes_in_the_offsets_are_passed(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    bench.log.hole(TOPIC, width=3)
    for n in range(6):
        fill(bench.log, n, 1)
        bench.log.hole(TOPIC, width=n % 3)
    worker = bench.worker()
    bench.run(worker)
    assert ids(store) == list(range(6))
    assert worker.stats.read == bench.log.end_offsets()
    bench.run(bench.worker())
    assert ids(store) == list(range(6))


@pytest.mark.parametrize("commit", [True, False], ids=["committed", "aborted"])
def test_of_an_open_transaction_nothing_lands_nor_of_what_lies_behind_it(
    bench: SinkBench, store: FakeStore, commit: bool
) -> None:
    """Whoever wrote that. Once it has ended, the sink goes on, over the marker and over aborted records."""
    bench.log.create(TOPIC)
    fill(bench.log, 0, 2)
    bench.log.append(TOPIC, ENCODER.encode(trade(9)), transaction="of a dead ingest")
    fill(bench.log, 2, 3)
    worker = bench.worker()
    bench.run(worker)
    assert ids(store) == [0, 1]
    assert sum(bench.committed().values()) == 2
    bench.log.end_transaction("of a dead ingest", commit=commit)
    bench.run(worker)
    assert ids(store) == [0, 1, 2, 3, 4, *([9] if commit else [])]
    assert bench.committed() == bench.log.end_offsets()


def test_a_log_whose_first_records_are_gone_is_read_from_where_it_begins_and_the_table_says_so(
    bench: SinkBench, store: FakeStore
) -> None:
    bench.log.create(TOPIC, partitions=2)
    fill(bench.log, 0, 5, partition=0)
    bench.log.truncate(TOPIC, 3, partition=0)
    bench.log.hole(TOPIC, partition=1, width=7)
    bench.log.truncate(TOPIC, 7, partition=1)
    bench.run(bench.worker())
    assert ids(store) == [3, 4]
    assert bench.committed() == bench.log.end_offsets()


def test_offsets_that_are_gone_from_the_log_are_no_quiet_gap(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 2)
    bench.run(bench.worker())
    fill(bench.log, 2, 6)
    bench.log.truncate(TOPIC, 5)
    with pytest.raises(LogTruncated):
        bench.worker().step()
    assert ids(store) == [0, 1]


# --- bad records ------------------------------------------------------------------------------------------------------


def test_a_bad_record_becomes_a_dead_letter_and_its_neighbours_land(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 2)
    bench.log.append(TOPIC, BAD)
    bench.log.append(TOPIC, None)
    fill(bench.log, 2, 1)
    worker = bench.worker()
    bench.run(worker)
    assert ids(store) == [0, 1, 2]
    assert [(letter.offset, letter.value) for letter in bench.dead_letters.letters] == [(2, BAD), (3, None)]
    assert all(letter.reason for letter in bench.dead_letters.letters)
    assert worker.stats.dead_letters == 2


def test_a_batch_of_bad_records_only_moves_the_offsets_in_a_snapshot_of_its_own(
    bench: SinkBench, store: FakeStore
) -> None:
    bench.log.create(TOPIC)
    bench.log.append(TOPIC, BAD)
    bench.run(bench.worker())
    assert bench.committed() == bench.log.end_offsets()
    assert len(store.snapshots) == 1
    bench.run(bench.worker())
    assert len(bench.dead_letters.letters) == 1


def test_nothing_is_committed_past_a_dead_letter_that_was_not_written(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    bench.log.append(TOPIC, BAD)
    bench.dead_letters.failures = [BrokerError("no acknowledgement")]
    worker = bench.worker()
    worker.step()
    bench.clock.advance(2)
    with pytest.raises(BrokerError):
        worker.step()
    assert store.snapshots == []
    assert not store.files
    bench.run(worker)
    assert ids(store) == [0, 1, 2]
    assert len(bench.dead_letters.letters) == 1
    assert worker.stats.recoveries == 1


# --- other writers, lost answers --------------------------------------------------------------------------------------


def test_a_commit_by_maintenance_in_between_costs_a_second_try_with_the_same_files(
    bench: SinkBench, store: FakeStore
) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 12)
    store.faults.extend([Fault.CONFLICT, Fault.CONFLICT])
    worker = bench.worker()
    bench.run(worker)
    assert ids(store) == list(range(12))
    assert worker.stats.conflicts == 2
    assert worker.stats.rows_read == 12
    assert len(store.files) == 1


def test_maintenance_without_end_is_an_error_and_loses_nothing(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 12)
    store.faults.extend([Fault.CONFLICT] * 10_000)
    worker = bench.worker()
    worker.step(), worker.step()
    began_s = bench.clock.monotonic_s()
    with pytest.raises(CommitConflict, match="for 60 s; is a maintenance job"):
        worker.step()
    assert 50 < bench.clock.monotonic_s() - began_s <= 60
    assert worker.stats.conflicts > 50, "a time bounds the tries, not their number"
    assert not store.files
    store.faults.clear()
    bench.run(worker)
    assert ids(store) == list(range(12))


def test_when_another_writer_landed_the_same_offsets_ours_are_dropped(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 10)
    ours, zombie = bench.worker(), bench.worker()
    ours.step(), zombie.step()
    bench.run(zombie)
    fill(bench.log, 10, 5)
    bench.run(ours)
    assert ids(store) == list(range(15))
    assert ours.stats.conflicts == 1
    assert len(store.files) == len(store.snapshots)


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.LATE])
def test_a_lost_answer_neither_loses_nor_doubles(bench: SinkBench, store: FakeStore, fault: Fault) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 25)
    store.faults.append(fault)
    worker = bench.worker()
    bench.run(worker)
    store.deliver_late()
    assert ids(store) == list(range(25))
    assert worker.stats.rows_committed == 25


def test_a_late_request_that_lands_before_our_second_try_wins_and_keeps_its_files(
    bench: SinkBench, store: FakeStore
) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 12)
    store.faults.append(Fault.LATE)
    worker = bench.worker()
    while not store._late:
        worker.step()
    store.deliver_late()
    bench.run(worker)
    assert ids(store) == list(range(12))
    assert worker.stats.conflicts == 1


def test_a_catalog_that_is_down_for_a_while_costs_a_recovery(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 3)
    store.faults.append(Fault.CATALOG_DOWN)
    worker = bench.worker()
    with pytest.raises(CatalogError):
        worker.step()
    assert worker.stats.holding, "what is not known to be committed counts as held"
    bench.run(worker)
    assert ids(store) == [0, 1, 2]


def test_a_broker_that_is_down_for_a_while_loses_nothing_that_is_held(bench: SinkBench, store: FakeStore) -> None:
    bench.log.create(TOPIC)
    fill(bench.log, 0, 6)
    worker = bench.worker()
    worker.step()
    bench.log.down = True
    with pytest.raises(BrokerError):
        worker.step()
    assert not worker.flush(), "after an error nothing may be committed on positions that are in doubt"
    bench.log.down = False
    bench.run(worker)
    assert ids(store) == list(range(6))


def test_drained_means_committed_or_dead_lettered(bench: SinkBench) -> None:
    bench.log.create(TOPIC)
    worker = bench.worker()
    worker.step()
    assert worker.stats.drained(bench.log.end_offsets()), "an empty log is drained"
    fill(bench.log, 0, 1)
    assert not worker.stats.drained(bench.log.end_offsets())
    worker.step()
    assert not worker.stats.drained(bench.log.end_offsets()), "read is not committed"
    assert worker.flush()
    assert worker.stats.drained(bench.log.end_offsets())


def test_what_fails_behind_a_commit_leaves_the_commit(bench: SinkBench, store: FakeStore) -> None:
    failures = [CatalogError("expiry failed")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    bench.after_commit = fail_once
    bench.log.create(TOPIC)
    fill(bench.log, 0, 30)
    worker = bench.worker()
    with pytest.raises(CatalogError):
        bench.run(worker)
    bench.run(worker)
    assert ids(store) == list(range(30))
    assert worker.stats.rows_committed == 30
