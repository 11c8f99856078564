"""Several sinks in one consumer group of a real Apache Kafka: who comes, goes, or sleeps too long, each trade once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from common.codec import Encoder
from common.datasets import TRADES
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from sink.service import SinkService
from sink.table import IcebergTable
from tests.support.kafka import eventually, produce
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)
GROUP = SinkSettings.load(commit_age_ms_max=50, group="test", group_session_ms_max=2_000)
PARTITIONS = 4

SINK_PROCESS = """
import threading
from common.datasets import TRADES
from common.settings import KafkaSettings, LakeSettings, SinkSettings, TelemetrySettings
from common.telemetry import configure_logging
from sink.service import SinkService
configure_logging(TelemetrySettings.load(log_level="debug", log_format="json"), service="sink")
SinkService(KafkaSettings.load(), LakeSettings.load(), SinkSettings.load(), datasets=(TRADES,)).start()
threading.Event().wait()
"""


def trades(first: int, count: int) -> list[bytes]:
    return [ENCODER.encode(trade(i)) for i in range(first, first + count)]


def ids(lake: LakeSettings) -> Counter[int]:
    table = IcebergTable.open(lake, TRADES)
    return Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def sinks(kafka: KafkaSettings, lake: LakeSettings) -> Iterator[list[SinkService]]:
    """To start with: none, on a topic of four partitions."""
    KafkaLog(kafka).ensure_topics([TOPIC])
    started: list[SinkService] = []
    yield started
    for sink in started:
        sink.stop()


def join(sinks: list[SinkService], kafka: KafkaSettings, lake: LakeSettings) -> SinkService:
    sinks.append(SinkService(kafka, lake, GROUP, datasets=(TRADES,)))
    sinks[-1].start()
    return sinks[-1]


def partitions(sink: SinkService) -> int:
    return sink.stats()["trades"].partitions


def all_taken(kafka: KafkaSettings, lake: LakeSettings) -> bool:
    log = KafkaLog(kafka)
    return IcebergTable.open(lake, TRADES).committed_offsets().covers(log.end_offsets(log.topics("^market").values()))


def test_two_sinks_share_a_topic_and_one_takes_over_from_the_other(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    one, two = join(sinks, kafka, lake), join(sinks, kafka, lake)
    eventually(lambda: (partitions(one), partitions(two)) == (2, 2), what="the partitions are shared out")
    produce(kafka, TOPIC, trades(0, 1000))
    eventually(lambda: all_taken(kafka, lake))
    assert (one.stats()["trades"].rows_committed, two.stats()["trades"].rows_committed) == (500, 500)
    two.stop()
    eventually(lambda: partitions(one) == PARTITIONS, what="the one that is left has all")
    produce(kafka, TOPIC, trades(1000, 1000))
    eventually(lambda: all_taken(kafka, lake))
    one.stop()
    assert one.failure is None and two.failure is None
    assert ids(lake) == Counter(range(2000))

    tool = Consumer(kafka.client_config() | {"group.id": "test-trades"})
    noted = tool.committed([TopicPartition(TOPIC, number) for number in range(PARTITIONS)], timeout=10)
    tool.close()
    committed = IcebergTable.open(lake, TRADES).committed_offsets()
    assert {p.partition: p.offset for p in noted} == {p.partition: n for p, n in committed.items()}


def test_a_process_that_sleeps_past_its_session_wakes_as_a_zombie_and_lands_nothing_twice(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(pytestconfig.rootpath),
        "HOME": str(tmp_path),
        "K2_KAFKA_BOOTSTRAP_SERVERS": str(kafka.bootstrap_servers),
        "K2_LAKE_DATA_DIR": str(lake.data_dir),
        "K2_SINK_COMMIT_AGE_MS_MAX": "500",
        "K2_SINK_GROUP": "test",
        "K2_SINK_GROUP_SESSION_MS_MAX": "2000",
    }
    said = tmp_path / "zombie.log"
    stop, produced = threading.Event(), 0

    def replay() -> None:
        nonlocal produced
        while not stop.is_set():
            produced += produce(kafka, TOPIC, trades(produced, 100))

    successor = join(sinks, kafka, lake)
    eventually(lambda: partitions(successor) == PARTITIONS)
    with said.open("wb") as out:
        zombie = subprocess.Popen([sys.executable, "-c", SINK_PROCESS], env=environment, stderr=out, stdout=out)
    replaying = threading.Thread(target=replay)
    replaying.start()
    try:
        for _ in range(2):
            eventually(lambda: partitions(successor) == 2, what="the other has its share")
            commits = said.read_text().count('"committed"')
            eventually(lambda: said.read_text().count('"committed"') > commits, what="and works on it")  # noqa: B023
            zombie.send_signal(signal.SIGSTOP)
            eventually(lambda: partitions(successor) == PARTITIONS, what="the sleeper's partitions moved")
            passed = successor.stats()["trades"].commits + 2
            eventually(lambda: successor.stats()["trades"].commits > passed)  # noqa: B023
            zombie.send_signal(signal.SIGCONT)
        eventually(lambda: partitions(successor) == 2, what="it is a member again")
        assert zombie.poll() is None, "the zombie ended by itself"
    finally:
        stop.set()
        replaying.join()
        zombie.kill()
        zombie.wait()
    eventually(lambda: all_taken(kafka, lake))
    assert ids(lake) == Counter(range(produced))
    lines = said.read_text()
    assert lines.count('"ours": 2') >= 2, lines
    # It was stopped at any moment: with rows in its hands, which it then says it drops, or with none, and then it only
    # hears that its share is gone.
    woke = ("its partitions are others' now", "another writer was first", '"ours": 0, "before": 2')
    assert any(line in lines for line in woke), lines
