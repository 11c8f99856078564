"""A broker per test; simulators and ingests that end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.settings import KafkaSettings
from ingest.service import IngestService
from ingest.simulator import Simulator
from k2.broker import EmbeddedBroker
from tests.contract.ingest.ingest_support import quick


@pytest.fixture
def kafka() -> Iterator[KafkaSettings]:
    """Settings of a broker that lives for one test."""
    with EmbeddedBroker() as broker:
        yield KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2, request_timeout_ms=5_000)
        os.kill(broker.pid, signal.SIGKILL)  # it holds nothing worth a clean end, which takes it 2 s


@pytest.fixture
def simulator() -> Iterator[Callable[..., Simulator]]:
    """Start simulators that end with the test."""
    running: list[Simulator] = []

    def start(captures: Iterable[Path], **options: Any) -> Simulator:
        one = Simulator.replay(captures, **options)
        one.start()
        running.append(one)
        return one

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def ingest(kafka: KafkaSettings) -> Iterator[Callable[..., IngestService]]:
    """Start ingests of BTCUSDT and ETHBTC that end with the test."""
    running: list[IngestService] = []

    def start(url: str, *, symbols: Iterable[str] = ("BTCUSDT", "ETHBTC"), **options: Any) -> IngestService:
        one = IngestService(symbols, url=url, **{"kafka": kafka, "settings": quick(), **options})
        one.start()
        running.append(one)
        return one

    yield start
    for one in running:
        one.stop()
