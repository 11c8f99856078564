"""Messages that cannot be used go, as they are, to a topic of their own with the reason, and the log goes on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Producer

from common import dead_letters
from common.codec import HEADER_BYTES, MAGIC
from common.datasets import dead_letter_topic
from common.errors import BrokerError, RecordError
from common.log import ConsumerBatch, KafkaLog
from common.settings import KafkaSettings

_REASON_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message as it lay in the log, where it lay, and why it cannot be used."""

    topic: str
    partition: int
    offset: int
    reason: str
    value: bytes | None

    @property
    def schema_id(self) -> int | None:
        """The schema id of Confluent's framing; None when the message does not begin with it."""
        if self.value is None or len(self.value) < HEADER_BYTES or self.value[:1] != MAGIC:
            return None
        return int(struct.unpack(">I", self.value[1:HEADER_BYTES])[0])

    def headers(self) -> dict[str, bytes]:
        """What a reader of the dead-letter topic is told, as Kafka headers."""
        texts = {
            dead_letters.REASON: self.reason[:_REASON_CHARACTERS_MAX],
            dead_letters.TOPIC: self.topic,
            dead_letters.PARTITION: str(self.partition),
            dead_letters.OFFSET: str(self.offset),
        }
        if self.schema_id is not None:
            texts[dead_letters.SCHEMA_ID] = str(self.schema_id)
        return {name: text.encode() for name, text in texts.items()}


class DeadLetterWriter(Protocol):
    """Where dead letters go."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Return when every letter is safe. Raises BrokerError; some of the letters may then be written all the same.

        A letter is written at least once: after a crash it may come a second time, with equal headers.
        """
        ...

    def close(self) -> None: ...


def _omitted(letter: DeadLetter) -> dict[str, bytes]:
    return {dead_letters.VALUE_OMITTED: f"{len(letter.value or b'')} bytes".encode()}


def dead_letters_of(batch: ConsumerBatch, errors: Sequence[RecordError]) -> list[DeadLetter]:
    """The batch's messages that the errors are about, in the errors' order."""
    if not errors:
        return []
    at = {position: index for index, position in enumerate(zip(batch.partitions, batch.offsets, strict=True))}
    return [
        DeadLetter(e.topic, e.partition, e.offset, e.reason, batch.values[at[e.partition, e.offset]]) for e in errors
    ]


class KafkaDeadLetters:
    """Dead letters to `dead-letter.<topic>`, made when missing. One thread at a time."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._log = KafkaLog(settings)
        self._timeout_s = settings.request_timeout_ms / 1000
        self._producer: Any = None
        self._topics: set[str] = set()

    def write(self, letters: Sequence[DeadLetter]) -> None:
        if not letters:
            return
        missing = {dead_letter_topic(letter.topic) for letter in letters} - self._topics
        self._log.ensure_topics(sorted(missing))
        self._topics |= missing
        rejected = self._send([(letter, letter.value, letter.headers()) for letter in letters])
        # The broker takes nothing larger than it took at first, and the headers are on top: then the place must do.
        self._send([(letter, None, letter.headers() | _omitted(letter)) for letter in rejected])

    def close(self) -> None:
        self._producer = None

    def _send(self, messages: Sequence[tuple[DeadLetter, bytes | None, dict[str, bytes]]]) -> list[DeadLetter]:
        """Send and wait for the acknowledgements; returns the letters that are too large. Raises BrokerError."""
        if not messages:
            return []
        too_large: list[DeadLetter] = []
        failures: list[str] = []
        acknowledged = 0

        def on_delivery(error: Any, letter: DeadLetter) -> None:
            nonlocal acknowledged
            acknowledged += 1
            if error is not None:
                self._note(error, letter, too_large, failures)

        producer = self._started()
        for letter, value, headers in messages:
            try:
                producer.produce(
                    dead_letter_topic(letter.topic),
                    value=value,
                    headers=headers,
                    on_delivery=lambda error, _message, letter=letter: on_delivery(error, letter),
                )
            except KafkaException as error:
                acknowledged += 1
                self._note(error.args[0], letter, too_large, failures)
            except BufferError:
                producer.flush(self._timeout_s)
                failures.append("the producer's queue is full")
                break
        producer.flush(self._timeout_s)
        if failures or acknowledged < len(messages):
            reason = failures[0] if failures else f"no acknowledgement within {self._timeout_s:.0f} s"
            self._producer = None
            raise BrokerError(
                f"{len(messages)} dead letters could not be written to {self._settings.bootstrap_servers} ({reason}); "
                "nothing behind them is committed until they are"
            )
        return too_large

    @staticmethod
    def _note(error: Any, letter: DeadLetter, too_large: list[DeadLetter], failures: list[str]) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            too_large.append(letter)
        else:
            failures.append(error.str())

    def _started(self) -> Any:
        if self._producer is None:
            try:
                self._producer = Producer(
                    self._settings.client_config()
                    | {
                        "client.id": "k2-sink-dead-letters",
                        "enable.idempotence": True,
                        "message.max.bytes": 16 * 1024 * 1024,
                        "queue.buffering.max.messages": 1_000_000,
                        "message.timeout.ms": self._settings.request_timeout_ms,
                        "linger.ms": 5,
                    }
                )
            except KafkaException as error:
                raise BrokerError(f"a producer for dead letters could not be started: {error}") from None
        return self._producer
