"""K2 beside other servers through ADBC, by turns in one run: Sail, ROAPI, DuckDB's Quack, and DuckDB in the client; for
SELECT 1 also a server that does nothing (floor_server).

All read the same Parquet files, 10M trades sorted by symbol; K2 as its Iceberg table, through `k2 serve`. The query
texts are the same but for the table's name. The peers come from PyPI into an environment that is made for the run and
thrown away.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.k2_server import FloorServer, K2Server
from tests.performance.market_data import rows

_ROWS, _CHUNK, _SYMBOLS, _DAYS = 10_000_000, 1_000_000, 100, 10
_PACKAGES = (
    "pysail",
    "roapi",
    "duckdb==1.5.5",
    "duckdb-extension-httpfs==1.5.5",
    "duckdb-extension-quack==1.5.5",
    "adbc-driver-quack",
    "adbc-driver-flightsql",
    "pyarrow",
    "pytz",
)
_HERE = Path(__file__).parent
_FLIGHT_SQL, _QUACK = "adbc_driver_flightsql.dbapi", "adbc_driver_quack.dbapi"


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale)
    with tempfile.TemporaryDirectory(prefix="k2-peers-") as name, ExitStack() as stack:
        folder = Path(name)
        python, versions = _environment(folder / "environment")
        fill(folder / "lake", count)
        files = _in_one_folder(folder / "lake", folder / "files")
        peers = [
            _peer("K2", stack.enter_context(K2Server(folder / "lake")).uri, table="market.trades"),
            stack.enter_context(_sail(python, files)),
            stack.enter_context(_roapi(python, files)),
            stack.enter_context(_quack(python, files)),
            _in_process(files),
            _peer("floor", stack.enter_context(FloorServer()).uri, only=("SELECT 1",)),
        ]
        task = {"peers": peers, "queries": _queries(count, scale)}
        client = subprocess.run(
            [python, _HERE / "peers_client.py"], input=json.dumps(task), capture_output=True, text=True, check=False
        )
        if client.returncode:
            raise RuntimeError(f"the client of the benchmark failed: {client.stderr[-2000:]}")
    found = json.loads(client.stdout)
    _check_answers(found)
    installed = Figure("peers", "packages in the peers' environment", versions.count(",") + 1, "", versions)
    return [figure for query in task["queries"] for figure in _figures(query["name"], found)] + [installed]


def _queries(count: int, scale: float) -> list[dict[str, Any]]:
    """The query texts, and how often each is asked: `rounds` turns of `calls`, after `warm_up` calls in each turn."""
    one = count // 2 - count // 20
    symbol = f"S{one * _SYMBOLS // count:03d}USDT"
    often = max(0.1, min(1.0, scale))
    return [
        _query("SELECT 1", "SELECT 1", rounds=10, calls=int(100 * often), warm_up=5),
        _query(
            "point query",
            "SELECT symbol, event_time, price, quantity, side FROM {table} "
            f"WHERE symbol = '{symbol}' AND trade_id = {one}",
            rounds=10,
            calls=int(20 * often),
            warm_up=1,
        ),
        _query(
            "aggregate",
            "SELECT symbol, count(*) AS trades, sum(quantity) AS volume, min(price) AS low, max(price) AS high "
            "FROM {table} GROUP BY symbol ORDER BY symbol",
            rounds=10,
            calls=2,
            warm_up=0,
        ),
        _query(
            f"scan of {count:,} rows x 4",
            "SELECT symbol, event_time, price, quantity FROM {table}",
            rounds=3,
            calls=1,
            warm_up=0,
        ),
    ]


def _query(name: str, sql: str, *, rounds: int, calls: int, warm_up: int) -> dict[str, Any]:
    return {"name": name, "sql": sql, "rounds": rounds, "calls": calls, "warm_up": warm_up}


def _figures(query: str, found: dict[str, Any]) -> list[Figure]:
    figures = []
    for peer, queries in found.items():
        if query not in queries:
            continue
        cycles, answers = queries[query]["cycle_ms"], queries[query]["answer_ms"]
        p50, p99 = np.percentile(cycles, [50, 99])
        beside = f"p99 {p99:,.2f}, {len(cycles)} calls; to the answer alone p50 {np.median(answers):,.2f}"
        figures.append(Figure("peers", f"{query}, {peer}, p50", float(p50), "ms", beside))
    return figures


def _check_answers(found: dict[str, Any]) -> None:
    """All must have answered the same, or the figures compare different work. 1.50 and 1.5 are the same."""
    for query in found["K2"]:
        ours = found["K2"][query]["first"]
        for peer, queries in found.items():
            if query not in queries or peer == "K2":
                continue
            theirs = queries[query]["first"]
            differing = [
                (a, b) for a, b in zip(ours, theirs, strict=False) if list(map(_value, a)) != list(map(_value, b))
            ]
            if differing or len(ours) != len(theirs):
                rows = f"{len(ours)} and {len(theirs)} rows, first that differ: {differing[:1]}"
                raise RuntimeError(f"{query}: {peer} did not answer as K2 did: {rows}")


def _value(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


# -- the peers


def _peer(
    name: str,
    uri: str,
    *,
    table: str = "trades",
    driver: str = _FLIGHT_SQL,
    options: dict[str, str] | None = None,
    setup: Sequence[str] = (),
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """`only` are the queries that it is asked; without, all."""
    return {
        "name": name,
        "uri": uri,
        "table": table,
        "driver": driver,
        "options": options or {},
        "setup": list(setup),
        "only": list(only),
    }


@contextmanager
def _sail(python: Path, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    port = _free_port()
    with _running([python.parent / "sail", "flight", "server", "--port", port], port):
        folder = Path(files[0]).parent
        table = f"CREATE TABLE trades USING parquet LOCATION '{folder}'"
        yield _peer("Sail", f"grpc://127.0.0.1:{port}", setup=[table])


@contextmanager
def _roapi(python: Path, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """As a server of files, as the others are: its default is to load them into memory when it starts."""
    port, http, postgres = _free_port(), _free_port(), _free_port()
    table = f"trades={Path(files[0]).parent},format=parquet,use_memory_table=false"
    addresses = [f"--addr-{kind}=127.0.0.1:{p}" for kind, p in (("http", http), ("postgres", postgres))]
    command = [python.parent / "roapi", *addresses, f"--addr-flight-sql=127.0.0.1:{port}", "--table", table]
    with _running(command, port):
        yield _peer("ROAPI", f"grpc://127.0.0.1:{port}")


@contextmanager
def _quack(python: Path, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    port, token = _free_port(), secrets.token_hex(8)
    with _running([python, _HERE / "peers_quack.py", port, token, *files], port):
        options = {"adbc.quack.token": token, "adbc.quack.tls": "false"}
        yield _peer("Quack", f"quack://127.0.0.1:{port}", driver=_QUACK, options=options)


def _in_process(files: Sequence[str]) -> dict[str, Any]:
    """No server at all: what the engine takes, and what a server is measured by."""
    view = f"CREATE VIEW trades AS SELECT * FROM read_parquet({list(files)!r})"
    setup = ["SET GLOBAL TimeZone = 'UTC'", "SET GLOBAL parquet_metadata_cache = true", view]
    return _peer("DuckDB in process", "", driver="duckdb", setup=setup)


@contextmanager
def _running(command: Sequence[object], port: int) -> Iterator[None]:
    """The command as a child, from when its port answers to the end of the block."""
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + 60
            while not _answers(port):
                if child.poll() is not None or time.monotonic() > deadline_s:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2000:]}")
                time.sleep(0.05)
            yield
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- what they need


def _environment(folder: Path) -> tuple[Path, str]:
    """A virtual environment with the peers and the drivers: its Python, and what was installed."""
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *_PACKAGES], check=True)
    listed = subprocess.run(
        ["uv", "pip", "list", "--quiet", "--format", "json", "--python", python],
        check=True,
        capture_output=True,
        text=True,
    )
    names = {package.partition("=")[0] for package in _PACKAGES}
    installed = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
    return python, ", ".join(f"{name} {version}" for name, version in installed.items() if name in names)


def fill(folder: Path, count: int) -> None:
    """K2's table of `count` trades, sorted by symbol, in commits of a million rows."""
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    table = IcebergTable.open(lake, TRADES)
    partition = KafkaPartition("bench", "bench-topic-id", 0)
    for done in range(0, count, _CHUNK):
        chunk = min(_CHUNK, count - done)
        data = rows(done, chunk, symbols=_SYMBOLS, days=_DAYS, total=count, by_symbol=True)
        base = {partition: done} if done else {}
        to = PartitionOffsets({partition: done + chunk})
        table.append(data, PartitionOffsets(base), to, f"bench-{done}")


def _in_one_folder(lake: Path, folder: Path) -> list[str]:
    """The table's data files under new names in a folder that has nothing else: peers take a folder as a table, and
    K2's files lie in one for each day."""
    folder.mkdir()
    links = []
    for number, path in enumerate(sorted(lake.glob("warehouse/**/*.parquet"))):
        links.append(folder / f"{number:04}.parquet")
        links[-1].hardlink_to(path)
    return [str(link) for link in links]
