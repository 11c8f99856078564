"""SqlInfo: what a server says of itself, as the dense union that the specification asks for.

`answers` is a mapping from SqlInfo ids to plain values; which of the union's six kinds an item takes follows from
`Bitmask`, bool, int, str, list and dict. JDBC reads bitmasks as Integer and numbers as Long and fails on the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from flight_server.protocol import FlightSql_pb2 as sql


@dataclass(frozen=True)
class Bitmask:
    """An int32 of the union: a set of enum values (value n is bit n), or one ordinal."""

    value: int

    @classmethod
    def of(cls, *members: int) -> Bitmask:
        return cls(sum(1 << member for member in members))


Value = str | bool | int | Bitmask | list[str] | dict[int, list[int]]

_VALUE_TYPE = pa.dense_union(
    [
        pa.field("string_value", pa.string()),
        pa.field("bool_value", pa.bool_()),
        pa.field("bigint_value", pa.int64()),
        pa.field("int32_bitmask", pa.int32()),
        pa.field("string_list", pa.list_(pa.field("string_data", pa.string()))),
        pa.field("int32_to_int32_list_map", pa.map_(pa.int32(), pa.list_(pa.field("$data$", pa.int32())))),
    ]
)
SQL_INFO = pa.schema(
    [pa.field("info_name", pa.uint32(), nullable=False), pa.field("value", _VALUE_TYPE, nullable=False)]
)


def sql_info(command: sql.CommandGetSqlInfo, answers: Mapping[int, Value]) -> pa.Table:
    """The answer to GetSqlInfo: one row per id asked for that has an answer (all without any), in ascending order."""
    wanted = sorted(set(command.info) or answers.keys())
    ids = [info_id for info_id in wanted if info_id in answers]
    return pa.table([pa.array(ids, pa.uint32()), _union(answers[info_id] for info_id in ids)], schema=SQL_INFO)


def _union(values: Iterable[Value]) -> pa.Array:
    children: list[list[object]] = [[] for _ in _VALUE_TYPE]
    kinds: list[int] = []
    offsets: list[int] = []
    for value in values:
        kind, plain = _child_of(value)
        kinds.append(kind)
        offsets.append(len(children[kind]))
        children[kind].append(plain)
    arrays = [pa.array(child, field.type) for child, field in zip(children, _VALUE_TYPE, strict=True)]
    union = pa.UnionArray.from_dense(
        pa.array(kinds, pa.int8()), pa.array(offsets, pa.int32()), arrays, [field.name for field in _VALUE_TYPE]
    )
    return union.cast(_VALUE_TYPE) if union.type != _VALUE_TYPE else union


def _child_of(value: Value) -> tuple[int, object]:
    if isinstance(value, str):
        return 0, value
    if isinstance(value, bool):
        return 1, value
    if isinstance(value, Bitmask):
        return 3, value.value
    if isinstance(value, int):
        return 2, value
    if isinstance(value, dict):
        return 5, list(value.items())
    return 4, value
