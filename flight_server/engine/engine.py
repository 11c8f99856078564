"""The engine: announce a statement that was planned, run it. Everything about SQL is decided in this room.

Guarantee: what is announced as a schema is to the letter what is streamed; each execution that reads tables sees one
published state of the lake, its cut, from its first row to its last, and in a transaction all see the same one; nothing
but a session's own scratch and the namespace `research` can be changed.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from prometheus_client import CollectorRegistry

from common.clock import Clock
from common.errors import InvalidStatement, K2Error, StatementCancelled, Unavailable
from common.settings import FlightSettings
from flight_server.engine import activity
from flight_server.engine.admission import Admission
from flight_server.engine.chosen import Chosen
from flight_server.engine.cursors import CursorPool
from flight_server.engine.errors import translated
from flight_server.engine.meters import Meters
from flight_server.engine.ops_tables import OpsTables
from flight_server.engine.pending import Pending
from flight_server.engine.places import Place, PoolPlace
from flight_server.engine.planner import Values
from flight_server.engine.plans import Plans
from flight_server.engine.requests import Plan, Request, values_of
from flight_server.engine.results import Key, ReadyResult, Results
from flight_server.engine.running import RunningStatement, TablesChanged
from flight_server.engine.scratch import SCRATCH_TABLE, SCRATCH_VIEW, scratch_tables
from flight_server.engine.seam import Lake, TableInfo
from flight_server.engine.session_options import CATALOG, MARKET, RESEARCH
from flight_server.engine.sessions import Caller, Sessions
from flight_server.engine.sources import Part, Source, Sources
from flight_server.engine.standing import StandingTransactions
from flight_server.engine.statements import CUT, Statement, StatementKind
from flight_server.engine.subscriptions import Subscription, Subscriptions
from flight_server.engine.watchdog import About, Watchdog, Watched

#: A result of a session that is put aside in memory when the session's next statement needs the connection.
_GATHERED_BYTES_MAX = 64 * 1024**2


@dataclass(frozen=True)
class Announced:
    """A statement that is ready to be run: what GetFlightInfo says of it."""

    id: bytes
    schema: pa.Schema
    cut: str | None
    ordered: bool
    #: More ids where the result comes in several parts: one for each part but the last, which has `id`.
    others: tuple[bytes, ...] = ()


class Engine:
    """Thread-safe. `start` before use, `stop` at the end."""

    def __init__(self, lake: Lake, settings: FlightSettings, *, clock: Clock, registry: CollectorRegistry) -> None:
        self._lake = lake
        self._settings = settings
        self._clock = clock
        self._cursors = CursorPool(lake.cursor)
        self._standing = StandingTransactions(self._cursors, lambda: lake.version, lake.check_ready)
        self.sessions = Sessions(
            clock,
            lake.cursor,
            count_max=settings.sessions_max,
            idle_s_max=settings.session_idle_s_max,
            transaction_idle_s_max=settings.transaction_idle_s_max,
            gathered_bytes_max=_GATHERED_BYTES_MAX,
        )
        self._pending = Pending(clock, count_max=settings.pending_statements_max, pin_s_max=settings.pin_s_max)
        self._admission = Admission(count_max=settings.statements_max, wait_s_max=settings.statement_wait_s_max)
        self._watchdog = Watchdog(clock, also=self._expire_others)
        self._sources = Sources(lake)
        self._endpoints = settings.endpoints_max or max(1, (os.cpu_count() or 1) // 2)
        self._results = Results(bytes_max=settings.result_cache_bytes_max, registry=registry)
        self._subscriptions = Subscriptions(lake, self._cursors, self._admission, settings, clock)
        self._ops = OpsTables(lake, self.sessions, self._watchdog, clock)
        self.plans = Plans(lake, self._cursors, self.sessions, self._sources, self._results, self._ops)
        self._meters = Meters(
            registry,
            {
                ("k2_waiting_statements", "Statements that wait for their turn"): lambda: self._admission.waiting,
                ("k2_subscriptions", "Subscriptions that are open"): lambda: len(self._subscriptions),
                ("k2_sessions", "Sessions that are open"): lambda: len(self.sessions),
                ("k2_pinned_statements", "Statements announced, with their cut pinned"): lambda: len(self._pending),
            },
        )

    # -- life

    def start(self) -> None:
        """Check that the database is sealed and learn its tables. Raises SettingsError when it is not sealed."""
        self.plans.start()
        self._watchdog.start()

    def drain(self, reason: K2Error) -> None:
        """From now on new statements get `reason`; running ones go on, but subscriptions, which have no end."""
        self.plans.refuse(reason)
        self._subscriptions.cancel_all(reason)

    def cancel_all(self, reason: K2Error) -> None:
        """Stop what runs; its readers get `reason`."""
        for statement, _ in self._watchdog.running():
            statement.cancel(reason)

    def expire(self) -> None:
        """End what is late now: statements, pins, sessions; the watchdog does so several times a second."""
        self._watchdog.expire()

    def stop(self) -> None:
        """End all statements and sessions and close every cursor. Idempotent."""
        stopping = Unavailable("the server is stopping; connect again")
        self.drain(stopping)
        self.cancel_all(stopping)
        self._watchdog.stop()
        self._pending.close()
        self.sessions.close_all()
        self._standing.close()
        self._cursors.close()
        self.plans.close()

    # -- what there is

    @property
    def open_statements(self) -> int:
        return len(self._watchdog.running())

    @property
    def pinned_statements(self) -> int:
        return len(self._pending)

    def running(self) -> list[tuple[Watched, About]]:
        """What runs now."""
        return self._watchdog.running()

    def tables(self, caller: Caller | None = None) -> Sequence[TableInfo]:
        """The tables that the caller is to see: everybody's, and its session's own."""
        everybody = [*self._lake.tables(), *activity.listed()]
        session = self.plans.session(caller, None)
        if session is None or session.home is None or not session.home.scratch:
            return everybody
        return [*everybody, *scratch_tables(session.home)]

    def schemas(self) -> set[tuple[str, str]]:
        """(catalog, schema) of every schema that is there for everybody, with or without tables."""
        return {(CATALOG, MARKET), (CATALOG, RESEARCH), (CATALOG, activity.OPS)}

    def table_types(self) -> set[str]:
        """Every type that a table may have."""
        return {table.kind for table in self._lake.tables()} | {SCRATCH_TABLE, SCRATCH_VIEW, activity.KIND}

    def check_as_of(self, as_of: str) -> None:
        """Raises InvalidStatement, SnapshotNotFound or Unavailable unless tables can be read as of this."""
        self._sources.check(as_of)

    def transaction_now(self, transaction_id: bytes | None, caller: Caller) -> bytes | None:
        """The transaction that a statement prepared in `transaction_id` runs in: that one while it is open, later the
        session's open one, for drivers keep a handle over commits; None when there is none."""
        if transaction_id is None:
            return None
        if self.sessions.is_open(transaction_id, caller):
            return transaction_id
        session = self.sessions.find(caller)
        return None if session is None or session.transaction is None else session.transaction.id

    def renew(self, statement_id: bytes) -> None:
        """Keep an announced statement's cut pinned for longer, if it is pinned."""
        self._pending.renew(statement_id)

    # -- running

    def announce(self, request: Request, caller: Caller) -> Announced:
        """Make a query ready to be run: its schema, and its cut, which is pinned for a while.

        Raises our errors. A session's transaction fixes its cut once for all of its statements.
        """
        plan = self.plans.plan(request, caller)
        statement = plan.statement
        statement_id = secrets.token_bytes(12)
        if plan.subscribe is not None:
            start = self._subscriptions.start_of(self.plans.followed(plan).table, plan.subscribe)
            return Announced(statement_id, plan.schema, start, ordered=False)
        if plan.on_home:
            home = None if plan.session is None else plan.session.home
            cut = home.cut if home is not None and home.in_transaction and plan.source is None else None
            return Announced(statement_id, plan.schema, cut, statement.is_ordered)
        if not statement.reads_tables:
            return Announced(statement_id, plan.schema, None, statement.is_ordered)
        self._lake.check_ready()
        place = PoolPlace(self._cursors, self.plans.begin, self._standing_for(plan))
        try:
            place.pin()
            if plan.source is not None:
                place.cut = plan.source.cut_in(place.cut, is_asked=CUT in statement.words)
            key = self._key(plan, request, caller, place.cut)
            ready = None if key is None else self._results.find(key)
            parts = self._parted(plan, place) if ready is None else []
        except Exception as error:  # noqa: BLE001  (whatever it is, the pin goes back)
            place.unpin()
            raise translated(error) from None
        if ready is not None:
            place.unpin()
            self._pending.add_ready(statement_id, ready)
            return Announced(statement_id, plan.schema, place.cut, statement.is_ordered)
        others = []
        for part in parts[:-1]:
            # Of files alone, which never change: it needs no transaction.
            elsewhere = PoolPlace(self._cursors, None)
            elsewhere.cut = place.cut
            others.append(secrets.token_bytes(12))
            self._pending.add(others[-1], elsewhere, part)
        self._pending.add(statement_id, place, parts[-1] if parts else plan.source)
        return Announced(statement_id, plan.schema, place.cut, statement.is_ordered, tuple(others))

    def execute(
        self,
        request: Request,
        caller: Caller | None = None,
        *,
        is_abandoned: Callable[[], bool] | None = None,
    ) -> RunningStatement | ReadyResult:
        """Run a query, once per row of its parameters, all at one cut; the results follow each other.

        It is the cut that was announced, from its pin, or when that is gone read again. Returns when the first batch
        can be read; until then `is_abandoned` is asked whether anybody still waits. The caller reads to the end or
        closes. Raises our errors.
        """
        if self._pending.is_cancelled(request.id):
            raise StatementCancelled("the statement was cancelled; send it again")
        ready = self._pending.take_ready(request.id)
        if ready is not None:
            return ready
        pinned, source = self._pending.take(request.id)
        try:
            plan = self.plans.plan(request, caller)
            if not plan.statement.is_query:
                raise InvalidStatement("the statement changes something; it cannot be run by its ticket again")
            if plan.subscribe is not None:
                raise InvalidStatement("SUBSCRIBE has no end, so that nothing can be made of its rows; write a query")
            if pinned is None:
                source = plan.source
                if request.is_part:
                    raise Unavailable(
                        "this part of the result is not held any more, for it was read already or came too late; run "
                        "the statement again"
                    )
                if request.cut is not None and not plan.on_home:
                    source = self._sources.again(
                        plan.statement,
                        request.cut,
                        plan.session,
                        self.plans.planner().parser,
                        values_of(plan.statement, plan.rows[0]) if plan.rows else (),
                    )
            key = self._key(plan, request, caller, request.cut)
            if pinned is None and key is not None and (ready := self._results.find(key)) is not None:
                return ready
            place = pinned or self._place(plan, source, caller)
            if pinned is not None and source is not None:
                pinned.tables = self._ops.of(source, caller, plan.statement)
        except BaseException:
            if pinned is not None:
                pinned.unpin()
            raise
        runs = [values_of(plan.statement, row) for row in plan.rows]
        chosen = None
        if source is None:
            chosen = self._sources.chosen(
                plan.statement, plan.session, self.plans.planner().parser, runs, on_home=plan.on_home
            )
        return self.run(
            plan.statement,
            runs,
            plan.schema,
            place,
            caller,
            statement_id=request.id,
            is_abandoned=is_abandoned,
            pinned=pinned,
            source=chosen or source,
            announced=None if plan.on_home else request.cut,
            keep=None
            if key is None or request.is_part
            else lambda batches: self._results.keep(key, plan.schema, batches),
        )

    def run(
        self,
        statement: Statement,
        runs: Sequence[Values],
        schema: pa.Schema | None,
        place: Place,
        caller: Caller | None,
        *,
        statement_id: bytes = b"",
        is_abandoned: Callable[[], bool] | None = None,
        pinned: PoolPlace | None = None,
        source: Source | Part | Chosen | None = None,
        announced: str | None = None,
        keep: Callable[[list[pa.RecordBatch]], None] | None = None,
    ) -> RunningStatement:
        """Start a statement in its place, admitted and watched. Raises our errors; then nothing is held.

        `announced` is the cut that it was announced with.
        """
        kind = statement.kind.value
        timeout_s = self._timeout_s(caller)
        started_s = self._clock.monotonic_s()
        try:
            self.plans.planner()
            self._admission.acquire(is_abandoned)
        except BaseException:
            if pinned is not None:
                pinned.unpin()
            raise

        def on_end(status: str, rows_given: int, bytes_given: int) -> None:
            self._watchdog.forget(running)
            self._admission.release()
            seconds = self._clock.monotonic_s() - started_s
            self._meters.ended(kind, status, seconds=seconds, rows=rows_given, nbytes=bytes_given)

        running = RunningStatement(
            text=statement.text,
            text_on=self._text_on(statement, source, place, announced),
            is_same=isinstance(source, Chosen),
            runs=runs,
            schema=schema,
            place=place,
            rows_max=self._settings.batch_rows_max,
            bytes_max=self._settings.batch_bytes_max,
            result_bytes_max=self._settings.result_bytes_max,
            keep=keep,
            on_end=on_end,
        )
        self._meters.began()
        about = About(
            id=statement_id or secrets.token_bytes(12),
            principal=caller.principal if caller is not None else "",
            session_id=caller.session_id if caller is not None else "",
            text=statement.sent or statement.text,
            kind=kind,
            began_us=self._clock.now_us(),
            deadline_s=started_s + timeout_s,
            timeout_s=timeout_s,
        )
        self._watchdog.watch(running, about)
        try:
            running.start(is_abandoned)
        except TablesChanged:
            self.plans.learn_anew()
            raise
        return running

    def follow(
        self, request: Request, caller: Caller | None = None, *, is_gone: Callable[[], bool] | None = None
    ) -> Subscription:
        """Begin a SUBSCRIBE, behind the cut that was announced. `is_gone` is asked on the reader's thread.

        Raises our errors.
        """
        if self._pending.is_cancelled(request.id):
            raise StatementCancelled("the subscription was cancelled; send it again")
        plan = self.plans.plan(request, caller)
        followed = self.plans.followed(plan)
        start = request.cut
        if start is None:
            assert plan.subscribe is not None
            start = self._subscriptions.start_of(followed.table, plan.subscribe)
        began_s = self._clock.monotonic_s()

        def on_end(status: str, rows_given: int, bytes_given: int) -> None:
            self._watchdog.forget(subscription)
            seconds = self._clock.monotonic_s() - began_s
            self._meters.ended(
                StatementKind.SUBSCRIBE.value, status, seconds=seconds, rows=rows_given, nbytes=bytes_given
            )

        subscription = self._subscriptions.open(followed, start, is_gone=is_gone or (lambda: False), on_end=on_end)
        self._meters.began()
        about = About(
            id=request.id or secrets.token_bytes(12),
            principal=caller.principal if caller is not None else "",
            session_id=caller.session_id if caller is not None else "",
            text=request.sql,
            kind=StatementKind.SUBSCRIBE.value,
            began_us=self._clock.now_us(),
            deadline_s=math.inf,
            timeout_s=math.inf,
        )
        self._watchdog.watch(subscription, about)
        return subscription

    def cancel(self, statement_id: bytes, caller: Caller) -> bool:
        """Stop a statement that was announced or runs, and refuse its ticket from now on; False when it was neither.

        Only the statement's own principal and administrators reach it.
        """
        found = False
        for statement, about in self._watchdog.running():
            if about.id == statement_id and (caller.is_admin or about.principal == caller.principal):
                statement.cancel()
                found = True
        return self._pending.cancel(statement_id) or found

    # -- inside, for the parts of the engine

    def is_ready(self) -> None:
        """Raises Unavailable or TailGap when the tables cannot be answered exactly now."""
        self.plans.planner()
        self._lake.check_ready()

    def _place(self, plan: Plan, source: Source | Part | None, caller: Caller | None) -> Place:
        if plan.statement.reads_tables:
            self._lake.check_ready()
        tables = self._ops.of(source, caller, plan.statement)
        if plan.on_home:
            assert plan.session is not None
            return self.plans.home_place(plan.session, tables=tables)
        begin = self.plans.begin if plan.statement.reads_tables else None
        place = PoolPlace(self._cursors, begin, None if begin is None else self._standing_for(plan))
        place.tables = tables
        return place

    def _standing_for(self, plan: Plan) -> StandingTransactions | None:
        """Transactions that the statement may go on in; None when it is to have one of its own: what it calls may give
        something else in a transaction that began earlier."""
        statement = plan.statement
        if statement.kind is not StatementKind.QUERY or plan.source is not None:
            return None
        return self._standing if self._sources.is_timeless(statement) else None

    def _parted(self, plan: Plan, place: PoolPlace) -> list[Part]:
        """The parts that the result is to come in; none when it is one stream."""
        count = self._endpoints
        if count < 2 or plan.source is not None or place.pinned is None:
            return []
        return self._sources.parted(plan.statement, place.cut, place.pinned, self.plans.planner().parser, count=count)

    def _key(self, plan: Plan, request: Request, caller: Caller | None, cut: str | None) -> Key | None:
        """Under which the query's result may be kept; None when it may not."""
        source = plan.source
        if plan.on_home or caller is None or (source is not None and (source.ops or source.columns)):
            return None
        return self._results.key(plan.statement, caller.principal, request.parameters, cut, self.plans.uncut)

    def _text_on(
        self, statement: Statement, source: Source | Part | Chosen | None, place: Place, announced: str | None
    ) -> Callable[[duckdb.DuckDBPyConnection], str] | None:
        """What gives the text to be run in place of the statement's, once its transaction is open, and says its cut."""
        asks = CUT in statement.words
        if source is None and announced is None and not asks:
            return None

        def text_on(cursor: duckdb.DuckDBPyConnection) -> str:
            if isinstance(source, Source):
                place.cut = source.cut_in(place.cut if place.seen is None else place.seen.cut, is_asked=asks)
            if announced is not None:
                place.cut = announced
            if asks:
                self._lake.tell_cut(cursor, place.cut)
            if isinstance(source, Chosen):
                return statement.text if place.seen is None else source.text(statement, self._lake, cursor, place.seen)
            return statement.text if source is None else source.text(statement, self._lake, cursor)

        return text_on

    def _timeout_s(self, caller: Caller | None) -> float:
        session = self.plans.session(caller, None)
        own = None if session is None else session.options.statement_timeout_s
        return self._settings.statement_timeout_s if own is None else own

    def _expire_others(self) -> None:
        self._pending.expire()
        self.sessions.expire()
        self._standing.expire()
