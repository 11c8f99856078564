"""Where rows land: partitions, order, row groups, encodings, and that a manifest says what is in its files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import GreaterThanOrEqual
from pyiceberg.manifest import DataFile
from pyiceberg.table.update.spec import UpdateSpec

import sink.layout
from common.datasets import DATASETS, INSTRUMENTS, QUOTES, TRADES, Dataset
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.layout import by_partition, in_order
from sink.table import IcebergTable
from tests.support.records import EPOCH, instrument, quote, table_rows, trade

P0 = KafkaPartition("cluster", "topic-id", 0)
DAY = (EPOCH - datetime(1970, 1, 1, tzinfo=UTC)).days


def lake(folder: Path, **settings: Any) -> LakeSettings:
    one = LakeSettings(data_dir=folder, **settings)
    one.prepare()
    return one


@pytest.fixture
def trades(tmp_path: Path) -> IcebergTable:
    return IcebergTable.open(lake(tmp_path), TRADES)


def append(table: IcebergTable, rows: pa.Table) -> None:
    base = table.committed_offsets()
    end = int(pc.max(rows["_kafka_offset"]).as_py()) + 1
    table.append(rows, base, PartitionOffsets({P0: end}), f"to-{end}")


def on_day(trade_id: int, day: int, **changes: Any) -> dict[str, Any]:
    at = EPOCH + timedelta(days=day, milliseconds=trade_id)
    return trade(trade_id, event_time=at, **changes)


def live_files(table: IcebergTable) -> list[DataFile]:
    table.reload()
    iceberg = table.iceberg_table
    snapshot = iceberg.current_snapshot()
    assert snapshot is not None
    return [
        entry.data_file
        for manifest in snapshot.manifests(iceberg.io)
        for entry in manifest.fetch_manifest_entry(iceberg.io)
    ]


def parquet(file: DataFile) -> pq.ParquetFile:
    return pq.ParquetFile(file.file_path.removeprefix("file://"))


# -- partitions


@pytest.mark.parametrize(
    ("dataset", "fields"),
    [(TRADES, ["event_time_day"]), (QUOTES, ["receive_time_day"]), (INSTRUMENTS, [])],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_new_table_is_partitioned_by_the_day_of_a_time_that_is_never_null(
    tmp_path: Path, dataset: Dataset, fields: list[str]
) -> None:
    iceberg = IcebergTable.open(lake(tmp_path), dataset).iceberg_table
    assert [field.name for field in iceberg.spec().fields] == fields
    assert dataset.day_column is None or iceberg.schema().find_field(dataset.day_column).required
    assert len({DATASETS[dataset.name].table for _ in fields}) <= 1


def test_a_commit_of_two_days_makes_a_file_of_each(trades: IcebergTable) -> None:
    append(trades, table_rows("trade", [on_day(i, day=i % 2) for i in range(10)]))
    files = sorted(live_files(trades), key=lambda file: file.file_path)
    assert [file.partition[0] for file in files] == [DAY, DAY + 1]
    assert ["event_time_day=2024-08-09" in files[0].file_path, "event_time_day=2024-08-10" in files[1].file_path] == [
        True,
        True,
    ]
    assert [parquet(file).read(["trade_id"])["trade_id"].to_pylist() for file in files] == [
        [0, 2, 4, 6, 8],
        [1, 3, 5, 7, 9],
    ]


def test_partitions_outlive_the_merging_of_manifests(trades: IcebergTable) -> None:
    for number in range(25):
        append(trades, table_rows("trade", [on_day(number, day=number)], first_offset=number))
    iceberg = trades.iceberg_table
    snapshot = iceberg.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(iceberg.io)) < 25
    assert sorted(file.partition[0] for file in live_files(trades)) == list(range(DAY, DAY + 25))
    found = iceberg.scan(row_filter=GreaterThanOrEqual("event_time", (EPOCH + timedelta(days=23)).isoformat()))
    assert len(list(found.plan_files())) == 2


def test_symbols_are_spread_over_buckets_where_the_setting_asks_for_it(tmp_path: Path) -> None:
    table = IcebergTable.open(lake(tmp_path, symbol_buckets=4), TRADES)
    append(table, table_rows("trade", [on_day(i, day=0, symbol=f"S{i}") for i in range(64)]))
    found: dict[int, set[str]] = {}
    for file in live_files(table):
        assert file.partition[0] == DAY
        found.setdefault(file.partition[1], set()).update(parquet(file).read(["symbol"])["symbol"].to_pylist())
    assert set(found) == {0, 1, 2, 3}
    assert sum(map(len, found.values())) == 64
    assert table.iceberg_table.scan(row_filter="symbol = 'S7'").to_arrow().num_rows == 1


def test_a_table_made_before_partitions_is_written_as_it_was_made(tmp_path: Path) -> None:
    table = IcebergTable.open(lake(tmp_path), TRADES)
    with table.iceberg_table.transaction() as transaction:
        UpdateSpec(transaction).remove_field("event_time_day").commit()
    table.reload()
    append(table, table_rows("trade", [on_day(i, day=i % 3) for i in range(9)]))
    (file,) = live_files(table)
    assert file.record_count == 9
    assert file.spec_id == table.iceberg_table.spec().spec_id


def test_a_table_may_have_files_of_two_specs(tmp_path: Path) -> None:
    table = IcebergTable.open(lake(tmp_path), TRADES)
    append(table, table_rows("trade", [on_day(i, day=i) for i in range(2)]))
    with table.iceberg_table.transaction() as transaction:
        UpdateSpec(transaction).add_field("symbol", "bucket[2]", "symbol_bucket").commit()
    append(table, table_rows("trade", [on_day(i, day=i) for i in range(2, 4)], first_offset=2))
    assert sorted(file.spec_id for file in live_files(table)) == [0, 0, 1, 1]
    assert sorted(table.iceberg_table.scan().to_arrow()["trade_id"].to_pylist()) == [0, 1, 2, 3]


def test_days_and_buckets_are_those_that_iceberg_has(tmp_path: Path) -> None:
    """Also before 1970, where a division that cut off would be a day late, and of rows whose buffers lie anywhere."""
    table = IcebergTable.open(lake(tmp_path, symbol_buckets=7), TRADES)
    metadata = table.iceberg_table.metadata
    moments = [datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), EPOCH]
    rows = table_rows("trade", [trade(i, symbol=f"S{i}", event_time=moments[i % 3]) for i in range(30)])
    sink_stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink_stream, rows.schema) as writer:
        writer.write_table(rows)
    shifted = pa.py_buffer(b"x" + sink_stream.getvalue().to_pybytes()).slice(1)
    (day, bucket) = metadata.spec().fields
    day_of = day.transform.transform(metadata.schema().find_type("event_time"))
    bucket_of = bucket.transform.transform(metadata.schema().find_type("symbol"))
    for given_rows in (rows, pa.ipc.open_stream(shifted).read_all()):
        seen = 0
        for key, part in by_partition(given_rows, metadata):
            assert key is not None
            for row in part.to_pylist():
                at_us = (row["event_time"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
                assert (key.partition[0], key.partition[1]) == (day_of(at_us), bucket_of(row["symbol"]))
                seen += 1
        assert seen == 30


# -- order


@given(
    st.lists(
        st.tuples(st.sampled_from(["B", "A", "", "Ä", "AB"]), st.integers(-3, 3), st.integers(0, 3)),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_rows_are_in_the_order_that_arrow_sorts_them_into(found: list[tuple[str, int, int]], chunks: int) -> None:
    names = ("symbol", "at", "id")
    columns = [list(column) for column in zip(*found, strict=True)] or [[], [], []]
    types = (pa.string(), pa.timestamp("us", tz="UTC"), pa.int64())
    rows = pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})
    rows = rows.append_column("place", pa.array(range(len(found)), pa.int64()))
    size = max(1, -(-len(found) // chunks))
    chunked = pa.concat_tables([rows.slice(first, size) for first in range(0, max(1, len(found)), size)])
    by = [(name, "ascending") for name in names]
    assert in_order(chunked, names).to_pydict() == rows.take(pc.sort_indices(rows, sort_keys=by)).to_pydict()


def test_what_numbers_cannot_order_is_ordered_by_arrow() -> None:
    rows = pa.table({"a": pa.array([2.5, None, 1.5]), "b": [1, 2, 3]})
    assert in_order(rows, ("a",))["b"].to_pylist() == [3, 1, 2]


# -- what lies in a file, and what the manifest says of it


def test_every_column_has_its_counts_and_bounds_in_the_manifest(trades: IcebergTable) -> None:
    rows = [
        on_day(i, day=0, source_sequence=i if i % 2 else None, trade_conditions=["@"] * (i % 3), vendor_data={"k": "v"})
        for i in range(100)
    ]
    append(trades, table_rows("trade", rows))
    (file,) = live_files(trades)
    data = parquet(file).read()
    schema = trades.iceberg_table.schema()
    for field in schema.fields:
        if not field.field_type.is_primitive:
            continue
        column = data[field.name]
        assert file.value_counts[field.field_id] == 100, field.name
        assert file.null_value_counts[field.field_id] == column.null_count, field.name
        assert file.column_sizes[field.field_id] > 0
        low = from_bytes(field.field_type, file.lower_bounds[field.field_id])  # type: ignore[arg-type]
        high = from_bytes(field.field_type, file.upper_bounds[field.field_id])  # type: ignore[arg-type]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        assert low <= pc.min(column).as_py(), field.name
        assert high >= pc.max(column).as_py(), field.name
    assert set(file.null_value_counts) >= {schema.find_field("trade_conditions.element").field_id}
    assert file.record_count == 100
    assert file.file_size_in_bytes == Path(file.file_path.removeprefix("file://")).stat().st_size
    assert file.sort_order_id == trades.iceberg_table.metadata.default_sort_order_id
    assert list(file.split_offsets or []) == [4]


def test_ids_and_times_are_written_as_differences_and_texts_by_dictionary(trades: IcebergTable) -> None:
    append(trades, table_rows("trade", [on_day(i, day=0) for i in range(1_000)]))
    group = parquet(live_files(trades)[0]).metadata.row_group(0)
    encodings = {group.column(n).path_in_schema: set(group.column(n).encodings) for n in range(group.num_columns)}
    assert "DELTA_BINARY_PACKED" in encodings["trade_id"] & encodings["event_time"] & encodings["_kafka_offset"]
    assert "DELTA_BYTE_ARRAY" in encodings["message_id"]
    assert "RLE_DICTIONARY" in encodings["symbol"] & encodings["side"]
    assert {group.column(n).compression for n in range(group.num_columns)} == {"ZSTD"}


def test_large_files_have_row_groups_of_one_size_however_the_rows_came(
    trades: IcebergTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink.layout, "GROUP_ROWS", 100)
    rows = table_rows("trade", [on_day(i, day=0) for i in range(1_050)])
    metadata = trades.iceberg_table.metadata
    (key, _), *_ = sink.layout.by_partition(rows, metadata)
    writer = sink.layout.DataFileWriter(trades.iceberg_table.io, metadata, rows.schema, key)
    rng, at = np.random.default_rng(5), 0
    while at < rows.num_rows:
        step = int(rng.integers(1, 333))
        writer.write(rows.slice(at, step))
        at += step
    found = parquet(writer.close())
    sizes = [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)]
    assert sizes == [100] * 10 + [50]
    assert found.read().cast(rows.schema).equals(rows)
    bounds = [found.metadata.row_group(n).column(3).statistics for n in range(found.num_row_groups)]
    assert all(before.max < after.min for before, after in pairwise(bounds))


def test_a_file_that_is_given_up_is_gone(trades: IcebergTable, tmp_path: Path) -> None:
    rows = table_rows("trade", [on_day(1, day=0)])
    writer = sink.layout.DataFileWriter(trades.iceberg_table.io, trades.iceberg_table.metadata, rows.schema, None)
    writer.write(rows)
    writer.abort()
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("dataset", "name", "rows"),
    [
        (TRADES, "trade", [trade(i, symbol=f"S{i % 3}") for i in range(30)]),
        (QUOTES, "quote", [quote(i, symbol=f"S{i % 3}") for i in range(30)]),
        (INSTRUMENTS, "instrument", [instrument(f"S{i}", "d", minute=i) for i in range(30)]),
    ],
    ids=["trades", "quotes", "instruments"],
)
def test_rows_come_back_as_they_went_in(tmp_path: Path, dataset: Dataset, name: str, rows: list[Any]) -> None:
    table = IcebergTable.open(lake(tmp_path), dataset)
    given_rows = table_rows(name, rows)
    append(table, given_rows)
    found = table.iceberg_table.scan().to_arrow().sort_by("_kafka_offset").cast(given_rows.schema)
    assert found.to_pylist() == given_rows.to_pylist()
