"""What is bound has the type and the value that the client's Arrow array has."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from common.errors import InvalidStatement, Unsupported
from flight_server.engine.parameters import asked_for, rows_of
from tests.support.canonical import rows_of as shown
from tests.support.canonical import type_text

US_UTC = pa.timestamp("us", "UTC")
FAR = 2**62

#: An array, and the type that its values have in the engine where that is another.
BOUND: list[tuple[pa.Array, str | None]] = [
    (pa.array([-128, 127], pa.int8()), None),
    (pa.array([2**64 - 1], pa.uint64()), None),
    (pa.array([1.5, float("nan"), float("-inf")], pa.float32()), None),
    (pa.array([1.5, float("nan"), 5e-324]), None),
    (pa.array([1.5], pa.float16()), "float"),
    (pa.array([Decimal("-0.00000001")], pa.decimal128(18, 8)), None),
    (pa.array([Decimal("9" * 38)], pa.decimal128(38, 0)), None),
    (pa.array([True, False]), None),
    (pa.array(["", "ü'\x00"]), None),
    (pa.array(["x"], pa.large_string()), "string"),
    (pa.array(["x", "y", "x"]).dictionary_encode(), "string"),
    (pa.array([b"", b"\x00\xff"]), None),
    (pa.array([b"ab"], pa.binary(2)), "binary"),
    (pa.array([-719162, 0, 2932896], pa.int32()).view(pa.date32()), None),
    (pa.array([2**31 - 1, -(2**31) + 1, 2**31 - 2], pa.int32()).view(pa.date32()), None),
    (pa.array([86_400_000], pa.int64()).view(pa.date64()), "date32[day]"),
    (pa.array([-1], pa.timestamp("s")), "timestamp[us]"),
    (pa.array([-1], pa.timestamp("ms")), "timestamp[us]"),
    (pa.array([-1, 2**63 - 1, -(2**63) + 1, FAR], pa.timestamp("us")), None),
    (pa.array([-1], pa.timestamp("ns")), None),
    (pa.array([-1, 2**63 - 1, FAR], US_UTC), None),
    (pa.array([-1], pa.timestamp("s", "Europe/Paris")), "timestamp[us, tz=UTC]"),
    (pa.array([1_000], pa.timestamp("ns", "UTC")), "timestamp[us, tz=UTC]"),
    (pa.array([0, 86_399_999_999, 86_400_000_000], pa.time64("us")), None),
    (pa.array([86_399_999_999_999], pa.time64("ns")), None),
    (pa.array([5], pa.time32("s")), "time64[us]"),
    (pa.array([(-14, 3, 14_706_789_000_000)], pa.month_day_nano_interval()), None),
    (pa.array([[1, None], [2]], pa.list_(pa.int16())), None),
    (pa.array([[1, None]], pa.list_(pa.int16(), 2)), None),
    (pa.array([[Decimal("1.50"), None]], pa.list_(pa.decimal128(9, 2))), None),
    (pa.array([[[float("nan")], None]], pa.list_(pa.list_(pa.float32()))), None),
    (pa.array([{'a "b"': b"\xff", "t": -1}], pa.struct([('a "b"', pa.binary()), ("t", US_UTC)])), None),
    (pa.array([[("a", Decimal("1.5")), ("b", None)]], pa.map_(pa.string(), pa.decimal128(2, 1))), None),
]


def bound(column: pa.Array) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        tables = [
            connection.execute("SELECT ? AS v", row).to_arrow_reader().read_all()
            for row in rows_of(pa.record_batch({"v": column}), ["1"])
        ]
    return pa.concat_tables(tables)


@pytest.mark.parametrize(("column", "shown_as"), BOUND, ids=lambda value: str(getattr(value, "type", "")))
def test_type_and_value_are_kept(column: pa.Array, shown_as: str | None) -> None:
    table = bound(column)
    assert type_text(table.schema.field(0).type) == (shown_as or type_text(column.type))
    target = table.schema.field(0).type
    wanted = column.cast(target) if shown_as is not None else column
    assert repr(shown(table)) == repr(shown(pa.table({"v": wanted})))


def test_a_duration_is_an_interval() -> None:
    assert shown(bound(pa.array([-1, 86_400_000_000], pa.duration("us")))) == [
        ["0 months 0 days -1000 ns"],
        ["0 months 0 days 86400000000000 ns"],
    ]


@pytest.mark.parametrize(
    ("column", "error", "says"),
    [
        (pa.array([1], pa.timestamp("ns", "UTC")), InvalidStatement, "microseconds"),
        (pa.array([1], pa.duration("ns")), InvalidStatement, "microseconds"),
        (pa.array([[]], pa.struct([])).slice(0, 0), Unsupported, "cannot be bound"),
        (pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]), Unsupported, "cannot be bound"),
        (pa.array([1], pa.decimal256(39, 0)), Unsupported, "cannot be bound"),
    ],
)
def test_what_cannot_be_bound_is_refused(column: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        rows_of(pa.record_batch({"v": column}), ["1"])


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (pa.timestamp("us", "UTC"), pa.timestamp("ms", "UTC")),
        (pa.timestamp("ns"), pa.timestamp("ms")),
        (pa.time64("us"), pa.time32("ms")),
        (pa.decimal128(18, 8), pa.decimal128(18, 8)),
    ],
)
def test_times_are_asked_for_in_milliseconds(given: pa.DataType, asked: pa.DataType) -> None:
    assert asked_for(given) == asked
