"""Sessions: what the server remembers of a client between its calls: options, scratch, a transaction.

A session is made when there is something to remember, ends when its client closes it or somebody kills it, and is
evicted when it was idle for too long. There is a bound on their number. Nothing of one session can be seen by another.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import duckdb

from common.clock import Clock
from common.errors import InvalidStatement, LimitExceeded, PermissionDenied
from flight_server.engine.places import Home
from flight_server.engine.session_options import SessionOptions


@dataclass(frozen=True)
class Caller:
    """Who a call is made for: the principal, and what tells its session.

    `session_id` is the client's cookie where it `has_cookie`, else the cookie that it was offered with this call;
    `channel` names its login or its connection, by which a client without cookies is known again.
    """

    principal: str
    session_id: str
    is_admin: bool = False
    peer: str = ""
    has_cookie: bool = False
    channel: str = ""


class StagedWrite(Protocol):
    """Rows on their way into a research table, which commit or abort with the transaction."""

    def commit(self) -> int: ...
    def abort(self) -> None: ...


@dataclass
class Transaction:
    """One open transaction. It begins to hold the lake's state with its first statement."""

    id: bytes
    from_sql: bool
    staged: dict[str, StagedWrite] = field(default_factory=dict)


@dataclass(eq=False)
class Session:
    """One client's state. `home` is there from the first need of it on."""

    id: str
    principal: str
    peer: str
    channel: str
    began_us: int
    last_used_s: float
    options: SessionOptions = field(default_factory=SessionOptions)
    home: Home | None = None
    transaction: Transaction | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def public_id(self) -> str:
        """What may be shown of the id, which is the client's cookie."""
        return hashlib.blake2b(self.id.encode(), digest_size=8, person=b"k2 session").hexdigest()

    @property
    def is_plain(self) -> bool:
        """True when names and times mean what they mean without a session."""
        plain = SessionOptions()
        return self.options.schema == plain.schema and self.options.timezone == plain.timezone


class Sessions:
    """Thread-safe."""

    def __init__(
        self,
        clock: Clock,
        make_cursor: Callable[[], duckdb.DuckDBPyConnection],
        *,
        count_max: int,
        idle_s_max: float,
        transaction_idle_s_max: float,
        gathered_bytes_max: int,
    ) -> None:
        self._clock = clock
        self._make_cursor = make_cursor
        self._count_max = count_max
        self._idle_s_max = idle_s_max
        self._transaction_idle_s_max = transaction_idle_s_max
        self._gathered_bytes_max = gathered_bytes_max
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        #: (principal, channel) -> the session of a client that has not shown a cookie yet.
        self._by_channel: dict[tuple[str, str], Session] = {}
        self._transactions: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def find(self, caller: Caller) -> Session | None:
        """The caller's session, if there is one; using it keeps it alive."""
        session = self._sessions.get(caller.session_id) if caller.has_cookie else None
        if session is None:
            session = self._by_channel.get((caller.principal, caller.channel))
        elif session.channel:
            # It has cookies: others who share its connection are not to be taken for it.
            with self._lock:
                self._by_channel.pop((session.principal, session.channel), None)
                session.channel = ""
        if session is None or session.principal != caller.principal:
            return None
        session.last_used_s = self._clock.monotonic_s()
        return session

    def open(self, caller: Caller) -> Session:
        """The caller's session, made when there is none. Raises LimitExceeded when there are too many."""
        found = self.find(caller)
        if found is not None:
            return found
        if len(self._sessions) >= self._count_max:
            self.expire()
        with self._lock:
            if len(self._sessions) >= self._count_max:
                raise LimitExceeded(
                    f"{self._count_max} sessions are open on this server (K2_FLIGHT_SESSIONS_MAX); close some, or wait "
                    "until idle ones are evicted"
                )
            session = Session(
                id=caller.session_id,
                principal=caller.principal,
                peer=caller.peer,
                channel="" if caller.has_cookie else caller.channel,
                began_us=self._clock.now_us(),
                last_used_s=self._clock.monotonic_s(),
            )
            if session.channel:
                session = self._by_channel.setdefault((caller.principal, caller.channel), session)
            return self._sessions.setdefault(session.id, session)

    def home_of(self, session: Session) -> Home:
        """The session's own connection, made at the first call."""
        with session.lock:
            if session.home is None:
                home = Home(self._make_cursor(), gathered_bytes_max=self._gathered_bytes_max)
                if not session.is_plain:
                    home.apply(session.options)
                session.home = home
            return session.home

    # -- transactions

    def begin(self, session: Session, *, from_sql: bool) -> Transaction:
        """Open a transaction. Raises InvalidStatement when the session has one."""
        with session.lock:
            if session.transaction is not None:
                raise InvalidStatement(
                    "the session has a transaction open already; end it first, or open another connection"
                )
            session.transaction = Transaction(secrets.token_bytes(16), from_sql)
            with self._lock:
                self._transactions[session.transaction.id] = session
            return session.transaction

    def in_transaction(self, caller: Caller, transaction_id: bytes) -> Session:
        """The session whose transaction has this id. Raises InvalidStatement when the caller has none such."""
        session = self._transactions.get(transaction_id)
        if session is None or session.principal != caller.principal:
            raise InvalidStatement(
                "the transaction is not known to this server: it was ended, or was idle for too long; begin a new one"
            )
        session.last_used_s = self._clock.monotonic_s()
        return session

    def is_open(self, transaction_id: bytes, caller: Caller) -> bool:
        """True while the caller has a transaction of this id."""
        session = self._transactions.get(transaction_id)
        return session is not None and session.principal == caller.principal

    def forget_transaction(self, session: Session) -> Transaction:
        """Take the transaction off the session; the caller ends it. Raises InvalidStatement when there is none."""
        with session.lock:
            transaction, session.transaction = session.transaction, None
        if transaction is None:
            raise InvalidStatement("there is no transaction to end; begin one first")
        with self._lock:
            self._transactions.pop(transaction.id, None)
        return transaction

    # -- ending

    def close(self, session: Session) -> None:
        """End the session: its transaction is rolled back, its scratch is gone. Idempotent."""
        with self._lock:
            self._sessions.pop(session.id, None)
            self._by_channel.pop((session.principal, session.channel), None)
            if session.transaction is not None:
                self._transactions.pop(session.transaction.id, None)
        with session.lock:
            transaction, session.transaction = session.transaction, None
            home, session.home = session.home, None
        if transaction is not None:
            for write in transaction.staged.values():
                write.abort()
        if home is not None:
            home.close()

    def named(self, session_id: str, caller: Caller) -> Session:
        """The session to be ended by its public id. Raises InvalidStatement or PermissionDenied."""
        session = next((session for session in self.all() if session.public_id == session_id), None)
        if session is None:
            raise InvalidStatement(f"there is no session {session_id[:64]!r}; ops.sessions lists those there are")
        if not caller.is_admin and session.principal != caller.principal:
            raise PermissionDenied("only an administrator may end a session of somebody else")
        return session

    def expire(self) -> None:
        """Evict the sessions that were idle for too long; those with an open transaction sooner."""
        now_s = self._clock.monotonic_s()
        for session in self.all():
            idle_s_max = self._idle_s_max
            if session.transaction is not None:
                idle_s_max = min(idle_s_max, self._transaction_idle_s_max)
            if now_s - session.last_used_s > idle_s_max and not (session.home is not None and session.home.is_busy):
                if session.transaction is not None and now_s - session.last_used_s <= self._idle_s_max:
                    self.abandon_transaction(session)
                else:
                    self.close(session)

    def abandon_transaction(self, session: Session) -> None:
        """Roll the session's transaction back; scratch committed before stays."""
        transaction = self.forget_transaction(session)
        for write in transaction.staged.values():
            write.abort()
        home = session.home
        if home is not None:
            home.take(None, lambda: False)
            try:
                home.end(commit=False)
            finally:
                home.give_back()

    def close_all(self) -> None:
        for session in self.all():
            self.close(session)
