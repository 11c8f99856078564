"""clients.export.plan: whatever the rows, each one is in exactly one slice. DuckDB says which rows a condition has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.export.plan import (
    ColumnLevel,
    DayLevel,
    Level,
    literal,
    range_level,
    slices_of,
    split_candidates,
    time_columns,
)

MICROS = pa.timestamp("us", "UTC")
SCHEMA = pa.schema([("s", pa.string()), ("n", pa.int64()), ("t", MICROS), ("local", pa.timestamp("us"))])
START = datetime(2026, 2, 27, 23, 59, 59, 999_999, tzinfo=UTC)
times = st.one_of(st.none(), st.integers(-(10**12), 10**12).map(lambda us: START + timedelta(microseconds=us)))
rows = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from(["", "A", "B'", "BTC;--", "ä", "\U0001f600"])),
        st.one_of(st.none(), st.sampled_from([-(2**63), 2**63 - 1, 0, 1, 2])),
        times,
        times.map(lambda at: None if at is None else at.replace(tzinfo=None)),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def levels_of(chosen: str, table: pa.Table) -> list[Level]:
    """The levels of the names: a column, `day` of t or of local, or ranges of a column."""

    def ranges(name: str) -> Level:
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
        present = [value for value in column.to_pylist() if value is not None] or [0]
        return range_level(name, table.schema.field(name).type, min(present), max(present), 3)

    made: dict[str, Any] = {
        "day": lambda: DayLevel("t", True),
        "local_day": lambda: DayLevel("local", False),
        "n~": lambda: ranges("n"),
        "t~": lambda: ranges("t"),
        "local~": lambda: ranges("local"),
    }
    return [made[name]() if name in made else ColumnLevel(name) for name in chosen.split()]


@pytest.mark.parametrize("chosen", ["s", "n", "day s t~", "s local_day n~", "t~", "n~", "local~", "s n t"])
@settings(max_examples=8, deadline=None)
@given(data=rows, rows_max=st.integers(1, 12))
def test_each_row_is_in_one_slice(duck: duckdb.DuckDBPyConnection, chosen: str, data: list[Any], rows_max: int) -> None:
    table = pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in data], SCHEMA)
    levels = levels_of(chosen, table)
    values = ", ".join(f"{level.expression} AS v{place}" for place, level in enumerate(levels))
    order = ", ".join(f"v{place} NULLS LAST" for place in range(len(levels)))
    duck.register("given_rows", table.append_column("row", pa.array(range(len(data)), pa.int64())))
    counted = duck.execute(f"SELECT {values}, count(*) FROM given_rows GROUP BY ALL ORDER BY {order}").to_arrow_table()
    counts = [(row[:-1], row[-1]) for row in zip(*(column.to_pylist() for column in counted.columns), strict=True)]
    slices = slices_of(levels, counts, rows_max)
    found = [duck.execute(f"SELECT row FROM given_rows WHERE {each.where}").fetchall() for each in slices]
    assert [len(each) for each in found] == [each.rows for each in slices]
    assert sorted(row for each in found for (row,) in each) == list(range(len(data)))


def test_slices_are_as_large_as_they_may_be_and_larger_only_where_values_cannot_be_told_apart() -> None:
    counts = [(("A",), 3), (("B",), 3), (("C",), 9), (("D",), 1), ((None,), 2)]
    slices = slices_of([ColumnLevel("s")], counts, 6)
    assert [each.rows for each in slices] == [6, 9, 1, 2]
    assert slices[0].where == """"s" >= 'A' AND "s" <= 'B'"""
    assert slices[-1].where == '"s" IS NULL'


def test_a_large_value_is_told_apart_by_the_next_level() -> None:
    counts = [((date(2026, 1, 1), "A"), 5), ((date(2026, 1, 1), "B"), 5), ((date(2026, 1, 2), "A"), 1)]
    slices = slices_of([DayLevel("t", True), ColumnLevel("s")], counts, 5)
    midnight = "TIMESTAMPTZ '2026-01-0{} 00:00:00.000000+00:00'"
    day = f'"t" >= {midnight} AND "t" < {midnight}'
    assert [(each.where, each.rows) for each in slices] == [
        (day.format(1, 2) + " AND \"s\" = 'A'", 5),
        (day.format(1, 2) + " AND \"s\" = 'B'", 5),
        (day.format(2, 3), 1),
    ]


def test_times_come_before_integers_and_a_name_that_is_twice_there_is_not_taken() -> None:
    schema = pa.schema(
        [("id", pa.int64()), ("seen", MICROS), ("event_time", MICROS), ("x", pa.int8()), ("x", pa.int8())]
    )
    assert time_columns(schema) == ["event_time", "seen"]
    assert split_candidates(schema) == ["event_time", "seen", "id"]


@pytest.mark.parametrize(
    "value", [True, -5, Decimal("0.00000001"), "it's", "", date(2026, 1, 2), START, START.replace(tzinfo=None)]
)
def test_a_literal_is_the_value(duck: duckdb.DuckDBPyConnection, value: object) -> None:
    duck.execute("SET TimeZone = 'UTC'")
    kind = "TIMESTAMPTZ" if isinstance(value, datetime) and value.tzinfo else type(value).__name__
    assert duck.execute(f"SELECT {literal(value)} = ?", [value]).fetchall() == [(True,)], kind
