"""Rows by the Arrow C stream interface, from one place again and again."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from flight_server.storage.arrow_stream import ArrowStream


def rows(*numbers: int) -> pa.Table:
    return pa.table({"id": numbers, "text": [f"text {number}" for number in numbers]})


def test_each_filling_is_read_once() -> None:
    stream, connection = ArrowStream(rows(1)), duckdb.connect()
    connection.register("arriving", stream.capsule)
    connection.execute("CREATE TABLE taken AS FROM arriving LIMIT 0")
    connection.execute("PREPARE take AS INSERT INTO taken FROM arriving")
    if not stream.taken:
        connection.execute("EXECUTE take")
    for first in range(10, 60, 10):
        assert stream.taken
        stream.fill(pa.concat_tables([rows(first), rows(first + 1, first + 2)]))
        assert not stream.taken
        connection.execute(f"CREATE TABLE made_anew_{first} (id INTEGER)")  # plans are made anew when there is more
        connection.execute("EXECUTE take")
    found = connection.execute("SELECT id, text FROM taken WHERE id >= 10 ORDER BY id").fetchall()
    assert found == [(n, f"text {n}") for first in range(10, 60, 10) for n in range(first, first + 3)]


def test_rows_that_nobody_took_are_not_written_over() -> None:
    stream = ArrowStream(rows(1))
    with pytest.raises(RuntimeError, match="were not taken"):
        stream.fill(rows(2))
    assert pa.RecordBatchReader._import_from_c_capsule(stream.capsule).read_all() == rows(1)
    stream.fill(rows(2))
    assert pa.RecordBatchReader._import_from_c_capsule(stream.capsule).read_all() == rows(2)
