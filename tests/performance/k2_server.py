"""The server under measurement, as its users start it; and one that does nothing, to be measured beside it."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tests.support.processes import Process


class _Server:
    """A server as a process of its own; `uri` is where it is."""

    _process: Process
    uri = ""

    def _started(self, process: Process) -> None:
        self._process = process
        self.uri = process.wait_for(r"Flight SQL at (\S+)")[1]

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def memory_mib(self) -> float:
        """Resident memory of the server process."""
        time.sleep(0.2)
        return float(psutil.Process(self._process.pid).memory_info().rss) / 1024**2

    def cpu_s(self) -> float:
        """Processor time that the server process has taken, in the kernel too."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def threads(self) -> int:
        """Threads of the server process."""
        return int(psutil.Process(self._process.pid).num_threads())


class K2Server(_Server):
    """`k2 serve` as a process of its own, over the lake in `folder`; `env` goes on top of this process's.

    It keeps no results unless `env` says so: the same query again and again would measure the keeping.
    """

    def __init__(self, folder: Path, **env: str) -> None:
        self._folder = folder
        self._env = {"K2_TELEMETRY_LOG_LEVEL": "warning", "K2_FLIGHT_RESULT_CACHE_BYTES_MAX": "0"} | env

    def __enter__(self) -> K2Server:
        self._started(Process("serve", "--data-dir", str(self._folder), "--port", "0", env=self._env))
        return self

    @property
    def metrics_uri(self) -> str:
        """Where its metrics are, when K2_TELEMETRY_METRICS_PORT was set."""
        return self._process.wait_for(r"metrics at (\S+)")[1]


class FloorServer(_Server):
    """A server that does nothing; see floor_server."""

    def __enter__(self) -> FloorServer:
        self._started(Process(env={}, module="tests.performance.floor_server"))
        return self
