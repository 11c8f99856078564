"""clients.export.files and manifest: what goes in comes out, in its folder, and a changed byte is seen."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.export import EXPORT_FORMATS, MANIFEST, ExportError, Manifest, files, verify
from clients.export.files import ExportFormat, Layout, SliceFiles, folder_of, partitioned
from clients.export.manifest import Request
from clients.export.plan import Slice
from clients.formats import write

AT = datetime(2026, 11, 28, 23, 59, 59, 999_999, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("price", pa.decimal128(18, 8)),
        ("quantity", pa.decimal128(28, 8)),
        ("id", pa.int64()),
        ("buys", pa.bool_()),
    ]
)
values = st.tuples(
    st.one_of(st.none(), st.sampled_from(["BTC", "ETH/USD", "", 'a"b', "x,\ny", "ä b"])),
    st.one_of(st.none(), st.integers(0, 3 * 10**11).map(lambda us: AT + timedelta(microseconds=us))),
    st.one_of(st.none(), st.decimals(-(10**9), 10**9, places=8)),
    st.one_of(st.none(), st.decimals(0, 10**19, places=8)),
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    st.one_of(st.none(), st.booleans()),
)


def table_of(rows: list[Any]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def some(count: int) -> pa.Table:
    return table_of(
        [(f"S{n % 3}", AT + timedelta(hours=n), Decimal(n).scaleb(-8), Decimal(n), n, n % 2 == 0) for n in range(count)]
    )


def exported(folder: Path, table: pa.Table, layout: Layout, *, step: int = 7) -> Manifest:
    """The table as a complete export of one slice."""
    scratch = folder / ".scratch"
    scratch.mkdir(parents=True)
    out = SliceFiles(folder, scratch, 0, layout, table.schema)
    for batch in table.to_batches(max_chunksize=step):
        out.add(batch)
    request = Request("SELECT 1", None, layout.format, layout.compression, layout.partition_by, None, 1_000)
    manifest = Manifest("id", request, "{}", table.schema, (Slice(None, table.num_rows),), layout.date_of)
    manifest = replace(manifest.with_slice(0, out.finish()), complete=True)
    manifest.save(folder)
    return manifest


READERS: dict[str, Callable[[Path], pa.Table]] = {
    "parquet": lambda path: pq.ParquetFile(path).read(),
    "iceberg": lambda path: pq.ParquetFile(path).read(),
    "arrow": lambda path: pa.ipc.open_file(path).read_all(),
}


@pytest.mark.parametrize(
    ("form", "codec"),
    [("parquet", "zstd"), ("parquet", "snappy"), ("parquet", "none"), ("arrow", "zstd"), ("arrow", "none")],
)
def test_a_file_has_the_rows_as_they_were(tmp_path: Path, form: ExportFormat, codec: Any) -> None:
    table = some(50).append_column(
        pa.field("more", pa.list_(pa.string())), pa.array([["x", None]] * 49 + [None], pa.list_(pa.string()))
    )
    manifest = exported(tmp_path / "out", table, Layout(form, codec))
    (file,) = manifest.files
    assert READERS[form](tmp_path / "out" / file.path).equals(table)
    assert (file.rows, file.bytes) == (50, (tmp_path / "out" / file.path).stat().st_size)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(values, max_size=12))
def test_a_csv_is_what_the_query_command_writes_to_the_byte(
    rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    table, folder = table_of(rows), tmp_path_factory.mktemp("csv") / "out"
    manifest = exported(folder, table, Layout("csv", "none"))
    expected = io.BytesIO()
    write(table.schema, table.to_batches(), "csv", expected)
    assert (folder / manifest.files[0].path).read_bytes() == expected.getvalue()


def test_a_csv_of_what_polars_writes_otherwise_is_the_same_too(tmp_path: Path) -> None:
    table = pa.table(
        {"f": [1.5, float("inf"), float("nan"), None], "l": [[1], None, [], [2, 3]], "s": ["", "b", None, "d"]}
    )
    manifest = exported(tmp_path / "out", table, Layout("csv", "none"), step=2)
    expected = io.BytesIO()
    write(table.schema, table.to_batches(), "csv", expected)
    assert (tmp_path / "out" / manifest.files[0].path).read_bytes() == expected.getvalue()


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(values, max_size=30), names=st.permutations(["symbol", "date", "buys", "id"]), count=st.integers(1, 4)
)
def test_rows_are_told_apart_by_partition_in_the_order_that_they_had(
    rows: list[Any], names: list[str], count: int
) -> None:
    expected = defaultdict(list)
    for row in rows:
        each = dict(zip(SCHEMA.names, row, strict=True))
        each["date"] = None if each["event_time"] is None else each["event_time"].date()
        expected[tuple(each[name] for name in names[:count])].append(row)
    layout = Layout("parquet", "zstd", tuple(names[:count]), "event_time")
    found = {
        key: [tuple(row.values()) for row in part.to_pylist()] for key, part in partitioned(table_of(rows), layout)
    }
    assert found == expected


def test_duckdb_reads_the_folders_as_columns(tmp_path: Path) -> None:
    table = some(60)
    exported(tmp_path / "out", table, Layout("parquet", "zstd", ("symbol", "date"), "event_time"))
    out = f"read_parquet('{tmp_path}/out/**/*.parquet', hive_partitioning => true)"
    found = duckdb.sql(f"SELECT symbol, date, id FROM {out} ORDER BY id").fetchall()
    assert found == [(row["symbol"], row["event_time"].date(), row["id"]) for row in table.to_pylist()]


def test_many_partitions_do_not_keep_many_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_OPEN_MAX", 2)
    monkeypatch.setattr(files, "_GATHERED_ROWS", 10)
    manifest = exported(tmp_path / "out", some(60), Layout("parquet", "zstd", ("symbol",)))
    assert len(manifest.files) > 3 and manifest.rows == 60
    assert not verify(tmp_path / "out").problems


@pytest.mark.parametrize(
    ("given_values", "folder"),
    [
        (("BTC/USD", date(2026, 1, 2)), "symbol=BTC%2FUSD/date=2026-01-02"),
        (("..", None), "symbol=../date=__HIVE_DEFAULT_PARTITION__"),
        (("a=b c", True), "symbol=a%3Db c/date=true"),
    ],
)
def test_a_folder_is_named_as_hive_names_it(given_values: tuple[Any, ...], folder: str) -> None:
    assert folder_of(("symbol", "date"), given_values) == folder


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_nothing_at_all_is_a_file_with_the_columns(tmp_path: Path, form: ExportFormat) -> None:
    codec: Any = "none" if form == "csv" else "zstd"
    (file,) = exported(tmp_path / "out", some(0), Layout(form, codec)).files
    path = tmp_path / "out" / file.path
    names = next(csv.reader(path.open())) if form == "csv" else READERS[form](path).schema.names
    assert names == SCHEMA.names and file.rows == 0


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = exported(tmp_path, some(5), Layout("parquet", "zstd", ("symbol",)))
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', '{"version": 2}', "null"])
def test_what_is_no_manifest_gets_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ExportError, match="choose another folder"):
        Manifest.load(tmp_path)


def spoil_gone(path: Path) -> None:
    path.unlink()


def spoil_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil_stray(path: Path) -> None:
    path.with_name("part-00009-0.parquet").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_gone, "is gone"),
        (spoil_byte, "other bytes"),
        (spoil_length, "bytes and had"),
        (spoil_stray, "not in the manifest"),
    ],
)
def test_a_verification_finds_what_was_changed(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    manifest = exported(tmp_path, some(9), Layout("parquet", "zstd", ("symbol",)))
    assert verify(tmp_path).problems == ()
    spoil(tmp_path / manifest.files[1].path)
    (problem,) = verify(tmp_path).problems
    assert words in problem
