"""The Kafka log as K2 reads it: who the cluster and its topics are, and batches from exact positions.

This is the one home of confluent-kafka's consumer and admin client, used by the sink, by the tail and by ingest's
catch-up, so that all three see the same records (isolation level read_committed) at the same positions.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from common.errors import BrokerError, LogTruncated
from common.offsets import KafkaPartition, PartitionOffsets
from common.resilience import retrying
from common.settings import KafkaSettings

#: What passes by itself.
TRANSIENT_ERRORS = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
}
_NO_ANSWER = {KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT}


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """One incarnation of a topic."""

    topic: str
    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class ConsumerBatch:
    """Messages of one topic in the order read: three lists of equal length; offsets rise within each partition."""

    topic: str
    cluster_id: str
    topic_id: str
    partitions: list[int]
    offsets: list[int]
    values: list[bytes | None]

    @property
    def nbytes(self) -> int:
        """Bytes of the messages' values."""
        return sum(len(value) for value in self.values if value is not None)

    def __len__(self) -> int:
        return len(self.offsets)


class Share(NamedTuple):
    """One partition of a topic by name, as consumer groups name it: they know no topic ids."""

    topic: str
    partition: int


def joined(batches: Sequence[ConsumerBatch]) -> list[ConsumerBatch]:
    """The batches with those of the same topic put together, in their order."""
    by_topic: dict[str, list[ConsumerBatch]] = {}
    for batch in batches:
        by_topic.setdefault(batch.topic_id, []).append(batch)
    return [
        of_topic[0]
        if len(of_topic) == 1
        else ConsumerBatch(
            of_topic[0].topic,
            of_topic[0].cluster_id,
            of_topic[0].topic_id,
            [partition for batch in of_topic for partition in batch.partitions],
            [offset for batch in of_topic for offset in batch.offsets],
            [value for batch in of_topic for value in batch.values],
        )
        for of_topic in by_topic.values()
    ]


class LogReader(Protocol):
    """Reads assigned partitions from exact offsets. One thread at a time.

    Guarantee: between two `assign` calls each record of an assigned partition comes out once and in offset order, and
    `positions` never runs ahead of what `poll` has returned.
    """

    def assign(self, starts: Mapping[KafkaPartition, int], topics: Mapping[str, str]) -> None:
        """Read each partition from its start offset (inclusive); replaces what was assigned.

        `topics` maps topic id -> topic name for every topic in `starts`.
        """
        ...

    def poll(self, messages_max: int, timeout_s: float, *, fill: bool = False) -> list[ConsumerBatch]:
        """Up to `messages_max` messages, one batch per topic; empty when none came within `timeout_s`.

        Returns with the first that come; with `fill`, only when there are that many or the time is over.

        Raises BrokerError (retryable) when the broker does not answer, LogTruncated when the position is gone.
        """
        ...

    def positions(self) -> PartitionOffsets:
        """The next offset to be read of each assigned partition, past holes that hold no records."""
        ...

    def at_end(self) -> bool:
        """True when every assigned partition was read to the end that the log had when the broker last answered."""
        ...

    def close(self) -> None:
        """Give up the connection; never blocks for long."""
        ...


class KafkaLog:
    """Facts about the cluster and its topics. Thread-safe; each call may block up to the settings' request timeout."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout_s = settings.request_timeout_ms / 1000
        self._lock = threading.Lock()
        #: A call keeps the one that it asks until it has its answer: of a client that is gone it would wait for ever.
        self._admin = AdminClient(settings.client_config())

    def cluster_id(self) -> str:
        """The cluster's id. Raises BrokerError."""
        admin = self._admin
        with self._translated("describe the cluster", admin):
            return str(admin.describe_cluster(request_timeout=self._timeout_s).result().cluster_id)

    def topics(self, pattern: str) -> dict[str, TopicInfo]:
        """The existing topics whose names match the regular expression, by name. Raises BrokerError."""
        admin = self._admin
        with self._translated("list topics", admin):
            names = [name for name in admin.list_topics(timeout=self._timeout_s).topics if re.search(pattern, name)]
            if not names:
                return {}
            described = admin.describe_topics(TopicCollection(names), request_timeout=self._timeout_s)
            infos = [future.result() for future in described.values()]
        return {info.name: TopicInfo(info.name, str(info.topic_id), len(info.partitions)) for info in infos}

    def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """The ids that these topics have now, by name; those that do not exist are left out. Raises BrokerError.

        One round trip. A topic made anew has another id, and no id ever comes back: an answer equal to an earlier one
        means that all that was read of these topics in between was read of the same incarnations.
        """
        wanted = list(names)
        if not wanted:
            return {}
        ids: dict[str, str] = {}
        admin = self._admin
        for name, future in admin.describe_topics(TopicCollection(wanted), request_timeout=self._timeout_s).items():
            with self._translated(f"describe the topic {name}", admin, unless=KafkaError.UNKNOWN_TOPIC_OR_PART):
                ids[name] = str(future.result().topic_id)
        return ids

    def ensure_topics(self, names: Iterable[str], *, config: Mapping[str, str] | None = None) -> None:
        """Create the topics that do not exist, with the settings' partitions and replicas and this configuration;
        returns once `topics` lists them all. Raises BrokerError."""
        settings = self._settings
        new = [
            NewTopic(
                name,
                num_partitions=settings.topic_partitions,
                replication_factor=settings.topic_replication,
                config=dict(config or {}),
            )
            for name in names
        ]
        if not new:
            return
        admin = self._admin
        for name, future in admin.create_topics(new, request_timeout=self._timeout_s).items():
            with self._translated(f"create the topic {name}", admin, unless=KafkaError.TOPIC_ALREADY_EXISTS):
                future.result()
        # A broker may acknowledge a topic before its own metadata has it.
        deadline_s = time.monotonic() + self._timeout_s
        pause = threading.Event()
        while missing := {topic.topic for topic in new} - self._listed():
            if time.monotonic() > deadline_s:
                raise BrokerError(
                    f"the broker {settings.bootstrap_servers} created the topic {min(missing)} and does not list it; "
                    "check its health"
                )
            pause.wait(0.02)

    def made(self, names: Iterable[str], *, wait_s_max: float) -> dict[str, TopicInfo]:
        """These topics, by name, once the broker shows each of them with its partitions. Raises BrokerError."""
        wanted = list(names)
        pattern = "^(" + "|".join(map(re.escape, wanted)) + ")$"

        def found() -> dict[str, TopicInfo]:
            topics = self.topics(pattern)
            missing = [name for name in wanted if name not in topics or not topics[name].partitions]
            if missing:
                raise BrokerError(
                    f"the broker {self._settings.bootstrap_servers} does not show the topic {missing[0]} that was made"
                )
            return topics

        return retrying(first_wait_s=0.05, wait_s_max=1.0, give_up_after_s=wait_s_max)(found)

    def _listed(self) -> set[str]:
        admin = self._admin
        with self._translated("list topics", admin):
            return set(admin.list_topics(timeout=self._timeout_s).topics)

    def end_offsets(self, topics: Iterable[TopicInfo]) -> PartitionOffsets:
        """The end of each partition: the offset that its next record would get. Raises BrokerError.

        ListOffsets is taken as a lower bound and the rest is read up to the end that fetches report: the embedded
        broker (Tansu 0.6) answers ListOffsets with too low an offset, and a transactional log ends behind control
        records.
        """
        topics = list(topics)
        starts = self.ends_at_least(topics)
        if not starts:
            return PartitionOffsets()
        reader = KafkaLogReader(self._settings)
        try:
            reader.assign(starts, {info.topic_id: info.topic for info in topics})
            deadline = time.monotonic() + self._timeout_s
            while not reader.at_end():
                if reader.poll(10_000, 0.1):
                    deadline = time.monotonic() + self._timeout_s
                elif time.monotonic() > deadline:
                    raise BrokerError(f"the broker {self._settings.bootstrap_servers} did not say where its log ends")
            return reader.positions()
        finally:
            reader.close()

    def ends_at_least(self, topics: Iterable[TopicInfo]) -> PartitionOffsets:
        """What the broker says of where each partition ends; its next record may have a higher offset. One round trip.

        Raises BrokerError.
        """
        return PartitionOffsets(self._list_offsets(topics, OffsetSpec.latest()))

    def start_offsets(self, topics: Iterable[TopicInfo]) -> PartitionOffsets:
        """The first offset that each partition still holds; above 0 when retention removed older records.

        Raises BrokerError.
        """
        return PartitionOffsets(self._list_offsets(topics, OffsetSpec.earliest()))

    def _list_offsets(self, topics: Iterable[TopicInfo], spec: OffsetSpec) -> dict[KafkaPartition, int]:
        cluster_id = self.cluster_id()
        partitions = {
            TopicPartition(info.topic, number): KafkaPartition(cluster_id, info.topic_id, number)
            for info in topics
            for number in range(info.partitions)
        }
        if not partitions:
            return {}

        def listed() -> dict[KafkaPartition, int]:
            admin = self._admin
            with self._translated("list offsets", admin):
                futures = admin.list_offsets(
                    dict.fromkeys(partitions, spec),
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=self._timeout_s,
                )
                return {partitions[partition]: future.result().offset for partition, future in futures.items()}

        # A topic that was just made has no leader for some moments: Apache Kafka then answers "not leader".
        return retrying(first_wait_s=0.05, wait_s_max=0.5, give_up_after_s=self._timeout_s)(listed)

    def _translated(
        self, doing: str, admin: AdminClient, *, unless: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Like translated_kafka; and a client that had no answer in time is not asked again, a new one is: the old one
        waits minutes for the node that was the controller when it last looked, also when that node is gone for good.
        """

        def replace() -> None:
            with self._lock:
                if self._admin is admin:
                    self._admin = AdminClient(self._settings.client_config())

        return translated_kafka(f"{doing} at {self._settings.bootstrap_servers}", unless=unless, timed_out=replace)


class KafkaLogReader:
    """The LogReader on a real broker. Sees committed records only; commits no group offsets."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        client_id: str = "k2",
        fetch_wait_ms_max: int | None = None,
        fetch_bytes_min: int = 1,
    ) -> None:
        """For readers that are in no hurry: the broker answers a fetch when it has `fetch_bytes_min`, or when it has
        held it for `fetch_wait_ms_max` (None = the settings')."""
        self._servers = settings.bootstrap_servers
        config = settings.client_config() | {
            "client.id": client_id,
            "group.id": client_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": fetch_wait_ms_max or settings.fetch_wait_ms_max,
            "fetch.min.bytes": fetch_bytes_min,
            "fetch.error.backoff.ms": 100,
            "queued.min.messages": 200_000,
            # By default librdkafka pauses a full second whenever its queue was full: 61k rows/s, 101k with 10 ms.
            "fetch.queue.backoff.ms": 10,
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.max.messages.kbytes": 65_536,
        }
        with translated_kafka(f"start a consumer for {self._servers}"):
            self._consumer = Consumer(config)
        self._partitions: dict[tuple[str, int], KafkaPartition] = {}
        self._ids: dict[str, tuple[str, str]] = {}
        self._next: dict[tuple[str, int], int] = {}
        self._ended: set[tuple[str, int]] = set()

    def assign(self, starts: Mapping[KafkaPartition, int], topics: Mapping[str, str]) -> None:
        self._partitions = {(topics[partition.topic_id], partition.partition): partition for partition in starts}
        self._ids = {topic: (p.cluster_id, p.topic_id) for (topic, _number), p in self._partitions.items()}
        self._next = {key: starts[partition] for key, partition in self._partitions.items()}
        self._read_from_positions()

    def poll(self, messages_max: int, timeout_s: float, *, fill: bool = False) -> list[ConsumerBatch]:
        with translated_kafka(f"read from {self._servers}"):
            if fill:
                messages = self._consumer.consume(messages_max, timeout_s)
            else:
                first = self._consumer.poll(timeout_s)
                if first is None:
                    return []
                messages = [first, *self._consumer.consume(messages_max - 1, 0)] if messages_max > 1 else [first]
        try:
            records, ends = self._without_events(messages)
        except BrokerError:
            self._read_from_positions()
            raise
        topics = {record.topic() for record in records}
        batches = [
            self._batch(topic, records if len(topics) == 1 else [r for r in records if r.topic() == topic])
            for topic in topics
        ]
        for key, end in ends.items():
            self._next[key] = max(self._next[key], end)
            self._ended.add(key)
        return batches

    def positions(self) -> PartitionOffsets:
        return PartitionOffsets({self._partitions[key]: next_offset for key, next_offset in self._next.items()})

    def at_end(self) -> bool:
        return len(self._ended) == len(self._partitions)

    def note(self, next_offsets: Mapping[Share, int]) -> None:
        """As `note_group_offsets`, for the group that is named as the client is; nobody need be a member of it."""
        note_group_offsets(self._consumer, next_offsets)

    def close(self) -> None:
        self._consumer.close()

    def _read_from_positions(self) -> None:
        """Let the consumer go on where `positions` says, whatever it has fetched or skipped beyond that."""
        self._ended = set()
        with translated_kafka(f"read from {self._servers}"):
            self._consumer.assign(
                [TopicPartition(topic, number, next_offset) for (topic, number), next_offset in self._next.items()]
            )

    def _batch(self, topic: str, messages: Sequence[Any]) -> ConsumerBatch:
        cluster_id, topic_id = self._ids[topic]
        partitions = [message.partition() for message in messages]
        offsets = [message.offset() for message in messages]
        values = [message.value() for message in messages]
        for number, offset in dict(zip(partitions, offsets, strict=True)).items():
            self._next[topic, number] = offset + 1
            self._ended.discard((topic, number))
        return ConsumerBatch(topic, cluster_id, topic_id, partitions, offsets, values)

    def _without_events(self, messages: list[Any]) -> tuple[list[Any], dict[tuple[str, int], int]]:
        """The records, and the end of each partition whose end was reported behind its last record."""
        ends: dict[tuple[str, int], int] = {}
        if all(message.error() is None for message in messages):
            return messages, ends
        records = []
        for message in messages:
            error = message.error()
            key = (message.topic(), message.partition())
            if error is None:
                records.append(message)
                ends.pop(key, None)
            elif error.code() == KafkaError._PARTITION_EOF:
                if key in self._next:
                    ends[key] = message.offset()
            elif error.code() in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
                raise LogTruncated(
                    f"{message.topic()}[{message.partition()}] no longer holds offset {self._next.get(key)}: "
                    f"{error.str()}; retention removed it, or the topic was made anew"
                )
            elif error.code() not in TRANSIENT_ERRORS:
                raise BrokerError(f"the broker {self._servers} answered with an error while reading: {error.str()}")
        return records, ends


def note_group_offsets(consumer: Consumer, next_offsets: Mapping[Share, int]) -> None:
    """Write group offsets, as a courtesy to tools that show lag: no answer is waited for, and no failure matters.

    K2 itself never reads them: where a reader begins is what a table says.
    """
    with contextlib.suppress(KafkaException):
        consumer.commit(
            offsets=[TopicPartition(share.topic, share.partition, offset) for share, offset in next_offsets.items()],
            asynchronous=True,
        )


class translated_kafka(contextlib.AbstractContextManager[None]):  # noqa: N801  (reads as a phrase: with translated_kafka(...))
    """confluent-kafka's exceptions as BrokerError, but for the code `unless`; `timed_out` is called after no answer."""

    def __init__(self, doing: str, *, unless: int | None = None, timed_out: Callable[[], None] | None = None) -> None:
        self._doing = doing
        self._unless = unless
        self._timed_out = timed_out

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, KafkaException):
            return False
        # The frames that it came through hold the future that holds it: a ring, in which a client would live on.
        error.__traceback__ = None
        cause = error.args[0] if error.args and isinstance(error.args[0], KafkaError) else None
        if cause is not None and cause.code() == self._unless:
            return True
        if self._timed_out is not None and cause is not None and cause.code() in _NO_ANSWER:
            self._timed_out()
        reason = cause.str() if cause is not None else str(error)
        hint = "check that the broker runs and that K2_KAFKA_BOOTSTRAP_SERVERS is right"
        raise BrokerError(f"Kafka could not {self._doing} ({reason}); {hint}") from None
