"""Where a statement runs: on a shared cursor of the pool, or on its session's own connection.

Everything runs in a transaction that is read-only for the engine. DuckDB lets such a transaction write to the
connection's own temporary objects and to nothing else: a session's scratch is its own and `market` cannot be changed,
both by construction and not by reading SQL.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import duckdb
import pyarrow as pa

from common.errors import LimitExceeded, StatementCancelled, StatementError, Unavailable
from flight_server.engine.cursors import CursorPool
from flight_server.engine.seam import Seen
from flight_server.engine.session_options import SessionOptions, search_path
from flight_server.engine.standing import StandingTransactions

BEGIN = "BEGIN TRANSACTION READ ONLY"
#: How long a statement waits for another one of its session to free the connection.
_TURN_S_MAX = 30.0
_TURN_STEP_S = 0.05

#: Opens a read-only transaction on a cursor: what it sees.
Begin = Callable[[duckdb.DuckDBPyConnection], Seen]


class Occupant(Protocol):
    """A statement as its connection sees it."""

    def gather(self, bytes_max: int, timeout_s: float) -> bool | None:
        """Take the rest of the result into memory and leave the connection. False: too large; None: busy."""
        ...


class Place(Protocol):
    """One statement's place; `enter` once, then `leave` once."""

    cut: str | None
    #: What the transaction sees, once entered; None where there is none.
    seen: Seen | None

    def enter(self, statement: Occupant, is_stopped: Callable[[], bool]) -> duckdb.DuckDBPyConnection:
        """A cursor inside a transaction. Raises our errors; then nothing is held."""
        ...

    def leave(self, cursor: duckdb.DuckDBPyConnection, *, ok: bool) -> None:
        """Give the cursor back; `ok` is False when the statement failed, was interrupted or not read to its end."""
        ...

    def restart(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        """Begin the same transaction again, at a newer instant if need be; False when that cannot be."""
        ...


class PoolPlace:
    """A cursor of the pool. `pin` fixes the cut early, before the statement is run."""

    def __init__(self, cursors: CursorPool, begin: Begin | None, standing: StandingTransactions | None = None) -> None:
        """Without `begin` the statement reads no tables and needs no transaction. With `standing` it may go on in one
        that another statement has left, for it is the same to it when its transaction began."""
        #: What is there under these names while the statement runs.
        self.tables: Mapping[str, pa.Table] = {}
        self.cut: str | None = None
        self.seen: Seen | None = None
        self._cursors = cursors
        self._begin = begin
        self._standing = standing
        #: Of what the transaction sees; None where that is not known.
        self._version: int | None = None
        self._pinned: duckdb.DuckDBPyConnection | None = None

    def pin(self) -> None:
        """Fix the cut now. Raises what the lake raises; then nothing is held."""
        if self._standing is not None:
            if (found := self._standing.take()) is not None:
                self._pinned, self.seen, self._version = found
                self.cut = self.seen.cut
                return
            self._version = self._standing.version()
        cursor = self._cursors.take()
        try:
            if self._begin is not None:
                self.seen = self._begin(cursor)
                self.cut = self.seen.cut
        except BaseException:
            cursor.close()
            raise
        self._pinned = cursor

    @property
    def pinned(self) -> duckdb.DuckDBPyConnection | None:
        """The cursor inside the pinned transaction, between `pin` and `enter`."""
        return self._pinned

    def unpin(self) -> None:
        """Give back what `pin` took and nobody entered."""
        cursor, self._pinned = self._pinned, None
        if cursor is not None:
            self.leave(cursor, ok=True)

    def enter(self, statement: Occupant, is_stopped: Callable[[], bool]) -> duckdb.DuckDBPyConnection:
        if self._pinned is None:
            self.pin()
        cursor, self._pinned = self._pinned, None
        assert cursor is not None
        for name, table in self.tables.items():
            cursor.register(name, table)
        return cursor

    def leave(self, cursor: duckdb.DuckDBPyConnection, *, ok: bool) -> None:
        """Keep only cursors that nothing has happened to."""
        ok = ok and not self.tables
        if ok and self._standing is not None and self._standing.keep(cursor, self.seen, self._version):
            return
        try:
            if ok and self._begin is not None:
                cursor.execute("ROLLBACK")
        except duckdb.Error:
            ok = False
        if ok:
            self._cursors.give_back(cursor)
        else:
            cursor.close()

    def restart(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        if self._begin is not None:
            cursor.execute("ROLLBACK")
            self._version = None
            self.seen = self._begin(cursor)
        return True


class Home:
    """A session's own connection: its scratch, its transaction, its settings. One statement at a time; a result that
    is still being read when the next statement comes is taken into memory, up to a bound. Thread-safe."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, *, gathered_bytes_max: int) -> None:
        self.in_transaction = False
        #: What the open transaction sees.
        self.seen: Seen | None = None
        #: Names of the scratch tables and views, lower case; of the last committed or running statement.
        self.scratch: frozenset[str] = frozenset()
        #: Those that are views.
        self.views: frozenset[str] = frozenset()
        self._cursor = cursor
        self._gathered_bytes_max = gathered_bytes_max
        self._turn = threading.Lock()
        self._occupant: Occupant | None = None
        self._closed = False

    @property
    def cut(self) -> str | None:
        """The text of the open transaction's cut."""
        return None if self.seen is None else self.seen.cut

    @property
    def is_busy(self) -> bool:
        """True while a statement holds the connection."""
        return self._turn.locked()

    def take(self, occupant: Occupant | None, is_stopped: Callable[[], bool]) -> duckdb.DuckDBPyConnection:
        """The connection, once it is free. Raises LimitExceeded, Unavailable or StatementCancelled."""
        until_s = time.monotonic() + _TURN_S_MAX
        while not self._turn.acquire(blocking=False):
            before = self._occupant
            freed = before.gather(self._gathered_bytes_max, _TURN_STEP_S) if before is not None else None
            if freed is False:
                raise LimitExceeded(
                    "another result of this session is still being read and is too large to be put aside "
                    f"({self._gathered_bytes_max:,} bytes); read it to its end, or use another connection"
                )
            if self._turn.acquire(timeout=_TURN_STEP_S if freed is None else _TURN_S_MAX):
                break
            if is_stopped():
                raise StatementCancelled("the statement was cancelled while it waited for its session")
            if time.monotonic() > until_s:
                raise Unavailable(
                    "another statement of this session is running; wait for it, or use another connection"
                )
        if self._closed:
            self._turn.release()
            raise StatementError("the session is closed; connect again")
        self._occupant = occupant
        return self._cursor

    def give_back(self) -> None:
        self._occupant = None
        self._turn.release()

    def apply(self, options: SessionOptions) -> None:
        """Make the connection's settings the session's."""
        cursor = self.take(None, lambda: False)
        try:
            cursor.execute(f"SET search_path = '{search_path(options.schema)}'")
            cursor.execute(f"SET TimeZone = '{options.timezone}'")
        finally:
            self.give_back()

    def begin(self, begin: Begin) -> None:
        """Open the transaction and fix its cut. The caller has the turn."""
        try:
            self.seen = begin(self._cursor)
        except BaseException:
            with contextlib.suppress(duckdb.TransactionException):  # where it was not even opened
                self._cursor.execute("ROLLBACK")
            raise
        self.in_transaction = True

    def end(self, *, commit: bool, learn: bool = True) -> None:
        """Close the open transaction, if there is one. The caller has the turn; raises duckdb.Error."""
        if not self.in_transaction:
            return
        self.in_transaction = False
        self.seen = None
        self._cursor.execute("COMMIT" if commit else "ROLLBACK")
        if learn:
            self.learn_scratch()

    def learn_scratch(self) -> None:
        """Read again which scratch there is. The caller has the turn."""
        names = self._cursor.execute(
            "SELECT lower(table_name), false FROM duckdb_tables() WHERE temporary "
            "UNION SELECT lower(view_name), true FROM duckdb_views() WHERE temporary AND NOT internal"
        ).fetchall()
        self.scratch = frozenset(name for name, _ in names)
        self.views = frozenset(name for name, is_view in names if is_view)

    def close(self) -> None:
        """End everything; returns at once when a statement is running, which then ends by being interrupted."""
        self._closed = True
        self._cursor.interrupt()
        if self._turn.acquire(timeout=1.0):
            self._cursor.close()
            self._turn.release()


class HomePlace:
    """A statement's turn on its session's connection.

    In the session's transaction when one is open or `opens` says that the statement is in one; else in one of its own,
    which is committed when `commits` and the statement did well.
    """

    def __init__(
        self,
        home: Home,
        begin: Begin,
        *,
        opens: bool,
        commits: bool = False,
        defines: bool = False,
        tables: Mapping[str, pa.Table | pa.RecordBatchReader] | None = None,
    ) -> None:
        """`defines`: the statement may make or drop scratch. `tables` are there under their names while it runs."""
        self.cut: str | None = None
        self.seen: Seen | None = None
        self._tables = tables or {}
        self._home = home
        self._begin = begin
        self._opens = opens
        self._commits = commits
        self._defines = defines
        self._own = False

    def enter(self, statement: Occupant, is_stopped: Callable[[], bool]) -> duckdb.DuckDBPyConnection:
        cursor = self._home.take(statement, is_stopped)
        try:
            if not self._home.in_transaction:
                self._own = not self._opens
                self._home.begin(self._begin)
            self.seen, self.cut = self._home.seen, self._home.cut
            for name, table in self._tables.items():
                cursor.register(name, table)
        except BaseException:
            self._home.give_back()
            raise
        return cursor

    def leave(self, cursor: duckdb.DuckDBPyConnection, *, ok: bool) -> None:
        try:
            for name in self._tables:
                cursor.unregister(name)
            if self._own:
                self._home.end(commit=ok and self._commits, learn=self._defines)
            elif self._defines and ok:
                self._home.learn_scratch()
        finally:
            self._home.give_back()

    def restart(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        return False
