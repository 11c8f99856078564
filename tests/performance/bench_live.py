"""SUBSCRIBE: from a row's publication to a subscriber's hands, and how many rows a second one subscriber can take.

The subscriber is a process of its own; broker, sink, lake and server share another one with what produces. Times are of
the machine's one monotonic clock. The n-th row is published when the lake has published n, and received when the
subscriber has n: each batch stands at a publication, so both counts mean the same rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import clients
from tests.performance.figures import Figure
from tests.support.live import Live

COLUMNS = "symbol, trade_id, price, quantity"
_ROWS_S = 20_000
_SUBSCRIBER = """
import json, sys, time
import clients
uri, sql, start, wanted = sys.argv[1], sys.argv[2], sys.argv[3] or None, int(sys.argv[4])
began = time.monotonic()
with clients.connect(uri) as k2, k2.subscribe(sql, start) as arrivals:
    print("subscribed", flush=True)
    count, seen = 0, [(0, began)]
    while count < wanted:
        count += next(arrivals).batch.num_rows
        seen.append((count, time.monotonic()))
print(json.dumps(seen))
"""


def run(scale: float) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        live = Live(Path(folder))
        try:
            return [*_latency(live, int(20 * _ROWS_S * scale)), *_throughput(live)]
        finally:
            live.stop()


def _latency(live: Live, rows: int) -> list[Figure]:
    """Rows at a steady pace; the latency of every one."""
    published: list[tuple[int, float]] = []
    before = live.grow(1_000)["n"]
    forget = live.count_published(lambda count: published.append((count - before, time.monotonic())))
    with _subscriber(live, f"SELECT {COLUMNS} FROM market.trades", "now", rows) as subscriber:
        live.grow_at(rows, _ROWS_S)
        seen = json.loads(subscriber.communicate()[0])
    while published[-1][0] < rows:
        time.sleep(0.01)
    forget()
    numbers = np.arange(1, rows + 1)
    taken_ms = (_when(numbers, seen) - _when(numbers, published)) * 1000
    assert live.grow(0)["n"] == before + rows
    p50, p99 = np.percentile(taken_ms, [50, 99])
    beside = f"{rows:,} rows at {_ROWS_S:,}/s in {len(seen) - 1:,} batches, the sink committing"
    return [
        Figure("live", "publication to subscriber, p50", float(p50), "ms", beside),
        Figure("live", "publication to subscriber, p99", float(p99), "ms", beside),
    ]


def _when(numbers: np.ndarray, counted: list[tuple[int, float]]) -> np.ndarray:
    """The time of each row, by its number: when so many had been counted for the first time."""
    counts, times = np.array(counted).T
    return times[np.searchsorted(counts, numbers)]


def _throughput(live: Live) -> list[Figure]:
    """All rows from the beginning, out of memory; beside it the same rows by a plain query through ADBC."""
    live.settle()
    rows = live.grow(0)["n"]
    sql = f"SELECT {COLUMNS} FROM market.trades"
    with clients.connect(live.service.uri) as k2:
        began = time.perf_counter()
        assert k2.arrow(sql).num_rows == rows
        plain = rows / (time.perf_counter() - began)
    with _subscriber(live, sql, "", rows) as subscriber:
        seen = json.loads(subscriber.communicate()[0])
    rate = rows / (seen[-1][1] - seen[0][1])
    return [
        Figure("live", "one subscriber from the beginning", rate, "rows/s", f"a plain query {plain:,.0f} rows/s"),
        Figure("live", "batches of that", len(seen) - 1, "", f"{rows:,} rows"),
    ]


@contextmanager
def _subscriber(live: Live, sql: str, start: str, rows: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _SUBSCRIBER, live.service.uri, sql, start, str(rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
