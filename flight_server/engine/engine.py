"""The engine: describe a statement, announce it, run it. Everything about SQL is decided here.

Guarantee: what is announced as a schema is to the letter what is streamed; each execution that reads tables sees one
published state of the lake, its cut, from its first row to its last, and in a transaction all see the same one; nothing
but a session's own scratch and the namespace `research` can be changed.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.clock import Clock
from common.errors import (
    InvalidStatement,
    K2Error,
    SettingsError,
    StatementCancelled,
    StatementError,
    Unavailable,
    Unsupported,
)
from common.settings import FlightSettings
from flight_server.engine import activity
from flight_server.engine.admission import Admission
from flight_server.engine.chosen import Chosen
from flight_server.engine.control import Subscribe
from flight_server.engine.cursors import CursorPool
from flight_server.engine.dialect import Dialect, consistent_of, dialect_of
from flight_server.engine.errors import translated
from flight_server.engine.market_functions import MarketFunctions
from flight_server.engine.parameters import Row, count_mismatch, rows_of
from flight_server.engine.pending import Pending
from flight_server.engine.places import HomePlace, Place, PoolPlace
from flight_server.engine.planner import Planner, Values
from flight_server.engine.results import Key, ReadyResult, Results
from flight_server.engine.running import RunningStatement, TablesChanged
from flight_server.engine.scratch import SCRATCH_TABLE, SCRATCH_VIEW, scratch_tables
from flight_server.engine.seam import Lake, Seen, TableInfo
from flight_server.engine.session_options import CATALOG, MARKET, RESEARCH
from flight_server.engine.sessions import Caller, Session, Sessions
from flight_server.engine.sources import Part, Source, Sources, relation_of
from flight_server.engine.standing import StandingTransactions
from flight_server.engine.statements import CUT, Statement, StatementKind
from flight_server.engine.subscriptions import Followed, Subscription, Subscriptions
from flight_server.engine.table_functions import CHANGES
from flight_server.engine.watchdog import About, Watchdog, Watched
from flight_server.storage.macros import MACROS

#: Statements whose plan is remembered. A plan is some kilobytes; dashboards repeat tens of texts.
_PLANS_MAX = 1_024
#: Settings that the lake's database must have before a stranger's SQL may run on it.
_REQUIRED = {"enable_external_access": "false", "lock_configuration": "true", "timezone": "UTC"}
#: A result of a session that is put aside in memory when the session's next statement needs the connection.
_GATHERED_BYTES_MAX = 64 * 1024**2
#: Names that show what a session has, beside its tables' own.
_SHOWING = frozenset(
    """
    show describe desc information_schema pg_catalog temp duckdb_tables duckdb_views duckdb_columns pragma_show
    pragma_table_info sqlite_master
    """.split()  # noqa: SIM905  (reads better than twelve quoted strings)
)
#: What a change is answered with where it was sent as a query, as DuckDB itself does.
COUNT_SCHEMA = pa.schema([pa.field("Count", pa.int64())])


@dataclass(frozen=True)
class StatementInfo:
    """What is known of a statement before it runs. Parameters without a known type have Arrow's null type."""

    statement: Statement
    result_schema: pa.Schema
    parameter_schema: pa.Schema

    @property
    def kind(self) -> StatementKind:
        return self.statement.kind


@dataclass(frozen=True)
class Announced:
    """A statement that is ready to be run: what GetFlightInfo says of it."""

    id: bytes
    schema: pa.Schema
    cut: str | None
    ordered: bool
    #: More ids where the result comes in several parts: one for each part but the last, which has `id`.
    others: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Request:
    """A statement to be run: the text, its parameters, and what was announced of it."""

    sql: str
    parameters: pa.RecordBatch | None = None
    id: bytes = b""
    cut: str | None = None
    transaction_id: bytes | None = None
    is_part: bool = False


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
        self._planner: Planner | None = None
        self._plans: OrderedDict[tuple[object, ...], pa.Schema] = OrderedDict()
        self._parsed: OrderedDict[str, Statement] = OrderedDict()
        self._parameters: OrderedDict[str, pa.Schema] = OrderedDict()
        self._sources = Sources(lake)
        self._market = MarketFunctions(lake, self._cursors, self._sources)
        self._endpoints = settings.endpoints_max or max(1, (os.cpu_count() or 1) // 2)
        self._results = Results(bytes_max=settings.result_cache_bytes_max, registry=registry)
        self._subscriptions = Subscriptions(lake, self._cursors, self._admission, settings, clock)
        #: The names of tables that a cut does not cover.
        self._uncut: frozenset[str] = frozenset()
        self._plans_lock = threading.Lock()
        self._tables_version = -1
        self._dialect: Dialect | None = None
        self._refusal: K2Error | None = Unavailable("the server is starting; try again in a moment")
        self._statements = Counter("k2_statements", "Statements that ended", ["kind", "status"], registry=registry)
        self._seconds = Histogram(
            "k2_statement_seconds",
            "From the start of a statement to the end of its result",
            ["kind"],
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300),
        )
        self._counted: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._rows = Counter("k2_result_rows", "Rows given to clients", registry=registry)
        self._bytes = Counter("k2_result_bytes", "Bytes of Arrow buffers given to clients", registry=registry)
        self._open = Gauge("k2_open_statements", "Statements that run now", registry=registry)
        for name, text, value in (
            ("k2_waiting_statements", "Statements that wait for their turn", lambda: self._admission.waiting),
            ("k2_subscriptions", "Subscriptions that are open", lambda: len(self._subscriptions)),
            ("k2_sessions", "Sessions that are open", lambda: len(self.sessions)),
            ("k2_pinned_statements", "Statements announced, with their cut pinned", lambda: len(self._pending)),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    # -- life

    def start(self) -> None:
        """Check that the database is sealed and learn its tables. Raises SettingsError when it is not sealed."""
        self._learn_tables()
        self._watchdog.start()
        self._refusal = None

    def drain(self, reason: K2Error) -> None:
        """From now on new statements get `reason`; running ones go on, but subscriptions, which have no end."""
        self._refusal = reason
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
        if self._planner is not None:
            self._planner.close()
            self._planner = None

    # -- what there is

    @property
    def dialect(self) -> Dialect:
        """The engine's name, version, keywords and functions. Raises Unavailable before the start."""
        if self._dialect is None:
            raise Unavailable("the server is starting; try again in a moment")
        return self._dialect

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
        session = self._session(caller, None)
        if session is None or session.home is None or not session.home.scratch:
            return everybody
        return [*everybody, *scratch_tables(session.home)]

    def schemas(self) -> set[tuple[str, str]]:
        """(catalog, schema) of every schema that is there for everybody, with or without tables."""
        return {(CATALOG, MARKET), (CATALOG, RESEARCH), (CATALOG, activity.OPS)}

    def table_types(self) -> set[str]:
        """Every type that a table may have."""
        return {table.kind for table in self._lake.tables()} | {SCRATCH_TABLE, SCRATCH_VIEW, activity.KIND}

    def session_of(self, caller: Caller, transaction_id: bytes | None) -> Session | None:
        """The caller's session, or the one that the transaction is in. Raises InvalidStatement for an unknown id."""
        return self._session(caller, transaction_id)

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

    # -- describing

    def describe(self, sql: str, caller: Caller | None = None, transaction_id: bytes | None = None) -> StatementInfo:
        """What `sql` returns and takes; nothing is run. Raises StatementError or AccessError."""
        plan = self._plan(Request(sql, transaction_id=transaction_id), caller, unbound=True)
        planned = plan.statement if plan.source is None else plan.source.planned
        with self._plans_lock:
            parameters = self._parameters.get(planned.query)
        if parameters is None:
            types: dict[str, str] | None = None if plan.statement.is_query else {}
            parameters = self._ready().parameter_schema(planned, types)
            with self._plans_lock:
                _remember(self._parameters, planned.query, parameters)
        return StatementInfo(plan.statement, plan.schema, parameters)

    def statement(self, sql: str) -> Statement:
        """The one statement in `sql`, not planned. Raises as statements.parse."""
        with self._plans_lock:
            statement = self._parsed.get(sql)
        if statement is None:
            statement = self._ready().parse(sql)
            with self._plans_lock:
                _remember(self._parsed, sql, statement)
        return statement

    def result_schema(self, request: Request, caller: Caller | None = None) -> pa.Schema:
        """The schema of the result under the request's parameters, whose types take part in it; nothing is run."""
        return self._plan(request, caller).schema

    def check_parameters(self, sql: str, parameters: pa.RecordBatch) -> None:
        """Raises InvalidStatement or Unsupported when these parameters cannot be bound to `sql`."""
        rows_of(parameters, self.statement(sql).parameters)

    def _plan(self, request: Request, caller: Caller | None, *, unbound: bool = False) -> _Plan:
        """How the caller would run the request now. `unbound`: as it is without parameters."""
        planner = self._ready()
        statement = self.statement(request.sql)
        session = self._session(caller, request.transaction_id)
        if not statement.is_query:
            return _Plan(statement, (), COUNT_SCHEMA, session)
        subscribe = statement.detail if isinstance(statement.detail, Subscribe) else None
        if subscribe is not None and statement.subscribed is not None:
            statement = statement.subscribed
            self._sources.by_row(statement, planner.parser)
            self._check_plain(session, statement, request.transaction_id)
        parameters = request.parameters
        rows = [(None,) * len(statement.parameters)] if unbound else bound_rows(statement, parameters)
        values = values_of(statement, rows[0] if rows else (None,) * len(statement.parameters))
        statement = self._market.expanded(statement, planner, None if unbound else values, runs=len(rows))
        source = self._sources.source(statement, session, planner.parser, None if unbound else values)
        if source is not None and source.changes and len(rows) > 1 and statement.parameters:
            raise Unsupported(f"{CHANGES} takes one set of parameters at a time; run the statement once for each")
        planned = statement if source is None else source.planned
        if self._needs_home(statement, session, request.transaction_id):
            assert session is not None
            there = statement if source is None else source.at_home
            ops = frozenset[str]() if source is None else source.ops
            shapes = {relation_of(table): activity.TABLES[table].empty_table() for table in ops}
            place = self.home_place(session, tables=shapes)
            with _explained(source, statement):
                schema = self._on_home(place, lambda cursor: planner.result_schema(there, values, cursor))
            return _Plan(statement, rows, schema, session, on_home=True, source=source)
        # Types come from the first row: a null has none, so which values are null is part of the key.
        types = None if unbound or parameters is None or not rows else tuple(parameters.schema)
        nulls = None if types is None else tuple(value is None for value in rows[0])
        key = (planned.text, types, nulls)
        with self._plans_lock:
            known = self._plans.get(key)
        if known is None:
            with _explained(source, statement):
                known = planner.result_schema(planned, values)
            with self._plans_lock:
                _remember(self._plans, key, known)
        return _Plan(statement, rows, known, session, source=source, subscribe=subscribe)

    # -- running

    def announce(self, request: Request, caller: Caller) -> Announced:
        """Make a query ready to be run: its schema, and its cut, which is pinned for a while.

        Raises our errors. A session's transaction fixes its cut once for all of its statements.
        """
        plan = self._plan(request, caller)
        statement = plan.statement
        statement_id = secrets.token_bytes(12)
        if plan.subscribe is not None:
            start = self._subscriptions.start_of(self._followed(plan).table, plan.subscribe)
            return Announced(statement_id, plan.schema, start, ordered=False)
        if plan.on_home:
            home = None if plan.session is None else plan.session.home
            cut = home.cut if home is not None and home.in_transaction and plan.source is None else None
            return Announced(statement_id, plan.schema, cut, statement.is_ordered)
        if not statement.reads_tables:
            return Announced(statement_id, plan.schema, None, statement.is_ordered)
        self._lake.check_ready()
        place = PoolPlace(self._cursors, self._begin, self._standing_for(plan))
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
            plan = self._plan(request, caller)
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
                        self._ready().parser,
                        values_of(plan.statement, plan.rows[0]) if plan.rows else (),
                    )
            key = self._key(plan, request, caller, request.cut)
            if pinned is None and key is not None and (ready := self._results.find(key)) is not None:
                return ready
            place = pinned or self._place(plan, source, caller)
            if pinned is not None and source is not None:
                pinned.tables = self._ops(source, caller, plan.statement)
        except BaseException:
            if pinned is not None:
                pinned.unpin()
            raise
        runs = [values_of(plan.statement, row) for row in plan.rows]
        chosen = None
        if source is None:
            chosen = self._sources.chosen(
                plan.statement, plan.session, self._ready().parser, runs, on_home=plan.on_home
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
            self._ready()
            self._admission.acquire(is_abandoned)
        except BaseException:
            if pinned is not None:
                pinned.unpin()
            raise

        def on_end(status: str, rows_given: int, bytes_given: int) -> None:
            self._watchdog.forget(running)
            self._admission.release()
            self._open.dec()
            counted, timed = self._counters(kind, status)
            counted.inc()
            timed.observe(self._clock.monotonic_s() - started_s)
            self._rows.inc(rows_given)
            self._bytes.inc(bytes_given)

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
        self._open.inc()
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
            self._plan_anew()
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
        plan = self._plan(request, caller)
        followed = self._followed(plan)
        start = request.cut
        if start is None:
            assert plan.subscribe is not None
            start = self._subscriptions.start_of(followed.table, plan.subscribe)
        began_s = self._clock.monotonic_s()

        def on_end(status: str, rows_given: int, bytes_given: int) -> None:
            self._watchdog.forget(subscription)
            self._open.dec()
            counted, timed = self._counters(StatementKind.SUBSCRIBE.value, status)
            counted.inc()
            timed.observe(self._clock.monotonic_s() - began_s)
            self._rows.inc(rows_given)
            self._bytes.inc(bytes_given)

        subscription = self._subscriptions.open(followed, start, is_gone=is_gone or (lambda: False), on_end=on_end)
        self._open.inc()
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

    def _followed(self, plan: _Plan) -> Followed:
        tree, table = self._sources.by_row(plan.statement, self._ready().parser)
        if len(plan.rows) != 1:
            raise InvalidStatement("SUBSCRIBE takes one set of parameters; subscribe once for each")
        return Followed(tree, table, values_of(plan.statement, plan.rows[0]), plan.schema)

    def _check_plain(self, session: Session | None, statement: Statement, transaction_id: bytes | None) -> None:
        """Raises InvalidStatement when the session makes a query mean something that cannot be followed."""
        if session is None:
            return
        if session.options.as_of:
            raise InvalidStatement(
                "the session reads everything as of an instant, which no later row belongs to; set k2.as_of back"
            )
        if self._needs_home(statement, session, transaction_id):
            raise InvalidStatement(
                "SUBSCRIBE reads the market outside of transactions and of the session's own tables, with the schema "
                "market, in UTC; use a connection without these"
            )

    def _counters(self, kind: str, status: str) -> tuple[Counter, Histogram]:
        found = self._counted.get((kind, status))
        if found is None:
            found = self._counted[kind, status] = (self._statements.labels(kind, status), self._seconds.labels(kind))
        return found

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

    def home_place(
        self,
        session: Session,
        *,
        commits: bool = False,
        defines: bool = False,
        tables: Mapping[str, pa.Table | pa.RecordBatchReader] | None = None,
    ) -> HomePlace:
        """A place on the session's own connection, which is in the session's transaction while one is open.

        Also without the transaction's id: there is one connection, and ADBC sends none with an ingest.
        """
        opens = session.transaction is not None
        home = self.sessions.home_of(session)
        return HomePlace(home, self._begin, opens=opens, commits=commits, defines=defines, tables=tables)

    def is_ready(self) -> None:
        """Raises Unavailable or TailGap when the tables cannot be answered exactly now."""
        self._ready()
        self._lake.check_ready()

    def planner(self) -> Planner:
        """The planner as the tables are now. Raises Unavailable when the server does not serve."""
        return self._ready()

    def change(
        self,
        statement: Statement,
        body: str | None,
        values: Values,
        caller: Caller,
        session: Session,
        *,
        runs: int,
        is_view: bool = False,
    ) -> tuple[Statement, Source | None, Mapping[str, pa.Table]]:
        """A change of scratch as it is run: the market functions of the query `body`, which its rows come from, in
        their places; how the query reads its tables where that is not simply as they are now; and the tables of `ops`.

        Raises InvalidStatement or Unsupported as for a query; with `is_view` also for what a view cannot keep.
        """
        planner = self._ready()
        try:
            query = None if body is None else self.statement(body)
        except InvalidStatement:  # BY NAME, DEFAULT VALUES, ON CONFLICT: no query, and DuckDB's own affair
            query = None
        if body is None or query is None:
            self._check_reads_now(statement, session)
            return statement, None, {}
        found = self._market.expanded(query, planner, values, runs=runs, is_view=is_view)
        source = self._sources.source(found, session, planner.parser, values)
        if found is query and source is None:
            return statement, None, {}
        if not statement.text.endswith(body):
            raise Unsupported("WITH is to stand behind the table that takes the rows here: INSERT INTO name WITH ...")
        if source is not None and is_view:
            raise Unsupported(
                "a view is read at the cut of the query that reads it, and reads tables of now: AT, k2_changes, the "
                "tables of ops and k2.as_of have no place in one; make a table of the rows, CREATE TABLE name AS ..."
            )
        text = statement.text.removesuffix(body) + " " + found.text
        ops = self._ops(source, caller, found)
        return replace(statement, text=text, query=found.query, sent=statement.text), source, ops

    def _check_reads_now(self, statement: Statement, session: Session) -> None:
        """Raises Unsupported for a change that reads the market, which it would do as it is now, where the session
        reads it as of an instant."""
        tables = {table.name.lower() for table in self._lake.tables() if table.schema != RESEARCH}
        if session.options.as_of and not statement.words.isdisjoint(tables):
            raise Unsupported(
                "the session reads everything as of an instant, which this change cannot; make a table of the rows "
                "first, CREATE TABLE name AS SELECT ..., or set k2.as_of back"
            )

    def _place(self, plan: _Plan, source: Source | Part | None, caller: Caller | None) -> Place:
        if plan.statement.reads_tables:
            self._lake.check_ready()
        tables = self._ops(source, caller, plan.statement)
        if plan.on_home:
            assert plan.session is not None
            return self.home_place(plan.session, tables=tables)
        begin = self._begin if plan.statement.reads_tables else None
        place = PoolPlace(self._cursors, begin, None if begin is None else self._standing_for(plan))
        place.tables = tables
        return place

    def _standing_for(self, plan: _Plan) -> StandingTransactions | None:
        """Transactions that the statement may go on in; None when it is to have one of its own: what it calls may give
        something else in a transaction that began earlier."""
        statement = plan.statement
        if statement.kind is not StatementKind.QUERY or plan.source is not None:
            return None
        return self._standing if self._sources.is_timeless(statement) else None

    def _parted(self, plan: _Plan, place: PoolPlace) -> list[Part]:
        """The parts that the result is to come in; none when it is one stream."""
        count = self._endpoints
        if count < 2 or plan.source is not None or place.pinned is None:
            return []
        return self._sources.parted(plan.statement, place.cut, place.pinned, self._ready().parser, count=count)

    def _key(self, plan: _Plan, request: Request, caller: Caller | None, cut: str | None) -> Key | None:
        """Under which the query's result may be kept; None when it may not."""
        source = plan.source
        if plan.on_home or caller is None or (source is not None and (source.ops or source.columns)):
            return None
        return self._results.key(plan.statement, caller.principal, request.parameters, cut, self._uncut)

    def _ops(
        self, source: Source | Part | None, caller: Caller | None, statement: Statement | None
    ) -> dict[str, pa.Table]:
        """The tables of `ops` that a query reads, as the caller is to see them now."""
        if source is None or caller is None or not source.ops:
            return {}
        running = [about for _, about in self._watchdog.running()]
        sessions, now_us, now_s = self.sessions.all(), self._clock.now_us(), self._clock.monotonic_s()
        tables = {
            relation_of(table): activity.rows_of(table, caller, sessions, running, now_us, now_s)
            for table in source.ops - {"commits", "dead_letters"}
        }
        if "commits" in source.ops:
            # The texts of the cuts are made only for who may look at them. A million rows: 0.9 s without, 1.8 s with.
            asked = statement is None or "*" in statement.text or "cut" in statement.words
            tables[relation_of("commits")] = self._lake.commits(with_cuts=asked)
        if "dead_letters" in source.ops:
            tables[relation_of("dead_letters")] = self._lake.dead_letters()
        return tables

    def _session(self, caller: Caller | None, transaction_id: bytes | None) -> Session | None:
        if caller is None or not len(self.sessions):
            if transaction_id is not None and caller is not None:
                return self.sessions.in_transaction(caller, transaction_id)
            return None
        if transaction_id is not None:
            return self.sessions.in_transaction(caller, transaction_id)
        return self.sessions.find(caller)

    @staticmethod
    def _is_in_transaction(session: Session, transaction_id: bytes | None) -> bool:
        transaction = session.transaction
        return transaction is not None and (transaction_id is not None or transaction.from_sql)

    def _needs_home(self, statement: Statement, session: Session | None, transaction_id: bytes | None) -> bool:
        """True when the statement means something else on the session's own connection than on a shared one."""
        if session is None:
            return False
        if self._is_in_transaction(session, transaction_id):
            return statement.reads_tables or not session.is_plain
        if not session.is_plain:
            return True
        home = session.home
        if home is None or not home.scratch or not statement.reads_tables:
            return False
        return not statement.words.isdisjoint(home.scratch) or not statement.words.isdisjoint(_SHOWING)

    def _on_home(self, place: HomePlace, use: Callable[[duckdb.DuckDBPyConnection], pa.Schema]) -> pa.Schema:
        self._lake.check_ready()
        try:
            cursor = place.enter(_Brief(), lambda: False)
            try:
                return use(cursor)
            finally:
                place.leave(cursor, ok=True)
        except duckdb.Error as error:
            raise translated(error) from None

    def _begin(self, cursor: duckdb.DuckDBPyConnection) -> Seen:
        seen = self._lake.begin(cursor)
        # Asked again: what became inexact before the cut was fixed is seen by it.
        self._lake.check_ready()
        return seen

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
        session = self._session(caller, None)
        own = None if session is None else session.options.statement_timeout_s
        return self._settings.statement_timeout_s if own is None else own

    def _expire_others(self) -> None:
        self._pending.expire()
        self.sessions.expire()
        self._standing.expire()

    def _learn_tables(self) -> None:
        version = self._lake.research_version
        with self._cursors.lent() as cursor:
            try:
                _check_sealed(cursor)
                planner = Planner(
                    cursor,
                    [(table.catalog, table.schema, table.name) for table in self._lake.tables()],
                    {(CATALOG, activity.OPS, name): columns for name, columns in activity.TABLES.items()},
                )
                self._dialect = self._dialect or dialect_of(cursor)
                consistent = consistent_of(cursor).with_functions({macro.name for macro in MACROS})
                self._results.learn(consistent)
                self._sources.learn(consistent)
            except duckdb.Error as error:
                raise translated(error) from None
        self._planner = planner
        self._uncut = frozenset(table.name.lower() for table in self._lake.tables() if table.schema == RESEARCH)
        self._tables_version = version

    def _plan_anew(self) -> None:
        self._learn_tables()
        with self._plans_lock:
            self._plans.clear()
            self._parsed.clear()
            self._parameters.clear()

    def _ready(self) -> Planner:
        if self._refusal is not None:
            raise self._refusal
        if self._tables_version != self._lake.research_version:
            self._plan_anew()
        assert self._planner is not None
        return self._planner


@dataclass(frozen=True)
class _Plan:
    """How a caller would run a statement now."""

    statement: Statement
    rows: Sequence[Row]
    schema: pa.Schema
    session: Session | None
    on_home: bool = False
    source: Source | None = None
    subscribe: Subscribe | None = None


@contextlib.contextmanager
def _explained(source: Source | None, statement: Statement) -> Iterator[None]:
    """An error of planning in the words of the instant that is read, and without a line that was never sent."""
    try:
        yield
    except StatementError as error:
        if statement.sent is not None:
            raise type(error)(str(error).partition("\n\nLINE ")[0]) from None
        if source is None or not source.columns:
            raise
        raise source.explained(error, statement) from None


class _Brief:
    """Who holds a connection for a moment only."""

    def gather(self, bytes_max: int, timeout_s: float) -> bool | None:
        return None


def _remember(known: OrderedDict[Any, Any], key: object, value: object) -> None:
    known[key] = value
    if len(known) > _PLANS_MAX:
        known.popitem(last=False)


def bound_rows(statement: Statement, parameters: pa.RecordBatch | None) -> list[Row]:
    """The parameter sets: one empty set for a statement without parameters."""
    if parameters is None or (parameters.num_columns == 0 and not statement.parameters):
        if statement.parameters:
            raise InvalidStatement(count_mismatch(len(statement.parameters), 0))
        return [()]
    return rows_of(parameters, statement.parameters)


def values_of(statement: Statement, row: Row) -> Values:
    """A parameter set in the form that the engine binds: by position, or by name."""
    if all(name.isdigit() for name in statement.parameters):
        return list(row)
    return dict(zip(statement.parameters, row, strict=True))


def _check_sealed(cursor: duckdb.DuckDBPyConnection) -> None:
    found = dict(
        cursor.execute(
            "SELECT lower(name), value FROM duckdb_settings() WHERE lower(name) IN ?", [list(_REQUIRED)]
        ).fetchall()
    )
    for name, wanted in _REQUIRED.items():
        if found.get(name) != wanted:
            raise SettingsError(
                f"the lake's database has {name} = {found.get(name)!r}, not {wanted!r}; it cannot be served like that"
            )
