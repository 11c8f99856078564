"""Schemas by id: Confluent's registry when a URL is set, else the packaged ones, with ids derived from their text."""

from __future__ import annotations

import zlib
from typing import Protocol

from common.datasets import DATASETS
from common.errors import BrokerError, K2Error
from common.schemas.arrow import avro_schema_text


class SchemaRegistry(Protocol):
    """Avro schemas by number, in the terms of Confluent's registry."""

    def register(self, subject: str, schema_text: str) -> int:
        """The id of the schema under the subject, registering it when new. Raises BrokerError."""
        ...

    def schema_text(self, schema_id: int) -> str:
        """The text of a schema. Raises UnknownSchema when there is none of that id, BrokerError when unreachable."""
        ...


class UnknownSchema(K2Error):
    """The registry has no schema of that id."""


class EmbeddedRegistry:
    """The packaged schemas, and any registered here. An id is a checksum of the text, so all processes agree."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        for dataset in DATASETS.values():
            self.register(dataset.name, avro_schema_text(dataset.schema_name))

    def register(self, subject: str, schema_text: str) -> int:
        schema_id = zlib.crc32(schema_text.encode()) & 0x7FFF_FFFF
        self._texts[schema_id] = schema_text
        return schema_id

    def schema_text(self, schema_id: int) -> str:
        try:
            return self._texts[schema_id]
        except KeyError:
            raise UnknownSchema(f"schema id {schema_id} is not one of the embedded registry's") from None


class ConfluentRegistry:
    """A Confluent-compatible schema registry over HTTP; answers are cached by the client."""

    def __init__(self, url: str) -> None:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self._url = url
        self._client = SchemaRegistryClient({"url": url})

    def register(self, subject: str, schema_text: str) -> int:
        from confluent_kafka.schema_registry import Schema

        try:
            return int(self._client.register_schema(subject, Schema(schema_text, schema_type="AVRO")))
        except Exception as error:  # noqa: BLE001  (besides its own, the client raises its HTTP library's errors)
            raise BrokerError(f"the schema registry {self._url} did not register {subject}: {error}") from None

    def schema_text(self, schema_id: int) -> str:
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


def open_registry(url: str | None) -> SchemaRegistry:
    """The registry of the settings: Confluent's at `url`, the embedded one for None."""
    return ConfluentRegistry(url) if url else EmbeddedRegistry()
