"""When a soak says that the tables have the whole log: on a real Apache Kafka, which has transactions that abort."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from common.errors import BrokerError
from common.log import KafkaLog
from common.offsets import PartitionOffsets
from common.settings import KafkaSettings
from tests.soak.reports import has_messages_behind
from tests.support.kafka import eventually

TOPIC = "k2.soak"


def test_markers_and_aborted_messages_at_the_end_are_no_messages(kafka: KafkaSettings) -> None:
    """A sink commits offsets with rows only: behind the last row there may be offsets for ever."""
    log = KafkaLog(kafka)
    log.ensure_topics([TOPIC])
    topics = log.topics(f"^{TOPIC}$")
    producer = Producer(kafka.client_config() | {"transactional.id": "soak"})
    producer.init_transactions(30)

    def transaction(value: bytes, *, commit: bool) -> None:
        producer.begin_transaction()
        producer.produce(TOPIC, value, partition=0)
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)

    def behind(taken: PartitionOffsets) -> bool:
        return has_messages_behind(taken, kafka, log, topics)

    assert not behind(PartitionOffsets())
    transaction(b"a row", commit=True)
    # A broker answers a commit before the markers are written that let readers see it.
    eventually(lambda: behind(PartitionOffsets()), what="the row")
    [partition] = [one for one in log.end_offsets(topics.values()) if one.partition == 0]
    taken = PartitionOffsets({partition: 1})
    transaction(b"never there", commit=False)
    assert log.end_offsets(topics.values()).next_offset(partition) > 1
    assert not behind(taken)
    transaction(b"another row", commit=True)
    eventually(lambda: behind(taken), what="the other row")


def test_a_broker_that_is_gone_is_no_empty_log(kafka: KafkaSettings) -> None:
    gone = KafkaSettings.load(bootstrap_servers="127.0.0.1:1", request_timeout_ms=1_000)
    with pytest.raises(BrokerError):
        has_messages_behind(PartitionOffsets(), gone, KafkaLog(gone), {})
