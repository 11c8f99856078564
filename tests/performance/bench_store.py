"""The same table in local files and in an S3 store on loopback, each behind a `k2 serve`, asked by turns in one run.

The store is moto's, made for the run; its answers take milliseconds, a real store's tens of them. So the requests are
the figure to look at, and the times are those of queries that ask the store for nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import clients
from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.integration.s3_server import S3Server
from tests.performance.figures import Figure, times_ms
from tests.performance.k2_server import K2Server
from tests.performance.market_data import rows

_ROWS, _COMMITS, _SYMBOLS, _DAYS = 1_000_000, 20, 100, 10
_TURNS, _CALLS = 5, 40
_PARTITION = KafkaPartition("bench", "bench-topic-id", 0)


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale) // _COMMITS * _COMMITS
    one = count // 2
    queries = {
        "point query": f"SELECT price, quantity FROM market.trades WHERE trade_id = {one}",
        "aggregate": "SELECT symbol, count(*), sum(quantity) FROM market.trades GROUP BY symbol",
    }
    with tempfile.TemporaryDirectory(prefix="k2-store-") as name, ExitStack() as stack:
        folder = Path(name)
        store = S3Server(folder)
        store.start()
        stack.callback(store.stop)
        store.make_bucket("lake")
        local = LakeSettings.load(data_dir=folder / "local")
        remote = LakeSettings.load(
            data_dir=folder / "remote", warehouse="s3://lake/warehouse", catalog_properties=store.properties("sink")
        )
        _fill(local, count)
        before = store.count()
        _fill(remote, count)
        per_commit = len(store.requests(of="sink", since=before)) / _COMMITS
        figures = [
            Figure("store", "requests of the sink, a commit", per_commit, "", "the making of the table included")
        ]
        of_the_server = json.dumps(store.properties("server"))
        served = {
            "S3": {"K2_LAKE_WAREHOUSE": "s3://lake/warehouse", "K2_LAKE_CATALOG_PROPERTIES": of_the_server},
            "local files": {},
        }
        asking: dict[str, clients.Connection] = {}
        for (place, env), lake in zip(served.items(), (remote, local), strict=True):
            server = stack.enter_context(K2Server(lake.data_dir, **env))
            asking[place] = stack.enter_context(clients.connect(server.uri))
        first = len(store.requests(of="server"))
        figures.append(Figure("store", f"requests of the server, start with {_COMMITS} files", first, ""))
        for query, sql in queries.items():
            for when in ("first", "again"):
                before = store.count()
                asking["S3"].arrow(sql)
                asked = len(store.requests(of="server", since=before))
                figures.append(Figure("store", f"requests, {query}, {when}", asked, ""))
            taken: dict[str, list[np.ndarray]] = {place: [] for place in asking}
            for _ in range(_TURNS):
                for place, connection in asking.items():
                    taken[place].append(times_ms(_asked(connection, sql), _CALLS))
            for place, times in taken.items():
                p50, p99 = np.percentile(np.concatenate(times), [50, 99])
                figures.append(Figure("store", f"{query}, {place}, p50", float(p50), "ms", f"p99 {p99:,.2f}"))
    return figures


def _asked(connection: clients.Connection, sql: str) -> Callable[[], object]:
    return lambda: connection.arrow(sql)


def _fill(lake: LakeSettings, count: int) -> None:
    lake.prepare()
    table = IcebergTable.open(lake, TRADES)
    chunk = count // _COMMITS
    for done in range(0, count, chunk):
        data = rows(done, chunk, symbols=_SYMBOLS, days=_DAYS, total=count)
        base = PartitionOffsets({_PARTITION: done} if done else {})
        table.append(data, base, PartitionOffsets({_PARTITION: done + chunk}), f"bench-{done}")
