"""The shape of what is sent: batches cut to size, and no dictionaries; order and values untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InvalidStatement

#: How Flight SQL's clients find what a column's Arrow type does not tell them.
_TYPE_NAME, _PRECISION, _SCALE = (f"ARROW:FLIGHT:SQL:{name}" for name in ("TYPE_NAME", "PRECISION", "SCALE"))
#: The engine's types that share an Arrow type with another.
_TOLD = frozenset(("HUGEINT", "UHUGEINT", "UUID", "JSON", "BIT", "TIME WITH TIME ZONE"))


def sliced(batch: pa.RecordBatch, *, rows_max: int, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """The batch in pieces, in order, without copying.

    A piece of one row may be larger than `bytes_max`: a row cannot be cut. `bytes_max` counts Arrow buffers; the wire
    adds some hundred bytes per column.
    """
    if batch.num_rows > rows_max:
        for start in range(0, batch.num_rows, rows_max):
            yield from sliced(batch.slice(start, rows_max), rows_max=rows_max, bytes_max=bytes_max)
    elif batch.num_rows > 1 and batch.nbytes > bytes_max:
        # By halves: rows may differ in size, so that equal counts are not equal bytes.
        half = batch.num_rows // 2
        yield from sliced(batch.slice(0, half), rows_max=rows_max, bytes_max=bytes_max)
        yield from sliced(batch.slice(half), rows_max=rows_max, bytes_max=bytes_max)
    else:
        yield batch


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """No rows, of any schema; pyarrow's own ways make no empty unions."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def described(field: pa.Field, sql_type: str) -> pa.Field:
    """The column with what JDBC shows of it: digits of decimals, and the engine's name of a type that Arrow has not."""
    said = {}
    if pa.types.is_decimal(field.type):
        said = {_PRECISION: str(field.type.precision), _SCALE: str(field.type.scale)}
    if sql_type in _TOLD:
        said[_TYPE_NAME] = sql_type
    return field.with_metadata({**(field.metadata or {}), **said}) if said else field


def unsigned_columns(schema: pa.Schema) -> list[int]:
    """Where the schema, made of `described` columns, has a UHUGEINT."""
    # Looked for among decimals only, by their types: every statement asks.
    decimals = [index for index, kind in enumerate(schema.types) if kind.id == pa.lib.Type_DECIMAL128]
    name = _TYPE_NAME.encode()
    return [index for index in decimals if (schema.field(index).metadata or {}).get(name) == b"UHUGEINT"]


def check_unsigned(batch: pa.RecordBatch, columns: list[int]) -> None:
    """Raises InvalidStatement for a UHUGEINT of 128 bits: the engine hands it out as a negative decimal."""
    for index in columns:
        if (low := pc.min(batch.column(index)).as_py()) is not None and low < 0:
            raise InvalidStatement(
                f"the column {batch.schema.field(index).name!r} has a UHUGEINT above 2^127 - 1, which is more than "
                "Arrow's decimals hold; cast it to VARCHAR"
            )


def without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """The schema with each dictionary (the engine's ENUM) as the type of its values.

    Dictionaries buy nothing over the wire here, and break clients and pyarrow's own stream of batches.
    """
    if not any(_has_dictionary(field.type) for field in schema):
        return schema
    return pa.schema([field.with_type(_plain(field.type)) for field in schema], metadata=schema.metadata)


def in_utc(schema: pa.Schema) -> pa.Schema:
    """The schema with every instant in UTC, whatever the session's time zone: the same instants, said in one way."""
    return pa.schema([field.with_type(_utc(field.type)) for field in schema], metadata=schema.metadata)


def _utc(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(data_type):
        return data_type if data_type.tz is None else pa.timestamp(data_type.unit, "UTC")
    return data_type if not data_type.num_fields else _rebuilt(data_type, _utc)


def _has_dictionary(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        return True
    return any(_has_dictionary(data_type.field(index).type) for index in range(data_type.num_fields))


def _plain(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(data_type):
        return data_type.value_type
    return _rebuilt(data_type, _plain) if _has_dictionary(data_type) else data_type


def _rebuilt(data_type: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A nested type with each of its inner types changed; any other as it is."""
    fields = [
        data_type.field(index).with_type(change(data_type.field(index).type)) for index in range(data_type.num_fields)
    ]
    if pa.types.is_struct(data_type):
        return pa.struct(fields)
    if pa.types.is_map(data_type):
        return pa.map_(change(data_type.key_type), change(data_type.item_type))
    if pa.types.is_fixed_size_list(data_type):
        return pa.list_(fields[0], data_type.list_size)
    if pa.types.is_list(data_type):
        return pa.list_(fields[0])
    return data_type
