"""Captures made up to measure, and the log read back as rows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from common.clock import SystemClock
from common.codec import Decoder
from common.datasets import TRADES, Dataset, dead_letter_topic
from common.log import KafkaLog, KafkaLogReader, TopicInfo
from common.offsets import KafkaPartition
from common.registry import EmbeddedRegistry, open_registry
from common.settings import IngestSettings, KafkaSettings
from ingest.producer import EventProducer
from ingest.service import IngestService

#: For whatever a thread is to reach; far beyond what it takes, so that a slow machine fails no test.
PATIENCE_S = 90.0


def eventually(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Wait until the condition holds; fail when it never does."""
    pause, deadline_s = threading.Event(), time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never came true: {what() if callable(what) else what}"
        pause.wait(0.002)


def dropped(service: IngestService) -> dict[str, int]:
    """How many duplicates were dropped of each dataset that had any."""
    return {name: count for name, count in service.stats().duplicates_dropped.items() if count}


def quick(**changes: Any) -> IngestSettings:
    """Ingest settings that do not wait, with one connection: of a replay each connection gets the whole. Nothing is
    shed, since replays come faster than any broker takes them: there the socket is to wait."""
    plain: dict[str, Any] = {"backoff_s_first": 0.01, "backoff_s_max": 0.02, "checkpoint_interval_s": 3600}
    plain |= {"connections": 1, "shed": False}
    return IngestSettings(**{**plain, **changes})


def trade_line(elapsed_ns: int, symbol: str, trade_id: int) -> bytes:
    data = {
        "e": "trade", "E": 1_700_000_000_000 + trade_id, "s": symbol, "t": trade_id, "p": f"{trade_id}.25000000",
        "q": "0.50000000", "T": 1_700_000_000_000 + trade_id, "m": trade_id % 2 == 0, "M": True,
    }  # fmt: skip
    return line(elapsed_ns, f"{symbol.lower()}@trade", data)


def book_line(elapsed_ns: int, symbol: str, update_id: int) -> bytes:
    data = {"u": update_id, "s": symbol, "b": "10.1", "B": "1", "a": "10.2", "A": f"{update_id}"}
    return line(elapsed_ns, f"{symbol.lower()}@bookTicker", data)


def line(elapsed_ns: int, stream: str, data: object) -> bytes:
    return b"%d %b\n" % (10**18 + elapsed_ns, json.dumps({"stream": stream, "data": data}).encode())


@dataclass
class MadeUp:
    """A capture of two symbols with dense trade ids, a quote behind each trade, and depth that nobody subscribes to."""

    path: Path
    trades: dict[str, list[int]] = field(default_factory=dict)
    quotes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return sum(map(len, self.trades.values())) + sum(map(len, self.quotes.values()))


def made_up(path: Path, *, trades: int, first: int = 1, every_ns: int = 1_000) -> MadeUp:
    capture = MadeUp(path)
    lines = []
    for number in range(first, first + trades):
        for symbol, base in (("BTCUSDT", 0), ("ETHBTC", 1_000_000)):
            elapsed_ns = (number - first) * every_ns
            lines += [
                trade_line(elapsed_ns, symbol, base + number),
                book_line(elapsed_ns, symbol, (base + number) * 3),
                line(elapsed_ns, f"{symbol.lower()}@depth@100ms", {"e": "depthUpdate"}),
            ]
            capture.trades.setdefault(symbol, []).append(base + number)
            capture.quotes.setdefault(symbol, []).append((base + number) * 3)
    path.write_bytes(b"".join(lines))
    return capture


def handled(service: IngestService, frames: int) -> None:
    """Wait until the service has handled so many frames, and the broker has all that came of them."""
    eventually(
        lambda: service.failure is not None or service.stats().frames >= frames,
        lambda: f"{frames} frames handled: {service.stats()}",
    )
    assert service.failure is None
    assert service.flush()


def rows(kafka: KafkaSettings, dataset: Dataset) -> list[dict[str, Any]]:
    """Every row of the dataset's topic, in the order of the partitions' offsets."""
    log = KafkaLog(kafka)
    topics = log.topics(dataset.topic_pattern)
    cluster_id = log.cluster_id()
    starts = {
        KafkaPartition(cluster_id, info.topic_id, number): 0
        for info in topics.values()
        for number in range(info.partitions)
    }
    reader = KafkaLogReader(kafka)
    decoder = Decoder(dataset, EmbeddedRegistry())
    found: list[dict[str, Any]] = []
    try:
        reader.assign(starts, {info.topic_id: info.topic for info in topics.values()})
        while not reader.at_end():
            for batch in reader.poll(10_000, 0.1):
                decoded = decoder.decode(batch)
                assert not decoded.errors
                found += decoded.record_batch.to_pylist()
    finally:
        reader.close()
    return sorted(found, key=lambda row: (row["_kafka_partition"], row["_kafka_offset"]))


def ids(kafka: KafkaSettings, dataset: Dataset) -> dict[str, list[int]]:
    """The dataset's ids per symbol in the log's order."""
    found: dict[str, list[int]] = {}
    for row in rows(kafka, dataset):
        found.setdefault(row["symbol"], []).append(row[dataset.id_column])
    return found


def raw_messages(kafka: KafkaSettings, topic: str, count: int) -> list[Any]:
    """The first `count` messages of a topic with their headers, as Kafka has them."""
    consumer = Consumer(kafka.client_config() | {"group.id": "test", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(kafka.topic_partitions)])
    found: list[Any] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline_s:
        found += [message for message in consumer.consume(count, 0.2) if message.error() is None]
    consumer.close()
    return found


def topic_of(dataset: Dataset) -> str:
    return dataset.topic(asset_class="crypto", exchange="binance")


def dead_letters_of(dataset: Dataset) -> str:
    return dead_letter_topic(topic_of(dataset))


def trades_topic(kafka: KafkaSettings) -> TopicInfo:
    """Made when it is missing."""
    log = KafkaLog(kafka)
    log.ensure_topics([topic_of(TRADES)])
    return log.topics(f"^{topic_of(TRADES)}$")[topic_of(TRADES)]


def producer_of(kafka: KafkaSettings, transactional_id: str = "one-id", **settings: Any) -> EventProducer:
    """A producer of trades that has fenced those before it."""
    fresh = EventProducer(
        kafka,
        quick(**{"delivery_timeout_ms": 5_000, **settings}),
        open_registry(kafka),
        topics={TRADES.name: trades_topic(kafka)},
        transactional_id=transactional_id,
        clock=SystemClock(),
        timed=lambda seconds: None,
    )
    fresh.fence()
    return fresh
