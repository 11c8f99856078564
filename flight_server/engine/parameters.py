"""Bound parameters: rows of an Arrow batch as values that DuckDB takes in exactly that type.

Integers keep their width and sign, decimals their precision and scale, instants their zone (they become UTC), 64-bit
nanoseconds all of their digits, and so does what lists, structs and maps hold. A null has no type: the engine gives it
one from where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import duckdb
import numpy as np
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
    if kinds.is_null(column.type):
        return [None] * len(column)
    sql_type, form = _form(column.type, parameter)
    return [_value(form(scalar), sql_type) if scalar.is_valid else None for scalar in column]


def _value(value: object, sql_type: str) -> object:
    return duckdb.Value(value, sql_type)  # type: ignore[arg-type]  # it takes the type's SQL name too


#: What a valid Arrow value is handed to DuckDB as, to be made a value of an SQL type.
_Form = Callable[[pa.Scalar], object]


def _form(data_type: pa.DataType, parameter: str) -> tuple[str, _Form]:
    """The SQL type of an Arrow type, and the form of its values. Raises Unsupported for a type that cannot be bound."""
    if data_type in _INTEGERS:
        return _INTEGERS[data_type], _plain
    if kinds.is_floating(data_type):
        return "DOUBLE" if kinds.is_float64(data_type) else "FLOAT", _number
    if kinds.is_decimal(data_type) and data_type.precision <= 38 and 0 <= data_type.scale <= data_type.precision:
        return f"DECIMAL({data_type.precision},{data_type.scale})", lambda scalar: f"{scalar.as_py():f}"
    if kinds.is_boolean(data_type):
        return "BOOLEAN", _plain
    if kinds.is_string(data_type) or kinds.is_large_string(data_type) or kinds.is_string_view(data_type):
        return "VARCHAR", _plain
    if (
        kinds.is_binary(data_type)
        or kinds.is_large_binary(data_type)
        or kinds.is_binary_view(data_type)
        or kinds.is_fixed_size_binary(data_type)
    ):
        return "BLOB", _plain
    if kinds.is_date(data_type):
        return "DATE", _date
    if kinds.is_timestamp(data_type):
        return _timestamp(data_type)
    if kinds.is_time(data_type):
        # As text: Python's times end before 24:00:00, and with microseconds.
        return "TIME_NS" if data_type.unit == "ns" else "TIME", lambda scalar: _clock(scalar.value, data_type.unit)
    if kinds.is_duration(data_type):
        return "INTERVAL", lambda scalar: _interval(0, 0, scalar.value * _NANOSECONDS[data_type.unit])
    if data_type == pa.month_day_nano_interval():
        return "INTERVAL", lambda scalar: _interval(*scalar.as_py())
    return _nested(data_type, parameter)


def _nested(data_type: pa.DataType, parameter: str) -> tuple[str, _Form]:
    if kinds.is_map(data_type):
        key_type, key = _form(data_type.key_type, parameter)
        item_type, item = _form(data_type.item_type, parameter)

        def entries(scalar: pa.Scalar) -> object:
            pairs = list(scalar.values)
            return {"key": [_inner(p["key"], key) for p in pairs], "value": [_inner(p["value"], item) for p in pairs]}

        return f"MAP({key_type}, {item_type})", entries
    if kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type):
        value_type, value = _form(data_type.value_type, parameter)
        length = str(data_type.list_size) if kinds.is_fixed_size_list(data_type) else ""
        return f"{value_type}[{length}]", lambda scalar: [_inner(item, value) for item in scalar.values]
    if kinds.is_struct(data_type) and data_type.num_fields:
        fields = [(field.name, *_form(field.type, parameter)) for field in data_type]
        if len({name.lower() for name, _, _ in fields}) == len(fields):
            names = ", ".join(f"{_quoted(name)} {sql_type}" for name, sql_type, _ in fields)
            return f"STRUCT({names})", lambda scalar: {name: _inner(scalar[name], form) for name, _, form in fields}
    raise Unsupported(f"the parameter {parameter} has the Arrow type {data_type}, which cannot be bound; cast it first")


def _inner(scalar: pa.Scalar, form: _Form) -> object:
    return form(scalar) if scalar.is_valid else None


def _plain(scalar: pa.Scalar) -> object:
    value: object = scalar.as_py()
    return value


def _number(scalar: pa.Scalar) -> object:
    """A float; NaN as text, since DuckDB's Python client takes the number for a null."""
    value: float = scalar.as_py()
    return "nan" if math.isnan(value) else value


_NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
#: What the engine itself writes for its infinite days and instants.
_INFINITE_DAYS = {2**31 - 1: "infinity", -(2**31) + 1: "-infinity"}
_INFINITE_MICROSECONDS = {2**63 - 1: "infinity", -(2**63) + 1: "-infinity"}


def _date(scalar: pa.Scalar) -> object:
    """As text: Python's dates end with the year 9999."""
    if kinds.is_date32(scalar.type):
        return _INFINITE_DAYS.get(scalar.value) or str(np.datetime64(scalar.value, "D"))
    return str(np.datetime64(scalar.value, "ms").astype("datetime64[D]"))


def _timestamp(data_type: pa.DataType) -> tuple[str, _Form]:
    """Seconds, milliseconds and microseconds are one type: DuckDB's functions know that one best, and nothing is lost.

    The engine's instants with a zone have microseconds: a finer one would be cut off, so it is refused.
    """
    unit = data_type.unit
    if data_type.tz is None:
        infinite = _INFINITE_MICROSECONDS if unit == "us" else {}
        sql_type = "TIMESTAMP_NS" if unit == "ns" else "TIMESTAMP"
        return sql_type, lambda scalar: infinite.get(scalar.value) or str(np.datetime64(scalar.value, unit))

    def zoned(scalar: pa.Scalar) -> object:
        count = scalar.value
        if unit == "us" and count in _INFINITE_MICROSECONDS:
            return _INFINITE_MICROSECONDS[count]
        if unit == "ns" and count % 1_000:
            raise InvalidStatement(
                "a bound timestamp with a time zone has nanoseconds; K2's instants have microseconds"
            )
        return f"{np.datetime64(count // 1_000, 'us') if unit == 'ns' else np.datetime64(count, unit)}+00"

    return "TIMESTAMP WITH TIME ZONE", zoned


def _clock(count: int, unit: str) -> str:
    seconds, nanoseconds = divmod(count * _NANOSECONDS[unit], 1_000_000_000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{nanoseconds:09d}"


def _interval(months: int, days: int, nanoseconds: int) -> str:
    if nanoseconds % 1_000:
        raise InvalidStatement("a bound interval has nanoseconds; K2's intervals have microseconds")
    return f"{months} months {days} days {nanoseconds // 1_000} microseconds"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
