"""Deadlines of running statements, watched by one thread; the decision who is late is a function of the clock."""

from __future__ import annotations

import threading

from common.clock import Clock
from common.errors import StatementTimeout
from flight_server.engine.running import RunningStatement


class Watchdog:
    """Cancels each watched statement once its time, or its client, is gone. Thread-safe."""

    def __init__(self, clock: Clock, *, timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        # A statement may end late by this much: 1 % of its time, at most a quarter of a second.
        self._interval_s = min(0.25, timeout_s / 100)
        self._deadlines: dict[RunningStatement, float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="k2-statement-deadlines", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def watch(self, statement: RunningStatement) -> None:
        with self._lock:
            self._deadlines[statement] = self._clock.monotonic_s() + self._timeout_s

    def forget(self, statement: RunningStatement) -> None:
        with self._lock:
            self._deadlines.pop(statement, None)

    def running(self) -> list[RunningStatement]:
        with self._lock:
            return list(self._deadlines)

    def expire(self) -> None:
        """Cancel all that are late now, and those that nobody waits for any more."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            watched = list(self._deadlines.items())
        for statement, deadline_s in watched:
            if deadline_s <= now_s:
                statement.cancel(
                    StatementTimeout(
                        f"the statement, its result included, took longer than {self._timeout_s:g} s and was stopped; "
                        "select less, or raise K2_FLIGHT_STATEMENT_TIMEOUT_S"
                    )
                )
            elif statement.is_abandoned():
                statement.cancel()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.expire()
