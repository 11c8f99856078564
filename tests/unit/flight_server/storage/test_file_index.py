"""No file that has a wanted row is left out, whatever the bounds say or do not say."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from flight_server.storage.file_index import (
    ADDED_BY,
    PATH,
    ROWS,
    Condition,
    FileIndex,
    decoded_bounds,
    lower,
    upper,
)

NUMBERS = st.integers(-5, 5)
TEXTS = st.text("ab\U0010ffff", max_size=2)
Row = tuple[int | None, str | None]
ROWS_OF_FILES = st.lists(
    st.lists(st.tuples(st.none() | NUMBERS, st.none() | TEXTS), min_size=1, max_size=4), min_size=1, max_size=6
)


def intervals(values: st.SearchStrategy[int] | st.SearchStrategy[str]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(st.tuples(st.none() | values, st.none() | values), max_size=3).map(tuple)


CONDITIONS = st.lists(
    st.builds(Condition, st.just("n"), intervals(NUMBERS))
    | st.builds(Condition, st.just("t"), intervals(TEXTS))
    | st.builds(Condition, st.just("n"), intervals(TEXTS))
    | st.builds(Condition, st.just("unknown"), intervals(NUMBERS)),
    max_size=3,
)


def index_of(files: list[list[Row]], known: list[bool]) -> FileIndex:
    table = {
        PATH: [f"file-{number}" for number in range(len(files))],
        ADDED_BY: list(range(len(files))),
        ROWS: [len(rows) for rows in files],
    }
    types = {"n": pa.int64(), "t": pa.string()}
    columns = {name: pa.array(values) for name, values in table.items()}
    for place, (name, kind) in enumerate(types.items()):
        values = [[row[place] for row in rows if row[place] is not None] for rows in files]
        for end, pick in ((lower(name), min), (upper(name), max)):
            bounds = [pick(found) if found and told else None for found, told in zip(values, known, strict=True)]
            columns[end] = pa.array(bounds, kind)
    return FileIndex.of(pa.table(columns))


def meets(row: Row, condition: Condition) -> bool:
    value: object = {"n": row[0], "t": row[1]}.get(condition.column, "everything")
    if condition.column == "unknown":
        return True
    if value is None:
        return False
    ends = [end for interval in condition.intervals for end in interval if end is not None]
    if any(isinstance(end, str) != isinstance(value, str) for end in ends):
        return True
    return any(
        (low is None or low <= value) and (high is None or value <= high)  # type: ignore[operator]
        for low, high in condition.intervals
    )


@given(ROWS_OF_FILES, CONDITIONS, st.data())
def test_a_file_with_a_wanted_row_is_found(
    files: list[list[Row]], conditions: list[Condition], data: st.DataObject
) -> None:
    known = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    middle = len(files) // 2
    parts = [(files[:middle], known[:middle]), (files[middle:], known[middle:])]
    index = FileIndex.joined([index_of(*part) for part in parts if part[0]])
    assert len(index) == len(files) and index.rows == sum(map(len, files))
    offset = {0: 0, 1: middle} if middle else {0: 0}
    wanted = set()
    for part, start in offset.items():
        chosen = parts[part][0] if middle else files
        for number, rows in enumerate(chosen):
            if any(all(meets(row, condition) for condition in conditions) for row in rows):
                wanted.add((f"file-{number}", number, start))
    found = index.matching(conditions)
    for path, added_by, _ in wanted:
        assert (path, added_by) in found


def test_what_cannot_have_a_wanted_row_is_left_out() -> None:
    index = index_of([[(1, "a")], [(2, "b")], [(3, "c")]], [True, True, False])
    assert [path for path, _ in index.matching([Condition("n", ((2, 2),))])] == ["file-1", "file-2"]
    assert [path for path, _ in index.matching([Condition("t", ((None, "a"),))])] == ["file-0", "file-2"]
    assert [path for path, _ in index.matching([Condition("n", ())])] == []
    assert index.paths == ("file-0", "file-1", "file-2")


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.lists(st.none() | st.text()))
def test_bounds_are_read_as_iceberg_writes_them(numbers: list[int | None], texts: list[str | None]) -> None:
    texts = (texts + [None] * len(numbers))[: len(numbers)]
    raw = pa.table(
        {
            PATH: pa.array(["f"] * len(numbers)),
            ADDED_BY: pa.array([1] * len(numbers)),
            ROWS: pa.array([1] * len(numbers)),
            **{
                name: pa.array(
                    [None if n is None else n.to_bytes(8, "little", signed=True) for n in numbers], pa.binary()
                )
                for name in (lower("long"), upper("long"))
            },
            **{
                name: pa.array(
                    [None if n is None else (n % 2**31).to_bytes(4, "little", signed=True) for n in numbers],
                    pa.binary(),
                )
                for name in (lower("int"), upper("int"))
            },
            **{
                name: pa.array([None if t is None else t.encode() for t in texts], pa.binary())
                for name in (lower("text"), upper("text"))
            },
        }
    )
    found = decoded_bounds(raw, {"long": False, "int": False, "text": True})
    assert found.column(lower("long")).to_pylist() == numbers
    assert found.column(upper("int")).to_pylist() == [None if n is None else n % 2**31 for n in numbers]
    assert found.column(upper("text")).to_pylist() == texts


def test_a_bound_that_was_cut_within_a_character_says_nothing() -> None:
    raw = pa.table({PATH: ["f", "g"], ADDED_BY: [1, 1], ROWS: [1, 1]})
    raw = raw.append_column(lower("t"), pa.array([b"a", "é".encode()[:1]], pa.binary()))
    raw = raw.append_column(upper("t"), pa.array(["é".encode()[:1], b"b"], pa.binary()))
    index = FileIndex.of(decoded_bounds(raw, {"t": True}))
    assert len(index.matching([Condition("t", (("zzz", "zzz"),))])) == 1
    assert len(index.matching([Condition("t", (("", ""),))])) == 1
