"""Bound parameters: rows of an Arrow batch as values that DuckDB takes in exactly that type.

Integers keep their width and sign, decimals their precision and scale, instants their zone (they become UTC), 64-bit
nanoseconds all of their digits. A null has no type: the engine gives it one from where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import duckdb
import pyarrow as pa
import pyarrow.types as kinds

from common.errors import InvalidStatement, Unsupported

Row = tuple[object, ...]

_INTEGERS = {
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
}


def rows_of(batch: pa.RecordBatch, parameters: Sequence[str]) -> list[Row]:
    """The batch's rows in the order of `parameters`.

    Columns are taken by position; by name when the parameters have names (`$symbol`) and the columns carry exactly
    those. Raises InvalidStatement when their number differs, Unsupported for a type that cannot be bound.
    """
    if batch.num_columns != len(parameters):
        raise InvalidStatement(count_mismatch(len(parameters), batch.num_columns))
    names = list(batch.schema.names)
    ordered = (
        [names.index(parameter) for parameter in parameters]
        if set(names) == set(parameters) and len(set(names)) == len(names)
        else range(len(names))
    )
    columns = [_values(batch.column(index), parameters[place]) for place, index in enumerate(ordered)]
    return list(zip(*columns, strict=True))


def asked_for(data_type: pa.DataType) -> pa.DataType:
    """The Arrow type in which a client is asked for a parameter of this type; any other that fits is taken, too.

    Times are asked for in milliseconds: the JDBC driver (18.3.0) counts milliseconds whatever the unit, so that asked
    for microseconds it would bind instants of January 1970. Clients that look at their own values are not held by it.
    """
    if kinds.is_timestamp(data_type):
        return pa.timestamp("ms", data_type.tz)
    if kinds.is_time(data_type):
        return pa.time32("ms")
    return data_type


def count_mismatch(wanted: int, given: int) -> str:
    """The one sentence for a wrong number of parameters."""
    return f"the statement takes {wanted} parameter{'s' * (wanted != 1)} and {given or 'none'} {_was(given)} bound"


def _was(count: int) -> str:
    return "was" if count <= 1 else "were"


def _values(column: pa.Array, parameter: str) -> list[object]:
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    convert = _converter(column.type, parameter)
    try:
        return [None if not scalar.is_valid else convert(scalar) for scalar in column]
    except (OverflowError, ValueError):
        raise InvalidStatement(
            f"a value of the parameter {parameter} is beyond the years 1 to 9999; bind it as text and cast it"
        ) from None


def _converter(data_type: pa.DataType, parameter: str) -> Callable[[pa.Scalar], object]:
    if data_type in _INTEGERS:
        return _typed(_INTEGERS[data_type])
    if kinds.is_float32(data_type):
        return _typed("FLOAT")
    if kinds.is_decimal(data_type) and data_type.precision <= 38 and 0 <= data_type.scale <= data_type.precision:
        sql_type = f"DECIMAL({data_type.precision},{data_type.scale})"
        return lambda scalar: _value(f"{scalar.as_py():f}", sql_type)
    if kinds.is_timestamp(data_type) and data_type.unit == "ns":
        return _nanoseconds(data_type)
    if (
        kinds.is_null(data_type)
        or kinds.is_boolean(data_type)
        or kinds.is_floating(data_type)
        or kinds.is_string(data_type)
        or kinds.is_large_string(data_type)
        or kinds.is_string_view(data_type)
        or kinds.is_binary(data_type)
        or kinds.is_large_binary(data_type)
        or kinds.is_binary_view(data_type)
        or kinds.is_fixed_size_binary(data_type)
        or kinds.is_date(data_type)
        or kinds.is_timestamp(data_type)
        or (kinds.is_time(data_type) and data_type.unit != "ns")
        or (kinds.is_duration(data_type) and data_type.unit != "ns")
    ):
        return _plain
    if kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type):
        item = _converter(data_type.value_type, parameter)
        return lambda scalar: [None if not value.is_valid else item(value) for value in scalar.values]
    raise Unsupported(f"the parameter {parameter} has the Arrow type {data_type}, which cannot be bound; cast it first")


def _value(value: object, sql_type: str) -> object:
    return duckdb.Value(value, sql_type)  # type: ignore[arg-type]  # it takes the type's SQL name too


def _plain(scalar: pa.Scalar) -> object:
    value: object = scalar.as_py()
    return value


def _typed(sql_type: str) -> Callable[[pa.Scalar], object]:
    return lambda scalar: _value(scalar.as_py(), sql_type)


def _nanoseconds(data_type: pa.DataType) -> Callable[[pa.Scalar], object]:
    if data_type.tz is None:
        text = pa.timestamp("ns")
        return lambda scalar: _value(str(scalar.cast(text).cast(pa.string()).as_py()), "TIMESTAMP_NS")
    # The engine's instants with a zone have microseconds: a finer one would be cut off, so it is refused.
    micros = pa.timestamp("us", tz=data_type.tz)

    def convert(scalar: pa.Scalar) -> object:
        try:
            value: object = scalar.cast(micros).as_py()
        except pa.ArrowInvalid:
            raise InvalidStatement(
                "a bound timestamp with a time zone has nanoseconds; K2's instants have microseconds"
            ) from None
        return value

    return convert
