"""The sink on a real Apache Kafka: transactions, retention, topics made anew, a broker that dies, and SIGKILL."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from common.codec import Encoder
from common.datasets import CORE_DATASETS, INSTRUMENTS, QUOTES, TRADES, Dataset
from common.log import KafkaLog
from common.offsets import topic_short
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from sink.service import SinkService
from sink.table import IcebergTable
from tests.integration.kafka_server import KafkaServer
from tests.support.kafka import eventually, produce, read_all
from tests.support.records import instrument, quote, trade

REGISTRY = EmbeddedRegistry()
QUICK = SinkSettings.load(commit_age_ms_max=50)
BAD = b"\x00\x00\x00\x00\x07 no schema of that id"
KILLS = 10


def topic_of(dataset: Dataset) -> str:
    return dataset.topic(asset_class="crypto", exchange="binance")


TOPIC = topic_of(TRADES)
ENCODER = Encoder(TRADES, REGISTRY, topic=TOPIC)


def trades(first: int, count: int) -> list[bytes]:
    return [ENCODER.encode(trade(i)) for i in range(first, first + count)]


def rows_of(lake: LakeSettings, *columns: str) -> list[dict[str, Any]]:
    return [row for batch in IcebergTable.open(lake, TRADES).scan(columns) for row in batch.to_pylist()]


def ids(lake: LakeSettings) -> Counter[int]:
    return Counter(row["trade_id"] for row in rows_of(lake, "trade_id"))


def end_offsets(kafka: KafkaSettings) -> Any:
    log = KafkaLog(kafka)
    return log.end_offsets(log.topics(r"^market\.").values())


def delete_topic(kafka: KafkaSettings, name: str) -> None:
    admin = AdminClient(kafka.client_config())
    admin.delete_topics([name])[name].result()
    eventually(lambda: name not in admin.list_topics(timeout=10).topics)


@pytest.fixture
def topics(kafka: KafkaSettings) -> None:
    KafkaLog(kafka).ensure_topics([topic_of(dataset) for dataset in CORE_DATASETS])


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def sinks() -> Iterator[list[SinkService]]:
    started: list[SinkService] = []
    yield started
    for sink in started:
        sink.stop()


def start(sinks: list[SinkService], *arguments: Any, **options: Any) -> SinkService:
    sink = SinkService(*arguments, **options)
    sinks.append(sink)
    sink.start()
    return sink


@pytest.mark.usefixtures("topics")
def test_three_datasets_land_and_bad_records_go_to_the_dead_letters(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    produce(kafka, TOPIC, [*trades(0, 700), BAD, *trades(700, 300)])
    quotes = Encoder(QUOTES, REGISTRY, topic=topic_of(QUOTES))
    produce(kafka, topic_of(QUOTES), [quotes.encode(quote(i)) for i in range(400)])
    instruments = Encoder(INSTRUMENTS, REGISTRY, topic=topic_of(INSTRUMENTS))
    produce(kafka, topic_of(INSTRUMENTS), [instruments.encode(instrument("BTCUSDT", "a"))])
    sink = start(sinks, kafka, lake, QUICK)
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end))
    sink.stop()
    assert ids(lake) == Counter(range(1000))
    assert IcebergTable.open(lake, QUOTES).rows == 400
    assert IcebergTable.open(lake, INSTRUMENTS).rows == 1
    assert (
        IcebergTable.open(lake, TRADES)
        .committed_offsets()
        .covers({partition: n for partition, n in end.items() if partition in sink.stats()["trades"].committed})
    )
    (letter,) = read_all(kafka, f"dead-letter.{TOPIC}", 1)
    assert letter.value() == BAD


@pytest.mark.usefixtures("topics")
def test_a_dead_letter_that_is_too_large_keeps_its_place_and_stops_nothing(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    largest = 1_048_588 - 100  # the broker's message.max.bytes less the batch's own header: it fits, barely
    produce(kafka, TOPIC, [*trades(0, 2), b"\x01" * largest, *trades(2, 2)])
    sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end))
    assert ids(lake) == Counter(range(4))
    (letter,) = read_all(kafka, f"dead-letter.{TOPIC}", 1)
    assert letter.value() is None
    assert dict(letter.headers())["k2-value-omitted"] == f"{largest} bytes".encode()


@pytest.mark.usefixtures("topics")
def test_of_transactions_only_what_was_committed_lands_and_their_markers_hold_nothing_up(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    producer = Producer(kafka.client_config() | {"transactional.id": "test-transactions", "linger.ms": 0})
    producer.init_transactions(30)
    kept: list[int] = []
    for number in range(12):
        producer.begin_transaction()
        for trade_id in range(number * 10, number * 10 + 10):
            producer.produce(TOPIC, ENCODER.encode(trade(trade_id)), partition=trade_id % 4)
        if number % 3 == 1:
            producer.flush(30)
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
            kept += range(number * 10, number * 10 + 10)
    sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end))
    assert ids(lake) == Counter(kept)
    assert sum(end.values()) > len(kept) + 12, "aborted records and markers have offsets too"

    producer.begin_transaction()
    producer.produce(TOPIC, ENCODER.encode(trade(1000)), partition=0)
    producer.flush(30)
    produce(kafka, TOPIC, trades(1001, 1), partitions=1)
    seen = sink.stats()["trades"].rows_read
    time.sleep(0.5)  # nothing may come of an open transaction, nor of what lies behind it in its partition
    assert sink.stats()["trades"].rows_read == seen
    producer.commit_transaction(30)
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end))
    sink.stop()
    assert ids(lake) == Counter([*kept, 1000, 1001])

    again = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    eventually(lambda: again.drained(end))
    again.stop()
    assert ids(lake) == Counter([*kept, 1000, 1001])


@pytest.mark.usefixtures("topics")
def test_a_log_whose_first_records_were_deleted_is_read_from_where_it_begins(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    produce(kafka, TOPIC, trades(0, 20), partitions=1)
    admin = AdminClient(kafka.client_config())
    for future in admin.delete_records([TopicPartition(TOPIC, 0, 8)]).values():
        future.result()
    sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end))
    assert ids(lake) == Counter(range(8, 20))


@pytest.mark.usefixtures("topics")
def test_records_that_are_deleted_before_the_sink_took_them_end_it_with_a_clear_sentence(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    produce(kafka, TOPIC, trades(0, 5), partitions=1)
    first = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    eventually(lambda: first.stats()["trades"].rows_committed == 5)
    first.stop()
    produce(kafka, TOPIC, trades(5, 20), partitions=1)
    admin = AdminClient(kafka.client_config())
    for future in admin.delete_records([TopicPartition(TOPIC, 0, 15)]).values():
        future.result()
    second = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    eventually(lambda: second.failure is not None)
    assert "no longer holds offset 5" in str(second.failure)
    assert ids(lake) == Counter(range(5))


@pytest.mark.usefixtures("topics")
def test_a_topic_made_anew_while_the_sink_runs_is_a_new_source(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    log = KafkaLog(kafka)
    old_id = log.topics(f"^{TOPIC}$")[TOPIC].topic_id
    produce(kafka, TOPIC, trades(0, 100))
    sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    eventually(lambda: sink.stats()["trades"].rows_committed == 100)
    delete_topic(kafka, TOPIC)
    log.ensure_topics([TOPIC])
    eventually(lambda: log.topic_ids([TOPIC]).get(TOPIC, old_id) != old_id)
    new_id = log.topic_ids([TOPIC])[TOPIC]
    produce(kafka, TOPIC, trades(100, 300))  # more than the old one had, so that the old positions exist in the new log
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end), what="the new topic is taken in")
    sink.stop()
    assert sink.failure is None
    assert ids(lake) == Counter(range(400))
    sources = Counter(row["_kafka_topic"] for row in rows_of(lake, "_kafka_topic"))
    assert sources == {topic_short(old_id): 100, topic_short(new_id): 300}


def test_a_broker_that_dies_and_comes_back_loses_and_doubles_nothing(
    kafka_server: KafkaServer, tmp_path: Path, sinks: list[SinkService]
) -> None:
    server = KafkaServer(tmp_path)
    server.start()
    try:
        kafka = KafkaSettings.load(bootstrap_servers=server.bootstrap_servers, request_timeout_ms=20_000)
        lake = LakeSettings.load(data_dir=tmp_path / "lake")
        KafkaLog(kafka).ensure_topics([TOPIC])
        produce(kafka, TOPIC, trades(0, 500))
        sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
        eventually(lambda: sink.stats()["trades"].rows_committed == 500)
        server.kill()
        server.start()
        produce(kafka, TOPIC, trades(500, 500))
        eventually(lambda: sink.stats()["trades"].rows_committed == 1000, timeout_s=60)
        sink.stop()
        assert sink.failure is None
        assert ids(lake) == Counter(range(1000))
    finally:
        server.stop()


SINK_PROCESS = """
import threading
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from sink.service import SinkService
SinkService(KafkaSettings.load(), LakeSettings.load(), SinkSettings.load()).start()
threading.Event().wait()
"""


@pytest.mark.usefixtures("topics")
def test_sigkill_at_ten_random_moments_of_a_replay_leaves_every_trade_once(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(pytestconfig.rootpath),
        "HOME": str(tmp_path),
        "K2_KAFKA_BOOTSTRAP_SERVERS": str(kafka.bootstrap_servers),
        "K2_LAKE_DATA_DIR": str(lake.data_dir),
        "K2_SINK_COMMIT_AGE_MS_MAX": "20",
        "K2_SINK_POLL_MESSAGES_MAX": "200",
    }
    stop, produced = threading.Event(), 0

    def replay() -> None:
        nonlocal produced
        while not stop.is_set():
            produced += produce(kafka, TOPIC, trades(produced, 200))

    replaying = threading.Thread(target=replay)
    replaying.start()
    try:
        for _ in range(KILLS):
            table = IcebergTable.open(lake, TRADES)
            before = table.committed_offsets()
            process = subprocess.Popen([sys.executable, "-c", SINK_PROCESS], env=environment)
            eventually(lambda: table.committed_offsets() != before, what="the sink process commits")  # noqa: B023
            time.sleep(moments.uniform(0, 0.5))
            assert process.poll() is None, "the sink process ended by itself"
            process.kill()
            process.wait()
    finally:
        stop.set()
        replaying.join()
    assert 0 < sum(ids(lake).values()) <= produced, f"seed {seed}"
    assert max(ids(lake).values()) == 1, f"seed {seed}"
    last = start(sinks, kafka, lake, QUICK)
    end = end_offsets(kafka)
    eventually(lambda: last.drained(end))
    last.stop()
    assert ids(lake) == Counter(range(produced)), f"seed {seed}"
