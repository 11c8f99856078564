"""Statements that are no queries: changes of scratch and of research tables, ingest, session settings, transactions.

Guarantee: a change is made once and whole, or not at all. Scratch changes are the session's own and take part in its
transaction. A research table changes by one Iceberg commit per statement, or one at the transaction's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import duckdb
import pyarrow as pa

from common.errors import (
    InvalidStatement,
    K2Error,
    PermissionDenied,
    StatementCancelled,
    TableNotFound,
    Unsupported,
)
from flight_server.engine.changes import DEFINING, Change, Verb
from flight_server.engine.control import Kill, SetOptions, TransactionVerb
from flight_server.engine.engine import Engine
from flight_server.engine.errors import translated
from flight_server.engine.parameter_types import parameter_types
from flight_server.engine.requests import Request, bound_rows, values_of
from flight_server.engine.seam import Lake
from flight_server.engine.session_options import CATALOG, MARKET, RESEARCH, OptionError, OptionValue, SessionOptions
from flight_server.engine.sessions import Caller, Session, Sessions, Transaction
from flight_server.engine.sources import Source
from flight_server.engine.statements import Statement, StatementKind
from flight_server.storage.research import WriteMode

#: Under this name the rows of an ingest are there while they are taken in.
_INGEST = "k2_ingested_rows"


class IfThere(Enum):
    """What an ingest does when the table is there."""

    FAIL = "fail"
    APPEND = "append"
    REPLACE = "replace"


@dataclass(frozen=True)
class Ingest:
    """Where rows are to go: the table's name in parts as far as they were given, and the modes."""

    table: str
    schema: str | None = None
    catalog: str | None = None
    temporary: bool = False
    create: bool = True
    if_there: IfThere = IfThere.FAIL


class _StagedDrop:
    """The drop of a research table, at the transaction's end."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self._drop = drop

    def commit(self) -> int:
        self._drop()
        return 0

    def abort(self) -> None:
        return


class Writing:
    """Runs what is no query. Thread-safe; every method raises our errors."""

    def __init__(self, engine: Engine, lake: Lake, *, timeout_s_max: float) -> None:
        self._engine = engine
        self._lake = lake
        self._timeout_s_max = timeout_s_max

    @property
    def _sessions(self) -> Sessions:
        return self._engine.sessions

    # -- statements

    def run(self, request: Request, caller: Caller, is_abandoned: Callable[[], bool] | None = None) -> int:
        """Run a statement that is no query, once per row of its parameters; the number of rows that it changed."""
        statement = self._engine.plans.statement(request.sql)
        detail = statement.detail
        if isinstance(detail, Change):
            return self._change(statement, detail, request, caller, is_abandoned)
        if isinstance(detail, SetOptions):
            errors = self.set_options(dict(detail.options), caller)
            for name, (_, reason) in errors.items():
                raise InvalidStatement(f"the session option {name} cannot be set so: {reason}")
        elif isinstance(detail, Kill):
            self._kill(detail, caller)
        elif isinstance(detail, TransactionVerb):
            self._transaction_verb(detail, caller)
        else:
            raise InvalidStatement("the statement returns rows and changes nothing; run it as a query")
        return 0

    def parameter_schema(self, sql: str, caller: Caller, transaction_id: bytes | None) -> pa.Schema:
        """The parameters of a change, typed by the columns that they meet, as far as that can be told."""
        statement = self._engine.plans.statement(sql)
        if not statement.parameters or not isinstance(statement.detail, Change):
            return pa.schema([])
        columns = self._columns(statement.detail, caller, transaction_id)
        types = parameter_types(statement.query, statement.detail, columns)
        return self._engine.plans.planner().parameter_schema(statement, types)

    def _change(
        self,
        statement: Statement,
        change: Change,
        request: Request,
        caller: Caller,
        is_abandoned: Callable[[], bool] | None,
    ) -> int:
        rows = bound_rows(statement, request.parameters)
        session = self._session(caller, request.transaction_id)
        if self._goes_to_research(change, session):
            return self._change_research(statement, change, request, caller, session, is_abandoned)
        runs = [values_of(statement, row) for row in rows]
        source: Source | None = None
        ops: Mapping[str, pa.Table] = {}
        if runs:
            is_view = change.verb is Verb.CREATE_VIEW
            statement, source, ops = self._engine.plans.change(
                statement, change.body, runs[0], caller, session, runs=len(runs), is_view=is_view
            )
        place = self._engine.plans.home_place(session, commits=True, defines=change.verb in DEFINING, tables=ops)
        running = self._engine.run(statement, runs, None, place, caller, is_abandoned=is_abandoned, source=source)
        changed = 0
        for batch in running:
            if batch.schema.names == ["Count"]:
                changed += sum(value for value in batch.column(0).to_pylist() if value is not None)
        return changed

    # -- where a change goes

    def _goes_to_research(self, change: Change, session: Session) -> bool:
        """True for a research table, False for scratch. Raises PermissionDenied for everything else."""
        *qualifier, name = change.target or ("",)
        where = tuple(part.lower() for part in qualifier)
        scratch = session.home.scratch if session.home is not None else frozenset()
        if where in (("temp",), ("temp", "main")):
            return False
        if where in ((RESEARCH,), (CATALOG, RESEARCH)):
            if change.temporary:
                raise InvalidStatement("a research table is not temporary; leave out TEMP, or leave out the schema")
            return True
        if not where:
            if change.temporary or name.lower() in scratch:
                return False
            if change.verb in (Verb.CREATE_TABLE, Verb.CREATE_VIEW):
                return session.options.schema == RESEARCH and change.verb is Verb.CREATE_TABLE
            schema = self._schema_of(name, session)
            if schema is None or schema == RESEARCH:
                return schema == RESEARCH
            where = (schema,)
        raise PermissionDenied(
            f"{'.'.join((*where, name))[:200]} is read-only: K2 takes changes of a session's own tables "
            f"(CREATE TABLE name, without a schema) and of tables in {RESEARCH}"
        )

    def _schema_of(self, name: str, session: Session) -> str | None:
        """The schema that an unqualified name of a table that all can see is found in."""
        found = {table.schema for table in self._lake.tables() if table.name.lower() == name.lower()}
        return next((schema for schema in (session.options.schema, MARKET, RESEARCH) if schema in found), None)

    def _columns(self, change: Change, caller: Caller, transaction_id: bytes | None) -> dict[str, str]:
        """Column name -> SQL type of the table that the change is of; empty when it is not there yet."""
        if change.verb not in (Verb.INSERT, Verb.UPDATE, Verb.DELETE):
            return {}
        relation = ".".join('"' + part.replace('"', '""') + '"' for part in change.target)
        info = Request(f"DESCRIBE {relation}", transaction_id=transaction_id)
        rows = [row for batch in self._engine.execute(info, caller) for row in batch.to_pylist()]
        return {row["column_name"]: row["column_type"] for row in rows}

    # -- research

    def _change_research(
        self,
        statement: Statement,
        change: Change,
        request: Request,
        caller: Caller,
        session: Session,
        is_abandoned: Callable[[], bool] | None,
    ) -> int:
        name = change.target[-1]
        if change.verb is Verb.CREATE_TABLE and change.if_exists and self._is_there(name):
            return 0
        if change.verb is Verb.DROP_TABLE:
            self._drop_research(name, change.if_exists, session)
            return 0
        if change.verb is Verb.CREATE_TABLE and change.body is None:
            schema, types = self._engine.plans.planner().shape_of(change.definition or "")
            return self._land(name, _created(change), schema, iter(()), caller, session, types)
        if change.verb is Verb.CREATE_TABLE:
            if change.definition is not None:
                raise Unsupported("K2 does not offer column names before AS; name the columns in the query")
            query = change.body or ""
            mode, sql_types = _created(change), self._types_of(query, request, caller)
        elif change.verb is Verb.INSERT:
            if change.replace:
                raise Unsupported("a research table has no keys, so that INSERT OR has nothing to go by; use INSERT")
            query = self._fitted(change, caller, request.transaction_id)
            mode, sql_types = WriteMode.APPEND, None
        elif change.verb is Verb.CREATE_VIEW:
            raise Unsupported(
                f"K2 keeps no views in {RESEARCH}; make a table, CREATE TABLE {RESEARCH}.{name} AS SELECT ..., or a "
                f"view of the session's own, CREATE VIEW {name} AS SELECT ..."
            )
        else:
            raise Unsupported(
                f"K2 does not offer {change.verb.value} of research tables; write the rows that are to stay with "
                f"CREATE OR REPLACE TABLE {RESEARCH}.{name} AS SELECT ..."
            )
        inner = Request(query, request.parameters, transaction_id=request.transaction_id)
        running = self._engine.execute(inner, caller, is_abandoned=is_abandoned)
        try:
            return self._land(name, mode, running.schema, iter(running), caller, session, sql_types)
        finally:
            running.close()

    def _types_of(self, query: str, request: Request, caller: Caller) -> list[str]:
        """The SQL types of the query's columns: Arrow alone does not tell a UUID from a text or a BIT from a BLOB."""
        parameters = None if request.parameters is None else request.parameters.slice(0, 1)
        describing = Request(f"DESCRIBE {query}", parameters, transaction_id=request.transaction_id)
        return [row["column_type"] for batch in self._engine.execute(describing, caller) for row in batch.to_pylist()]

    def _fitted(self, change: Change, caller: Caller, transaction_id: bytes | None) -> str:
        """INSERT's rows as a query that gives the table's own columns in the table's own types."""
        columns = self._columns(change, caller, transaction_id)
        given = change.columns or tuple(columns)
        lower = {name.lower(): name for name in columns}
        unknown = [name for name in given if name.lower() not in lower]
        if unknown:
            raise InvalidStatement(f"the table {change.target[-1]} has no column {unknown[0]!r}; see DESCRIBE")
        body = change.body or ""
        aliases = ", ".join(f"c{index}" for index in range(len(given)))
        places = {lower[name.lower()]: f"c{index}" for index, name in enumerate(given)}
        values = ", ".join(
            f'CAST({places.get(name, "NULL")} AS {kind}) AS "{name.replace(chr(34), chr(34) * 2)}"'
            for name, kind in columns.items()
        )
        return f"SELECT {values} FROM ({body}\n) AS k2_rows({aliases})"

    def _land(
        self,
        name: str,
        mode: WriteMode,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch],
        caller: Caller,
        session: Session,
        sql_types: Sequence[str] | None = None,
    ) -> int:
        """Write the batches to the research table: committed now, or with the transaction."""
        transaction = session.transaction
        write: Any = None
        if transaction is not None:
            self._check_staged(transaction, name)
            write = transaction.staged.get(name)
            if isinstance(write, _StagedDrop):
                mode, write = WriteMode.REPLACE, None
            elif write is not None and mode is not WriteMode.APPEND:
                raise InvalidStatement(f"{RESEARCH}.{name} was written in this transaction already; end it first")
        begun = write is None
        if begun:
            write = self._lake.research.begin_write(name, schema, mode, owner=caller.principal, sql_types=sql_types)
        rows = 0
        try:
            for batch in batches:
                write.write(batch)
                rows += batch.num_rows
        except BaseException:
            if begun:
                write.abort()
            elif transaction is not None:
                # What was staged before holds a part of this statement's rows now: none of it may land.
                transaction.staged.pop(name).abort()
            raise
        if transaction is not None:
            transaction.staged[name] = write
            return rows
        write.commit()
        self._lake.publish_research()
        return rows

    def _drop_research(self, name: str, if_exists: bool, session: Session) -> None:
        def drop() -> None:
            self._lake.research.drop(name, if_exists=if_exists)
            self._lake.publish_research()

        transaction = session.transaction
        if transaction is None:
            drop()
            return
        self._check_staged(transaction, name)
        if name in transaction.staged:
            transaction.staged.pop(name).abort()
        transaction.staged[name] = _StagedDrop(drop)

    def _is_there(self, name: str) -> bool:
        return self._lake.research.table(name) is not None

    def _check_there(self, name: str) -> None:
        if not self._is_there(name):
            raise TableNotFound(f"the table {RESEARCH}.{name} does not exist; let ingest create it")

    @staticmethod
    def _check_staged(transaction: Transaction, name: str) -> None:
        others = [other for other in transaction.staged if other != name]
        if others:
            raise Unsupported(
                f"a transaction can change one research table, and this one has changed {others[0]}; "
                "end it before another one is changed"
            )

    # -- ingest

    def ingest(
        self,
        ingest: Ingest,
        rows: pa.RecordBatchReader,
        caller: Caller,
        transaction_id: bytes | None,
        is_abandoned: Callable[[], bool] | None = None,
    ) -> int:
        """Take the rows into a table; returns how many there were."""
        if ingest.catalog not in (None, "", CATALOG, "temp"):
            raise TableNotFound(f"there is no catalog {ingest.catalog!r}; leave it out, or write {CATALOG!r}")
        session = self._session(caller, transaction_id)
        schema = ingest.schema or (None if ingest.temporary else RESEARCH)
        if ingest.temporary or ingest.catalog == "temp":
            if ingest.schema not in (None, "", "main", "temp"):
                raise InvalidStatement("a temporary table has no schema; leave the schema out")
            return self._ingest_scratch(ingest, rows, caller, session, is_abandoned)
        if schema != RESEARCH:
            raise PermissionDenied(
                f"{schema}.{ingest.table} is read-only: K2 takes rows into the schema {RESEARCH}, which is where a "
                "table without a schema goes, and into temporary tables"
            )
        if not ingest.create and ingest.if_there is not IfThere.APPEND:
            self._check_there(ingest.table)
        mode = {
            IfThere.FAIL: WriteMode.CREATE,
            IfThere.APPEND: WriteMode.CREATE_APPEND if ingest.create else WriteMode.APPEND,
            IfThere.REPLACE: WriteMode.REPLACE,
        }[ingest.if_there]
        return self._land(ingest.table, mode, rows.schema, iter(rows), caller, session)

    def _ingest_scratch(
        self,
        ingest: Ingest,
        rows: pa.RecordBatchReader,
        caller: Caller,
        session: Session,
        is_abandoned: Callable[[], bool] | None,
    ) -> int:
        name = '"' + ingest.table.replace('"', '""') + '"'
        home = self._sessions.home_of(session)
        there = ingest.table.lower() in home.scratch
        if not there and not ingest.create:
            raise TableNotFound(f"the session has no table {ingest.table!r} to take rows into; let ingest create it")
        if there and ingest.if_there is IfThere.FAIL:
            raise InvalidStatement(f"the session has a table {ingest.table!r} already; append to it, or replace it")
        if there and ingest.if_there is IfThere.APPEND:
            text = f"INSERT INTO temp.main.{name} BY NAME SELECT * FROM {_INGEST}"
        else:
            text = f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM {_INGEST}"
        place = self._engine.plans.home_place(session, commits=True, defines=True, tables={_INGEST: _aligned(rows)})
        statement = Statement(text, text, StatementKind.CHANGE, (), True)
        changed = 0
        for batch in self._engine.run(statement, [()], None, place, caller, is_abandoned=is_abandoned):
            changed += sum(value for value in batch.column(0).to_pylist() if value is not None)
        return changed

    # -- the session

    def set_options(self, options: dict[str, OptionValue], caller: Caller) -> dict[str, tuple[OptionError, str]]:
        """Set what can be set; why each other option was not."""
        schemas = frozenset({table.schema for table in self._lake.tables()} | {MARKET, RESEARCH})
        session = self._sessions.open(caller)
        with session.lock:
            changed, errors = session.options.changed(options, schemas=schemas, timeout_s_max=self._timeout_s_max)
            if changed.as_of != session.options.as_of and changed.as_of:
                try:
                    self._engine.check_as_of(changed.as_of)
                except K2Error as error:
                    errors["k2.as_of"] = (OptionError.INVALID_VALUE, error.message)
                    changed = changed.replaced_as_of(session.options.as_of)
            before, session.options = session.options, changed
            if session.home is not None and (before.schema, before.timezone) != (changed.schema, changed.timezone):
                session.home.apply(changed)
        return errors

    def options(self, caller: Caller) -> dict[str, OptionValue]:
        """Every option of the caller's session as it is now."""
        session = self._sessions.find(caller)
        options = SessionOptions() if session is None else session.options
        return options.values(timeout_s=self._timeout_s_max)

    def close_session(self, caller: Caller) -> bool:
        """End the caller's session; False when it had none."""
        session = self._sessions.find(caller)
        if session is None:
            return False
        self._end_session(session, caller)
        return True

    def begin(self, caller: Caller) -> bytes:
        """Begin a transaction in the caller's session; its id."""
        self._engine.is_ready()
        return self._sessions.begin(self._sessions.open(caller), from_sql=False).id

    def end(self, transaction_id: bytes, caller: Caller, *, commit: bool) -> None:
        """Commit or roll back; the transaction is over then whatever comes of it."""
        self._end(self._sessions.in_transaction(caller, transaction_id), commit=commit)

    def _end(self, session: Session, *, commit: bool) -> None:
        transaction = self._sessions.forget_transaction(session)
        home = session.home
        if home is not None:
            home.take(None, lambda: False)
        try:
            try:
                for write in transaction.staged.values():
                    if commit:
                        write.commit()
                    else:
                        write.abort()
            except BaseException:
                commit = False
                raise
            finally:
                if home is not None:
                    home.end(commit=commit)
        except duckdb.Error as error:
            raise translated(error) from None
        finally:
            if home is not None:
                home.give_back()
        if commit and transaction.staged:
            self._lake.publish_research()

    def _transaction_verb(self, verb: TransactionVerb, caller: Caller) -> None:
        session = self._sessions.open(caller)
        if verb is TransactionVerb.BEGIN:
            self._sessions.begin(session, from_sql=True)
        elif session.transaction is not None and not session.transaction.from_sql:
            raise InvalidStatement(
                "the transaction was begun by Flight SQL's BeginTransaction; end it by EndTransaction"
            )
        else:
            self._end(session, commit=verb is TransactionVerb.COMMIT)

    def _kill(self, kill: Kill, caller: Caller) -> None:
        if kill.what == "session":
            self._end_session(self._sessions.named(kill.id, caller), caller)
            return
        for running, about in self._engine.running():
            if about.id.hex() == kill.id:
                if not caller.is_admin and about.principal != caller.principal:
                    raise PermissionDenied("only an administrator may end a statement of somebody else")
                running.cancel(_killed("statement", caller))
                return
        raise InvalidStatement(f"no statement {kill.id[:64]!r} runs; ops.statements lists those that do")

    def _end_session(self, session: Session, caller: Caller) -> None:
        for running, about in self._engine.running():
            if about.session_id == session.id and about.principal == session.principal:
                running.cancel(_killed("session", caller))
        self._sessions.close(session)

    def _session(self, caller: Caller, transaction_id: bytes | None) -> Session:
        if transaction_id is not None:
            return self._sessions.in_transaction(caller, transaction_id)
        return self._sessions.open(caller)


def _created(change: Change) -> WriteMode:
    if change.replace:
        return WriteMode.REPLACE
    return WriteMode.CREATE


def _killed(what: str, caller: Caller) -> K2Error:
    return StatementCancelled(f"the {what} was ended by {caller.principal or 'an administrator'}")


def _aligned(rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same rows in buffers of their own: those of a gRPC message lie anywhere, and scans want them aligned."""

    def copied() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_batch(batch)
            yield from pa.ipc.open_stream(sink.getvalue())

    return pa.RecordBatchReader.from_batches(rows.schema, copied())
