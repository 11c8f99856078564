"""Where the sink reads the log: positions come from the table, never from Kafka's group offsets (design rule 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

from common.log import ConsumerBatch, LogReader, Share, TopicInfo
from common.offsets import KafkaPartition, PartitionOffsets


@dataclass(frozen=True)
class Sources:
    """What there is to read: one cluster's topics of one dataset, by name.

    `log_starts` is the first offset that each partition still holds, where it was asked for; absent means 0. `shares`
    are the partitions that a consumer group gave to this worker; None means all of them.
    """

    cluster_id: str = ""
    topics: Mapping[str, TopicInfo] = field(default_factory=dict)
    log_starts: PartitionOffsets = field(default_factory=PartitionOffsets)
    shares: Set[Share] | None = None

    def partitions(self) -> dict[KafkaPartition, str]:
        """Every partition that is to be read, with its topic's name."""
        return {
            KafkaPartition(self.cluster_id, info.topic_id, number): name
            for name, info in self.topics.items()
            for number in range(info.partitions)
            if self.shares is None or Share(name, number) in self.shares
        }

    def shared(self, shares: Set[Share]) -> Sources:
        """The same topics, but of them only these partitions."""
        return replace(self, shares=shares)

    def by_name(self, offsets: PartitionOffsets) -> dict[Share, int]:
        """The positions as consumer groups name them; of partitions that are not to be read, none."""
        names = self.partitions()
        return {
            Share(names[partition], partition.partition): next_offset
            for partition, next_offset in offsets.items()
            if partition in names
        }


class GroupMember(Protocol):
    """One of several workers that share the partitions; `common.consumer_group.KafkaGroupMember` is the real one."""

    def follow(self, topics: Iterable[str]) -> None: ...
    def serve(self, on_revoke: Callable[[Set[Share], bool], None]) -> Set[Share]: ...
    def close(self) -> None: ...


class LogConsumer:
    """A LogReader that starts where a table stands. One thread at a time."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._assigned: frozenset[KafkaPartition] = frozenset()
        self._topics: Mapping[str, str] = {}
        #: Where to read on while it rests; None while it reads.
        self._resting_at: PartitionOffsets | None = None

    @property
    def assigned(self) -> frozenset[KafkaPartition]:
        return self._assigned

    def seek(self, sources: Sources, committed: PartitionOffsets) -> None:
        """Read every partition from the table's next offset; one that the table has nothing of from the log's start.

        Raises BrokerError.
        """
        self._assign(sources, {partition: _start(partition, sources, committed) for partition in sources.partitions()})

    def extend(self, sources: Sources, committed: PartitionOffsets) -> tuple[set[KafkaPartition], set[KafkaPartition]]:
        """Take up partitions that appeared and let go of those that went; all others read on where they are.

        A topic that was made anew under its old name has another topic id: its partitions appear, the old ones go.
        Returns (appeared, gone). Raises BrokerError.
        """
        present = sources.partitions().keys()
        appeared, gone = set(present - self._assigned), set(self._assigned - present)
        if appeared or gone:
            positions = self.positions()
            starts = {
                partition: positions[partition] if partition in positions else _start(partition, sources, committed)
                for partition in present
            }
            self._assign(sources, starts)
        return appeared, gone

    def poll(self, messages_max: int, timeout_s: float, *, fill: bool = False) -> list[ConsumerBatch]:
        """The next messages, as LogReader.poll; none while it rests."""
        return [] if self.resting else self._reader.poll(messages_max, timeout_s, fill=fill)

    def positions(self) -> PartitionOffsets:
        """The next offset of each assigned partition; never ahead of what `poll` has returned, holes excepted."""
        if self._resting_at is not None:
            return self._resting_at
        return self._reader.positions() if self._assigned else PartitionOffsets()

    @property
    def resting(self) -> bool:
        return self._resting_at is not None

    def rest(self) -> None:
        """Read nothing, and let what was fetched ahead go; the positions stay. Raises BrokerError."""
        if self._resting_at is None:
            positions = self.positions()
            self._reader.assign({}, {})
            self._resting_at = positions

    def go_on(self) -> None:
        """Read on from the positions, if it rests. Raises BrokerError."""
        if self._resting_at is not None:
            self._reader.assign(dict(self._resting_at), self._topics)
            self._resting_at = None

    def close(self) -> None:
        self._reader.close()

    def _assign(self, sources: Sources, starts: Mapping[KafkaPartition, int]) -> None:
        self._topics = {info.topic_id: name for name, info in sources.topics.items()}
        if self.resting:
            self._resting_at = PartitionOffsets(starts)
        else:
            self._reader.assign(starts, self._topics)
        self._assigned = frozenset(starts)


def _start(partition: KafkaPartition, sources: Sources, committed: PartitionOffsets) -> int:
    return committed[partition] if partition in committed else sources.log_starts.next_offset(partition)
