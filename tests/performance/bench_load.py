"""128 clients at once for a minute on a mixed load, in processes of their own, one of which is killed on the way."""

from __future__ import annotations

import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from tests.performance.bench_peers import fill
from tests.performance.figures import Figure
from tests.performance.k2_server import K2Server
from tests.support.load import run_processes

_ROWS, _SECONDS = 2_000_000, 60.0
_PROCESSES, _CLIENTS = 4, 32
_HELD = ("k2_open_statements", "k2_sessions", "k2_prepared_statements", "k2_pinned_statements")
#: What vanished clients hold is given back after half a minute, not after half an hour, so that the run sees it.
_SETTINGS = {
    "K2_FLIGHT_SESSION_IDLE_S_MAX": "30",
    "K2_FLIGHT_TRANSACTION_IDLE_S_MAX": "30",
    "K2_FLIGHT_PIN_S_MAX": "30",
    "K2_FLIGHT_STATEMENT_WAIT_S_MAX": "60",
    "K2_TELEMETRY_METRICS_PORT": "0",
}


def run(scale: float) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="k2-load-") as name:
        fill(Path(name), int(_ROWS * max(scale, 0.01)))
        with K2Server(Path(name), **_SETTINGS) as server:
            return _measure(server, _SECONDS * min(1.0, scale))


def _measure(server: K2Server, seconds: float) -> list[Figure]:
    run_processes(server.uri, processes=1, clients=_CLIENTS, operations=3, seconds=60)  # caches, gRPC's threads
    held_before, threads_before, memory_before = _settled(server), server.threads(), server.memory_mib()
    report, _ = run_processes(
        server.uri, processes=_PROCESSES, clients=_CLIENTS, operations=10**9, seconds=seconds, victims=1
    )
    held_after = _settled(server)
    kept = {name: held_after[name] for name in _HELD if held_after[name] > held_before[name]}
    done = sum(map(len, report.taken_ms.values()))
    clients = _PROCESSES * _CLIENTS
    beside = f"{clients} clients in {_PROCESSES} processes, {seconds:g} s; 1 more process was killed"
    figures = [
        Figure("load", "operations", done / seconds, "/s", beside),
        Figure("load", "errors", len(report.errors), "", "; ".join(report.errors[:5])[:500]),
    ]
    for name, taken in sorted(report.taken_ms.items(), key=lambda item: -len(item[1])):
        p50, p99 = np.percentile(taken, [50, 99])
        figures.append(Figure("load", f"{name}, p99", float(p99), "ms", f"p50 {p50:,.1f}, {len(taken):,} of them"))
    held = ", ".join(f"{name.removeprefix('k2_')} {held_after[name]:g}" for name in _HELD)
    memory = server.memory_mib()
    return [
        *figures,
        Figure("load", "left behind afterwards", float(sum(kept.values())), "", held),
        Figure("load", "threads of the server afterwards", server.threads(), "", f"before {threads_before}"),
        Figure("load", "memory of the server afterwards", memory, "MiB", f"before {memory_before:,.0f} MiB"),
    ]


def _settled(server: K2Server, within_s: float = 60.0) -> dict[str, float]:
    """What is held once all has been given back, or at the end of the patience."""
    deadline_s = time.monotonic() + within_s
    while True:
        held = _held(server)
        if not any(held.values()) or time.monotonic() > deadline_s:
            return held
        time.sleep(0.2)


def _held(server: K2Server) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics_uri) as answer:
        lines = answer.read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith(_HELD))
    return {name: float(found[name]) for name in _HELD}
