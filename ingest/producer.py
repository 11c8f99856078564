"""Records to Kafka: Avro bytes, transactions that fence a predecessor, a bounded queue, dead letters.

This is ingest's one home of confluent-kafka.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from common import dead_letters
from common.clock import Clock
from common.codec import Encoder
from common.datasets import DATASETS, Dataset, dead_letter_topic
from common.errors import BrokerError, IngestFenced, K2Error
from common.log import KafkaLog, TopicInfo
from common.offsets import KafkaPartition, PartitionOffsets
from common.registry import SchemaRegistry
from common.schemas.arrow import avro_schema_text
from common.settings import IngestSettings, KafkaSettings
from common.telemetry import CORRELATION_KEY, get_logger

Headers = list[tuple[str, bytes]]

#: One message in so many is timed. A prime, so that no symbol of a round is always passed over.
_TIMED_EVERY: Final = 17
#: How long a call of a commit blocks its thread at most before it is looked at again.
_COMMIT_CALL_S: Final = 0.5
#: A predecessor's open transaction is ended first, and librdkafka gets a producer's id by a timer of 0.5 s.
_FENCE_S_MAX: Final = 30.0
_FENCE_CALL_S: Final = 5.0
_TRANSACTION_MS_MAX: Final = 900_000
#: So long behind a commit the next transaction begins at the earliest, and of the time between two commits so much at
#: most. Apache Kafka writes a commit's markers after its answer. Whoever begins before they are there is told to come
#: again, which librdkafka does 20 ms later: at a load average of 10 that befell 77 of 100 transactions, with 4 ms in
#: between 13, with 8 ms 1. It costs no time, since nobody can read what was sent before the next commit anyway.
_MARKERS_S: Final = 0.008
_MARKERS_SHARE: Final = 0.8
#: As what a fatal error of a producer comes out of the next call; SystemError where that took in a delivery report.
_FATAL: Final = (KafkaException, SystemError)
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
#: What produce says of a transaction that is broken, or of a producer that is. It does not say by what.
_BROKEN: Final = frozenset({KafkaError._STATE, KafkaError._FATAL})
_FENCED: Final = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
#: Longest reason in a dead letter's header.
_REASON_CHARS_MAX: Final = 1_000


class EventProducer:
    """Produces one exchange's records in transactions. One thread at a time; nothing here blocks but `fence`.

    Guarantee: what `send` accepted is either committed, in the order it was sent per symbol and once, or `error` is
    set: then the service has to end, because something is not in the log. Once a successor with the same
    `transactional_id` has called `fence`, nothing that was not committed before is ever in the log: the broker itself
    refuses it. The queue is bounded: `send` says False when it is full and takes nothing.

    `fence`, then `covers`, then `send`; and `run` for as long as anything is to be committed.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: IngestSettings,
        registry: SchemaRegistry,
        *,
        topics: Mapping[str, TopicInfo],
        transactional_id: str,
        clock: Clock,
        timed: Callable[[float], object],
    ) -> None:
        """`topics` maps each dataset's name to its topic. `timed` is told, of a sample of the messages, how many
        seconds after the time given to `send` they were committed. Raises BrokerError, and IncompatibleSchema when the
        records' schemas may not follow those that the topics have.
        """
        self._clock = clock
        self._timed = timed
        self._servers = kafka.bootstrap_servers
        self._log = get_logger("ingest")
        self._topics = dict(topics)
        self._names = {info.topic_id: info.topic for info in self._topics.values()}
        self._partitions: dict[tuple[str, int], KafkaPartition] = {}
        self._next: dict[str, dict[int, int]] = {topic: {} for topic in self._names.values()}
        #: Partitions that the transaction has records in; and those where a commit's marker follows our last record.
        self._touched: set[tuple[str, int]] = set()
        self._marked: set[tuple[str, int]] = set()
        self._transaction_s = settings.transaction_ms / 1000
        self._markers_s = min(_MARKERS_S, _MARKERS_SHARE * self._transaction_s)
        self._give_up_s = settings.delivery_timeout_ms / 1000
        self._queue_max = settings.queue_messages_max
        #: What is sent while a transaction is committed and its markers are written, as produce takes it; it begins the
        #: next one. And what is sent while the transaction is broken, until the next commit says by what.
        self._held: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._committing = self._closing = self._broken = False
        self._since_us: list[int] = []
        registry.register_all(
            {f"{info.topic}-value": avro_schema_text(DATASETS[name].schema_name) for name, info in self._topics.items()}
        )
        self._registry = registry
        self._encode = {
            name: Encoder(DATASETS[name], registry, topic=info.topic).encode for name, info in self._topics.items()
        }
        self._lanes: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
            name: (info.topic, self._counter(info.topic)) for name, info in self._topics.items()
        }
        try:
            self._producer = Producer(self._config(kafka, settings) | {"transactional.id": transactional_id})
        except KafkaException as error:
            raise BrokerError(
                f"a producer for {self._servers} cannot be made: {error.args[0].str()}; check K2_KAFKA_*"
            ) from None
        self._produce = self._producer.produce
        self.produced = 0
        self.committed = 0
        #: Of what was produced, the messages of no dataset.
        self.others = 0
        self.commits = 0
        self.dead_letters = 0
        self.error: K2Error | None = None

    @property
    def datasets(self) -> Collection[str]:
        """The datasets that have a topic here."""
        return self._lanes.keys()

    def add_topic(self, dataset: Dataset, log: KafkaLog, name: str) -> None:
        """Have a topic for a dataset from now on; it is made when it is missing. Blocks, and may be called from another
        thread while messages of others are sent. Raises BrokerError, and IncompatibleSchema.

        It takes no part in `covered_offsets`: nobody reads it to know what was taken.
        """
        log.ensure_topics([name])
        encode = Encoder(dataset, self._registry, topic=name).encode
        self._encode[dataset.name] = encode
        self._lanes[dataset.name] = (name, self._on_delivery)

    def fence(self) -> None:
        """From now on no other producer of this transactional id writes anything: its open transaction is aborted, and
        the broker refuses whatever it still sends. Blocks. Raises BrokerError.
        """
        deadline_s = time.monotonic() + _FENCE_S_MAX
        while True:
            try:
                self._producer.init_transactions(_FENCE_CALL_S)
                self._producer.begin_transaction()
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline_s:
                    raise self._broker_error("did not begin ingest's transactions", error.args[0]) from None

    def covers(self, covered: PartitionOffsets) -> None:
        """The ends of the topics' partitions before anything is sent; see `covered_offsets`."""
        self._partitions = {(self._names[one.topic_id], one.partition): one for one in covered}
        for (topic, number), partition in self._partitions.items():
            self._next[topic][number] = covered[partition]

    async def run(self) -> None:
        """Commit what was sent, every few milliseconds, until cancelled. Raises BrokerError, and IngestFenced."""
        try:
            wait_s = self._transaction_s
            while True:
                await asyncio.sleep(wait_s)
                wait_s = self._transaction_s - (self._markers_s if await self._commit() else 0)
        except K2Error as error:
            self.error = self.error or error
            raise

    def encode(self, dataset: Dataset, record: Mapping[str, Any]) -> bytes:
        """The record's bytes for `send`. Raises EncodeError."""
        return self._encode[dataset.name](record)

    def send(self, dataset: Dataset, symbol: str, payload: bytes, headers: Headers, since_us: int) -> bool:
        """Queue a message under its symbol's key; False when the queue is full. Raises BrokerError."""
        topic, on_delivery = self._lanes[dataset.name]
        if not self._queue((topic, payload, symbol), {"on_delivery": on_delivery, "headers": headers}):
            return False
        if self.produced % _TIMED_EVERY == 0:
            self._since_us.append(since_us)
        return True

    def send_to(self, topic: str, key: str, payload: bytes) -> bool:
        """Queue a message that is of no dataset; False when the queue is full. Raises BrokerError."""
        sent = self._queue((topic, payload, key), {"on_delivery": self._on_delivery})
        self.others += sent
        return sent

    def _queue(self, positional: tuple[Any, ...], named: dict[str, Any]) -> bool:
        if self.error is not None:
            raise self.error
        if self.produced - self.committed >= self._queue_max:
            return False
        if self._committing or self._broken:
            self._held.append((positional, named))
        else:
            try:
                self._produce(*positional, **named)
            except BufferError:
                return False
            except KafkaException as error:
                if error.args[0].code() not in _BROKEN:
                    raise self._broker_error(f"did not take a message for {positional[0]}", error.args[0]) from None
                self._broken = True
                self._held.append((positional, named))
        self.produced += 1
        return True

    def send_dead_letter(
        self, dataset: Dataset, frame: bytes, reason: str, headers: Iterable[tuple[str, bytes]]
    ) -> bool:
        """Queue a frame that cannot be used, byte for byte, with the reason; False when the queue is full."""
        topic = dead_letter_topic(self._topics[dataset.name].topic)
        about = [
            (dead_letters.REASON, reason[:_REASON_CHARS_MAX].encode(errors="backslashreplace")),
            (dead_letters.TOPIC, self._topics[dataset.name].topic.encode()),
        ]
        if not self._queue((topic, frame), {"on_delivery": self._on_delivery, "headers": [*headers, *about]}):
            return False
        self.dead_letters += 1
        return True

    def poll(self) -> None:
        """Take in the delivery reports that have come. Raises BrokerError once a delivery has failed."""
        if not self._committing:  # else the thread that commits takes them in
            try:
                _asked(self._producer.poll, 0)
            except _FATAL as error:
                self.error = self.error or self._broker_error("ended the producer", _kafka_error(error))
        if self.error is not None:
            raise self.error

    @property
    def queued(self) -> int:
        """Messages that were sent and are not committed."""
        return self.produced - self.committed

    def covered_offsets(self) -> PartitionOffsets:
        """Per partition the next offset behind the unbroken run of records that were covered at first or are ours.

        A record of another writer in between ends the run: what lies behind it has to be read from the log.
        """
        return PartitionOffsets(
            {partition: self._next[topic][number] for (topic, number), partition in self._partitions.items()}
        )

    def close(self) -> None:
        """Give up whatever is not committed, so that ending the process never waits for a broker that is gone."""
        self._closing = True
        with contextlib.suppress(*_FATAL):  # what was fatal before is so still, and nothing more is asked of it
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)
            if not self._committing:
                _asked(self._producer.poll, 0)

    async def _commit(self) -> bool:
        """Make what was sent readable, and return when the next transaction may have begun. False when there is
        nothing. What is sent meanwhile is kept, and begins the next transaction."""
        if self._committing or not self.queued:
            return False
        count, since_us = self.produced - len(self._held), self._since_us
        self._since_us, self._committing = [], True
        try:
            await asyncio.to_thread(self._commit_now)
            now_us = self._clock.now_us()
            self.committed = count
            self.commits += 1
            for one_us in since_us:
                self._timed((now_us - one_us) / 1e6)
            await asyncio.sleep(self._markers_s)
        finally:
            self._committing = False
        held, self._held, self._broken = self._held, [], False
        for number, (positional, named) in enumerate(held):
            try:
                self._produce(*positional, **named)
            except KafkaException as error:
                if error.args[0].code() not in _BROKEN:
                    raise self._broker_error("did not take a message", error.args[0]) from None
                self._broken, self._held = True, held[number:]
                break
        return True

    def _commit_now(self) -> None:
        """Blocks, in a thread of its own. Raises BrokerError, and IngestFenced."""
        deadline_s = time.monotonic() + self._give_up_s
        while not self._closing:
            late = time.monotonic() > deadline_s
            try:
                if (
                    not self._broken
                    and _asked(self._producer.flush, _COMMIT_CALL_S)
                    and not late
                    and self.error is None
                ):
                    continue
                if self.error is not None:
                    raise self.error
                _asked(self._producer.commit_transaction, _COMMIT_CALL_S)
                self._producer.begin_transaction()
            except _FATAL as error:
                why = _kafka_error(error)
                if why.retriable() and not late:
                    continue
                raise self._broker_error("did not commit a transaction", self._more_of(why)) from None
            self._marked |= self._touched
            self._touched.clear()
            return

    def _more_of(self, why: Any) -> Any:
        """Why a transaction could not be committed. Apache Kafka answers a commit that meets a successor's fencing with
        an unknown error; an abort is then told of the fencing. Blocks."""
        if why.code() == KafkaError.UNKNOWN:
            try:
                _asked(self._producer.abort_transaction, _FENCE_CALL_S)
            except _FATAL as error:
                aborting = _kafka_error(error)
                return aborting if _is_fencing(aborting) else why
        return why

    def _counter(self, topic: str) -> Callable[[Any, Any], None]:
        """The delivery report of one topic. Reports of a partition come in the order of its offsets.

        Behind a commit its marker takes one offset of each partition. That it is the marker's and no other writer's
        record is sure when our next record follows at once: the marker lies between them.
        """
        next_offsets = self._next.get(topic, {})
        touched, marked = self._touched, self._marked

        def on_delivery(error: Any, message: Any) -> None:
            if error is not None:
                self._failed(f"did not take a message for {topic}", error)
                return
            partition = message.partition()
            offset = message.offset()
            place = (topic, partition)
            expected = next_offsets.get(partition)
            if expected is not None and (offset == expected or (offset == expected + 1 and place in marked)):
                next_offsets[partition] = offset + 1
            touched.add(place)
            marked.discard(place)

        return on_delivery

    def _on_delivery(self, error: Any, message: Any) -> None:
        """The delivery report of a message whose position is nothing to us."""
        if error is not None:
            self._failed("did not take a message", error)

    def _failed(self, what: str, error: Any) -> None:
        """A message is not in the log. One that was purged fell to something else, which the commit then says."""
        if error.code() not in _PURGED:
            self.error = self.error or self._broker_error(what, error)

    def _on_error(self, error: Any) -> None:
        if error.fatal():
            self.error = self.error or self._broker_error("ended the producer", error)
        else:
            self._log.warning("the broker has trouble", servers=self._servers, reason=error.str())

    def _broker_error(self, what: str, error: Any) -> K2Error:
        if _is_fencing(error):
            return IngestFenced(
                f"another ingest took over at the broker {self._servers}, or the broker gave up a transaction of this "
                f"one that was open for {self._give_up_s:g} s, and this one ends; what it had not committed counts as "
                "not taken: nothing is lost or doubled by that"
            )
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
            # A broker takes transactions of 15 minutes at most, and librdkafka no message that may outlive its own. Not
            # longer either: readers wait behind the transaction of an ingest that died until the broker ends it.
            "delivery.timeout.ms": min(settings.delivery_timeout_ms, _TRANSACTION_MS_MAX),
            "transaction.timeout.ms": min(settings.delivery_timeout_ms, _TRANSACTION_MS_MAX),
            # The Java clients' partitioner, so that a key lands on the same partition whoever produces it.
            "partitioner": "murmur2_random",
            "error_cb": self._on_error,
        }


def _is_fencing(error: Any) -> bool:
    return error.code() in _FENCED or "fenced" in error.str()


def _asked(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of the client library gives. Raises KafkaException where it raises a KafkaError: that is no exception
    in Python, and comes of a fatal error that is told while the call runs. Only a bare except has it; what has it not
    ends its thread without a word.
    """
    raised: Any
    try:
        return call(*arguments)
    except:  # noqa: E722
        raised = sys.exc_info()[1]
        if isinstance(raised, BaseException):
            raise
    raise KafkaException(raised)


def _kafka_error(error: BaseException) -> Any:
    """The KafkaError in an exception of the client library. Raises what is none."""
    cause = error if isinstance(error, KafkaException) else error.__cause__
    if not isinstance(cause, KafkaException):
        raise error
    return cause.args[0]


def correlation_headers(correlation_id: str) -> Headers:
    """The headers of every message of one connection."""
    return [(CORRELATION_KEY, correlation_id.encode())]
