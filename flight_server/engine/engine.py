"""The engine: describe a statement, run a statement. Everything about SQL is decided here.

Guarantee: what `describe` promises as a schema is to the letter what `execute` streams; each execution that reads
tables sees one published state of the lake, its cut, from its first row to its last; only reading statements run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.clock import Clock
from common.errors import InvalidStatement, K2Error, SettingsError, Unavailable
from common.settings import FlightSettings
from flight_server.engine.cursors import CursorPool
from flight_server.engine.dialect import Dialect, dialect_of
from flight_server.engine.errors import translated
from flight_server.engine.parameters import Row, count_mismatch, rows_of
from flight_server.engine.planner import Planner, Values
from flight_server.engine.running import RunningStatement, TablesChanged
from flight_server.engine.seam import Lake, TableInfo
from flight_server.engine.statements import Statement, StatementKind
from flight_server.engine.watchdog import Watchdog

#: Statements whose plan is remembered. A plan is some kilobytes; dashboards repeat tens of texts.
_PLANS_MAX = 1_024
#: Settings that the lake's database must have before a stranger's SQL may run on it.
_REQUIRED = {"enable_external_access": "false", "lock_configuration": "true", "timezone": "UTC"}


@dataclass(frozen=True)
class StatementInfo:
    """What is known of a statement before it runs. Parameters without a known type have Arrow's null type."""

    statement: Statement
    result_schema: pa.Schema
    parameter_schema: pa.Schema

    @property
    def kind(self) -> StatementKind:
        return self.statement.kind


class Engine:
    """Thread-safe. `start` before use, `stop` at the end."""

    def __init__(self, lake: Lake, settings: FlightSettings, *, clock: Clock, registry: CollectorRegistry) -> None:
        self._lake = lake
        self._settings = settings
        self._clock = clock
        self._cursors = CursorPool(lake.cursor)
        self._watchdog = Watchdog(clock, timeout_s=settings.statement_timeout_s)
        self._planner: Planner | None = None
        self._plans: OrderedDict[tuple[object, ...], pa.Schema] = OrderedDict()
        self._parsed: OrderedDict[str, StatementInfo] = OrderedDict()
        self._plans_lock = threading.Lock()
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
        self._rows = Counter("k2_result_rows", "Rows given to clients", registry=registry)
        self._bytes = Counter("k2_result_bytes", "Bytes of Arrow buffers given to clients", registry=registry)
        self._open = Gauge("k2_open_statements", "Statements that run now", registry=registry)

    # -- life

    def start(self) -> None:
        """Check that the database is sealed and learn its tables. Raises SettingsError when it is not sealed."""
        self._learn_tables()
        self._watchdog.start()
        self._refusal = None

    def drain(self, reason: K2Error) -> None:
        """From now on new statements get `reason`; running ones go on."""
        self._refusal = reason

    def cancel_all(self, reason: K2Error) -> None:
        """Stop what runs; its readers get `reason`."""
        for statement in self._watchdog.running():
            statement.cancel(reason)

    def expire(self) -> None:
        """End the statements that are late now; the watchdog does so several times a second."""
        self._watchdog.expire()

    def stop(self) -> None:
        """End all statements and close every cursor. Idempotent."""
        stopping = Unavailable("the server is stopping; connect again")
        self.drain(stopping)
        self.cancel_all(stopping)
        self._watchdog.stop()
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

    def tables(self) -> Sequence[TableInfo]:
        """The tables that clients are to see."""
        return self._lake.tables()

    # -- statements

    def describe(self, sql: str) -> StatementInfo:
        """What `sql` returns and takes; nothing is run. Raises StatementError or AccessError."""
        with self._plans_lock:
            info = self._parsed.get(sql)
            if info is not None:
                self._parsed.move_to_end(sql)
                return info
        planner = self._ready()
        statement = planner.parse(sql)
        unbound: Values = _values(statement, (None,) * len(statement.parameters))
        info = StatementInfo(statement, planner.result_schema(statement, unbound), planner.parameter_schema(statement))
        with self._plans_lock:
            self._parsed[sql] = info
            if len(self._parsed) > _PLANS_MAX:
                self._parsed.popitem(last=False)
        return info

    def result_schema(self, sql: str, parameters: pa.RecordBatch | None) -> pa.Schema:
        """The schema of the result under these parameters, whose types take part in it."""
        info = self.describe(sql)
        if not info.statement.parameters:
            _bound(info.statement, parameters)
            return info.result_schema
        rows = _bound(info.statement, parameters)
        if not rows:
            return info.result_schema
        # Types come from the first row: a null has none, so which values are null is part of the key.
        first = rows[0]
        assert parameters is not None
        key = (sql, tuple(parameters.schema), tuple(value is None for value in first))
        with self._plans_lock:
            schema = self._plans.get(key)
        if schema is None:
            schema = self._ready().result_schema(info.statement, _values(info.statement, first))
            with self._plans_lock:
                self._plans[key] = schema
                if len(self._plans) > _PLANS_MAX:
                    self._plans.popitem(last=False)
        return schema

    def execute(
        self,
        sql: str,
        parameters: pa.RecordBatch | None = None,
        *,
        is_abandoned: Callable[[], bool] | None = None,
    ) -> RunningStatement:
        """Run `sql`, once per row of `parameters`, all at one cut; the results follow each other.

        Returns when the first batch can be read; until then `is_abandoned` is asked whether anybody still waits. The
        caller reads to the end or closes. Raises our errors.
        """
        schema = self.result_schema(sql, parameters)
        self._ready()
        statement = self.describe(sql).statement
        if statement.reads_tables:
            self._lake.check_ready()
        rows = _bound(statement, parameters)
        started_s = self._clock.monotonic_s()
        kind = statement.kind.value

        def on_end(status: str, rows_given: int, bytes_given: int) -> None:
            self._watchdog.forget(running)
            self._open.dec()
            self._statements.labels(kind, status).inc()
            self._seconds.labels(kind).observe(self._clock.monotonic_s() - started_s)
            self._rows.inc(rows_given)
            self._bytes.inc(bytes_given)

        running = RunningStatement(
            text=statement.text,
            runs=[_values(statement, row) for row in rows],
            schema=schema,
            cursors=self._cursors,
            rows_max=self._settings.batch_rows_max,
            bytes_max=self._settings.batch_bytes_max,
            on_end=on_end,
        )
        self._open.inc()
        self._watchdog.watch(running)
        try:
            running.start(self._cut if statement.reads_tables else None, is_abandoned)
        except TablesChanged:
            self._plan_anew()
            raise
        return running

    def check_parameters(self, sql: str, parameters: pa.RecordBatch) -> None:
        """Raises InvalidStatement or Unsupported when these parameters cannot be bound to `sql`."""
        rows_of(parameters, self.describe(sql).statement.parameters)

    def _cut(self, cursor: duckdb.DuckDBPyConnection) -> str | None:
        cut = self._lake.cut(cursor)
        # Asked again: what became inexact before the cut was fixed is seen by it.
        self._lake.check_ready()
        return cut

    def _learn_tables(self) -> None:
        with self._cursors.lent() as cursor:
            try:
                _check_sealed(cursor)
                planner = Planner(cursor, [(table.catalog, table.schema, table.name) for table in self._lake.tables()])
                self._dialect = dialect_of(cursor)
            except duckdb.Error as error:
                raise translated(error) from None
        self._planner = planner

    def _plan_anew(self) -> None:
        self._learn_tables()
        with self._plans_lock:
            self._plans.clear()
            self._parsed.clear()

    def _ready(self) -> Planner:
        if self._refusal is not None:
            raise self._refusal
        assert self._planner is not None
        return self._planner


def _bound(statement: Statement, parameters: pa.RecordBatch | None) -> list[Row]:
    """The parameter sets: one empty set for a statement without parameters."""
    if parameters is None or (parameters.num_columns == 0 and not statement.parameters):
        if statement.parameters:
            raise InvalidStatement(count_mismatch(len(statement.parameters), 0))
        return [()]
    return rows_of(parameters, statement.parameters)


def _values(statement: Statement, row: Row) -> Values:
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
