"""Transactions that a statement has left open: the next one goes on in it, for as long as nothing newer is published.

To open a transaction, to ask what it sees and to end it took 0.5 ms of processor time at a load average of 10.
Guarantee: what is lent sees exactly what a new transaction would see; only its `now()` is an earlier one, so that
a statement in which that could be seen takes a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import duckdb

from flight_server.engine.cursors import CursorPool
from flight_server.engine.seam import Seen

#: So many are kept; more are in use at once than this only when clients outnumber the cores many times.
_KEPT_MAX = 16


class StandingTransactions:
    """Thread-safe."""

    def __init__(self, cursors: CursorPool, version: Callable[[], int], check: Callable[[], None]) -> None:
        """`version`: the number of the newest publication. It is to be read before a transaction is begun. `check`
        raises when the tables cannot be answered exactly now."""
        self.version = version
        self._check = check
        self._cursors = cursors
        self._kept: list[tuple[duckdb.DuckDBPyConnection, Seen, int]] = []
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def take(self) -> tuple[duckdb.DuckDBPyConnection, Seen, int] | None:
        """A cursor in a transaction that sees the newest state, what it sees, and the version that this is of; None
        when there is none. Raises what `check` does."""
        with self._lock:
            if not self._kept or self._kept[-1][2] != self.version():
                return None
            found = self._kept.pop()
        try:
            self._check()
        except BaseException:
            self._end(found[0])
            raise
        return found

    def keep(self, cursor: duckdb.DuckDBPyConnection, seen: Seen | None, version: int | None) -> bool:
        """Take over a cursor whose transaction began when this was the version; False when it is of no use."""
        if seen is None or version is None:
            return False
        with self._lock:
            if self._closed or version != self.version() or len(self._kept) >= _KEPT_MAX:
                return False
            self._kept.append((cursor, seen, version))
            return True

    def expire(self) -> None:
        """End those that see an older state: they hold what was dropped since in memory."""
        now = self.version()
        with self._lock:
            late = [kept for kept in self._kept if kept[2] != now]
            self._kept = [kept for kept in self._kept if kept[2] == now]
        for cursor, *_ in late:
            self._end(cursor)

    def close(self) -> None:
        """End all of them; none is kept from now on."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for cursor, *_ in kept:
            self._end(cursor)

    def _end(self, cursor: duckdb.DuckDBPyConnection) -> None:
        try:
            cursor.execute("ROLLBACK")
        except duckdb.Error:
            cursor.close()
        else:
            self._cursors.give_back(cursor)
