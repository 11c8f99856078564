"""The brokers that are measured: the embedded one, and Apache Kafka where Java and Maven are."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from k2.broker import EmbeddedBroker
from tests.integration.kafka_server import KafkaServer, jars
from tests.support.missing import MissingTool


@dataclass(frozen=True)
class Broker:
    """One that runs."""

    name: str
    bootstrap_servers: str
    pid: int


@contextlib.contextmanager
def embedded() -> Iterator[Broker]:
    with EmbeddedBroker() as broker:
        yield Broker("embedded broker", broker.bootstrap_servers, broker.pid)


@contextlib.contextmanager
def apache_kafka() -> Iterator[Broker | None]:
    """None where Java or Maven are missing."""
    try:
        jars()
    except MissingTool:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="k2-kafka-") as folder:
        server = KafkaServer(Path(folder))
        server.start()
        try:
            yield Broker("Apache Kafka", server.bootstrap_servers, server.pid)
        finally:
            server.stop()


BROKERS: tuple[Callable[[], AbstractContextManager[Broker | None]], ...] = (embedded, apache_kafka)
