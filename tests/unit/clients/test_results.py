"""One result in every form, and the digest by which a stream knows its rows again."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.link import RowDigest
from clients.results import Result

ROWS: list[dict[str, Any]] = [
    {"id": 1, "price": Decimal("60000.00000001"), "at": datetime(2024, 8, 9, tzinfo=UTC), "tags": ["a", None]},
    {"id": None, "price": None, "at": None, "tags": None},
]
TYPES = {
    "id": pa.int64(),
    "price": pa.decimal128(18, 8),
    "at": pa.timestamp("us", "UTC"),
    "tags": pa.list_(pa.string()),
}
TABLE = pa.Table.from_pylist(ROWS, schema=pa.schema(TYPES))


def test_every_form_has_the_same_rows_and_exact_values() -> None:
    result = Result(TABLE, "a cut")
    assert result.arrow() is TABLE
    assert (result.cut, result.columns, len(result), result.schema) == ("a cut", [*TYPES], 2, TABLE.schema)
    assert result.rows() == result.polars().to_dicts() == result.lazy().collect().to_dicts() == ROWS
    frame = result.pandas()
    assert [str(kind) for kind in frame.dtypes[:2]] == ["int64[pyarrow]", "decimal128(18, 8)[pyarrow]"]
    assert pa.Table.from_pandas(frame, schema=TABLE.schema).equals(TABLE)
    assert frame["id"][1] is pd.NA
    with duckdb.connect() as connection:
        relation = result.duckdb(connection)
        assert relation.aggregate("sum(price) as total").fetchall() == [(Decimal("60000.00000001"),)]
        assert [str(kind) for kind in relation.types[:2]] == ["BIGINT", "DECIMAL(18,8)"]


def test_it_is_an_arrow_stream_for_whoever_reads_those() -> None:
    result = Result(TABLE, None)
    assert pl.DataFrame(result).to_dicts() == ROWS
    assert pa.table(result).equals(TABLE)


def test_it_shows_itself_in_a_notebook_and_in_a_terminal() -> None:
    result = Result(TABLE, None)
    assert "60000.00000001" in result._repr_html_()
    assert "60000.00000001" in repr(result)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "a", None])), min_size=1), st.data())
def test_a_digest_knows_rows_in_whatever_batches_they_come_and_their_order(
    rows: list[tuple[int, str | None]], data: st.DataObject
) -> None:
    schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
    batch = pa.RecordBatch.from_pylist([{"n": n, "s": s} for n, s in rows], schema=schema)
    whole, parts, others = RowDigest(), RowDigest(), RowDigest()
    whole.add(batch)
    split = data.draw(st.integers(0, len(rows)))
    parts.add(batch.slice(0, split))
    parts.add(batch.slice(split))
    assert parts.digest == whole.digest
    order = data.draw(st.permutations(range(len(rows))))
    others.add(batch.take(pa.array(order)))
    assert (others.digest == whole.digest) == ([rows[at] for at in order] == rows)


def test_a_type_that_cannot_be_compared_is_known_to_be_so() -> None:
    digest = RowDigest()
    digest.add(pa.record_batch({"i": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}))
    assert not digest.is_known


@pytest.mark.parametrize("kind", [pa.map_(pa.string(), pa.string()), pa.struct([("x", pa.int64())]), pa.binary()])
def test_nested_values_are_compared_too(kind: pa.DataType) -> None:
    values: dict[str, list[Any]] = {
        "map": [[("k", "v")], [("k", "w")]],
        "struct": [{"x": 1}, {"x": 2}],
        "binary": [b"a", b"b"],
    }
    first, second = values[str(kind).partition("<")[0]]
    digests = []
    for value in (first, first, second):
        digest = RowDigest()
        digest.add(pa.record_batch({"v": pa.array([value], kind)}))
        assert digest.is_known
        digests.append(digest.digest)
    assert digests[0] == digests[1] != digests[2]
