"""clients.formats: nothing is rounded, nothing is lost, a pipe is enough."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.formats import BINARY_FORMATS, FORMATS, ROWS_SHOWN_MAX, Format, write

MOMENT = datetime(2024, 8, 8, 23, 54, 14, 24619, tzinfo=UTC)


def written(table: pa.Table, format: Format, *, width: int | None = None) -> bytes:
    out = io.BytesIO()
    assert write(table.schema, table.to_batches(max_chunksize=7), format, out, width=width) == table.num_rows
    assert not out.closed
    return out.getvalue()


def text(table: pa.Table, format: Format, *, width: int | None = None) -> str:
    return written(table, format, width=width).decode()


def objects(table: pa.Table) -> list[dict[str, object]]:
    return [json.loads(line) for line in text(table, "json").splitlines()]


def trades() -> pa.Table:
    return pa.table(
        {
            "symbol": ["BTCUSDT", None],
            "price": pa.array([Decimal("58000.10000000"), Decimal("0.00000001")], pa.decimal128(18, 8)),
            "quantity": pa.array([Decimal("1000000000000000.00000001"), None], pa.decimal128(28, 8)),
            "trade_id": pa.array([2**63 - 1, 1], pa.int64()),
            "event_time": pa.array([MOMENT, None], pa.timestamp("us", "UTC")),
        }
    )


def test_json_is_one_object_a_line_with_exact_decimals_as_strings() -> None:
    assert text(trades(), "json") == (
        '{"symbol": "BTCUSDT", "price": "58000.10000000", "quantity": "1000000000000000.00000001", '
        '"trade_id": 9223372036854775807, "event_time": "2024-08-08T23:54:14.024619Z"}\n'
        '{"symbol": null, "price": "0.00000001", "quantity": null, "trade_id": 1, "event_time": null}\n'
    )


def test_csv_has_a_header_and_nothing_for_a_null() -> None:
    assert text(trades(), "csv") == (
        "symbol,price,quantity,trade_id,event_time\n"
        "BTCUSDT,58000.10000000,1000000000000000.00000001,9223372036854775807,2024-08-08T23:54:14.024619Z\n"
        ",0.00000001,,1,\n"
    )


def test_a_table_is_drawn_with_numbers_to_the_right() -> None:
    assert text(trades().select(["symbol", "price"]), "table") == (
        "symbol             price\n"
        "────────────────────────\n"
        "BTCUSDT   58000.10000000\n"
        "NULL          0.00000001\n"
        "2 rows\n"
    )


def test_a_table_shows_the_first_rows_and_counts_all() -> None:
    lines = text(pa.table({"n": range(ROWS_SHOWN_MAX + 1234)}), "table").splitlines()
    assert lines[-2:] == ["... 1,234 more", "1,334 rows"]
    assert [int(line) for line in lines[2:-2]] == list(range(ROWS_SHOWN_MAX))


def test_a_table_never_reads_a_value_as_markup_and_never_exceeds_the_terminal() -> None:
    table = pa.table({"[red]name": ["[bold]x[/bold]" + "y" * 100]})
    drawn = text(table, "table", width=40)
    assert "[bold]" in drawn
    assert "[red]name" in drawn
    assert max(map(len, drawn.splitlines())) <= 40


def test_nested_values_and_odd_types() -> None:
    table = pa.table(
        {
            "list": pa.array([[Decimal("1.50"), None], None, []], pa.list_(pa.decimal128(9, 2))),
            "map": pa.array([[("a", 1), ("b", None)], None, []], pa.map_(pa.string(), pa.int64())),
            "struct": pa.array([{"t": MOMENT, "x": [b"\x00\xff"]}, None, {"t": None, "x": None}]),
            "float": [1.5, float("nan"), float("-inf")],
            "date": [date(2024, 8, 8), None, date(1, 1, 1)],
            "time": pa.array([time(1, 2, 3, 4), None, time(0)], pa.time64("us")),
            "enum": pa.array(["BUY", None, "SELL"]).dictionary_encode(),
            "nanos": pa.array([1_723_161_254_024_619_001, None, 0], pa.timestamp("ns")),
            "nothing": pa.nulls(3),
            "flag": [True, None, False],
        }
    )
    first, second, third = objects(table)
    assert first == {
        "list": ["1.50", None],
        "map": {"a": 1, "b": None},
        "struct": {"t": "2024-08-08T23:54:14.024619Z", "x": ["AP8="]},
        "float": 1.5,
        "date": "2024-08-08",
        "time": "01:02:03.000004",
        "enum": "BUY",
        "nanos": "2024-08-08T23:54:14.024619001",
        "nothing": None,
        "flag": True,
    }
    assert {name: value for name, value in second.items() if value is not None} == {"float": "NaN"}
    assert (third["list"], third["map"], third["struct"], third["float"]) == (
        [],
        {},
        {"t": None, "x": None},
        "-Infinity",
    )
    rows = list(csv.DictReader(io.StringIO(text(table, "csv"))))
    assert (rows[0]["list"], rows[0]["map"], rows[1]["list"]) == ('["1.50", null]', '{"a": 1, "b": null}', "")


def test_columns_of_one_name_stay_apart_in_json() -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["n", "n"])
    assert text(table, "json") == '{"n": 1, "n:2": 2}\n'


@pytest.mark.parametrize("format", FORMATS)
def test_a_result_without_rows_is_written_in_each_format(format: Format) -> None:
    empty = trades().slice(0, 0)
    data = written(empty, format)
    if format == "arrow":
        assert pa.ipc.open_stream(data).read_all().equals(empty)
    elif format == "parquet":
        assert pq.read_table(pa.BufferReader(data)).equals(empty)
    else:
        header = "symbol,price,quantity,trade_id,event_time\n"
        drawn = "symbol   price   quantity   trade_id   event_time\n" + "─" * 49 + "\n0 rows\n"
        assert data.decode() == {"json": "", "csv": header, "table": drawn, "lines": "0 rows\n"}[format]


@pytest.mark.parametrize("format", sorted(BINARY_FORMATS))
def test_arrow_and_parquet_keep_every_type_and_go_through_a_pipe(format: Format) -> None:
    table, received = trades(), bytearray()
    read_end, write_end = os.pipe()

    def receive() -> None:
        with os.fdopen(read_end, "rb") as source:
            received.extend(source.read())

    reader = threading.Thread(target=receive)
    reader.start()
    with os.fdopen(write_end, "wb") as out:
        write(table.schema, table.to_batches(), format, out)
    reader.join()
    buffer = pa.BufferReader(bytes(received))
    assert (pa.ipc.open_stream(buffer).read_all() if format == "arrow" else pq.read_table(buffer)).equals(table)


@given(st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8")), st.just("")), max_size=8))
def test_csv_is_read_back_as_written_and_null_is_not_the_empty_string(values: list[str | None]) -> None:
    table = pa.table({"a": pa.array(values, pa.string()), "b": pa.array(range(len(values)), pa.int64())})
    data = text(table, "csv")
    rows = list(csv.reader(io.StringIO(data, newline="")))
    assert [row[0] for row in rows[1:]] == ["" if value is None else value for value in values]
    assert data.count('"",') >= sum(value == "" for value in values)


@given(st.lists(st.decimals(min_value=-(10**9), max_value=10**9, places=8), max_size=8))
def test_decimals_come_out_digit_for_digit(values: list[Decimal]) -> None:
    table = pa.table({"d": pa.array(values, pa.decimal128(28, 8))})
    for written_text in ([str(row["d"]) for row in objects(table)], text(table, "csv").splitlines()[1:]):
        assert [Decimal(digits) for digits in written_text] == values
        assert not any("e" in digits.lower() for digits in written_text)
