"""What runs now, and until when: deadlines watched by one thread; who is late is a function of the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from common.clock import Clock
from common.errors import K2Error, StatementTimeout

#: How often is looked: a cancel whose interrupt met the engine just before its work began is said again by then.
_INTERVAL_S = 0.1


@dataclass(frozen=True)
class About:
    """One running statement as ops.statements shows it."""

    id: bytes
    principal: str
    session_id: str
    text: str
    kind: str
    began_us: int
    deadline_s: float
    timeout_s: float


class Watched(Protocol):
    """What runs, as it is seen from outside. Any thread."""

    @property
    def is_cancelled(self) -> bool:
        """True once somebody has asked it to stop."""
        ...

    def is_abandoned(self) -> bool:
        """True when nobody waits for it any more, as far as that is known."""
        ...

    def cancel(self, reason: K2Error | None = None) -> None:
        """Stop soon; the reader gets `reason`."""
        ...

    def late(self, now_s: float) -> K2Error | None:
        """Why it is to be stopped now, for a reason of its own beside its deadline; None while there is none."""
        ...


class Watchdog:
    """Cancels each watched statement once its time, or its client, is gone. Thread-safe."""

    def __init__(self, clock: Clock, *, also: Callable[[], None]) -> None:
        """`also` is what else is to be looked after now and then."""
        self._clock = clock
        self._also = also
        self._watched: dict[Watched, About] = {}
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

    def watch(self, statement: Watched, about: About) -> None:
        with self._lock:
            self._watched[statement] = about

    def forget(self, statement: Watched) -> None:
        with self._lock:
            self._watched.pop(statement, None)

    def running(self) -> list[tuple[Watched, About]]:
        with self._lock:
            return list(self._watched.items())

    def expire(self) -> None:
        """Cancel all that are late now, and those that nobody waits for any more."""
        now_s = self._clock.monotonic_s()
        for statement, about in self.running():
            if about.deadline_s <= now_s:
                statement.cancel(
                    StatementTimeout(
                        f"the statement, its result included, took longer than {about.timeout_s:g} s and was stopped; "
                        "select less, or raise the session's statement_timeout, up to K2_FLIGHT_STATEMENT_TIMEOUT_S"
                    )
                )
            elif statement.is_cancelled or statement.is_abandoned():
                statement.cancel()
            elif (reason := statement.late(now_s)) is not None:
                statement.cancel(reason)
        self._also()

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            self.expire()
