"""How a statement would be run: for whom, where, with which columns. Nothing is run here.

Guarantee: the schema that a plan has is to the letter what is streamed when it is run. What is remembered of texts goes
when the tables become others.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa

from common.errors import InvalidStatement, K2Error, SettingsError, StatementError, Unavailable, Unsupported
from flight_server.engine import activity
from flight_server.engine.control import Subscribe
from flight_server.engine.cursors import CursorPool
from flight_server.engine.dialect import Dialect, consistent_of, dialect_of
from flight_server.engine.errors import translated
from flight_server.engine.market_functions import MarketFunctions
from flight_server.engine.ops_tables import OpsTables
from flight_server.engine.parameters import rows_of
from flight_server.engine.places import HomePlace
from flight_server.engine.planner import Planner, Values
from flight_server.engine.requests import COUNT_SCHEMA, Plan, Request, StatementInfo, bound_rows, values_of
from flight_server.engine.results import Results
from flight_server.engine.seam import Lake, Seen
from flight_server.engine.session_options import CATALOG, RESEARCH
from flight_server.engine.sessions import Caller, Session, Sessions
from flight_server.engine.sources import Source, Sources, relation_of
from flight_server.engine.statements import Statement
from flight_server.engine.subscriptions import Followed
from flight_server.engine.table_functions import CHANGES
from flight_server.storage.macros import MACROS

#: Statements whose plan is remembered. A plan is some kilobytes; dashboards repeat tens of texts.
_PLANS_MAX = 1_024
#: Settings that the lake's database must have before a stranger's SQL may run on it.
_REQUIRED = {"enable_external_access": "false", "lock_configuration": "true", "timezone": "UTC"}
#: Names that show what a session has, beside its tables' own.
_SHOWING = frozenset(
    """
    show describe desc information_schema pg_catalog temp duckdb_tables duckdb_views duckdb_columns pragma_show
    pragma_table_info sqlite_master
    """.split()  # noqa: SIM905  (reads better than twelve quoted strings)
)


class Plans:
    """Thread-safe. `start` before use."""

    def __init__(
        self,
        lake: Lake,
        cursors: CursorPool,
        sessions: Sessions,
        sources: Sources,
        results: Results,
        ops: OpsTables,
    ) -> None:
        """`results` is told which functions give the same for the same, with the tables."""
        self._lake = lake
        self._cursors = cursors
        self._sessions = sessions
        self._sources = sources
        self._results = results
        self._ops = ops
        self._market = MarketFunctions(lake, cursors, sources)
        self._planner: Planner | None = None
        self._plans: OrderedDict[tuple[object, ...], pa.Schema] = OrderedDict()
        self._parsed: OrderedDict[str, Statement] = OrderedDict()
        self._parameters: OrderedDict[str, pa.Schema] = OrderedDict()
        self._lock = threading.Lock()
        #: The names of tables that a cut does not cover.
        self.uncut: frozenset[str] = frozenset()
        self._tables_version = -1
        self._dialect: Dialect | None = None
        self._refusal: K2Error | None = Unavailable("the server is starting; try again in a moment")

    # -- life

    def start(self) -> None:
        """Check that the database is sealed and learn its tables. Raises SettingsError when it is not sealed."""
        self._learn_tables()
        self._refusal = None

    def refuse(self, reason: K2Error) -> None:
        """From now on every statement gets `reason`."""
        self._refusal = reason

    def close(self) -> None:
        if self._planner is not None:
            self._planner.close()
            self._planner = None

    @property
    def dialect(self) -> Dialect:
        """The engine's name, version, keywords and functions. Raises Unavailable before the start."""
        if self._dialect is None:
            raise Unavailable("the server is starting; try again in a moment")
        return self._dialect

    # -- statements

    def statement(self, sql: str) -> Statement:
        """The one statement in `sql`, not planned. Raises as statements.parse."""
        with self._lock:
            statement = self._parsed.get(sql)
        if statement is None:
            statement = self.planner().parse(sql)
            with self._lock:
                _remember(self._parsed, sql, statement)
        return statement

    def describe(self, sql: str, caller: Caller | None = None, transaction_id: bytes | None = None) -> StatementInfo:
        """What `sql` returns and takes; nothing is run. Raises StatementError or AccessError."""
        plan = self.plan(Request(sql, transaction_id=transaction_id), caller, unbound=True)
        planned = plan.statement if plan.source is None else plan.source.planned
        with self._lock:
            parameters = self._parameters.get(planned.query)
        if parameters is None:
            types: dict[str, str] | None = None if plan.statement.is_query else {}
            parameters = self.planner().parameter_schema(planned, types)
            with self._lock:
                _remember(self._parameters, planned.query, parameters)
        return StatementInfo(plan.statement, plan.schema, parameters)

    def result_schema(self, request: Request, caller: Caller | None = None) -> pa.Schema:
        """The schema of the result under the request's parameters, whose types take part in it; nothing is run."""
        return self.plan(request, caller).schema

    def check_parameters(self, sql: str, parameters: pa.RecordBatch) -> None:
        """Raises InvalidStatement or Unsupported when these parameters cannot be bound to `sql`."""
        rows_of(parameters, self.statement(sql).parameters)

    def plan(self, request: Request, caller: Caller | None, *, unbound: bool = False) -> Plan:
        """How the caller would run the request now. `unbound`: as it is without parameters."""
        planner = self.planner()
        statement = self.statement(request.sql)
        session = self.session(caller, request.transaction_id)
        if not statement.is_query:
            return Plan(statement, (), COUNT_SCHEMA, session)
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
            return Plan(statement, rows, schema, session, on_home=True, source=source)
        # Types come from the first row: a null has none, so which values are null is part of the key.
        types = None if unbound or parameters is None or not rows else tuple(parameters.schema)
        nulls = None if types is None else tuple(value is None for value in rows[0])
        key = (planned.text, types, nulls)
        with self._lock:
            known = self._plans.get(key)
        if known is None:
            with _explained(source, statement):
                known = planner.result_schema(planned, values)
            with self._lock:
                _remember(self._plans, key, known)
        return Plan(statement, rows, known, session, source=source, subscribe=subscribe)

    def followed(self, plan: Plan) -> Followed:
        """What a SUBSCRIBE asks. Raises InvalidStatement or Unsupported for what cannot be followed."""
        tree, table = self._sources.by_row(plan.statement, self.planner().parser)
        if len(plan.rows) != 1:
            raise InvalidStatement("SUBSCRIBE takes one set of parameters; subscribe once for each")
        return Followed(tree, table, values_of(plan.statement, plan.rows[0]), plan.schema)

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
        planner = self.planner()
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
        ops = self._ops.of(source, caller, found)
        return replace(statement, text=text, query=found.query, sent=statement.text), source, ops

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
        home = self._sessions.home_of(session)
        return HomePlace(home, self.begin, opens=opens, commits=commits, defines=defines, tables=tables)

    def begin(self, cursor: duckdb.DuckDBPyConnection) -> Seen:
        """Fix the cut in the cursor's transaction. Raises Unavailable or TailGap when it cannot be exact."""
        seen = self._lake.begin(cursor)
        # Asked again: what became inexact before the cut was fixed is seen by it.
        self._lake.check_ready()
        return seen

    def session(self, caller: Caller | None, transaction_id: bytes | None) -> Session | None:
        """The caller's session, or the one that the transaction is in. Raises InvalidStatement for an unknown id."""
        if caller is None or not len(self._sessions):
            if transaction_id is not None and caller is not None:
                return self._sessions.in_transaction(caller, transaction_id)
            return None
        if transaction_id is not None:
            return self._sessions.in_transaction(caller, transaction_id)
        return self._sessions.find(caller)

    def planner(self) -> Planner:
        """The planner as the tables are now. Raises Unavailable when the server does not serve."""
        if self._refusal is not None:
            raise self._refusal
        if self._tables_version != self._lake.research_version:
            self.learn_anew()
        assert self._planner is not None
        return self._planner

    def learn_anew(self) -> None:
        """Forget what was planned, and learn the tables as they are now."""
        self._learn_tables()
        with self._lock:
            self._plans.clear()
            self._parsed.clear()
            self._parameters.clear()

    # -- inside

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
        self.uncut = frozenset(table.name.lower() for table in self._lake.tables() if table.schema == RESEARCH)
        self._tables_version = version

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

    @staticmethod
    def _is_in_transaction(session: Session, transaction_id: bytes | None) -> bool:
        transaction = session.transaction
        return transaction is not None and (transaction_id is not None or transaction.from_sql)

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

    def _check_reads_now(self, statement: Statement, session: Session) -> None:
        """Raises Unsupported for a change that reads the market, which it would do as it is now, where the session
        reads it as of an instant."""
        tables = {table.name.lower() for table in self._lake.tables() if table.schema != RESEARCH}
        if session.options.as_of and not statement.words.isdisjoint(tables):
            raise Unsupported(
                "the session reads everything as of an instant, which this change cannot; make a table of the rows "
                "first, CREATE TABLE name AS SELECT ..., or set k2.as_of back"
            )

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
