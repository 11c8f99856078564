"""Positions in the log as values: which offsets a table, a tail or a cut has taken in.

A partition is named by (Kafka cluster id, topic id, partition number), never by the topic's name: a topic that was
deleted and made again under its old name is another source, and its offset 0 is not the old offset 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from common.errors import K2Error

#: Key of the snapshot-summary entry that holds a table's next offsets.
SUMMARY_KEY = "k2.offsets"
#: Key of the snapshot-summary entry that holds the id of the commit that made the snapshot.
COMMIT_ID_KEY = "k2.commit-id"


class KafkaPartition(NamedTuple):
    """One partition of one incarnation of one topic. Ordered, hashable."""

    cluster_id: str
    topic_id: str
    partition: int


class PartitionOffsets(Mapping[KafkaPartition, int]):
    """An immutable map of partition -> next offset (exclusive): every record below it is taken in.

    A partition that is absent counts as 0. Two maps are equal when they give the same next offset for each partition.
    """

    __slots__ = ("_next",)

    def __init__(self, next_offsets: Mapping[KafkaPartition, int] | Iterable[tuple[KafkaPartition, int]] = ()) -> None:
        pairs = next_offsets.items() if isinstance(next_offsets, Mapping) else next_offsets
        self._next: dict[KafkaPartition, int] = {}
        for partition, next_offset in pairs:
            if next_offset < 0:
                raise ValueError(f"next offset of {partition} must be 0 or more, not {next_offset}")
            self._next[partition] = next_offset

    def __getitem__(self, partition: KafkaPartition) -> int:
        return self._next[partition]

    def __iter__(self) -> Iterator[KafkaPartition]:
        return iter(self._next)

    def __len__(self) -> int:
        return len(self._next)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartitionOffsets):
            return NotImplemented
        return all(self.next_offset(p) == other.next_offset(p) for p in {*self, *other})

    def __hash__(self) -> int:
        return hash(frozenset((p, n) for p, n in self._next.items() if n))

    def __repr__(self) -> str:
        return f"PartitionOffsets({self.to_text()})"

    def next_offset(self, partition: KafkaPartition) -> int:
        """The next offset of `partition`, 0 when nothing of it was taken in."""
        return self._next.get(partition, 0)

    def advanced(self, to: Mapping[KafkaPartition, int]) -> PartitionOffsets:
        """The union of both, with the later offset of each partition: positions only move forward."""
        merged = dict(self._next)
        for partition, next_offset in to.items():
            merged[partition] = max(merged.get(partition, 0), next_offset)
        return PartitionOffsets(merged)

    def covers(self, other: Mapping[KafkaPartition, int]) -> bool:
        """True when everything that `other` has taken in is taken in here too."""
        return all(self.next_offset(partition) >= next_offset for partition, next_offset in other.items())

    def to_text(self) -> str:
        """Compact sorted JSON, {cluster: {topic id: {partition: next}}}: equal positions have equal text."""
        tree: dict[str, dict[str, dict[str, int]]] = {}
        for cluster_id, topic_id, partition in sorted(self._next):
            next_offset = self._next[KafkaPartition(cluster_id, topic_id, partition)]
            tree.setdefault(cluster_id, {}).setdefault(topic_id, {})[str(partition)] = next_offset
        return json.dumps(tree, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> PartitionOffsets:
        """The reverse of `to_text`. Raises K2Error when the text is not that form."""
        try:
            tree = json.loads(text)
            return cls(
                {
                    KafkaPartition(cluster_id, topic_id, int(partition)): int(next_offset)
                    for cluster_id, topics in tree.items()
                    for topic_id, partitions in topics.items()
                    for partition, next_offset in partitions.items()
                }
            )
        except (ValueError, AttributeError, TypeError) as error:
            raise K2Error(f"Kafka offsets cannot be read from {text[:200]!r}: {error}") from None


def slice_end(low: PartitionOffsets, high: PartitionOffsets, offsets_max: int) -> PartitionOffsets:
    """How far to go from `low` towards `high` with at most `offsets_max` offsets: positions between both.

    Each partition gets its share of what is left of it, so that all come to their end together. With `offsets_max` of
    at least 1 there is progress wherever something is left. Partitions of which `high` is not ahead stay as they are.
    """
    behind = {p: until - low.next_offset(p) for p, until in high.items() if until > low.next_offset(p)}
    total = sum(behind.values())
    if total <= offsets_max:
        return low.advanced(high)
    shares = {p: left * offsets_max // total for p, left in behind.items()}
    spare = offsets_max - sum(shares.values())
    for partition in sorted(behind, key=lambda p: (-behind[p], p))[:spare]:
        shares[partition] += 1
    return low.advanced({p: low.next_offset(p) + share for p, share in shares.items() if share})


def offsets_between(low: PartitionOffsets, high: PartitionOffsets) -> int:
    """How many offsets lie between both, where `high` is ahead: rows at most, for offsets have holes."""
    return sum(max(0, until - low.next_offset(partition)) for partition, until in high.items())


def topic_short(topic_id: str) -> str:
    """The short form of a topic id that rows carry in `_kafka_topic`: the last 8, as time-ordered ids begin alike."""
    return topic_id[-8:]
