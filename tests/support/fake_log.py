"""A Kafka log in memory that keeps the contract of common.log: topic ids, holes in offsets, readers with positions.

Readers see committed records only: nothing at or behind the first record of a transaction that is open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.errors import BrokerError, LogTruncated
from common.log import ConsumerBatch, TopicInfo
from common.offsets import KafkaPartition, PartitionOffsets
from sink.consumer import Sources


@dataclass
class _Partition:
    """Records by offset, in order; `end` may lie behind the last one (a control record, an aborted transaction).
    `open` are the offsets of the records of each transaction that is neither committed nor aborted."""

    records: dict[int, bytes | None] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    open: dict[str, list[int]] = field(default_factory=dict)

    @property
    def stable(self) -> int:
        """Kafka's last stable offset: how far readers of committed records come, and what they take for the end."""
        return min((offsets[0] for offsets in self.open.values()), default=self.end)


class FakeLog:
    """One cluster. What was appended stays; any number of readers may read it."""

    def __init__(self, cluster_id: str = "fake-cluster") -> None:
        self.cluster_id = cluster_id
        self.down = False
        self._topics: dict[str, TopicInfo] = {}
        self._partitions: dict[KafkaPartition, _Partition] = {}
        self._ids_given = 0

    def create(self, topic: str, partitions: int = 1) -> TopicInfo:
        """Make the topic; under a name that exists, delete it and make it anew with another id."""
        self._ids_given += 1
        info = self._topics[topic] = TopicInfo(topic, f"fake-topic-{self._ids_given:08d}", partitions)
        for number in range(partitions):
            self._partitions[KafkaPartition(self.cluster_id, info.topic_id, number)] = _Partition()
        return info

    def confirm(self, sources: Sources) -> bool:
        """Are these topics still the incarnations that were found?"""
        return all(self._topics.get(name) == info for name, info in sources.topics.items())

    def grow(self, topic: str, partitions: int) -> None:
        """Add partitions, up to this number, to a topic that stays the same incarnation."""
        info = self._topics[topic]
        self._topics[topic] = TopicInfo(topic, info.topic_id, partitions)
        for number in range(info.partitions, partitions):
            self._partitions[KafkaPartition(self.cluster_id, info.topic_id, number)] = _Partition()

    def delete(self, topic: str) -> None:
        del self._topics[topic]

    def append(self, topic: str, value: bytes | None, partition: int = 0, *, transaction: str | None = None) -> int:
        """Add a record, to a transaction of this name if one is given; returns its offset."""
        log = self._partition(topic, partition)
        log.records[log.end] = value
        if transaction is not None:
            log.open.setdefault(transaction, []).append(log.end)
        log.end += 1
        return log.end - 1

    def end_transaction(self, transaction: str, *, commit: bool) -> None:
        """Commit it, or abort it, as its producer does, or a successor that fences it, or the broker after a time.

        A marker takes an offset of each partition that it wrote to; aborted records keep theirs, and nobody sees them.
        """
        for log in self._partitions.values():
            offsets = log.open.pop(transaction, None)
            if offsets is None:
                continue
            log.end += 1
            for offset in () if commit else offsets:
                log.records.pop(offset, None)

    def hole(self, topic: str, partition: int = 0, width: int = 1) -> None:
        """Offsets without records, as a transaction's marker or an aborted transaction leaves them."""
        self._partition(topic, partition).end += width

    def truncate(self, topic: str, start: int, partition: int = 0) -> None:
        """Retention: records below `start` are gone."""
        log = self._partition(topic, partition)
        log.start = start
        log.records = {offset: value for offset, value in log.records.items() if offset >= start}

    @property
    def topics(self) -> dict[str, TopicInfo]:
        return dict(self._topics)

    def start_offsets(self) -> PartitionOffsets:
        return PartitionOffsets({partition: log.start for partition, log in self._live().items()})

    def end_offsets(self) -> PartitionOffsets:
        return PartitionOffsets({partition: log.stable for partition, log in self._live().items()})

    def reader(self) -> FakeReader:
        return FakeReader(self)

    def _live(self) -> dict[KafkaPartition, _Partition]:
        ids = {info.topic_id for info in self._topics.values()}
        return {partition: log for partition, log in self._partitions.items() if partition.topic_id in ids}

    def _partition(self, topic: str, partition: int) -> _Partition:
        return self._partitions[KafkaPartition(self.cluster_id, self._topics[topic].topic_id, partition)]


class FakeReader:
    """A LogReader over a FakeLog. Turns through the partitions, so that several are interleaved.

    Like the real one it fetches by the topic's name: of a topic made anew it gives the new records under the old id.
    """

    def __init__(self, log: FakeLog) -> None:
        self._log = log
        self._next: dict[KafkaPartition, int] = {}
        self._names: dict[str, str] = {}
        self._turn = 0
        self.closed = False

    def assign(self, starts: Mapping[KafkaPartition, int], topics: Mapping[str, str]) -> None:
        assert {partition.topic_id for partition in starts} <= set(topics), "each topic id needs its name"
        self._check_up()
        self._next = dict(starts)
        self._names = dict(topics)

    def poll(self, messages_max: int, timeout_s: float, *, fill: bool = False) -> list[ConsumerBatch]:
        assert timeout_s >= 0
        assert messages_max > 0
        self._check_up()
        found: dict[str, ConsumerBatch] = {}
        left = messages_max
        partitions = sorted(self._next)
        self._turn += 1
        for index in range(len(partitions)):
            partition = partitions[(index + self._turn) % len(partitions)]
            share = max(1, messages_max // len(partitions))
            left -= self._take(partition, min(left, share), found)
            if left <= 0:
                break
        return list(found.values())

    def positions(self) -> PartitionOffsets:
        return PartitionOffsets(self._next)

    def at_end(self) -> bool:
        try:
            return all(self._next[partition] >= self._fetched(partition).stable for partition in self._next)
        except BrokerError:
            return False

    def close(self) -> None:
        self.closed = True

    def _take(self, partition: KafkaPartition, count: int, found: dict[str, ConsumerBatch]) -> int:
        log = self._fetched(partition)
        if not log.start <= self._next[partition] <= log.end:
            raise LogTruncated(f"{partition} no longer holds offset {self._next[partition]}")
        visible = [offset for offset in log.records if self._next[partition] <= offset < log.stable]
        offsets = visible[:count]
        if offsets:
            topic = self._names[partition.topic_id]
            batch = found.setdefault(topic, ConsumerBatch(topic, partition.cluster_id, partition.topic_id, [], [], []))
            batch.partitions.extend([partition.partition] * len(offsets))
            batch.offsets.extend(offsets)
            batch.values.extend(log.records[offset] for offset in offsets)
            self._next[partition] = offsets[-1] + 1
        if len(offsets) == len(visible):
            self._next[partition] = max(self._next[partition], log.stable)
        return len(offsets)

    def _fetched(self, partition: KafkaPartition) -> _Partition:
        info = self._log._topics.get(self._names[partition.topic_id])
        if info is None:
            raise BrokerError(f"there is no topic {self._names[partition.topic_id]}")
        if partition.partition >= info.partitions:
            raise BrokerError(f"the topic {info.topic} has no partition {partition.partition}")
        return self._log._partitions[KafkaPartition(self._log.cluster_id, info.topic_id, partition.partition)]

    def _check_up(self) -> None:
        assert not self.closed, "a closed reader is used"
        if self._log.down:
            raise BrokerError("the fake broker is down")
