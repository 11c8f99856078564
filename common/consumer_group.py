"""Membership in a Kafka consumer group: which partitions of some topics are this process's to read, and nothing else.

A member reads nothing here and takes no position from the group: its partitions are paused as they come, and where to
read from is what a table says (design rule 1). So the group decides who works, never what is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from common.errors import BrokerError
from common.log import TRANSIENT_ERRORS, Share, note_group_offsets, translated_kafka
from common.settings import KafkaSettings

#: A topic that grows is shared out anew within this time.
_METADATA_REFRESH_MS = 2_000
#: What tells a member that it was away for too long, or that a topic is gone: the group's next turn settles both.
_SETTLED_BY_THE_GROUP = {
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._PARTITION_EOF,
    KafkaError._AUTO_OFFSET_RESET,
    *TRANSIENT_ERRORS,
}


#: What is done before partitions go: they, and whether they are gone already (another may have them).
OnRevoke = Callable[[Set[Share], bool], None]


class KafkaGroupMember:
    """One member of a group, with the cooperative protocol: what stays with it is never interrupted by others' coming
    and going. One thread at a time; `serve` must be called more often than every five minutes.
    """

    def __init__(self, settings: KafkaSettings, group: str, *, client_id: str, session_ms_max: int) -> None:
        """Raises BrokerError. A member that is not heard of for `session_ms_max` loses its partitions."""
        self._servers = settings.bootstrap_servers
        self._group = group
        self._topics: frozenset[str] = frozenset()
        self._shares: frozenset[Share] = frozenset()
        self._on_revoke: OnRevoke | None = None
        config = settings.client_config() | {
            "client.id": client_id,
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session_ms_max,
            "heartbeat.interval.ms": max(100, session_ms_max // 4),
            "topic.metadata.refresh.interval.ms": _METADATA_REFRESH_MS,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "latest",
            # Nothing is fetched; should something be on its way when a partition is paused, let it be little.
            "queued.max.messages.kbytes": 1_024,
            "fetch.message.max.bytes": 1_024,
        }
        with translated_kafka(f"join the consumer group {group} at {self._servers}"):
            self._consumer = Consumer(config)

    def follow(self, topics: Iterable[str]) -> None:
        """Take part in the sharing out of exactly these topics. Does not block. Raises BrokerError."""
        wanted = frozenset(topics)
        if wanted == self._topics:
            return
        with translated_kafka(f"subscribe to topics in the group {self._group} at {self._servers}"):
            if wanted:
                self._consumer.subscribe(
                    sorted(wanted), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
                )
            else:
                self._consumer.unsubscribe()
        self._topics = wanted

    def serve(self, on_revoke: OnRevoke) -> Set[Share]:
        """Hear what the group has decided; returns what is this member's now. Does not block but for `on_revoke`.

        `on_revoke` is called before partitions go, so that what was read of them can be finished; what it raises comes
        out of here, and they go all the same. Raises BrokerError when the group will not have this member.
        """
        self._on_revoke = on_revoke
        try:
            with translated_kafka(f"take part in the consumer group {self._group} at {self._servers}"):
                while (message := self._consumer.poll(0)) is not None:
                    self._check(message.error())
        finally:
            self._on_revoke = None
        return self._shares

    def note(self, next_offsets: Mapping[Share, int]) -> None:
        """Tell the group how far its partitions are, for tools that show lag. Never blocks, never fails."""
        note_group_offsets(self._consumer, next_offsets)

    def close(self) -> None:
        """Leave the group, so that others need not wait for the session to time out."""
        self._consumer.close()

    def _check(self, error: Any) -> None:
        if error is not None and error.code() not in _SETTLED_BY_THE_GROUP:
            raise BrokerError(
                f"the consumer group {self._group} at {self._servers} answered with an error ({error.str()}); "
                "check the group's permissions, or K2_SINK_GROUP"
            )

    def _assigned(self, consumer: Any, partitions: list[Any]) -> None:
        consumer.incremental_assign([TopicPartition(p.topic, p.partition, 0) for p in partitions])
        consumer.pause(partitions)
        self._shares |= _shares(partitions)

    def _revoked(self, consumer: Any, partitions: list[Any]) -> None:
        self._give_up(consumer, partitions, lost=False)

    def _lost(self, consumer: Any, partitions: list[Any]) -> None:
        self._give_up(consumer, partitions, lost=True)

    def _give_up(self, consumer: Any, partitions: list[Any], *, lost: bool) -> None:
        going = _shares(partitions)
        try:
            if self._on_revoke is not None and going:
                self._on_revoke(going, lost)
        finally:
            self._shares -= going
            consumer.incremental_unassign(partitions)


def _shares(partitions: Iterable[Any]) -> frozenset[Share]:
    return frozenset(Share(partition.topic, partition.partition) for partition in partitions)
