"""What a query reads when it is not simply its tables as they are now: tables as of an earlier instant, and `ops`.

Guarantee: one query reads every table at the one instant that was resolved for it, and that instant is in its cut; what
is computed to resolve it (`now()` in an AT clause) is computed once, when the query is announced.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import duckdb
import pyarrow as pa

from common.datasets import log_table
from common.errors import InvalidStatement, K2Error, StatementError, TableNotFound, Unsupported
from flight_server.engine.activity import OPS, TABLES
from flight_server.engine.chosen import Asking, Chosen, Operands, named
from flight_server.engine.dialect import VARYING_WORDS, Consistent
from flight_server.engine.market.registry import FUNCTIONS
from flight_server.engine.planner import Values
from flight_server.engine.rewrite import (
    FunctionRef,
    TableRef,
    Tree,
    as_of_text,
    functions_of,
    rewritten,
    tables_of,
    tree_of,
)
from flight_server.engine.seam import Condition, Lake
from flight_server.engine.session_options import CATALOG, MARKET, RESEARCH, SessionOptions
from flight_server.engine.sessions import Session
from flight_server.engine.statements import Statement, StatementKind
from flight_server.engine.table_functions import CHANGES, SNAPSHOTS, by_name, text_of, with_parameters
from flight_server.storage.as_of import parse_as_of
from flight_server.storage.ops_views import VIEWS, OpsView
from flight_server.storage.read_view import Cut, TableCut, literal, quoted

_TREES_MAX = 1_024
#: Results of smaller tables are one stream: they are over before a second one has begun.
_PARTED_ROWS_MIN = 1_000_000

#: Lends a cursor that has no data.
Parser = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]


@dataclass(frozen=True)
class Changes:
    """One call of k2_changes: the table, and the cuts between which its rows are read; None as in `Lake.changes`."""

    table: str
    low: TableCut | None = None
    high: TableCut | None = None


@dataclass(frozen=True)
class Source:
    """How one query reads its tables.

    `planned` is the statement as the twin can plan it, without its AT clauses; `at_home` as a session's own connection
    can, where the tables of `ops` have the names that they have while they are read. `cuts` has what was resolved for
    each table that is read as of an instant, `changes` for each call of k2_changes, `ops` the tables of the server's
    own.
    """

    tree: Tree
    schema: str
    planned: Statement
    at_home: Statement
    cuts: Mapping[TableRef, tuple[str, TableCut]]
    ops: frozenset[str]
    changes: Mapping[FunctionRef, Changes] = field(default_factory=dict)
    asking: Asking | None = None
    #: For each table that had other columns then: (name now, name then) of those that it had.
    columns: Mapping[TableRef, Sequence[tuple[str, str]]] = field(default_factory=dict)
    #: The tables of market that are read as they are now.
    now: frozenset[str] = frozenset()
    #: The table whose commits each call of k2_snapshots gives.
    snapshots: Mapping[FunctionRef, str] = field(default_factory=dict)
    #: The columns that tables have now.
    all_columns: Mapping[str, pa.Schema] = field(default_factory=dict)

    def cut_in(self, now: str | None, *, is_asked: bool) -> str | None:
        """The text of the cut that is read in a transaction whose cut is `now`; None when no single one says it.

        `is_asked`: the statement asks for it itself, so that it is to have one even when it reads no table of market.
        """
        if self.is_now or not (self.cuts or self.changes):
            return now if self.is_now or self.now or is_asked else None
        if not self.now or now is None or self.cut is None:
            return None if self.now else self.cut
        try:
            there, then = Cut.from_text(now).tables, Cut.from_text(self.cut).tables
        except K2Error:
            return None
        if any(then.get(table, there[table]) != there[table] for table in self.now):
            return None
        return Cut({table: there[table] for table in self.now} | dict(then)).to_text()

    def explained(self, error: StatementError, statement: Statement) -> StatementError:
        """The error of planning the query, which says so when it is about a column that a table did not have then."""
        for ref, columns in self.columns.items():
            had = {then.lower() for _, then in columns}
            for name in sorted({name.lower() for name in self.all_columns[self.cuts[ref][0]].names} - had):
                if name in statement.words and f'"{name}"' in str(error).lower():
                    return InvalidStatement(
                        f"the table {self.cuts[ref][0]} had no column {name} at the instant that is read; leave it "
                        "out, or name a later instant"
                    )
        return error

    @property
    def is_now(self) -> bool:
        """True when it ends at the cut of the transaction that it is read in."""
        return bool(self.changes) and not self.cuts and all(found.high is None for found in self.changes.values())

    @property
    def cut(self) -> str | None:
        """The text of the cut that is read; None when all that is read is as it is now, or tables at several cuts."""
        tables: dict[str, TableCut] = {}
        ends = [(found.table, found.high) for found in self.changes.values()]
        for table, cut in [*self.cuts.values(), *ends]:
            if cut is None or tables.setdefault(log_table(table), cut) != cut:
                return None
        return Cut(tables).to_text() if tables else None

    def text(self, statement: Statement, lake: Lake, cursor: duckdb.DuckDBPyConnection) -> str:
        """The text to be run in the cursor's open transaction. Raises Unavailable or SnapshotExpired."""

        def instead(ref: TableRef | FunctionRef) -> str | None:
            if isinstance(ref, FunctionRef):
                if ref in self.snapshots:
                    return _commits_of(self.snapshots[ref], relation_of("commits"))
                rows = self.changes[ref]
                return with_parameters(lake.changes(cursor, rows.table, rows.low, rows.high), ref)
            found = self.cuts.get(ref)
            if found is not None:
                conditions = () if ref in self.columns else self._conditions(ref, found[0], lake, cursor)
                return _as_then(self.columns.get(ref), lake.select_at(cursor, *found, conditions))
            return f"FROM {relation_of(ref.name)}" if _is_ops(ref) else None

        query = rewritten(self.tree, instead, schema=self.schema)
        return statement.text.replace(statement.query, query, 1)

    def _conditions(
        self, ref: TableRef, table: str, lake: Lake, cursor: duckdb.DuckDBPyConnection
    ) -> Sequence[Condition]:
        for known in lake.tables():
            if self.asking is not None and f"{known.schema}.{known.name}" == table and known.schema == MARKET:
                return self.asking.conditions(ref, known.arrow_schema, cursor)
        return ()


@dataclass(frozen=True)
class Part:
    """One part of a query whose result comes in several: the query over one part of its table's rows."""

    tree: Tree
    schema: str
    select: str
    cut: str | None
    ops: frozenset[str] = frozenset()

    def text(self, statement: Statement, lake: Lake, cursor: duckdb.DuckDBPyConnection) -> str:
        """The text to be run."""
        query = rewritten(self.tree, lambda ref: self.select, schema=self.schema)
        return statement.text.replace(statement.query, query, 1)


_BY_ROW = (
    f"a subscription takes SELECT, FROM one table of {MARKET}, WHERE and functions of one row that give the same each "
    "time; ask the rest of a plain query"
)
#: Words after which a result is no longer made row by row out of one table's rows. Not IN: of a list it is a
#: comparison, and a subquery behind it that reads a table is a second table.
_NOT_BY_ROW = frozenset(
    """
    join group order limit offset distinct having qualify window over union intersect except sample tablesample with
    unnest pivot unpivot recursive lateral asof positional values exists any some all at describe show summarize
    """.split()  # noqa: SIM905  (reads better than thirty quoted strings)
)


#: Words without one of which a query reads its tables as they are now.
_NAMED = ("at", OPS, CHANGES, SNAPSHOTS)


def _as_then(columns: Sequence[tuple[str, str]] | None, select: str) -> str:
    """The SELECT with the columns that the table had, under the names that they had."""
    if columns is None:
        return select
    listed = ", ".join(f"{quoted(now)} AS {quoted(then)}" for now, then in columns)
    return f"SELECT {listed} FROM ({select})"


def _commits_of(table: str, relation: str) -> str:
    return f"SELECT * FROM {relation} WHERE table_name = {literal(table)}"


def relation_of(table: str) -> str:
    """The name under which a table of `ops` is there while it is read."""
    return f"k2_ops_{table.lower()}"


class Sources:
    """Finds the source of each query that has one of its own. Thread-safe."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._lock = threading.Lock()
        self._trees: OrderedDict[str, Tree | InvalidStatement] = OrderedDict()
        self._consistent = Consistent()
        self._operands = Operands()

    def again(
        self, statement: Statement, cut: str, session: Session | None, parser: Parser, values: Values
    ) -> Source | None:
        """The source that reads the query's tables at a cut that was announced, whatever its AT clauses said."""
        schema, as_then = (session.options.schema, bool(session.options.as_of)) if session else (MARKET, False)
        return self._resolved(
            statement, schema, cut, parser, values, only=True, is_utc=_is_utc(session), as_then=as_then
        )

    def source(
        self, statement: Statement, session: Session | None, parser: Parser, values: Values | None = None
    ) -> Source | None:
        """None for a query that reads tables as they are now, which is nearly all.

        `values` are its parameters; None where they are not known yet, and then the source is there to be planned and
        not to be run. Blocks on the catalog when a snapshot or a time is to be resolved. Raises InvalidStatement,
        SnapshotNotFound, Unavailable.
        """
        as_of = session.options.as_of if session is not None else ""
        if not statement.reads_tables or not (as_of or not statement.words.isdisjoint(_NAMED)):
            return None
        schema = session.options.schema if session is not None else MARKET
        if as_of and session is not None and session.home is not None:
            views = session.home.views & statement.words
            if views:
                raise Unsupported(
                    f"the session reads everything as of an instant, and its view {min(views)} cannot be read so; "
                    "write its query into the statement, or set k2.as_of back"
                )
        scratch = session.home.scratch if session is not None and session.home is not None else frozenset[str]()
        return self._resolved(statement, schema, as_of, parser, values, is_utc=_is_utc(session), scratch=scratch)

    def _resolved(
        self,
        statement: Statement,
        schema: str,
        as_of: str,
        parser: Parser,
        values: Values | None,
        *,
        only: bool = False,
        is_utc: bool,
        as_then: bool = True,
        scratch: frozenset[str] = frozenset(),
    ) -> Source | None:
        """With `only` everything is read at `as_of`; unless `as_then`, with the columns of now where no AT is. Tables
        of the `scratch` have no earlier states."""
        tree = self.tree(statement.query, parser)
        if isinstance(tree, InvalidStatement):
            if as_of:
                raise tree
            return None
        tree = self._without_views(tree, schema, parser, as_of=as_of)
        cuts: dict[TableRef, tuple[str, TableCut]] = {}
        columns: dict[TableRef, Sequence[tuple[str, str]]] = {}
        ops, now = set(), set()
        fed = {f"{table.schema}.{table.name}" for table in self._lake.tables() if table.schema in (MARKET, OPS)}
        for ref in tables_of(tree):
            if _is_ops(ref):
                ops.add(ref.name.lower())
                continue
            wanted = as_of
            if ref.at is not None and not only:
                with parser() as cursor:
                    wanted = as_of_text(ref.at, cursor)
            if ref.at is None and not ref.schema and ref.name.lower() in scratch:
                continue
            where = self._schema_of(ref, schema)
            table = f"{where}.{ref.name}".lower()
            if (view := _view_of(ref, where)) is not None:
                now |= set(view.tables)
            elif wanted and (ref.at is not None or where in (MARKET, OPS)):
                cuts[ref] = (table, self._lake.table_cut(table, parse_as_of(wanted)))
                had = self._lake.columns_at(table, cuts[ref][1]) if as_then or ref.at is not None else None
                if had is not None:
                    columns[ref] = had
            elif table in fed:
                now.add(log_table(table))
        called = functions_of(tree)
        snapshots = {ref: self._snapshots(ref, parser, values) for ref in called if ref.name == SNAPSHOTS}
        changes = {ref: self._changes(ref, as_of, parser, values, only=only) for ref in called if ref not in snapshots}
        if snapshots:
            ops.add("commits")
        if not cuts and not ops and not changes:
            return None
        if statement.kind is not StatementKind.QUERY and not statement.text.count(statement.query):
            raise InvalidStatement(
                "EXPLAIN of a table as of an earlier instant is to be written plainly: EXPLAIN SELECT"
            )

        def without_at(ref: TableRef | FunctionRef) -> str | None:
            if isinstance(ref, FunctionRef):
                if ref in snapshots:
                    return _commits_of(snapshots[ref], f"{CATALOG}.{OPS}.commits")
                return with_parameters(f"FROM {CATALOG}.{changes[ref].table}", ref)
            if ref in columns:
                return _as_then(columns[ref], f"FROM {_written(ref)}")
            return f"FROM {_written(ref)}" if ref.at is not None else None

        def with_names(ref: TableRef | FunctionRef) -> str | None:
            if isinstance(ref, FunctionRef) and ref in snapshots:
                return _commits_of(snapshots[ref], relation_of("commits"))
            is_ops = isinstance(ref, TableRef) and _is_ops(ref)
            return f"FROM {relation_of(ref.name)}" if is_ops else without_at(ref)

        planned, at_home = (
            replace(statement, query=query, text=statement.text.replace(statement.query, query, 1))
            for query in (rewritten(tree, instead, schema=schema) for instead in (without_at, with_names))
        )
        asking = Asking(tree.text, {}, self._operands, parser) if is_utc else None
        return Source(
            tree,
            schema,
            planned,
            at_home,
            cuts,
            frozenset(ops),
            changes,
            asking,
            columns=columns,
            now=frozenset(now),
            snapshots=snapshots,
            all_columns={f"{table.schema}.{table.name}": table.arrow_schema for table in self._lake.tables()},
        )

    def _without_views(self, tree: Tree, schema: str, parser: Parser, *, as_of: str) -> Tree:
        """The query with what the views of `ops` are in their place, where they are read as of an instant."""

        def instead(ref: TableRef | FunctionRef) -> str | None:
            view = _view_of(ref, self._schema_of(ref, schema)) if isinstance(ref, TableRef) else None
            if view is None or not isinstance(ref, TableRef) or not (as_of or ref.at is not None):
                return None
            at = "" if ref.at is None else f" AT ({ref.at.unit} => {ref.at.expression})"
            return view.select(lambda table, alias: f"{CATALOG}.{table} AS {alias}{at}")

        if all(_view_of(ref, self._schema_of(ref, schema)) is None for ref in tables_of(tree)):
            return tree
        found = self.tree(rewritten(tree, instead, schema=schema), parser)
        if isinstance(found, InvalidStatement):
            raise found
        return found

    def _snapshots(self, ref: FunctionRef, parser: Parser, values: Values | None) -> str:
        """The table that a call of k2_snapshots means."""
        given = by_name(ref)
        if "table" not in given or given["table"].has_parameter:
            raise InvalidStatement(f"{SNAPSHOTS} takes a table's name, written out: {SNAPSHOTS}('{MARKET}.trades')")
        with parser() as cursor:
            named = text_of(given["table"], ref, cursor, values)
        return self._market_table(named or "")

    def _changes(self, ref: FunctionRef, as_of: str, parser: Parser, values: Values | None, *, only: bool) -> Changes:
        """What a call of k2_changes means. `as_of` is the end where none is given, and with `only` in any case."""
        given = by_name(ref)
        with parser() as cursor:
            if "table" in given and given["table"].has_parameter:
                raise InvalidStatement(f"{CHANGES} takes no parameter for its table; write the name of its table")
            named = text_of(given["table"], ref, cursor, values) if "table" in given else None
            if named is None:
                raise InvalidStatement(f"{CHANGES} needs a table, as in {CHANGES}('{MARKET}.trades', from_cut, to_cut)")
            table = self._market_table(named)
            if values is None:
                return Changes(table)
            start = text_of(given["from_cut"], ref, cursor, values) if "from_cut" in given else None
            end = text_of(given["to_cut"], ref, cursor, values) if "to_cut" in given and not only else None
        end = end or as_of
        return Changes(
            table,
            self._lake.table_cut(table, parse_as_of(start)) if start else None,
            self._lake.table_cut(table, parse_as_of(end)) if end else None,
        )

    def _market_table(self, named: str) -> str:
        """The full name of a table of market, from `trades`, `market.trades` or `k2.market.trades`."""
        parts = [part.strip('"') for part in named.lower().split(".")]
        if parts[:-1] in ([], [MARKET], [CATALOG, MARKET]):
            for table in self._lake.tables():
                if (table.schema, table.name) == (MARKET, parts[-1]):
                    return self._of_the_log(f"{MARKET}.{table.name}")
        tables = ", ".join(f"{MARKET}.{table.name}" for table in self._lake.tables() if table.schema == MARKET)
        raise TableNotFound(f"{MARKET} has no table {named[:100]!r}; there are {tables}")

    @staticmethod
    def _of_the_log(table: str) -> str:
        """The table, if its rows are the log's. Raises Unsupported."""
        if log_table(table) != table:
            raise Unsupported(
                f"{table} is computed from {log_table(table)}, and its rows change: it has no rows between cuts and no "
                f"commits to be named; ask {log_table(table)} instead"
            )
        return table

    def parted(
        self, statement: Statement, cut: str | None, cursor: duckdb.DuckDBPyConnection, parser: Parser, *, count: int
    ) -> list[Part]:
        """The query in parts whose results are, together, its result: of one large table, row by row; else none.

        The last part is to be read in the cursor's open transaction, the others anywhere.
        """
        if statement.kind is not StatementKind.QUERY or not statement.words.isdisjoint(_NOT_BY_ROW):
            return []
        if not statement.calls <= self._consistent.scalars or not statement.words.isdisjoint(VARYING_WORDS):
            return []
        tree = self.tree(statement.query, parser)
        refs = [] if isinstance(tree, InvalidStatement) else tables_of(tree)
        if len(refs) != 1 or self._schema_of(refs[0], MARKET) != MARKET or isinstance(tree, InvalidStatement):
            return []
        selects = self._lake.parts(cursor, f"{MARKET}.{refs[0].name.lower()}", count, rows_min=_PARTED_ROWS_MIN)
        return [Part(tree, MARKET, select, cut) for select in selects]

    def by_row(self, statement: Statement, parser: Parser) -> tuple[Tree, str]:
        """The tree of a query that makes its rows one by one out of those of one table of market, and that table.

        Raises InvalidStatement, saying what is not so, for any other.
        """
        words = statement.words & (_NOT_BY_ROW | VARYING_WORDS | {"at", "k2_cut"})
        if words:
            first = min(words, key=statement.query.lower().find)
            raise InvalidStatement(f"{first.upper()} cannot be answered row by row as rows arrive; {_BY_ROW}")
        calls = statement.calls - self._consistent.scalars
        if calls:
            raise InvalidStatement(f"{min(calls)}(...) cannot be answered row by row as rows arrive; {_BY_ROW}")
        tree = self.tree(statement.query, parser)
        if isinstance(tree, InvalidStatement):
            raise tree
        refs = tables_of(tree)
        tables = [f"{MARKET}.{ref.name.lower()}" for ref in refs if self._schema_of(ref, MARKET) == MARKET]
        if len(refs) != 1 or len(tables) != 1 or refs[0].catalog.lower() not in ("", CATALOG):
            raise InvalidStatement(f"a subscription reads one table of {MARKET}; {_BY_ROW}")
        return tree, self._market_table(tables[0])

    def chosen(
        self, statement: Statement, session: Session | None, parser: Parser, runs: Sequence[Values], *, on_home: bool
    ) -> Chosen | None:
        """The query over the rows that its own comparisons ask for; None when it reads nothing of the market, or when
        that would take longer than it saves."""
        if not statement.reads_tables or not statement.is_query or len(runs) != 1:
            return None
        if statement.kind is not StatementKind.QUERY and statement.text.count(statement.query) != 1:
            return None
        home = None if session is None or not on_home else session.home
        if home is not None and not statement.words.isdisjoint(home.scratch):
            return None
        if not _is_utc(session):
            return None
        tree = self.tree(statement.query, parser)
        if isinstance(tree, InvalidStatement) or tree.reads_by_name:
            return None
        schema = session.options.schema if session is not None else MARKET
        columns = {table.name: table.arrow_schema for table in self._lake.tables() if table.schema == MARKET}
        tables = {
            ref: (f"{MARKET}.{ref.name.lower()}", columns[ref.name.lower()])
            for ref in tables_of(tree)
            if ref.at is None
            and ref.catalog.lower() in ("", CATALOG)
            and ref.name.lower() in columns
            and self._schema_of(ref, schema) == MARKET
        }
        if not tables:
            return None
        return Chosen(tree, schema, tables, Asking(tree.text, named(statement, runs[0]), self._operands, parser))

    def is_timeless(self, statement: Statement) -> bool:
        """Whether all that the query calls is known to give the same whenever it is called."""
        return statement.calls <= self._consistent.functions and statement.words.isdisjoint(VARYING_WORDS)

    def learn(self, consistent: Consistent) -> None:
        """Which functions there are that make one value out of one row, the same each time."""
        self._consistent = consistent

    def check(self, as_of: str) -> None:
        """Raises InvalidStatement, SnapshotNotFound or Unavailable unless the trades can be read as of this."""
        self._lake.table_cut(f"{MARKET}.trades", parse_as_of(as_of))

    def tree(self, query: str, parser: Parser) -> Tree | InvalidStatement:
        """A query, read; or why it cannot be."""
        with self._lock:
            found = self._trees.get(query)
        if found is None:
            try:
                with parser() as cursor:
                    found = tree_of(query, cursor, FUNCTIONS.keys())
            except InvalidStatement as error:
                found = error
            with self._lock:
                self._trees[query] = found
                if len(self._trees) > _TREES_MAX:
                    self._trees.popitem(last=False)
        return found

    def _schema_of(self, ref: TableRef, schema: str) -> str:
        """The schema that a reference means, as names are looked up."""
        if ref.schema:
            return ref.schema.lower()
        found = {table.schema for table in self._lake.tables() if table.name == ref.name.lower()}
        return next((place for place in (schema, MARKET, RESEARCH) if place in found), schema)


def _is_utc(session: Session | None) -> bool:
    """Whether the session's times are in UTC: elsewhere the same comparisons mean other instants."""
    return session is None or session.options.timezone == SessionOptions().timezone


def _is_ops(ref: TableRef) -> bool:
    return ref.schema.lower() == OPS and ref.catalog.lower() in ("", CATALOG) and ref.name.lower() in TABLES


def _view_of(ref: TableRef, schema: str) -> OpsView | None:
    """The view of `ops` that a reference to a table of this schema means."""
    return VIEWS.get(ref.name.lower()) if schema == OPS and ref.catalog.lower() in ("", CATALOG) else None


def _written(ref: TableRef) -> str:
    parts = [part for part in (ref.catalog, ref.schema, ref.name) if part]
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)
