"""One publication of the tail, apart from the log: what it costs in CPU, and which of its steps.

The publisher is real, as is the broker that it asks for the topics' ids; what it reads is made up, 16 partitions of
four datasets of which the trades' four have records. CPU is the whole process's, so DuckDB's threads are in it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from common.clock import SystemClock
from common.datasets import CORE_DATASETS, TRADES
from common.log import ConsumerBatch, KafkaLog
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings
from flight_server.storage.database import Database
from flight_server.storage.read_view import Snapshot
from flight_server.storage.tail import Publisher
from k2.broker import EmbeddedBroker
from tests.performance.figures import Figure
from tests.performance.market_data import messages

_ROWS, _TURNS, _PARTITIONS = (20, 400), 400, 4


def run(scale: float) -> list[Figure]:
    turns = max(20, int(_TURNS * scale))
    figures = []
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        log = KafkaLog(kafka)
        log.ensure_topics(dataset.topic(asset_class="crypto", exchange="binance") for dataset in CORE_DATASETS)
        for rows in _ROWS:
            figures += _measure(log, rows, turns)
    return figures


def _measure(log: KafkaLog, rows: int, turns: int) -> list[Figure]:
    settings = FlightSettings(tail_publish_ms=1)
    database, steps = Database(settings, None), _Steps()
    topics = log.topics("^market|^ops")
    reader = _MadeUp(rows)
    publisher = Publisher(
        database,
        reader,
        EmbeddedRegistry(),
        settings,
        SystemClock(),
        CORE_DATASETS,
        topic_ids=steps.timed("asking for the topics' ids", log.topic_ids),
    )
    publisher.adopt({dataset.name: Snapshot() for dataset in CORE_DATASETS})
    publisher.assign(log.cluster_id(), topics.values())
    for owner, name, step in (
        (publisher._tables[TRADES.name].decoder, "decode", "decoding"),
        (database, "append", "rows and positions into the database"),
        (publisher.latencies, "note", "latencies"),
    ):
        setattr(owner, name, steps.timed(step, getattr(owner, name)))
    for _ in range(10):
        publisher.poll(0.0)
    steps.clear()
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(turns):
        assert publisher.poll(0.0) == rows
    taken_ms = (time.perf_counter() - begun_s) / turns * 1000
    cpu_ms = (time.process_time() - cpu_s) / turns * 1000
    database.close()
    split = ", ".join(f"{step} {s / turns * 1000:.2f}" for step, s in steps.cpu_s.items())
    what = f"a publication of {rows} rows"
    return [
        Figure("publication", f"CPU of {what}", cpu_ms, "ms", split),
        Figure("publication", f"time of {what}", taken_ms, "ms", "nothing else running"),
    ]


class _Steps:
    """CPU by step."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)

    def clear(self) -> None:
        self.cpu_s.clear()

    def timed(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            begun_s = time.process_time()
            try:
                return call(*args, **named)
            finally:
                self.cpu_s[step] += time.process_time() - begun_s

        return timed


class _MadeUp:
    """A LogReader that has the same number of new trades at each poll, spread over their partitions."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._values: list[bytes | None] = list(messages(rows))
        self._next: dict[KafkaPartition, int] = {}
        self._names: Mapping[str, str] = {}

    def assign(self, starts: Mapping[KafkaPartition, int], topics: Mapping[str, str]) -> None:
        self._next, self._names = dict(starts), topics

    def poll(self, messages_max: int, timeout_s: float, *, fill: bool = False) -> list[ConsumerBatch]:
        if fill:
            return []
        trades = sorted(p for p in self._next if TRADES.matches(self._names[p.topic_id]))
        partitions, offsets = [], []
        for number in range(self._rows):
            partition = trades[number * _PARTITIONS // self._rows]
            partitions.append(partition.partition)
            offsets.append(self._next[partition])
            self._next[partition] += 1
        topic_id = trades[0].topic_id
        return [ConsumerBatch(self._names[topic_id], trades[0].cluster_id, topic_id, partitions, offsets, self._values)]

    def positions(self) -> PartitionOffsets:
        return PartitionOffsets(self._next)

    def at_end(self) -> bool:
        return True

    def close(self) -> None:
        pass
