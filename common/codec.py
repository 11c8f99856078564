"""Avro records in Confluent's framing <-> Arrow batches. Sink, tail and ingest use this one decoder.

Encoding is by a function compiled from the schema (common/avro_writer.py), with fastavro behind it. Decoding is
arrow-avro's (the Avro reader of Apache arrow-rs, by way of polars-avro): the messages of a batch are laid one behind
the other into one Object Container block and decoded in one call. arrow-avro takes such a block on trust, so each
message is fenced in:

- The record schema of the block is the writer's schema between two extra fields: `_frame`, the 5 bytes of Confluent's
  header, and `_fence`, 8 bytes that K2 puts behind each message. A message that is too short or too long shifts every
  byte behind it, so its own fence does not come out as it went in. Fences are drawn from the system's random source, so
  no message can forge one.
- The block claims more records than its bytes can hold. arrow-avro loops for ever when bytes are left over behind the
  last record that a block claims; this way it always ends, by the batch being full or by running out of bytes.
- What decodes is checked once more by column: enum indices, the range of decimals and of timestamps.

When a block does not come out clean it is cut in two, down to single messages, and fastavro has the last word on each
of those. What becomes of a message therefore does not depend on its neighbours.
"""

from __future__ import annotations

import decimal
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.avro_writer import ADJUSTED_MAX, EXACT, compiled_writer, zigzag
from common.clock import SystemClock
from common.datasets import Dataset
from common.errors import EncodeError, RecordError
from common.log import ConsumerBatch
from common.offsets import topic_short
from common.registry import SchemaRegistry, UnknownSchema
from common.schemas.arrow import (
    AUDIT_COLUMNS,
    arrow_schema_of,
    audit_fields,
    avro_schema_text,
    further_fields,
    record_schema,
    table_schema,
)

MAGIC = b"\x00"
HEADER_BYTES = 5
_FENCE_BYTES = 8
_SYNC = b"k2 container sync"[:16]
_FRAME_FIELD, _FENCE_FIELD = "_frame", "_fence"
#: 0001-01-01 and 9999-12-31T23:59:59.999999 in microseconds: what fastavro, Python and every client can show.
_TIME_US_MIN, _TIME_US_MAX = -62_135_596_800_000_000, 253_402_300_799_999_999


def _avro_source() -> Any:
    """arrow-avro's reader, out of polars-avro's compiled module alone.

    The package itself imports polars, of which nothing is used here: 46 MB of each process, and 0.6 s of its start.
    """
    package, name = "polars_avro", "polars_avro._avro_rs"
    module = sys.modules.get(name)
    if module is None:
        around = importlib.util.find_spec(package)
        spec = around and importlib.machinery.PathFinder.find_spec(name, around.submodule_search_locations)
        if spec is None or spec.loader is None:
            raise ImportError(f"{name} is not installed; run `uv sync`", name=name)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.AvroSource


_AvroSource = _avro_source()


class Encoder:
    """Records of one dataset to Avro bytes in Confluent's framing, under the id that the registry gives the schema."""

    def __init__(
        self, dataset: Dataset, registry: SchemaRegistry, *, topic: str, schema_text: str | None = None
    ) -> None:
        """`schema_text` is another version of the dataset's schema than the packaged one."""
        text = schema_text or avro_schema_text(dataset.schema_name)
        self.schema_id = registry.register(f"{topic}-value", text)
        self._dataset = dataset
        self._header = MAGIC + struct.pack(">I", self.schema_id)
        self._compiled = compiled_writer(json.loads(text), self._header)
        self._avro = json.loads(text)
        self._schema = fastavro.parse_schema(json.loads(text))
        self._write = partial(fastavro.schemaless_writer, strict_allow_default=True)
        self._decimals = [
            (field.name, field.type.scale, 10**field.type.precision - 1, field.nullable)
            for field in arrow_schema_of(self._avro)
            if pa.types.is_decimal(field.type)
        ]

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """The framed bytes of one record. Decimals as Decimal, instants as UTC datetimes or microseconds.

        Raises EncodeError naming the field when the record does not fit the schema.
        """
        try:
            return self._compiled(record)
        except Exception:  # noqa: BLE001  (whatever is out of the ordinary is fastavro's to write or to refuse)
            return self.encode_by_fastavro(record)

    def encode_by_fastavro(self, record: Mapping[str, Any]) -> bytes:
        """What `encode` gives and raises, without the compiled writer: the oracle."""
        out = io.BytesIO()
        out.write(self._header)
        prepared = dict(record)
        for name, scale, largest, nullable in self._decimals:
            value = prepared.get(name)
            if value is not None:
                unscaled = self._unscaled(name, value, scale, largest)
                prepared[name] = ("bytes", unscaled) if nullable else unscaled
        try:
            self._write(out, self._schema, prepared)
        except Exception as error:  # noqa: BLE001  (fastavro raises builtins without a common base)
            raise EncodeError(self._misfit(self._fault(record, error))) from None
        return out.getvalue()

    def _unscaled(self, name: str, value: object, scale: int, largest: int) -> bytes:
        """A decimal's two's complement bytes, as Avro has them.

        fastavro's own way, digit by digit and twice for a union, takes half the time of encoding a quote (11 of 23 us).
        """
        if not isinstance(value, Decimal) or not value.is_finite():
            raise EncodeError(self._misfit(f"the field {name!r} is {value!r}, which is no finite Decimal"))
        if value.adjusted() > ADJUSTED_MAX:
            raise EncodeError(self._misfit(f"the field {name!r} is {value}, beyond what the schema holds"))
        try:
            exact = EXACT.scaleb(value, scale)
            unscaled = int(exact)
        except decimal.Inexact:
            exact, unscaled = value, 0
        if unscaled != exact:
            raise EncodeError(self._misfit(f"the field {name!r} is {value}, with more than {scale} decimals"))
        if not -largest <= unscaled <= largest:
            raise EncodeError(self._misfit(f"the field {name!r} is {value}, beyond {Decimal(largest).scaleb(-scale)}"))
        return unscaled.to_bytes((unscaled.bit_length() + 8) // 8, "big", signed=True)

    def _misfit(self, fault: str) -> str:
        return f"a record does not fit the {self._dataset.schema_name} schema: {fault}"

    def _fault(self, record: Mapping[str, Any], error: Exception) -> str:
        fields = {field["name"]: field for field in self._avro["fields"]}
        for name in record:
            if name not in fields:
                return f"it has no field {name!r}"
        for name, field in fields.items():
            if name not in record:
                if "default" not in field:
                    return f"the field {name!r} is missing"
                continue
            one = {"type": "record", "name": "One", "fields": [field]}
            try:
                fastavro.schemaless_writer(io.BytesIO(), fastavro.parse_schema(one), {name: record[name]}, strict=True)
            except Exception as fault:  # noqa: BLE001  (as above)
                return f"the field {name!r} is {record[name]!r}: {fault}"
        return str(error)


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """What came of one ConsumerBatch: the good rows in their order, and one error for each message that is none."""

    record_batch: pa.RecordBatch
    errors: list[RecordError]


class Decoder:
    """ConsumerBatch -> rows of the dataset's table schema, audit columns included.

    Guarantee: each message becomes exactly one row or one RecordError, whatever its bytes are; neighbours are never
    touched, and the outcome does not depend on how messages were batched. Raises BrokerError only when the schema
    registry cannot be reached. Not thread-safe: one decoder per thread.

    A message may be written with a later version of the schema than this process knows. Fields that the table lacks
    become columns of it: the rows of this and of every later batch have them, behind the others.

    A message is refused for its schema id only when the registry, asked after the message was read, has none of that
    id; so all who read the log refuse the same ones, as long as producers register a schema before they write with it.
    """

    def __init__(
        self, dataset: Dataset, registry: SchemaRegistry, *, read_s: Callable[[], float] | None = None
    ) -> None:
        """`read_s` says, on the system's monotonic clock, a time at which what is decoded had been read; None = now."""
        self._registry = registry
        self._read_s = read_s or SystemClock().monotonic_s
        self._schema = table_schema(dataset.schema_name)
        self._columns = len(record_schema(dataset.schema_name))
        self._writers: dict[bytes, _WriterSchema] = {}

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows that the next batch gives: those of the packaged schema, and those seen since."""
        return self._schema

    def decode(self, batch: ConsumerBatch) -> DecodedBatch:
        good: list[pa.RecordBatch] = []
        kept: list[int] = []
        faults: list[tuple[int, str]] = []
        by_header = self._by_header(batch.values, faults)
        # All of them before the first row: columns that one of them adds are columns of all rows.
        read_s = self._read_s()
        writers = {header: self._writer(header, read_s) for header in by_header}
        for header, indices in by_header.items():
            writer = writers[header]
            if isinstance(writer, str):
                faults += [(index, writer) for index in indices]
                continue
            whole = len(indices) == len(batch)
            values: Sequence[Any] = batch.values if whole else [batch.values[index] for index in indices]
            _decode_into(writer, values, indices, good, kept, faults)
        rows = self._with_audit(batch, good, kept)
        errors = [
            RecordError(reason, topic=batch.topic, partition=batch.partitions[index], offset=batch.offsets[index])
            for index, reason in sorted(faults)
        ]
        return DecodedBatch(rows, errors)

    def _by_header(self, values: Sequence[bytes | None], faults: list[tuple[int, str]]) -> dict[bytes, Sequence[int]]:
        """Message indices by Confluent header; what has none is a fault. One header for all is the normal case."""
        first = values[0][:HEADER_BYTES] if values and values[0] else b""
        if (
            len(first) == HEADER_BYTES
            and first[:1] == MAGIC
            and all(v is not None and v.startswith(first) for v in values)
        ):
            return {first: range(len(values))}
        groups: dict[bytes, Sequence[int]] = {}
        for index, value in enumerate(values):
            if value is None:
                faults.append((index, "the message has no value"))
            elif len(value) < HEADER_BYTES or value[:1] != MAGIC:
                faults.append((index, "the message does not begin with Confluent's magic byte 0 and a schema id"))
            else:
                indices = groups.setdefault(value[:HEADER_BYTES], [])
                assert isinstance(indices, list)
                indices.append(index)
        return groups

    def _writer(self, header: bytes, read_s: float) -> _WriterSchema | str:
        """The writer's schema, or why there is none."""
        writer = self._writers.get(header)
        if writer is None:
            (schema_id,) = struct.unpack(">I", header[1:])
            try:
                text = self._registry.schema_text(schema_id, as_of_s=read_s)
                writer = _WriterSchema(json.loads(text), self._schema)
                self._take_in(writer)
            except UnknownSchema as error:
                return str(error)
            except _Unreadable as error:
                return f"schema id {schema_id} cannot fill the table: {error}"
            self._writers[header] = writer
        return writer

    def _take_in(self, writer: _WriterSchema) -> None:
        """Have the columns that a writer has beyond ours."""
        try:
            further = further_fields(self._schema, writer.arrow)
        except ValueError as error:
            raise _Unreadable(str(error)) from None
        if further:
            self._schema = pa.schema([*self._schema, *further])
            for known in (writer, *self._writers.values()):
                known.fill(self._schema)

    def _with_audit(self, batch: ConsumerBatch, good: list[pa.RecordBatch], kept: list[int]) -> pa.RecordBatch:
        if not kept:
            return pa.RecordBatch.from_pylist([], schema=self._schema)
        rows = good[0] if len(good) == 1 else pa.concat_batches(good)
        if any(a > b for a, b in itertools.pairwise(kept)):
            order = sorted(range(len(kept)), key=kept.__getitem__)
            rows = rows.take(pa.array(order))
            kept = sorted(kept)
        whole = len(kept) == len(batch)
        topic = pa.repeat(topic_short(batch.topic_id), len(kept))
        partitions = batch.partitions if whole else [batch.partitions[index] for index in kept]
        offsets = batch.offsets if whole else [batch.offsets[index] for index in kept]
        audit = [topic, pa.array(partitions, pa.int32()), pa.array(offsets, pa.int64())]
        assert len(audit) == len(audit_fields())
        columns = rows.columns
        return pa.RecordBatch.from_arrays(
            [*columns[: self._columns], *audit, *columns[self._columns :]], schema=self._schema
        )


class _Unreadable(Exception):
    """A writer's schema that cannot be projected onto the table."""


class _NotClean(Exception):
    """A block that did not come out as it went in; `index` is the first message known to be at fault, if any is."""

    def __init__(self, index: int | None = None) -> None:
        super().__init__()
        self.index = index


class _WriterSchema:
    """One writer's schema: how to decode a block of it and how to lay the columns out as the table has them."""

    def __init__(self, avro: dict[str, Any], table: pa.Schema) -> None:
        self._avro = fastavro.parse_schema(avro)
        try:
            self.arrow = arrow_schema_of(avro)
        except (KeyError, TypeError) as error:
            raise _Unreadable(f"it is no record schema of ours ({error!r})") from None
        self.fill(table)
        self._header = _container_header(avro)

    def fill(self, table: pa.Schema) -> None:
        """Give rows in the columns of this table schema, without the audit columns. Raises _Unreadable."""
        fields = [field for field in table if field.name not in AUDIT_COLUMNS]
        for field in fields:
            if field.name not in self.arrow.names and not field.nullable:
                raise _Unreadable(f"it has no field {field.name!r}")
        self._filled = pa.schema(fields)
        #: Name and type of each: a schema makes a new object of its fields each time it is asked.
        self._fields = [(field.name, field.type) for field in fields]

    def decode_block(self, values: Sequence[bytes]) -> pa.RecordBatch:
        """All messages as one batch in the table's column order. Raises _NotClean; never anything else."""
        rows = self._read_block(values)
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        for name in self.arrow.names:
            self._check_range(columns[name])
        return self._project(columns, rows.num_rows)

    def decode_one(self, value: bytes) -> pa.RecordBatch | str:
        """One message by fastavro, the oracle: one row, or the reason why it is none."""
        body = io.BytesIO(value[HEADER_BYTES:])
        try:
            record = fastavro.schemaless_reader(body, self._avro, None)
        except Exception as error:  # noqa: BLE001  (fastavro raises builtins without a common base)
            return f"the Avro bytes cannot be decoded ({type(error).__name__}: {error})".replace("\n", " ")
        left = len(value) - HEADER_BYTES - body.tell()
        if left:
            return f"{left} bytes are left over behind the Avro record"
        try:
            row = pa.RecordBatch.from_pylist([record], schema=self.arrow)
            return self._project(dict(zip(self.arrow.names, row.columns, strict=True)), 1)
        except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
            return f"a value does not fit its column ({error})".replace("\n", " ")

    def _read_block(self, values: Sequence[bytes]) -> pa.RecordBatch:
        count = len(values)
        nonce = int.from_bytes(os.urandom(_FENCE_BYTES), "little")
        fences = _fences(nonce, count)
        parts: list[bytes] = [b""] * (2 * count)
        parts[0::2] = values
        parts[1::2] = [fences[at : at + _FENCE_BYTES] for at in range(0, len(fences), _FENCE_BYTES)]
        body = b"".join(parts)
        block = b"".join((self._header, zigzag(count + len(body) + 1), zigzag(len(body)), body, _SYNC))
        source = _Buffer(block)
        try:
            batch = next(iter(_AvroSource([lambda: source], False, False).batch_iter(count, None)), None)
            rows = None if batch is None else pa.record_batch(batch)
        except Exception:  # noqa: BLE001  (arrow-avro's errors say nothing about which message; fastavro will)
            raise _NotClean from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise _NotClean from None
        if rows is None or rows.num_rows != count:
            raise _NotClean
        came_out = rows.column(_FENCE_FIELD).buffers()[1]
        if came_out is None or came_out.to_pybytes()[: len(fences)] != fences:
            column = rows.column(_FENCE_FIELD).to_pylist()
            raise _NotClean(next((i for i, fence in enumerate(column) if fence != parts[2 * i + 1]), None))
        return rows

    def _check_range(self, column: pa.Array) -> None:
        kind = column.type
        low: int | Decimal
        high: int | Decimal
        if pa.types.is_dictionary(kind):
            low, high, column = 0, len(column.dictionary) - 1, column.indices
        elif pa.types.is_decimal(kind):
            low, high = _decimal_bounds(kind)
        elif pa.types.is_timestamp(kind):
            low, high, column = _TIME_US_MIN, _TIME_US_MAX, column.view(pa.int64())
        else:
            return
        extremes = pc.min_max(column).as_py()
        if extremes["min"] is not None and not (low <= extremes["min"] and extremes["max"] <= high):
            raise _NotClean

    def _project(self, given: Mapping[str, pa.Array], count: int) -> pa.RecordBatch:
        columns = []
        for name, kind in self._fields:
            column = given.get(name)
            if column is None:
                columns.append(pa.nulls(count, kind))
            else:
                columns.append(column if column.type == kind else _as_type(column, kind))
        return pa.RecordBatch.from_arrays(columns, schema=self._filled)


def _decode_into(
    writer: _WriterSchema,
    values: Sequence[bytes],
    indices: Sequence[int],
    good: list[pa.RecordBatch],
    kept: list[int],
    faults: list[tuple[int, str]],
) -> None:
    """Decode all at once; what is not clean is cut apart until the messages at fault stand alone."""
    pending = [(0, len(values))]
    while pending:
        start, end = pending.pop()
        if start == end:
            continue
        try:
            good.append(writer.decode_block(values[start:end]))
            kept += indices[start:end]
            continue
        except _NotClean as not_clean:
            at = not_clean.index
        if end - start == 1:
            row = writer.decode_one(values[start])
            if isinstance(row, str):
                faults.append((indices[start], row))
            else:
                good.append(row)
                kept.append(indices[start])
        elif at is not None:
            pending += [(start + at + 1, end), (start + at, start + at + 1), (start, start + at)]
        else:
            middle = (start + end) // 2
            pending += [(middle, end), (start, middle)]


def _as_type(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode().cast(wanted)
    if pa.types.is_timestamp(column.type):
        return column.view(pa.int64()).view(wanted)
    if pa.types.is_map(wanted):
        validity = column.buffers()[0]
        items = wanted.item_field.type
        return pa.MapArray.from_buffers(
            wanted,
            len(column),
            [validity, column.buffers()[1]],
            children=[
                pa.StructArray.from_arrays(
                    [column.keys.cast(wanted.key_type), column.items.cast(items)],
                    fields=[wanted.key_field, wanted.item_field],
                )
            ],
            offset=column.offset,
        )
    return column.cast(wanted)


@cache
def _decimal_bounds(kind: pa.DataType) -> tuple[Decimal, Decimal]:
    """The smallest and the largest value of a decimal type."""
    largest = Decimal((0, (9,) * kind.precision, -kind.scale))
    return largest.copy_negate(), largest


def _fences(nonce: int, count: int) -> bytes:
    """`count` fences of 8 bytes: consecutive numbers from a random start, so that no two of a block are alike."""
    modulus = 1 << (8 * _FENCE_BYTES)
    if nonce + count < modulus:
        return (np.arange(count, dtype=np.uint64) + np.uint64(nonce)).astype("<u8").tobytes()
    return b"".join(((nonce + i) % modulus).to_bytes(_FENCE_BYTES, "little") for i in range(count))


class _Buffer(io.BytesIO):
    """An in-memory file in the form that polars-avro opens and rewinds."""

    def __enter__(self) -> _Buffer:
        self.seek(0)
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _container_header(avro: dict[str, Any]) -> bytes:
    """An Object Container header for blocks of fenced records of this schema (Avro specification, 1.11)."""
    fenced = {
        "type": "record",
        "name": "Fenced",
        "fields": [
            {"name": _FRAME_FIELD, "type": {"type": "fixed", "name": "Frame", "size": HEADER_BYTES}},
            *({"name": field["name"], "type": field["type"]} for field in avro["fields"]),
            {"name": _FENCE_FIELD, "type": {"type": "fixed", "name": "Fence", "size": _FENCE_BYTES}},
        ],
    }
    schema_text = json.dumps(fenced).encode()
    entries = {b"avro.schema": schema_text, b"avro.codec": b"null"}
    header = b"Obj\x01" + zigzag(len(entries))
    for key, value in entries.items():
        header += zigzag(len(key)) + key + zigzag(len(value)) + value
    return header + zigzag(0) + _SYNC
