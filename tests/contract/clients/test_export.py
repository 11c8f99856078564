"""`clients.export` on a real K2: all rows of one cut, each once, whatever happens to the export meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pyiceberg.catalog.sql import SqlCatalog

import clients
from clients.errors import QueryError
from clients.export import MANIFEST, ExportError, ExportFormat, ExportOptions, Manifest, export, verify
from common.errors import Interrupted
from k2.cli import cli
from tests.support.live import Live
from tests.support.records import EPOCH, trade

COUNT = 4_000
ALL = "SELECT symbol, trade_id, event_time, price, quantity, side FROM market.trades"
SYMBOLS = ["BTCUSDT", "ETHUSDT", "SOL/USDT"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Trades of three symbols over four days: the first half in files, the rest in memory."""
    live = Live(tmp_path_factory.mktemp("lake"), threads=2, memory_bytes_max=512 * 1024**2)
    for begin in range(0, COUNT, COUNT // 4):
        ids = range(begin, begin + COUNT // 4)
        at = [EPOCH + timedelta(seconds=80 * n) for n in ids]
        records = [trade(n, symbol=SYMBOLS[n % 3], event_time=when) for n, when in zip(ids, at, strict=True)]
        live.produce(records, partition=begin % 3)
        if begin == COUNT // 2:
            live.settle()
            live.stop_sink()
    with clients.connect(live.service.uri) as k2:
        while k2.arrow("SELECT count(*) AS n FROM market.trades")["n"][0].as_py() < COUNT:
            pass
    yield live
    live.stop()


def connect(live: Live) -> Any:
    return lambda: clients.connect(live.service.uri)


def rows_of(folder: Path) -> list[int]:
    """The ids of all rows, as any reader of a folder of Parquet finds them."""
    found: list[int] = ds.dataset(folder, format="parquet", partitioning="hive").to_table()["trade_id"].to_pylist()
    return sorted(found)


@pytest.mark.parametrize("partition_by", [(), ("symbol", "date"), ("date",), ("side",)])
def test_each_row_once_in_slices_of_about_the_size_that_was_asked_for(
    live: Live, tmp_path: Path, partition_by: tuple[str, ...]
) -> None:
    options = ExportOptions(partition_by=partition_by, slice_rows=500, parallel=3)
    manifest = export(connect(live), ALL, tmp_path, options)
    assert rows_of(tmp_path) == list(range(COUNT))
    assert 8 <= len(manifest.slices) <= 24 and manifest.complete and manifest.cut is not None
    assert sum(each.rows or 0 for each in manifest.slices) == manifest.rows == COUNT
    assert not verify(tmp_path).problems


def test_the_folders_are_the_partition_columns_which_the_files_leave_out(live: Live, tmp_path: Path) -> None:
    manifest = export(connect(live), ALL, tmp_path, ExportOptions(partition_by=("symbol", "date")))
    assert manifest.date_of == "event_time"
    table = ds.dataset(tmp_path, format="parquet", partitioning="hive").to_table()
    assert sorted(set(table["symbol"].to_pylist())) == SYMBOLS
    for row in table.select(["date", "event_time", "trade_id", "symbol"]).to_pylist():
        assert row["date"] == row["event_time"].date().isoformat()
        assert row["symbol"] == SYMBOLS[row["trade_id"] % 3]
    assert "symbol" not in pq.read_schema(tmp_path / manifest.files[0].path).names


def test_a_bulk_read_is_what_the_driver_reads(live: Live) -> None:
    """Rows, schema, cut and errors; beside another statement of the connection, and again after one left half read."""
    with clients.connect(live.service.uri) as k2:
        for sql in (f"{ALL} ORDER BY trade_id", f"{ALL} WHERE false", "SELECT 1 AS one"):
            with k2.bulk(sql, at=None) as bulk, k2.stream(sql) as stream:
                assert (bulk.schema, bulk.cut) == (stream.schema, stream.cut)
                assert pa.Table.from_batches(bulk, bulk.schema) == stream.read_all()
        with k2.bulk(ALL) as left:
            next(iter(left))
        for sql, code in (("SELECT nothing FROM market.trades", "INVALID_ARGUMENT"),
                          ("SELECT CAST(symbol AS INTEGER) AS n FROM market.trades", "INVALID_ARGUMENT")):  # fmt: skip
            with pytest.raises(QueryError) as plain:
                k2.arrow(sql)
            with pytest.raises(QueryError) as raised, k2.bulk(sql) as bulk:
                list(bulk)
            assert (raised.value.code, str(raised.value)) == (code, str(plain.value))
        stopped = k2.bulk(ALL)
    assert list(stopped) == []  # the connection was closed


def test_an_export_is_of_the_cut_that_is_named(live: Live, tmp_path: Path) -> None:
    with clients.connect(live.service.uri) as k2:
        k2.arrow("SELECT count(*) FROM market.trades")
        cut = json.loads(k2.cut or "")
    cluster, topics = next(iter(cut["market.trades"]["next"].items()))
    (topic,) = topics
    ends = topics[topic]
    partition = max(ends, key=lambda each: ends[each])
    ends[partition] -= 10
    manifest = export(connect(live), ALL, tmp_path, ExportOptions(at=json.dumps(cut), slice_rows=500))
    assert manifest.rows == COUNT - 10 and cluster in (manifest.cut or "")


def test_an_iceberg_table_is_all_of_it_or_not_there(live: Live, tmp_path: Path) -> None:
    options = ExportOptions(format="iceberg", partition_by=("symbol", "date"), slice_rows=1_000)
    manifest = export(connect(live), ALL, tmp_path, options)
    catalog = SqlCatalog("export", uri=f"sqlite:///{tmp_path}/_catalog.db", warehouse=tmp_path.as_uri())
    table = catalog.load_table("export.rows")
    assert sorted(table.scan().to_arrow()["trade_id"].to_pylist()) == list(range(COUNT))
    assert table.scan(row_filter="symbol = 'SOL/USDT'").to_arrow().num_rows == len(range(2, COUNT, 3))
    (snapshot,) = table.metadata.snapshots
    assert snapshot.summary is not None and snapshot.summary["k2.cut"] == manifest.cut
    catalog.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT symbol, count(*) AS n FROM market.trades GROUP BY symbol",
        f"{ALL} ORDER BY trade_id DESC",
        f"{ALL} LIMIT 100",
        "SELECT a.trade_id FROM market.trades a JOIN market.trades b USING (trade_id, symbol)",
    ],
)
def test_what_is_not_made_row_by_row_is_one_slice(live: Live, tmp_path: Path, statement: str) -> None:
    manifest = export(connect(live), statement, tmp_path, ExportOptions(slice_rows=50))
    with clients.connect(live.service.uri) as k2:
        expected = k2.arrow(statement, at=manifest.cut)
    assert len(manifest.slices) == 1 and manifest.whole_because
    assert manifest.rows == expected.num_rows
    if "ORDER" in statement:
        found = pa.concat_tables([pq.read_table(tmp_path / each.path) for each in manifest.files])
        assert found["trade_id"].to_pylist() == expected["trade_id"].to_pylist()


def test_the_callers_word_makes_slices_and_is_not_taken_on_trust(live: Live, tmp_path: Path) -> None:
    joined = "SELECT a.trade_id FROM market.trades a JOIN market.trades b USING (trade_id, symbol)"
    manifest = export(connect(live), joined, tmp_path / "join", ExportOptions(slice_rows=500, split_by="trade_id"))
    assert len(manifest.slices) >= 8 and rows_of(tmp_path / "join") == list(range(COUNT))
    moving = f"{ALL} WHERE trade_id > (random() * 3000)::INT"
    with pytest.raises(ExportError, match="does not give the same rows each time"):
        export(connect(live), moving, tmp_path / "moving", ExportOptions(slice_rows=500, split_by="trade_id"))


def test_an_interrupted_export_goes_on_at_its_cut_and_keeps_what_is_there(live: Live, tmp_path: Path) -> None:
    stop = threading.Event()

    class StopLater:
        rows = 0

        def planned(self, manifest: Manifest) -> None:
            pass

        def read(self, rows: int) -> None:
            self.rows += rows
            if self.rows > COUNT // 2:
                stop.set()

    options = ExportOptions(slice_rows=400)
    with pytest.raises(Interrupted, match="run the same command again"):
        export(connect(live), ALL, tmp_path, options, progress=StopLater(), stop=stop)
    then = Manifest.load(tmp_path)
    assert then is not None and 0 < len(then.done) < len(then.slices)
    ages = {each.path: (tmp_path / each.path).stat().st_mtime_ns for each in then.files}
    live.produce([trade(n) for n in range(COUNT, COUNT + 50)])
    (tmp_path / "part-00099-0.parquet").write_bytes(b"left behind")
    manifest = export(connect(live), ALL, tmp_path, options)
    assert rows_of(tmp_path) == list(range(COUNT)) and manifest.cut == then.cut
    assert ages == {path: (tmp_path / path).stat().st_mtime_ns for path in ages}
    assert not verify(tmp_path).problems


def test_wrong_wishes_get_a_sentence(live: Live, tmp_path: Path) -> None:
    done = tmp_path / "done"
    export(connect(live), ALL, done, ExportOptions())
    with pytest.raises(ExportError, match="another statement"):
        export(connect(live), "SELECT 1", done, ExportOptions())
    with pytest.raises(ExportError, match="another partition by"):
        export(connect(live), ALL, done, ExportOptions(partition_by=("symbol",)))
    for options, words in (
        (ExportOptions(partition_by=("nope",)), "no column 'nope'.*symbol, trade_id.*'date'"),
        (ExportOptions(split_by="nope"), "no column 'nope'"),
        (ExportOptions(partition_by=("symbol", "symbol")), "twice"),
        (ExportOptions(format="csv", compression="zstd"), "without compression"),
    ):
        with pytest.raises(ExportError, match=words):
            export(connect(live), ALL, tmp_path / "other", options)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "part-0.parquet").write_bytes(b"")
    with pytest.raises(ExportError, match="in the way"):
        export(connect(live), ALL, tmp_path / "strange", ExportOptions())
    with pytest.raises(clients.QueryError):
        export(connect(live), "SELECT nothing FROM market.trades", tmp_path / "none", ExportOptions())


def k2(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments, prog_name="k2", catch_exceptions=True)


def test_the_command(live: Live, tmp_path: Path) -> None:
    folder, uri = str(tmp_path / "out"), live.service.uri
    done = k2("export", ALL, folder, "--uri", uri, "--partition-by", "symbol, date")
    assert done.exit_code == 0, done.output
    assert "rows" in done.stderr
    assert "complete already" in k2("export", ALL, folder, "--uri", uri, "--partition-by", "symbol, date").stderr
    verified = k2("export", "--verify", folder)
    assert verified.exit_code == 0 and "as they were written" in verified.output
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    first = tmp_path / "out" / manifest["files"][0]["path"]
    first.write_bytes(first.read_bytes()[:-1])
    spoiled = k2("export", "--verify", folder)
    assert spoiled.exit_code == 1 and manifest["files"][0]["path"] in spoiled.stderr


@pytest.mark.parametrize("step", ["batch", "moved", "committed"])
def test_an_export_that_was_killed_goes_on_without_a_double_or_missing_row(
    live: Live, tmp_path: Path, step: str
) -> None:
    """SIGKILL at each place where the folder and the manifest may disagree."""
    form: ExportFormat = "iceberg" if step == "committed" else "parquet"
    arguments = [live.service.uri, ALL, str(tmp_path), step, form]
    killed = subprocess.run([sys.executable, "-m", "tests.support.killed_export", *arguments], check=False)
    assert killed.returncode == -9
    with clients.connect(live.service.uri) as connection:
        before = Manifest.load(tmp_path)
        live.produce([trade(10_000 + n) for n in range(20)])
        options = ExportOptions(format=form, partition_by=("symbol",), slice_rows=500)
        manifest = export(connect(live), ALL, tmp_path, options)
        expected = connection.arrow(ALL, at=manifest.cut)
    assert before is not None and before.cut == manifest.cut and not before.complete
    assert rows_of(tmp_path) == sorted(expected["trade_id"].to_pylist())
    assert not verify(tmp_path).problems
    if form == "iceberg":
        with SqlCatalog("export", uri=f"sqlite:///{tmp_path}/_catalog.db") as catalog:
            assert catalog.load_table("export.rows").scan().to_arrow().num_rows == expected.num_rows
