"""Producing to and reading from a real broker in tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from common.settings import KafkaSettings


def produce(kafka: KafkaSettings, topic: str, values: Iterable[bytes | None], *, partitions: int = 4) -> int:
    """Send the values to the partitions in turn and wait until all are acknowledged; returns how many."""
    failures: list[str] = []
    producer = Producer(
        kafka.client_config() | {"linger.ms": 5, "enable.idempotence": True, "message.max.bytes": 1 << 24}
    )
    count = 0
    for value in values:
        producer.produce(
            topic,
            value=value,
            partition=count % partitions,
            on_delivery=lambda error, _message: failures.append(str(error)) if error else None,
        )
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
    assert producer.flush(30) == 0
    assert not failures, failures[0]
    return count


def read_all(kafka: KafkaSettings, topic: str, count: int, *, partitions: int = 4, timeout_s: float = 20) -> list[Any]:
    """The first `count` messages of the topic, whatever their partition."""
    consumer = Consumer(kafka.client_config() | {"group.id": "test-reader", "auto.offset.reset": "earliest"})
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        deadline_s = time.monotonic() + timeout_s
        found: list[Any] = []
        while len(found) < count and time.monotonic() < deadline_s:
            found += [message for message in consumer.consume(count, 0.2) if message.error() is None]
        return found
    finally:
        consumer.close()


def eventually(holds: Callable[[], bool], *, timeout_s: float = 30.0, what: str = "") -> None:
    """Wait for something that another thread or process brings about; what is checked is that it comes, not when."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"did not come within {timeout_s} s: {what or holds}"
        time.sleep(0.01)
