"""Schemas by id: Confluent's registry when a URL is set, else the embedded one, which keeps them in the log itself.

Guarantee, with either: a schema is registered only if it may follow every one that its subject has, and the packaged
one of its dataset, and if its columns are no other columns than those of the dataset's other subjects
(common/schemas/compatibility.py). So no producer starts whose records could not be read with those that are in the log,
or would not fit their table, which several topics may fill.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from common.clock import Clock, SystemClock
from common.datasets import DATASETS, Dataset, dataset_of_topic
from common.errors import BrokerError, IncompatibleSchema, K2Error
from common.log import KafkaLog, KafkaLogReader
from common.schemas.arrow import avro_schema_text
from common.schemas.compatibility import clashes, faults
from common.settings import KafkaSettings

#: Where the embedded registry's schemas are: a record for each, which is never deleted.
SCHEMAS_TOPIC = "k2.schemas"
_SCHEMAS_TOPIC_CONFIG = {"retention.ms": "-1"}
_SUBJECT_SUFFIX = "-value"


class SchemaRegistry(Protocol):
    """Avro schemas by number, in the terms of Confluent's registry."""

    def register(self, subject: str, schema_text: str) -> int:
        """The id of the schema under the subject, registering it when new.

        Raises IncompatibleSchema, naming the field, when it may not follow the subject's others; BrokerError.
        """
        ...

    def register_all(self, schema_texts: Mapping[str, str]) -> dict[str, int]:
        """`register` for many subjects, with few round trips; the ids by subject. Raises as `register`."""
        ...

    def schema_text(self, schema_id: int, *, as_of_s: float | None = None) -> str:
        """The text of a schema. Raises UnknownSchema when there is none of that id, BrokerError when unreachable.

        That there is none was found out at `as_of_s` or later, on the system's monotonic clock; None: just now. So a
        record that was read before then is not refused for a schema that was registered before the record was sent.
        """
        ...


class UnknownSchema(K2Error):
    """The registry has no schema of that id."""


class EmbeddedRegistry:
    """The packaged schemas, and any registered here. An id is a checksum of the text, so all processes agree."""

    def __init__(self) -> None:
        self._texts = {schema_id(text): text for text in _packaged().values()}
        #: The subjects' schemas in the order in which they were registered.
        self._versions: dict[str, list[str]] = {}

    def register(self, subject: str, schema_text: str) -> int:
        return self.register_all({subject: schema_text})[subject]

    def register_all(self, schema_texts: Mapping[str, str]) -> dict[str, int]:
        for subject, text in schema_texts.items():
            self._check(subject, text)
            self._keep(subject, text)
        return {subject: schema_id(text) for subject, text in schema_texts.items()}

    def schema_text(self, schema_id: int, *, as_of_s: float | None = None) -> str:
        try:
            return self._texts[schema_id]
        except KeyError:
            raise UnknownSchema(f"schema id {schema_id} is not one of the embedded registry's") from None

    def _check(self, subject: str, text: str) -> None:
        """Raises IncompatibleSchema."""
        check_follows(subject, text, self._versions.get(subject, ()), lambda: self._beside(subject))

    def _beside(self, subject: str) -> dict[str, list[str]]:
        """The dataset's other subjects with their schemas."""
        return {other: texts for other, texts in self._versions.items() if _are_beside(subject, other)}

    def _keep(self, subject: str, text: str) -> None:
        self._texts[schema_id(text)] = text
        versions = self._versions.setdefault(subject, [])
        if text not in versions:
            versions.append(text)


class KafkaRegistry(EmbeddedRegistry):
    """The embedded registry as all processes at one broker have it: its schemas are records of a topic.

    Every process reads them in the same order and lets the same ones count, so that of two schemas that are registered
    at the same moment and do not go together, all take the same one. A schema that is not known yet is looked for in
    the topic: its record was acknowledged before the first message that needs it was sent. What was not there is looked
    for again with later messages. Thread-safe: its methods only add what is the same for all.
    """

    def __init__(self, kafka: KafkaSettings, *, clock: Clock | None = None) -> None:
        super().__init__()
        self._kafka = kafka
        self._clock = clock or SystemClock()
        self._reading = threading.Lock()
        #: When the topic was last read to its end; all that it had then is known.
        self._read_s = float("-inf")

    def register_all(self, schema_texts: Mapping[str, str]) -> dict[str, int]:
        fresh = self._unregistered(schema_texts)
        if fresh:
            with self._reading:
                self._read()
            fresh = self._unregistered(schema_texts)
            for subject, text in fresh.items():
                self._check(subject, text)
            self._write(fresh)
            with self._reading:
                self._read()
        for subject, text in self._unregistered(fresh).items():
            self._check(subject, text)
            raise BrokerError(
                f"the schema of {subject} was written to the topic {SCHEMAS_TOPIC} at {self._kafka.bootstrap_servers} "
                "and is not there; check the broker and start again"
            )
        return {subject: schema_id(text) for subject, text in schema_texts.items()}

    def schema_text(self, schema_id: int, *, as_of_s: float | None = None) -> str:
        if schema_id not in self._texts:
            wanted_s = self._clock.monotonic_s() if as_of_s is None else as_of_s
            with self._reading:
                if schema_id not in self._texts and self._read_s < wanted_s:
                    self._read()
        return super().schema_text(schema_id)

    def _unregistered(self, schema_texts: Mapping[str, str]) -> dict[str, str]:
        return {subject: text for subject, text in schema_texts.items() if text not in self._versions.get(subject, ())}

    def _read(self) -> None:
        """Take in the topic, which has a few records, from its beginning. Raises BrokerError."""
        began_s = self._clock.monotonic_s()
        for value in self._records():
            self._take_in(value)
        self._read_s = began_s

    def _records(self) -> Iterator[bytes]:
        log = KafkaLog(self._kafka)
        topics = log.topics(rf"^{re.escape(SCHEMAS_TOPIC)}$").values()
        if not topics:
            return
        reader = KafkaLogReader(self._kafka, client_id="k2-schemas")
        try:
            starts = log.start_offsets(topics)
            reader.assign(dict(starts.items()), {info.topic_id: info.topic for info in topics})
            yield from _read_to_end(reader, self._kafka)
        finally:
            reader.close()

    def _take_in(self, value: bytes) -> None:
        """One record of the topic; what may not follow what is before it does not count, here as everywhere."""
        try:
            record = json.loads(value)
            subject, text = str(record["subject"]), str(record["schema"])
            if _fault(json.loads(text), self._versions.get(subject, ()), self._beside(subject)) is None:
                self._keep(subject, text)
        except (ValueError, KeyError, TypeError):
            return  # not a schema: it counts for nobody

    def _write(self, schema_texts: Mapping[str, str]) -> None:
        """Raises BrokerError."""
        from confluent_kafka import KafkaException, Producer

        KafkaLog(self._kafka).ensure_topics([SCHEMAS_TOPIC], config=_SCHEMAS_TOPIC_CONFIG)
        timeout_s = self._kafka.request_timeout_ms / 1000
        failed: list[str] = []

        def delivered(error: Any, _message: Any) -> None:
            if error is not None:
                failed.append(error.str())

        config = {"acks": "all", "linger.ms": 0, "delivery.timeout.ms": self._kafka.request_timeout_ms}
        try:
            producer = Producer(self._kafka.client_config() | config)
            for subject, text in schema_texts.items():
                value = json.dumps({"subject": subject, "schema": text}).encode()
                # The key keeps a dataset's schemas in one partition, and so in one order.
                dataset = _dataset_of(subject)
                key = subject if dataset is None else dataset.name
                producer.produce(SCHEMAS_TOPIC, value, key, on_delivery=delivered)
            left = producer.flush(timeout_s)
        except KafkaException as error:
            failed, left = [error.args[0].str()], 0
        if failed or left:
            raise BrokerError(
                f"the broker {self._kafka.bootstrap_servers} did not take the schemas of {next(iter(schema_texts))} "
                f"({failed[0] if failed else 'no answer'}); check the broker and start again"
            )


class ConfluentRegistry:
    """A Confluent-compatible schema registry over HTTP; the client remembers schemas, and not that there was none."""

    def __init__(self, url: str) -> None:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self._url = url
        self._client = SchemaRegistryClient({"url": url})

    def register(self, subject: str, schema_text: str) -> int:
        from confluent_kafka.schema_registry import Schema

        try:
            check_follows(subject, schema_text, self._versions(subject), lambda: self._beside(subject))
            return int(self._client.register_schema(subject, Schema(schema_text, schema_type="AVRO")))
        except K2Error:
            raise
        except Exception as error:  # noqa: BLE001  (besides its own, the client raises its HTTP library's errors)
            if getattr(error, "http_status_code", None) == 409:
                raise IncompatibleSchema(
                    f"the schema registry {self._url} refuses the schema of {subject}: {error}"
                ) from None
            raise BrokerError(f"the schema registry {self._url} did not register {subject}: {error}") from None

    def register_all(self, schema_texts: Mapping[str, str]) -> dict[str, int]:
        return {subject: self.register(subject, text) for subject, text in schema_texts.items()}

    def schema_text(self, schema_id: int, *, as_of_s: float | None = None) -> str:
        try:
            text = self._client.get_schema(schema_id).schema_str
        except Exception as error:  # noqa: BLE001  (as above)
            if getattr(error, "http_status_code", None) == 404:
                raise UnknownSchema(f"schema id {schema_id} is not known to the registry {self._url}") from None
            raise BrokerError(
                f"the schema registry {self._url} did not answer for schema {schema_id}: {error}"
            ) from None
        if text is None:
            raise UnknownSchema(f"schema id {schema_id} has no text at the registry {self._url}")
        return str(text)

    def _beside(self, subject: str) -> dict[str, list[str]]:
        """The dataset's other subjects with their schemas."""
        return {
            other: self._versions(other) for other in self._client.get_subjects() if _are_beside(subject, str(other))
        }

    def _versions(self, subject: str) -> list[str]:
        """The texts of all versions of the subject; those deleted are not asked for."""
        try:
            numbers = self._client.get_versions(subject)
        except Exception as error:
            if getattr(error, "http_status_code", None) == 404:
                return []
            raise
        return [str(self._client.get_version(subject, number).schema.schema_str) for number in numbers]


def open_registry(kafka: KafkaSettings) -> SchemaRegistry:
    """The registry of the settings: Confluent's at their URL, the embedded one, at their broker, without."""
    return ConfluentRegistry(kafka.schema_registry_url) if kafka.schema_registry_url else KafkaRegistry(kafka)


def schema_id(schema_text: str) -> int:
    """The embedded registry's id of a schema."""
    return zlib.crc32(schema_text.encode()) & 0x7FFF_FFFF


def check_follows(
    subject: str, schema_text: str, versions: Sequence[str], beside: Callable[[], Mapping[str, Sequence[str]]]
) -> None:
    """Raises IncompatibleSchema unless the schema may follow all of these, and the packaged one of its dataset, and
    stand beside those of the dataset's other subjects, which `beside` is asked for when it is new.

    One that the subject has already is as good as it was when it was registered.
    """
    if schema_text in versions:
        return
    newer = json.loads(schema_text)
    dataset = _dataset_of(subject)
    found = _fault(newer, versions, beside())
    if found is None and dataset is not None:
        packaged = json.loads(avro_schema_text(dataset.schema_name))
        if packaged != newer and (wrong := faults(newer, packaged)):
            found = "may not follow the packaged one", wrong
    if found is not None:
        what, wrong = found
        raise IncompatibleSchema(
            f"the schema of {subject} {what}: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
            + "; add optional fields with a default and new field-ids, and change nothing else"
        )


def _fault(
    newer: Mapping[str, Any], versions: Sequence[str], beside: Mapping[str, Sequence[str]]
) -> tuple[str, list[str]] | None:
    """What the schema may not do, and why not in several sentences; None when nothing is wrong."""
    for number, text in enumerate(versions, 1):
        older = json.loads(text)
        if older != newer and (wrong := faults(newer, older)):
            return f"may not follow its version {number}", wrong
    for other, texts in beside.items():
        for text in texts:
            if wrong := clashes(newer, json.loads(text)):
                return f"does not go with that of {other}, which has the same table", wrong
    return None


def _dataset_of(subject: str) -> Dataset | None:
    return dataset_of_topic(subject.removesuffix(_SUBJECT_SUFFIX))


def _are_beside(subject: str, other: str) -> bool:
    """True for two subjects of one dataset."""
    dataset = _dataset_of(subject)
    return subject != other and dataset is not None and _dataset_of(other) is dataset


def _packaged() -> dict[str, str]:
    return {dataset.name: avro_schema_text(dataset.schema_name) for dataset in DATASETS.values()}


def _read_to_end(reader: KafkaLogReader, kafka: KafkaSettings) -> Iterable[bytes]:
    deadline_s = time.monotonic() + kafka.request_timeout_ms / 1000
    while not reader.at_end():
        for batch in reader.poll(1_000, 0.1):
            yield from (value for value in batch.values if value is not None)
        if time.monotonic() > deadline_s:
            raise BrokerError(
                f"the broker {kafka.bootstrap_servers} did not give the topic {SCHEMAS_TOPIC} within "
                f"{kafka.request_timeout_ms / 1000:.0f} s; check the broker and start again"
            )
