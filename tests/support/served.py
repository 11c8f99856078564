"""A Flight SQL server on made-up trades as a process of its own, so that it may crash, and be weighed, by itself.

`python -m tests.support.served SETTINGS ROWS` prints its URI, then answers each line on stdin with its counters.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Any

import psutil
from prometheus_client import CollectorRegistry

from common.settings import FlightSettings, TelemetrySettings
from common.telemetry import configure_logging
from flight_server.service.service import FlightService
from tests.support.fake_lake import FakeLake


class ServedProcess:
    """The child, seen from the test."""

    def __init__(self, *, rows: int = 1_000, **settings: Any) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.served", json.dumps(settings), str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._process = psutil.Process(self._child.pid)
        self.uri = self._line()

    @property
    def address(self) -> str:
        """host:port."""
        return self.uri.partition("://")[2]

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def stats(self) -> dict[str, int]:
        """Its counters (FlightStats) and Python threads, after what is owed to vanished clients was settled."""
        assert self._child.stdin is not None
        self._child.stdin.write("stats\n")
        self._child.stdin.flush()
        found: dict[str, int] = json.loads(self._line())
        return found

    def memory_mib(self) -> float:
        """Resident memory."""
        return float(self._process.memory_info().rss) / 1024**2

    def threads(self) -> int:
        """Threads of the operating system."""
        return int(self._process.num_threads())

    def stop(self) -> int:
        """Let it end; its exit code."""
        if self._child.stdin is not None and self.running:
            self._child.stdin.close()
        try:
            return self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def kill(self) -> None:
        """SIGKILL: no chance to say goodbye to anybody."""
        self._child.kill()
        self._child.wait()

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise AssertionError(f"the server ended with exit code {self._child.wait()}")
        return line.strip()


def main() -> None:
    configure_logging(TelemetrySettings(log_level="error", log_format="json"), service="served")
    settings = FlightSettings.load(port=0, **json.loads(sys.argv[1]))
    lake = FakeLake(int(sys.argv[2]), settings, research=True)
    service = FlightService(lake, settings, registry=CollectorRegistry())
    service.start()
    _say(service.uri)
    for _ in sys.stdin:
        _say(json.dumps(asdict(service.stats()) | {"python_threads": _own_threads()}))
    service.stop()
    lake.close()


def _own_threads() -> int:
    """Threads that Python code started; gRPC's, which Python knows as dummies once they called it, are not counted."""
    return sum(not isinstance(thread, threading._DummyThread) for thread in threading.enumerate())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
