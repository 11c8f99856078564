"""Prepared statements that clients hold handles of: bounded in number, forgotten when idle or with their session.

A handle lives here and not in the client because drivers keep the handle they were given first. What runs is taken out
of it at GetFlightInfo, into the ticket: binding again, or closing, does not touch a result that is on its way.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import pyarrow as pa

from common.clock import Clock
from common.errors import InvalidStatement, LimitExceeded


@dataclass(frozen=True)
class PreparedStatement:
    """A text, whose it is, and the parameters bound last, None before any."""

    query: str
    principal: str = ""
    session_id: str = ""
    transaction_id: bytes | None = None
    parameters: pa.RecordBatch | None = None


class PreparedStatements:
    """Thread-safe. Idle ones are dropped when room is needed and whenever one is looked up."""

    def __init__(self, clock: Clock, *, count_max: int, idle_s_max: float) -> None:
        self._clock = clock
        self._count_max = count_max
        self._idle_s_max = idle_s_max
        self._lock = threading.Lock()
        #: Handle -> (statement, when it was used last), least recently used first.
        self._held: OrderedDict[bytes, tuple[PreparedStatement, float]] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            self._drop_idle()
            return len(self._held)

    def add(self, statement: PreparedStatement) -> bytes:
        """A handle for the statement. Raises LimitExceeded when too many are open."""
        # Made outside of the lock: asking the system for bytes lets go of Python's own lock, and whoever waits for ours
        # would wait for both.
        handle = secrets.token_hex(16).encode()
        with self._lock:
            self._drop_idle()
            if len(self._held) >= self._count_max:
                raise LimitExceeded(
                    f"{self._count_max} prepared statements are open on this server; close some and try again"
                )
            self._held[handle] = (statement, self._clock.monotonic_s())
            return handle

    def get(self, handle: bytes, principal: str = "") -> PreparedStatement:
        """The statement behind the handle. Raises InvalidStatement when this principal has none such."""
        with self._lock:
            self._drop_idle()
            if handle not in self._held or self._held[handle][0].principal != principal:
                raise InvalidStatement(
                    "the prepared statement is not known to this server: it was closed, its session ended, or it was "
                    f"idle for more than {self._idle_s_max:g} s; prepare it again"
                )
            statement, _ = self._held[handle]
            self._held[handle] = (statement, self._clock.monotonic_s())
            self._held.move_to_end(handle)
            return statement

    def bind(self, handle: bytes, parameters: pa.RecordBatch, principal: str = "") -> None:
        """Bind parameters, in place of what was bound before. Raises as `get`."""
        statement = replace(self.get(handle, principal), parameters=parameters)
        with self._lock:
            if handle in self._held:
                self._held[handle] = (statement, self._clock.monotonic_s())

    def close(self, handle: bytes, principal: str = "") -> None:
        """Forget the handle; one that is not known is closed already."""
        with self._lock:
            if handle in self._held and self._held[handle][0].principal == principal:
                del self._held[handle]

    def close_session(self, session_id: str, principal: str) -> None:
        """Forget the handles of a session that has ended."""
        with self._lock:
            for handle, (statement, _) in list(self._held.items()):
                if statement.session_id == session_id and statement.principal == principal:
                    del self._held[handle]

    def _drop_idle(self) -> None:
        oldest_kept_s = self._clock.monotonic_s() - self._idle_s_max
        while self._held and next(iter(self._held.values()))[1] < oldest_kept_s:
            self._held.popitem(last=False)
