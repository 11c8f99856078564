"""From the socket to a query: ingest, broker, sink and server as processes, a paced venue, a client that looks.

`K2_...` variables reach the processes, so that settings can be compared: `K2_INGEST_TRANSACTION_MS=25`, for instance.

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
from tests.performance.brokers import BROKERS, Broker
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

#: Looks back as far as ages are told apart, and no further: ten seconds of 20,000 trades each took a fifth of a core.
_SEEN = (
    "SELECT symbol, max(trade_id) AS last_id FROM market.trades "
    "WHERE receive_time > now() - INTERVAL 3 SECONDS GROUP BY symbol"
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
    for running in BROKERS:
        for rate in _RATES:
            with running() as broker:
                if broker is not None:
                    figures += _measure(broker, rate, max(2.0, _SECONDS * scale))
    return figures


def _measure(broker: Broker, rate: int, seconds: float) -> list[Figure]:
    trades = int(rate * (seconds + _WARM_UP_S))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-freshness-")))
        load = FeedLoad(rate=rate, trades=trades, symbol_count=_SYMBOLS)
        stack.callback(load.stop)
        parts = _Parts(stack, broker, folder, load)
        connection = stack.enter_context(connect(parts.uri))
        load.began_s()
        time.sleep(_WARM_UP_S)
        before, cpu_before, begun_s = parts.read(), parts.cpu_s(), time.monotonic()
        looks = _look(connection, seconds)
        cpu = {name: (s - cpu_before[name]) / (time.monotonic() - begun_s) for name, s in parts.cpu_s().items()}
        after = parts.read()
        _, behind_s = load.ended()
        rows = _all(connection, trades)
    received, sent = (_ages(rows, looks, column) for column in ("received_us", "sent_us"))
    took = np.percentile([look.taken_ms for look in looks], [50, 99])
    slowest = [quantile(after, "k2_freshness_seconds", q, before) * 1000 for q in (0.5, 0.99)]
    used = ", ".join(f"{name} {share:.0%}" for name, share in cpu.items())
    load_1min = os.getloadavg()[0]
    what = f"at {rate:,} trades/s, {broker.name}"
    beside = f"from the venue's write {sent.p50_ms:.1f}", f"from the venue's write {sent.p99_ms:.1f}"
    by_server = f"p50 {slowest[0]:.1f}, by the server; queries took p50 {took[0]:.1f}, p99 {took[1]:.1f} ms"
    working = f"{used}; load {load_1min:.1f}; venue {behind_s * 1000:.0f} ms behind"
    return [
        Figure("freshness", f"socket to visible, p50, {what}", received.p50_ms, "ms", beside[0]),
        Figure("freshness", f"socket to visible, p99, {what}", received.p99_ms, "ms", beside[1]),
        Figure("freshness", f"by stage, mean, {what}", sent.mean_ms, "ms", _stages(before, after, received, sent)),
        Figure("freshness", f"slowest row of a publication, p99, {what}", slowest[1], "ms", by_server),
        Figure("freshness", f"CPU, {what}", sum(cpu.values()), "cores", working),
    ]


def _stages(before: dict[str, float], after: dict[str, float], received: Ages, sent: Ages) -> str:
    """What each stage adds to the mean age; the last one is the rest up to the moment at which a client asks."""

    def mean_ms(name: str, labels: str = "") -> float:
        seconds, count = (after[n] - before[n] for n in (f"{name}_sum{labels}", f"{name}_count{labels}"))
        return seconds / count * 1000

    committed = mean_ms("k2_ingest_acknowledged_seconds")
    read, visible = (mean_ms("k2_freshness_mean_seconds", f'{{until="{until}"}}') for until in ("read", "visible"))
    steps = {
        "venue to socket": sent.mean_ms - received.mean_ms,
        "socket to committed": committed,
        "to read by the server": read - committed,
        "to visible": visible - read,
        "to a client's question": received.mean_ms - visible,
    }
    return ", ".join(f"{step} {ms:.1f}" for step, ms in steps.items())


class _Parts:
    """The processes, as a user starts them."""

    def __init__(self, stack: contextlib.ExitStack, broker: Broker, folder: Path, load: FeedLoad) -> None:
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
        ingest = start("ingest", "binance", "--symbols", load.symbols, "--url", load.url)
        self._metrics = [Metrics(part.wait_for(r"metrics at (\S+)")[1]) for part in (server, ingest)]
        pids = {"venue": load.pid, "ingest": ingest.pid, "broker": broker.pid, "sink": sink.pid, "server": server.pid}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._processes["client"] = psutil.Process()

    def read(self) -> dict[str, float]:
        """The server's metrics, and ingest's."""
        server, ingest = (metrics.read() for metrics in self._metrics)
        return server | {name: value for name, value in ingest.items() if name.startswith("k2_ingest")}

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


@dataclass(frozen=True)
class Ages:
    """At what age trades became visible."""

    p50_ms: float
    p99_ms: float
    mean_ms: float


def _ages(rows: pa.Table, looks: list[Look], column: str) -> Ages:
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
    step_ms = _AGE_STEP_S * 1000
    p50, p99 = (float(np.argmax(share >= q)) * step_ms if share[-1] >= q else float("inf") for q in (0.5, 0.99))
    return Ages(p50, p99, float((1 - share).sum()) * step_ms)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Sums over a millisecond: trades come in bursts."""
    return np.convolve(counts, np.ones(10), "same")
