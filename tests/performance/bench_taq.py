"""A day of trades and quotes, asked as analysts ask: K2 over Flight SQL, plain DuckDB and polars by turns in one run.

All three read the same Parquet files, those of K2's tables, and must answer the same, or the run ends with what
differs. 5M rows by default, a third of them trades; `--scale 10` is a day of 50M. `asof` asks only for the quote at
each trade, of 10M trades and 20M quotes, K2 and DuckDB.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil

from common.datasets import QUOTES, TRADES
from tests.performance.figures import Figure
from tests.performance.k2_server import K2Server
from tests.performance.market_day import BEGIN_US, SYMBOLS, in_chunks, quotes, symbol_days, symbol_name, trades
from tests.performance.taq_peers import Ask, check_same, fill, in_duckdb, in_polars, k2
from tests.performance.taq_queries import Market, Query, queries

_ROWS, _ASOF_ROWS, _ROUNDS = 5_000_000, 30_000_000, 3
_BEGIN = datetime.fromtimestamp(BEGIN_US // 1_000_000, UTC)
#: Quiet is a symbol that has a hundredth of the day's rows. The quotes of the day may end before a minute after the
#: last trades is over.
MARKET = Market(
    symbols=tuple(map(symbol_name, range(SYMBOLS))),
    quiet=symbol_name(18),
    busy=symbol_name(0),
    stretch=(_BEGIN + timedelta(hours=10), _BEGIN + timedelta(hours=11)),
    last_trade=_BEGIN + timedelta(hours=23, minutes=58),
)


@dataclass(frozen=True)
class _Day:
    """Who is asked about one day, and the CPU that all of them have taken."""

    peers: Mapping[str, Ask]
    cpu_s: Callable[[], float]


def run(scale: float) -> list[Figure]:
    with _day(int(_ROWS * scale)) as day:
        return [_figure(query, day, "taq") for query in queries(MARKET)]


def run_asof(scale: float) -> list[Figure]:
    """Without polars, whose memory has no bound."""
    with _day(int(_ASOF_ROWS * scale)) as day:
        bounded = replace(day, peers={name: ask for name, ask in day.peers.items() if name != "polars"})
        return [_figure(query, bounded, "asof") for query in queries(MARKET) if query.name.startswith("asof")]


@contextmanager
def _day(count: int) -> Iterator[_Day]:
    """So many rows of it."""
    with tempfile.TemporaryDirectory(prefix="k2-taq-") as name, ExitStack() as stack:
        folder = Path(name)
        files = {
            dataset.name: fill(folder, dataset, in_chunks(made(symbol_days(count))))
            for dataset, made in ((TRADES, trades), (QUOTES, quotes))
        }
        server = stack.enter_context(K2Server(folder))

        def cpu_s() -> float:
            own = psutil.Process().cpu_times()
            return float(own.user + own.system) + server.cpu_s()

        yield _Day({"K2": k2(server.uri, stack), "DuckDB": in_duckdb(files, stack), "polars": in_polars(files)}, cpu_s)


def _figure(query: Query, day: _Day, benchmark: str) -> Figure:
    """Milliseconds of each, and seconds of CPU; the first call of each is compared, and not counted: caches, plans."""
    first = {name: ask(query) for name, ask in day.peers.items()}
    check_same(query, first)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in day.peers}
    for _ in range(_ROUNDS):  # by turns, so that all meet the same machine
        for name, ask in day.peers.items():
            begin, cpu_s = time.perf_counter(), day.cpu_s()
            ask(query)
            taken[name].append(((time.perf_counter() - begin) * 1000, day.cpu_s() - cpu_s))
    medians = {name: np.median(np.array(of_one), axis=0) for name, of_one in taken.items()}
    beside = ", ".join(f"{name} {ms:,.1f}" for name, (ms, _) in medians.items() if name != "K2")
    cpu = ", ".join(f"{cpu_s:.2f}" for _, cpu_s in medians.values())
    said = f"CPU {cpu} s; {first['K2'].height:,} rows; load {os.getloadavg()[0]:.1f}"
    return Figure(benchmark, f"{query.name}, K2", float(medians["K2"][0]), "ms", f"{beside}; {said}")
