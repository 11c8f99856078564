"""`k2 export` of 10M rows x 8 columns beside DuckDB's own COPY of the same query, in the same run, with the same codec.

DuckDB reads the table's files in this process, with as many threads as the server has; the export goes over the wire.
Then the same export is killed half-way and run again: what is there is compared with DuckDB's file, row by row.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pyarrow as pa

import clients
from clients.export import Compression, ExportOptions, Manifest, export, verify
from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.k2_server import K2Server
from tests.performance.market_data import rows

_ROWS, _CHUNK, _SYMBOLS, _DAYS, _ROUNDS = 10_000_000, 1_000_000, 100, 10, 5
_COLUMNS = "symbol, trade_id, event_time, receive_time, price, quantity, side, exchange"
_CODECS: tuple[Compression, ...] = ("snappy", "zstd")
_STATEMENT = f"SELECT {_COLUMNS} FROM market.trades"


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale)
    with tempfile.TemporaryDirectory(prefix="k2-export-") as name:
        folder = Path(name)
        files = _filled(folder / "lake", count)
        with K2Server(folder / "lake") as server, duckdb.connect() as duck:
            duck.execute("SET TimeZone = 'UTC'")
            figures = []
            for codec in _CODECS:
                figures += _beside(server, duck, files, folder, codec, count)
            figures.append(_killed(server, duck, folder, count))
            figures.append(Figure("export", "load average at the end", os.getloadavg()[0], ""))
    return figures


def _beside(
    server: K2Server, duck: duckdb.DuckDBPyConnection, files: list[str], folder: Path, codec: Compression, count: int
) -> list[Figure]:
    """By turns, so that both meet the same machine; medians, and of each pair's ratio the median."""
    copy = folder / f"copy-{codec}.parquet"
    text = f"COPY (SELECT {_COLUMNS} FROM read_parquet({files!r})) TO '{copy}' (FORMAT parquet, COMPRESSION {codec})"
    taken: list[tuple[float, float, float, float]] = []
    for number in range(_ROUNDS):
        own = _timed(lambda: duck.execute(text))
        out = folder / f"out-{codec}-{number}"
        before_s = server.cpu_s()
        options = ExportOptions(compression=codec)
        wall_s, cpu_s = _timed(functools.partial(export, lambda: clients.connect(server.uri), _STATEMENT, out, options))
        taken.append((*own, wall_s, cpu_s + server.cpu_s() - before_s))
        manifest = Manifest.load(out)
        assert manifest is not None and manifest.complete and manifest.rows == count
    own_s, own_cpu_s, export_s, export_cpu_s = np.array(taken).T
    name = f"{count:,} rows x 8 to Parquet, {codec}"
    size = f"{manifest.bytes / 1e6:,.0f} MB; DuckDB's file {copy.stat().st_size / 1e6:,.0f}"
    own_beside = f"{np.median(own_cpu_s):.2f} s of CPU"
    beside = f"{np.median(export_cpu_s):.2f} s of CPU, server's too; {size}"
    ratio = f"of CPU {np.median(export_cpu_s / own_cpu_s):.2f}"
    return [
        Figure("export", f"{name}, DuckDB's COPY", float(np.median(own_s)), "s", own_beside),
        Figure("export", f"{name}, k2 export", float(np.median(export_s)), "s", beside),
        Figure("export", f"{name}, ratio", float(np.median(export_s / own_s)), "x", ratio),
    ]


def _killed(server: K2Server, duck: duckdb.DuckDBPyConnection, folder: Path, count: int) -> Figure:
    """Killed when half of the slices are there; the second run's rows held against DuckDB's."""
    out = folder / "killed"
    with subprocess.Popen(_command(server, out, "snappy"), stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            found = Manifest.load(out)
            if found is not None and 2 * len(found.done) >= len(found.slices):
                child.kill()
            time.sleep(0.005)
    then = Manifest.load(out)
    if then is None or then.complete:
        raise RuntimeError("the export was not killed half-way: it was complete before that")
    subprocess.run(_command(server, out, "snappy"), check=True, stderr=subprocess.DEVNULL)
    told = verify(out)
    compared = (
        "SELECT count(*), count(*) FILTER (WHERE a.trade_id IS NULL OR b.trade_id IS NULL OR a IS DISTINCT FROM b) "
        f"FROM (SELECT {_COLUMNS} FROM read_parquet('{out}/*.parquet')) a FULL JOIN "
        f"(SELECT {_COLUMNS} FROM read_parquet('{folder}/copy-snappy.parquet')) b USING (trade_id)"
    )
    total, different = duck.execute(compared).fetchall()[0]
    if (total, different, told.problems, told.rows) != (count, 0, (), count):
        raise RuntimeError(f"the resumed export is not the same: {total:,} rows, {different:,} differ, {told.problems}")
    kept = f"{then.rows:,} rows kept of the run that was killed, all {count:,} as DuckDB has them"
    return Figure("export", "rows double or missing after SIGKILL half-way", float(different), "", kept)


def _command(server: K2Server, out: Path, codec: str) -> list[str]:
    options = ["--uri", server.uri, "--compression", codec]
    return [sys.executable, "-m", "k2.cli", "export", _STATEMENT, str(out), *options]


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and this process's CPU."""
    before, begin_s = psutil.Process().cpu_times(), time.perf_counter()
    work()
    wall_s, after = time.perf_counter() - begin_s, psutil.Process().cpu_times()
    return wall_s, after.user + after.system - before.user - before.system


def _filled(folder: Path, count: int) -> list[str]:
    """A table of `count` trades, a commit for each million, each sorted as the sink sorts; its data files."""
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    table = IcebergTable.open(lake, TRADES)
    partition = KafkaPartition("bench", "bench-topic-id", 0)
    for done in range(0, count, _CHUNK):
        chunk = min(_CHUNK, count - done)
        made = rows(done, chunk, symbols=_SYMBOLS, days=_DAYS, total=count)
        place = made.schema.get_field_index("_kafka_topic")
        made = made.set_column(place, made.schema.field(place), pa.repeat(topic_short(partition.topic_id), chunk))
        made = made.sort_by([("symbol", "ascending"), ("event_time", "ascending")])
        base = PartitionOffsets({partition: done} if done else {})
        table.append(made, base, PartitionOffsets({partition: done + chunk}), f"bench-{done}")
    return [str(path) for path in sorted(folder.glob("warehouse/**/*.parquet"))]
