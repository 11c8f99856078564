"""Records to Kafka: Avro bytes, an idempotent producer, a bounded queue, delivery reports, dead letters.

This is ingest's one home of confluent-kafka.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from common.clock import Clock
from common.codec import Encoder
from common.datasets import DATASETS, Dataset, dead_letter_topic
from common.errors import BrokerError
from common.log import TopicInfo
from common.offsets import PartitionOffsets
from common.registry import SchemaRegistry
from common.settings import IngestSettings, KafkaSettings
from common.telemetry import CORRELATION_KEY, get_logger

Headers = list[tuple[str, bytes]]

#: One message in so many is timed. A prime, so that no symbol of a round is always passed over.
_TIMED_EVERY: Final = 17
#: Longest reason in a dead letter's header.
_REASON_CHARS_MAX: Final = 1_000


class EventProducer:
    """Produces one exchange's records. One thread at a time; nothing here blocks.

    Guarantee: what `send` accepted is either acknowledged by all in-sync replicas, in the order it was sent per symbol
    and once, or `error` is set: then the service has to end, because something is not in the log. The queue is
    bounded: `send` says False when it is full and takes nothing.

    `covered` are the ends of all the topics' partitions before anything was sent; see `covered_offsets`.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: IngestSettings,
        registry: SchemaRegistry,
        *,
        topics: Mapping[str, TopicInfo],
        covered: PartitionOffsets,
        clock: Clock,
        timed: Callable[[float], object],
    ) -> None:
        """`topics` maps each dataset's name to its topic. `timed` is told, of a sample of the messages, how many
        seconds after the time given to `send` the broker had acknowledged them.
        """
        self._clock = clock
        self._timed = timed
        self._servers = kafka.bootstrap_servers
        self._log = get_logger("ingest")
        self._topics = dict(topics)
        names = {info.topic_id: info.topic for info in self._topics.values()}
        self._partitions = {(names[partition.topic_id], partition.partition): partition for partition in covered}
        self._next: dict[str, dict[int, int]] = {topic: {} for topic in names.values()}
        for (topic, number), partition in self._partitions.items():
            self._next[topic][number] = covered[partition]
        self._encode = {
            name: Encoder(DATASETS[name], registry, topic=info.topic).encode for name, info in self._topics.items()
        }
        self._lanes = {name: (info.topic, self._counter(info.topic)) for name, info in self._topics.items()}
        try:
            self._producer = Producer(self._config(kafka, settings))
        except KafkaException as error:
            raise BrokerError(
                f"a producer for {self._servers} cannot be made: {error.args[0].str()}; check K2_KAFKA_*"
            ) from None
        self._produce = self._producer.produce
        self.produced = 0
        self.acknowledged = 0
        self.dead_letters = 0
        self.error: BrokerError | None = None

    def encode(self, dataset: Dataset, record: Mapping[str, Any]) -> bytes:
        """The record's bytes for `send`. Raises EncodeError."""
        return self._encode[dataset.name](record)

    def send(self, dataset: Dataset, symbol: str, payload: bytes, headers: Headers, since_us: int) -> bool:
        """Queue a message under its symbol's key; False when the queue is full. Raises BrokerError."""
        topic, on_delivery = self._lanes[dataset.name]
        if self.produced % _TIMED_EVERY == 0:
            on_delivery = self._timer(on_delivery, since_us)
        try:
            self._produce(topic, payload, symbol, on_delivery=on_delivery, headers=headers)
        except BufferError:
            return False
        except KafkaException as error:
            raise self._broker_error(f"did not take a message for {topic}", error.args[0]) from None
        self.produced += 1
        return True

    def send_dead_letter(
        self, dataset: Dataset, frame: bytes, reason: str, headers: Iterable[tuple[str, bytes]]
    ) -> bool:
        """Queue a frame that cannot be used, byte for byte, with the reason; False when the queue is full."""
        topic = dead_letter_topic(self._topics[dataset.name].topic)
        about = [
            ("k2-reason", reason[:_REASON_CHARS_MAX].encode(errors="backslashreplace")),
            ("k2-topic", self._topics[dataset.name].topic.encode()),
        ]
        try:
            self._produce(topic, frame, on_delivery=self._counter(topic), headers=[*headers, *about])
        except BufferError:
            return False
        except KafkaException as error:
            raise self._broker_error(f"did not take a dead letter for {topic}", error.args[0]) from None
        self.produced += 1
        self.dead_letters += 1
        return True

    def poll(self) -> None:
        """Take in the delivery reports that have come. Raises BrokerError once a delivery has failed."""
        self._producer.poll(0)
        if self.error is not None:
            raise self.error

    @property
    def queued(self) -> int:
        """Messages that were sent and are not acknowledged, reports not yet taken in included."""
        return len(self._producer)

    def covered_offsets(self) -> PartitionOffsets:
        """Per partition the next offset behind the unbroken run of records that were covered at first or are ours.

        A record of another writer in between ends the run: what lies behind it has to be read from the log.
        """
        return PartitionOffsets(
            {partition: self._next[topic][number] for (topic, number), partition in self._partitions.items()}
        )

    def close(self) -> None:
        """Give up whatever is still queued, so that ending the process never waits for a broker that is gone."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._producer.poll(0)

    def _timer(self, on_delivery: Callable[[Any, Any], None], since_us: int) -> Callable[[Any, Any], None]:
        def on_timed_delivery(error: Any, message: Any) -> None:
            on_delivery(error, message)
            if error is None:
                self._timed((self._clock.now_us() - since_us) / 1e6)

        return on_timed_delivery

    def _counter(self, topic: str) -> Callable[[Any, Any], None]:
        """The delivery report of one topic. Reports of a partition come in the order of its offsets."""
        next_offsets = self._next.get(topic, {})

        def on_delivery(error: Any, message: Any) -> None:
            if error is not None:
                self.error = self.error or self._broker_error(f"did not take a message for {topic}", error)
                return
            self.acknowledged += 1
            partition = message.partition()
            offset = message.offset()
            if next_offsets.get(partition) == offset:
                next_offsets[partition] = offset + 1

        return on_delivery

    def _on_error(self, error: Any) -> None:
        if error.fatal():
            self.error = self.error or self._broker_error("ended the producer", error)
        else:
            self._log.warning("the broker has trouble", servers=self._servers, reason=error.str())

    def _broker_error(self, what: str, error: Any) -> BrokerError:
        return BrokerError(
            f"the broker {self._servers} {what} ({error.str()}); check the broker and start again: "
            "what was not acknowledged counts as not taken"
        )

    def _config(self, kafka: KafkaSettings, settings: IngestSettings) -> dict[str, Any]:
        return kafka.client_config() | {
            "client.id": "k2-ingest",
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": settings.linger_ms,
            "queue.buffering.max.messages": settings.queue_messages_max,
            "delivery.timeout.ms": settings.delivery_timeout_ms,
            # The Java clients' partitioner, so that a key lands on the same partition whoever produces it.
            "partitioner": "murmur2_random",
            "error_cb": self._on_error,
        }


def correlation_headers(correlation_id: str) -> Headers:
    """The headers of every message of one connection."""
    return [(CORRELATION_KEY, correlation_id.encode())]
