"""From the socket to a query: ingest, broker, sink and server as processes, a paced venue, a client that looks.

What the client sees is a sample. At the moments of its queries, drawn at random, each trade of some age is in the
answer or not; the share of trades of an age that are is the share of all trades that are visible within that age. So
a query every 100 ms tells p50 and p99 to the millisecond, and costs little of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from clients import Connection, connect
from k2.broker import EmbeddedBroker
from tests.performance.feed_load import FIRST_ID, FeedLoad
from tests.performance.figures import Figure
from tests.performance.scraped import Metrics, quantile
from tests.support.processes import Process

_RATES, _SECONDS, _SYMBOLS = (1_000, 20_000), 20.0, 20
#: How long the parts run before the client begins to look, and its mean time between two queries.
_WARM_UP_S, _LOOK_S = 4.0, 0.1
#: Ages beyond this are not told apart, in steps of a tenth of a millisecond.
_AGE_S_MAX, _AGE_STEP_S = 2.0, 0.0001
_PATIENCE_S = 120.0

_SEEN = (
    "SELECT symbol, max(trade_id) AS last_id FROM market.trades "
    "WHERE receive_time > now() - INTERVAL 10 SECONDS GROUP BY symbol"
)
_ALL = (
    "SELECT symbol, trade_id, epoch_us(receive_time) AS received_us, epoch_us(event_time) AS sent_us "
    "FROM market.trades ORDER BY symbol, trade_id"
)


@dataclass(frozen=True)
class Look:
    """One query: when it began, how long it took, and the last id of each symbol in its answer."""

    begun_us: int
    taken_ms: float
    last_ids: dict[str, int]


def run(scale: float) -> list[Figure]:
    figures: list[Figure] = []
    for rate in _RATES:
        figures += _measure(rate, max(2.0, _SECONDS * scale))
    return figures


def _measure(rate: int, seconds: float) -> list[Figure]:
    trades = int(rate * (seconds + _WARM_UP_S))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-freshness-")))
        broker = stack.enter_context(EmbeddedBroker())
        load = FeedLoad(rate=rate, trades=trades, symbol_count=_SYMBOLS)
        stack.callback(load.stop)
        parts = _Parts(stack, broker, folder, load)
        connection = stack.enter_context(connect(parts.uri))
        load.began_s()
        time.sleep(_WARM_UP_S)
        before, cpu_before, begun_s = parts.metrics.read(), parts.cpu_s(), time.monotonic()
        looks = _look(connection, seconds)
        cpu = {name: (s - cpu_before[name]) / (time.monotonic() - begun_s) for name, s in parts.cpu_s().items()}
        after = parts.metrics.read()
        _, behind_s = load.ended()
        rows = _all(connection, trades)
    received, sent = (_ages(rows, looks, column) for column in ("received_us", "sent_us"))
    took = np.percentile([look.taken_ms for look in looks], [50, 99])
    slowest = [quantile(after, "k2_freshness_seconds", q, before) * 1000 for q in (0.5, 0.99)]
    used = ", ".join(f"{name} {share:.0%}" for name, share in cpu.items())
    load_1min = os.getloadavg()[0]
    what = f"at {rate:,} trades/s"
    return [
        Figure(
            "freshness", f"socket to visible, p50, {what}", received[0], "ms", f"from the venue's write {sent[0]:.1f}"
        ),
        Figure(
            "freshness", f"socket to visible, p99, {what}", received[1], "ms", f"from the venue's write {sent[1]:.1f}"
        ),
        Figure(
            "freshness",
            f"slowest row of a publication, p99, {what}",
            slowest[1],
            "ms",
            f"p50 {slowest[0]:.1f}, by the server; queries took p50 {took[0]:.1f}, p99 {took[1]:.1f} ms",
        ),
        Figure(
            "freshness",
            f"CPU, {what}",
            sum(cpu.values()),
            "cores",
            f"{used}; load {load_1min:.1f}; venue {behind_s * 1000:.0f} ms behind",
        ),
    ]


class _Parts:
    """The processes, as a user starts them."""

    def __init__(self, stack: contextlib.ExitStack, broker: EmbeddedBroker, folder: Path, load: FeedLoad) -> None:
        env = {"K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "K2_TELEMETRY_LOG_LEVEL": "warning"}
        env |= {"K2_TELEMETRY_METRICS_PORT": "0", "K2_FLIGHT_RESULT_CACHE_BYTES_MAX": "0"}

        def start(*words: str) -> Process:
            process = Process(*words, "--data-dir", str(folder), env=env)
            stack.callback(process.kill)
            return process

        sink = start("sink")
        sink.wait_for("->")
        server = start("serve", "--port", "0")
        self.uri = server.wait_for(r"Flight SQL at (\S+)")[1]
        self.metrics = Metrics(server.wait_for(r"metrics at (\S+)")[1])
        ingest = start("ingest", "binance", "--symbols", load.symbols, "--url", load.url)
        pids = {"venue": load.pid, "ingest": ingest.pid, "broker": broker.pid, "sink": sink.pid, "server": server.pid}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._processes["client"] = psutil.Process()

    def cpu_s(self) -> dict[str, float]:
        return {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}


def _look(connection: Connection, seconds: float) -> list[Look]:
    looks, until_s = [], time.monotonic() + seconds
    while time.monotonic() < until_s:
        time.sleep(random.uniform(0, 2 * _LOOK_S))
        begun_us, begun_s = time.time_ns() // 1_000, time.perf_counter()
        table: pa.Table = connection.arrow(_SEEN)
        taken_ms = (time.perf_counter() - begun_s) * 1000
        looks.append(
            Look(begun_us, taken_ms, dict(zip(*(column.to_pylist() for column in table.columns), strict=True)))
        )
    return looks


def _all(connection: Connection, trades: int) -> pa.Table:
    """Every trade, once all of them are visible."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        table = connection.arrow(_ALL)
        if table.num_rows >= trades:
            assert table.num_rows == trades
            return table
        assert time.monotonic() < deadline_s, f"only {table.num_rows} of {trades} trades came"
        time.sleep(0.1)


def _ages(rows: pa.Table, looks: list[Look], column: str) -> tuple[float, float]:
    """The ages in ms within which a half, and 99 of 100, of the trades were visible."""
    bins = round(_AGE_S_MAX / _AGE_STEP_S)
    there, all_of = np.zeros(bins), np.zeros(bins)
    symbols = np.array(rows.column("symbol").to_pylist())
    since = rows.column(column).to_numpy()
    for symbol in np.unique(symbols):
        times = since[symbols == symbol]
        for look in looks:
            ages = (look.begun_us - times) / 1e6
            near = np.flatnonzero((ages >= 0) & (ages < _AGE_S_MAX))
            seen = near <= look.last_ids.get(symbol, 0) - FIRST_ID
            steps = (ages[near] / _AGE_STEP_S).astype(int)
            np.add.at(all_of, steps, 1)
            np.add.at(there, steps[seen], 1)
    # The share visible by age, made monotone: what is visible at an age stays so.
    share = np.maximum.accumulate(_smoothed(there) / np.maximum(_smoothed(all_of), 1))
    return tuple(
        float(np.argmax(share >= q) * _AGE_STEP_S * 1000) if share[-1] >= q else float("inf") for q in (0.5, 0.99)
    )  # type: ignore[return-value]


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Sums over a millisecond: trades come in bursts."""
    return np.convolve(counts, np.ones(10), "same")
