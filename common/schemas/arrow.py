"""Arrow schemas derived from the packaged Avro schemas, with the Iceberg field ids in the field metadata.

Guarantee: for each field the Arrow type is the exact counterpart of the Avro type (decimals stay decimals, instants are
UTC microseconds), nullability is the union with null, and `PARQUET:field_id` is the Avro `field-id`. Iceberg's schema
is derived from this one (sink.table), so the three cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import pyarrow as pa

from common.errors import SettingsError

FIELD_ID_KEY = b"PARQUET:field_id"
DOC_KEY = b"doc"

#: The columns that sink and tail add to every row (rule 4): where in the log the row came from. Their field ids lie
#: far above the schemas' own, so that schemas can grow.
AUDIT_FIELD_ID_BASE = 10_000
AUDIT_COLUMNS = ("_kafka_topic", "_kafka_partition", "_kafka_offset")
#: The schemas whose records are computed from others.
_COMPUTED = frozenset({"bar"})

_PRIMITIVES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "long": pa.int64(),
    "int": pa.int32(),
    "boolean": pa.bool_(),
    "double": pa.float64(),
    "bytes": pa.binary(),
}


def avro_schema_text(schema_name: str) -> str:
    """The text of a packaged schema: `trade`, `quote`, `instrument` or `bar`."""
    try:
        return resources.files("common.schemas").joinpath(f"{schema_name}.avsc").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"there is no packaged Avro schema named {schema_name!r}") from None


@cache
def avro_schema(schema_name: str) -> dict[str, Any]:
    """The packaged schema as parsed JSON. Shared: do not modify."""
    parsed: dict[str, Any] = json.loads(avro_schema_text(schema_name))
    return parsed


def arrow_schema_of(avro: dict[str, Any]) -> pa.Schema:
    """The Arrow schema of an Avro record schema, without the audit columns."""
    return pa.schema([_field(field) for field in avro["fields"]])


@cache
def record_schema(schema_name: str) -> pa.Schema:
    """The Arrow schema of the packaged schema `schema_name`, without the audit columns."""
    return arrow_schema_of(avro_schema(schema_name))


@cache
def audit_fields() -> tuple[pa.Field, ...]:
    """The audit columns: topic id's short form, partition, offset."""
    columns = (
        ("_kafka_topic", pa.string(), "The last 8 characters of the id of the topic the row came from."),
        ("_kafka_partition", pa.int32(), "The topic's partition."),
        ("_kafka_offset", pa.int64(), "The record's offset in the partition."),
    )
    return tuple(
        pa.field(name, data_type, nullable=False, metadata=_metadata(AUDIT_FIELD_ID_BASE + index, doc))
        for index, (name, data_type, doc) in enumerate(columns, 1)
    )


@cache
def table_schema(schema_name: str) -> pa.Schema:
    """The Arrow schema of the table and of the tail: the record's fields, then the audit columns.

    Computed records have no place in the log, and so no audit columns.
    """
    return pa.schema([*record_schema(schema_name), *(() if schema_name in _COMPUTED else audit_fields())])


def field_id(field: pa.Field) -> int | None:
    """The Iceberg field id of an Arrow field; None when it has none."""
    text = (field.metadata or {}).get(FIELD_ID_KEY)
    return None if text is None else int(text)


def further_fields(schema: pa.Schema, other: pa.Schema) -> list[pa.Field]:
    """The fields of `other` that a table of `schema` lacks, by field id, as columns that it could get: nullable.

    Raises ValueError, naming the field, when its name is another column's already, or its id is one of another name:
    by its name its values would be lost.
    """
    ids = {field_id(field): field.name for field in schema}
    names = {field.name.casefold(): field_id(field) for field in schema}
    further = [field for field in other if field_id(field) is not None and field_id(field) not in ids]
    for field in other:
        known = ids.get(field_id(field))
        if field_id(field) is not None and known is not None and known != field.name:
            raise ValueError(
                f"its field {field.name!r} has the field-id {field_id(field)}, and the column {known!r} has it already"
            )
    for field in further:
        if field.name.casefold() in names:
            raise ValueError(
                f"its field {field.name!r} has the field-id {field_id(field)}, and the column of that name has "
                f"{names[field.name.casefold()]}"
            )
        names[field.name.casefold()] = field_id(field)
    return [field.with_nullable(True) for field in further]


def widened(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows in the columns of `schema`; those that they lack are null."""
    if rows.schema.names == schema.names:
        return rows
    columns = [
        rows.column(field.name) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def joined_rows(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """All rows in the columns of the batch that has most, or of `schema`; of one decoder's, which only get more."""
    widest = max((schema, *(batch.schema for batch in batches)), key=len)
    return pa.Table.from_batches([widened(batch, widest) for batch in batches], widest)


def plain(field: pa.Field) -> pa.Field:
    """The same field with 32-bit offsets, as K2's own rows have them."""
    kind = field.type
    if pa.types.is_large_string(kind):
        kind = pa.string()
    elif pa.types.is_large_binary(kind):
        kind = pa.binary()
    elif pa.types.is_large_list(kind) or pa.types.is_list(kind):
        kind = pa.list_(plain(kind.value_field))
    elif pa.types.is_map(kind):
        kind = pa.map_(plain(kind.key_field), plain(kind.item_field))
    elif pa.types.is_struct(kind):
        kind = pa.struct([plain(kind.field(n)) for n in range(kind.num_fields)])
    return field.with_type(kind)


def _field(avro_field: dict[str, Any]) -> pa.Field:
    avro_type, nullable = _unwrap_nullable(avro_field["type"])
    metadata = _metadata(avro_field["field-id"], avro_field.get("doc", ""))
    return pa.field(avro_field["name"], _data_type(avro_type), nullable=nullable, metadata=metadata)


def _unwrap_nullable(avro_type: Any) -> tuple[Any, bool]:
    if not isinstance(avro_type, list):
        return avro_type, False
    branches = [branch for branch in avro_type if branch != "null"]
    if len(branches) != 1 or len(branches) == len(avro_type):
        raise SettingsError(f"only unions of null and one type are supported in our Avro schemas, not {avro_type}")
    return branches[0], True


def _data_type(avro_type: Any) -> pa.DataType:
    if isinstance(avro_type, str):
        return _PRIMITIVES[avro_type]
    kind, logical = avro_type["type"], avro_type.get("logicalType")
    if logical == "decimal":
        return pa.decimal128(avro_type["precision"], avro_type["scale"])
    if logical == "timestamp-micros":
        return pa.timestamp("us", tz="UTC")
    if kind == "enum":
        return pa.string()
    if kind == "array":
        element = pa.field("element", _data_type(avro_type["items"]), False, _metadata(avro_type["element-id"]))
        return pa.list_(element)
    if kind == "map":
        key = pa.field("key", pa.string(), False, _metadata(avro_type["key-id"]))
        value = pa.field("value", _data_type(avro_type["values"]), False, _metadata(avro_type["value-id"]))
        return pa.map_(key, value)
    raise SettingsError(f"our Avro schemas do not use the type {avro_type}")


def _metadata(field_id: int, doc: str = "") -> dict[bytes, bytes]:
    metadata = {FIELD_ID_KEY: str(field_id).encode()}
    if doc:
        metadata[DOC_KEY] = doc.encode()
    return metadata
