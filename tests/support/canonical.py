"""Values in one text form, so that the answers of clients in four languages can be compared to the letter.

A value is written as JSON would: null, true, numbers, text, lists, objects. What JSON has no word for is text: decimals
with all digits of their scale, instants and days as ISO 8601 (the fraction without trailing zeros, `Z` where there is a
zone), bytes as `0x` and hex, intervals as months, days and nanoseconds, `NaN` and `Infinity`. A map is a list of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

Row = list[Any]


def columns_of(schema: pa.Schema) -> list[list[str]]:
    """Name and Arrow type of each column, as text; what lists call their items is nobody's business."""
    return [[field.name, type_text(field.type)] for field in schema]


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of an Arrow table."""
    columns = [[canonical(value) for value in column] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def type_text(data_type: pa.DataType) -> str:
    """Arrow's name of a type, with the names of list items left out."""
    if isinstance(data_type, pa.BaseExtensionType):
        return f"{data_type.extension_name}<{type_text(data_type.storage_type)}>"
    if kinds.is_map(data_type):
        return f"map<{type_text(data_type.key_type)}, {type_text(data_type.item_type)}>"
    if kinds.is_fixed_size_list(data_type):
        return f"list<{type_text(data_type.value_type)}>[{data_type.list_size}]"
    if kinds.is_list(data_type) or kinds.is_large_list(data_type):
        return f"list<{type_text(data_type.value_type)}>"
    if kinds.is_struct(data_type):
        return f"struct<{', '.join(f'{field.name}: {type_text(field.type)}' for field in data_type)}>"
    if kinds.is_union(data_type):
        members = (data_type.field(index) for index in range(data_type.num_fields))
        return f"union<{', '.join(f'{member.name}: {type_text(member.type)}' for member in members)}>"
    return str(data_type)


def canonical(value: pa.Scalar) -> Any:
    """One Arrow value. Nothing goes through Python's dates, which end with the year 9999."""
    kind = value.type
    if isinstance(kind, pa.BaseExtensionType):
        return canonical(value.value) if value.is_valid else None
    if kinds.is_union(kind):
        return canonical(value.value) if value.value is not None else None
    if not value.is_valid:
        return None
    if kinds.is_dictionary(kind):
        return canonical(value.value)
    if kinds.is_floating(kind):
        return number(value.as_py())
    if kinds.is_decimal(kind):
        return f"{value.as_py():f}"
    if kinds.is_timestamp(kind):
        return instant(value.value, kind.unit, zoned=kind.tz is not None)
    if kinds.is_date(kind):
        return str(np.datetime64(value.value, "D" if kinds.is_date32(kind) else "ms"))
    if kinds.is_time(kind):
        return clock_time(value.value, kind.unit)
    if kinds.is_duration(kind):
        return f"{value.value} {kind.unit}"
    if kinds.is_interval(kind):
        return interval(*value.as_py())
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return binary(value.as_py())
    if kinds.is_map(kind):
        return [[canonical(entry["key"]), canonical(entry["value"])] for entry in value.values]
    if kinds.is_struct(kind):
        return {kind.field(index).name: canonical(value[index]) for index in range(kind.num_fields)}
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return [canonical(item) for item in value.values]
    return value.as_py()


def number(value: float) -> float | str:
    """A float; the three that JSON does not have, as text."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def binary(value: bytes) -> str:
    return f"0x{value.hex()}"


def interval(months: int, days: int, nanoseconds: int) -> str:
    return f"{months} months {days} days {nanoseconds} ns"


def instant(count: int, unit: str, *, zoned: bool) -> str:
    """`count` units since 1970 as ISO 8601."""
    whole, _, fraction = str(np.datetime64(count, unit)).partition(".")
    fraction = fraction.rstrip("0")
    return whole + (f".{fraction}" if fraction else "") + ("Z" if zoned else "")


def clock_time(count: int, unit: str) -> str:
    """`count` units since midnight; 24:00:00 is a time of its own."""
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    seconds, rest = divmod(count, 10**digits)
    fraction = f"{rest:0{digits}d}".rstrip("0") if digits else ""
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return clock + (f".{fraction}" if fraction else "")


def answer_of(table: pa.Table) -> tuple[list[list[str]], Sequence[Row]]:
    """Columns and rows of an Arrow table."""
    return columns_of(table.schema), rows_of(table)
