"""What a statement would return and which parameters it takes, found without reading any data.

The planner has a database of its own: the lake's tables, empty, under the same names. Binding a statement against it
costs a fraction of a millisecond whatever the lake's state (a plan against Iceberg reads the snapshot's metadata each
time), tells the types of parameters, which DuckDB keeps to itself for tables that it cannot serialise, and has no
files: a statement that names one fails here and never reaches the lake.

The types are the engine's own names for them, turned into Arrow by the engine itself, so that what is promised here is
to the letter what a result carries.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from common.errors import Unsupported
from flight_server.engine.cursors import CursorPool
from flight_server.engine.errors import translated
from flight_server.engine.parameters import asked_for
from flight_server.engine.session_options import CATALOG, MARKET, RESEARCH, search_path
from flight_server.engine.shapes import described, without_dictionaries
from flight_server.engine.statements import CUT, Statement, StatementKind, parse
from flight_server.storage.database import DISABLED_OPTIMIZERS
from flight_server.storage.macros import MACROS

Values = Sequence[object] | Mapping[str, object]

#: EXPLAIN returns these two whatever it explains.
_EXPLAIN_SCHEMA = pa.schema([("explain_key", pa.string()), ("explain_value", pa.string())])
#: Binding holds no data; what a constant expression may take while it is folded.
_MEMORY_LIMIT = "256MB"


class Planner:
    """Binds statements against the shape of the lake. Thread-safe."""

    def __init__(
        self,
        lake_cursor: duckdb.DuckDBPyConnection,
        tables: Sequence[tuple[str, str, str]],
        made: Mapping[tuple[str, str, str], pa.Schema] | None = None,
    ) -> None:
        """`tables` are (catalog, schema, name); their columns are read off `lake_cursor`, once. `made` are tables that
        the engine makes itself when they are asked for, with their columns."""
        self.table_functions: Set[str] = _table_functions(lake_cursor)
        self._root = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": _MEMORY_LIMIT})
        self._root.execute("SET GLOBAL TimeZone = 'UTC'")
        self._root.execute(f"SET GLOBAL disabled_optimizers = '{DISABLED_OPTIMIZERS}'")
        for name in sorted({CATALOG, *(table[0] for table in tables)} - {"memory"}):
            self._root.execute(f"ATTACH ':memory:' AS {_quoted(name)}")
        for schema in (MARKET, RESEARCH):
            self._root.execute(f"CREATE SCHEMA IF NOT EXISTS {CATALOG}.{schema}")
        for table in tables:
            relation = ".".join(_quoted(part) for part in table)
            described = lake_cursor.execute(f"DESCRIBE {relation}").fetchall()
            columns = ", ".join(f"{_quoted(name)} {sql_type}" for name, sql_type, *_ in described)
            self._root.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(table[0])}.{_quoted(table[1])}")
            self._root.execute(f"CREATE TABLE {relation} ({columns})")
        for table, columns in (made or {}).items():
            relation = ".".join(_quoted(part) for part in table)
            self._root.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(table[0])}.{_quoted(table[1])}")
            self._root.register("k2_shape", columns.empty_table())
            self._root.execute(f"CREATE TABLE {relation} AS FROM k2_shape")
            self._root.unregister("k2_shape")
        self._root.execute(f"CREATE MACRO {CATALOG}.{MARKET}.{CUT}() AS CAST(NULL AS VARCHAR)")
        for macro in MACROS:
            self._root.execute(macro.create(CATALOG))
        self._root.execute("SET enable_external_access = false")
        self._root.execute("SET lock_configuration = true")
        self._cursors = CursorPool(self._cursor, idle_max=4)
        self._arrow_fields: dict[str, pa.Field] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._cursors.close()
        self._root.close()

    @contextmanager
    def parser(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor that has no data and no files, to parse and to compute constants on."""
        with self._cursors.lent() as cursor:
            yield cursor

    def parse(self, sql: str) -> Statement:
        """The one statement in `sql`. Raises as statements.parse."""
        with self._cursors.lent() as cursor:
            return parse(sql, cursor, self.table_functions)

    def result_schema(
        self, statement: Statement, values: Values, on: duckdb.DuckDBPyConnection | None = None
    ) -> pa.Schema:
        """The schema of the statement's result under these parameters; bound on the twin, or on the cursor `on`, which
        has what the twin does not have: a session's own tables, names and time zone.

        Raises InvalidStatement, TableNotFound, PermissionDenied or Unsupported with the engine's words and position.
        """
        with self._cursors.lent() as cursor:
            try:
                columns = _describe(on or cursor, statement.query, values)
            except duckdb.Error as error:
                if on is not None:
                    raise translated(_as_sent(error)) from None
                raise self._in_its_own_words(cursor, statement, values, error) from None
            if statement.kind is StatementKind.EXPLAIN:
                return _EXPLAIN_SCHEMA
            fields = [
                described(self._arrow_field(cursor, sql_type), sql_type).with_name(name) for name, sql_type in columns
            ]
            return without_dictionaries(pa.schema(fields))

    def parameter_schema(self, statement: Statement, types: Mapping[str, str] | None = None) -> pa.Schema:
        """One field per parameter in the order of binding; Arrow's null type where any type would do.

        `types` are the parameters' SQL types by name where they are known already, as for a change.
        """
        if not statement.parameters:
            return pa.schema([])
        with self._cursors.lent() as cursor:
            if types is None:
                plan = "SELECT json_serialize_plan($1::VARCHAR, optimize := false)"
                answer = cursor.execute(plan, [statement.query]).fetchone()
                types = dict(_parameter_types(json.loads(answer[0]) if answer else {}))
            fields = []
            for name in statement.parameters:
                sql_type = types.get(name)
                kind = pa.null() if sql_type is None else self._arrow_field(cursor, sql_type).type
                fields.append(pa.field(name, asked_for(kind)))
            return pa.schema(fields)

    def shape_of(self, definition: str) -> tuple[pa.Schema, list[str]]:
        """The Arrow schema and the SQL types of a table with these column definitions, as CREATE TABLE has them in
        parentheses.
        """
        with self._cursors.lent() as cursor:
            try:
                cursor.execute(f"CREATE OR REPLACE TEMP TABLE k2_shape {definition}")
                described = cursor.execute("DESCRIBE k2_shape").fetchall()
                cursor.execute("DROP TABLE k2_shape")
            except duckdb.Error as error:
                raise translated(error) from None
            schema = pa.schema(
                [
                    self._arrow_field(cursor, sql_type).with_name(name).with_nullable(null == "YES")
                    for name, sql_type, null, *_ in described
                ]
            )
            return schema, [sql_type for _, sql_type, *_ in described]

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._root.cursor()
        cursor.execute(f"SET search_path = '{search_path(MARKET)}'")
        return cursor

    def _arrow_field(self, cursor: duckdb.DuckDBPyConnection, sql_type: str) -> pa.Field:
        with self._lock:
            field = self._arrow_fields.get(sql_type)
        if field is None:
            if "UHUGEINT" in sql_type and sql_type != "UHUGEINT":
                # The engine would hand out half of its values as other, negative numbers; see shapes.check_unsigned.
                raise Unsupported(
                    f"K2 does not send UHUGEINT inside of {sql_type[:200]}; cast it to HUGEINT or VARCHAR"
                )
            try:
                field = cursor.execute(f"SELECT CAST(NULL AS {sql_type})").to_arrow_reader(1).schema.field(0)
            except (duckdb.Error, OSError):  # pyarrow reports what the engine cannot export as OSError
                raise Unsupported(
                    f"the type {sql_type[:200]} has no form in Arrow; cast it to VARCHAR, JSON or a STRUCT with names"
                ) from None
            with self._lock:
                self._arrow_fields[sql_type] = field
        return field

    @staticmethod
    def _in_its_own_words(
        cursor: duckdb.DuckDBPyConnection, statement: Statement, values: Values, error: duckdb.Error
    ) -> BaseException:
        """The error of the text as it was sent, so that its LINE and ^ are the client's, not DESCRIBE's."""
        try:
            cursor.execute(statement.text, values or None)
        except duckdb.Error as own:
            return translated(own)
        return translated(error)


def _as_sent(error: duckdb.Error) -> duckdb.Error:
    """The error with its LINE and ^ as they are without the DESCRIBE before the statement."""
    head, mark, rest = str(error).partition("LINE 1: DESCRIBE ")
    if not mark:
        return error
    line, newline, caret = rest.partition("\n")
    moved = caret.removeprefix(" " * len("DESCRIBE "))
    return type(error)(f"{head}LINE 1: {line}{newline}{moved}")


def _describe(cursor: duckdb.DuckDBPyConnection, query: str, values: Values) -> list[tuple[str, str]]:
    """(name, type) of each column; DESCRIBE binds and does not run."""
    try:
        rows = cursor.execute(f"DESCRIBE {query}", values or None).fetchall()
    except duckdb.ParserException:
        # DESCRIBE, SHOW and SUMMARIZE cannot be described themselves, but can be selected from.
        rows = cursor.execute(f"DESCRIBE FROM ({query}\n)", values or None).fetchall()
    return [(name, sql_type) for name, sql_type, *_ in rows]


def _table_functions(cursor: duckdb.DuckDBPyConnection) -> Set[str]:
    """The lower-case names of the table functions that there are."""
    try:
        names = cursor.execute(
            "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
            "WHERE function_type IN ('table', 'table_macro', 'pragma')"
        ).fetchall()
    except duckdb.Error as error:
        raise translated(error) from None
    return frozenset(name for (name,) in names)


def _parameter_types(node: Any) -> Iterator[tuple[str, str]]:
    """(parameter name, SQL type) for each bound parameter in a serialised plan whose type is simple and known."""
    if isinstance(node, dict):
        if node.get("expression_class") == "BOUND_PARAMETER":
            sql_type = _sql_type(node.get("return_type") or {})
            if sql_type is not None:
                yield str(node.get("identifier")), sql_type
        for child in node.values():
            yield from _parameter_types(child)
    elif isinstance(node, list):
        for child in node:
            yield from _parameter_types(child)


def _sql_type(serialised: Mapping[str, Any]) -> str | None:
    name = str(serialised.get("id", ""))
    info = serialised.get("type_info")
    if name == "DECIMAL" and info:
        return f"DECIMAL({info['width']},{info['scale']})"
    if info or name in ("", "INVALID", "UNKNOWN", "ANY", "NULL", "SQLNULL", "INTEGER_LITERAL", "STRING_LITERAL"):
        return None
    return name


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
