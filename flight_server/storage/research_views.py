"""The views of `k2.research`: each table as of one commit, seen by the transactions that begin after its publication.

They are made on a connection of their own, so that a slow catalog holds up neither the publisher nor a reader. The two
writers have no object in common: the publisher changes `market` and `tail`, this changes `research`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from common.errors import Unavailable
from common.telemetry import get_logger
from flight_server.storage.database import CATALOG, RESEARCH, Database
from flight_server.storage.read_view import Snapshot, quoted, view_sql
from flight_server.storage.research import ResearchTable, ResearchTables


class ResearchViews:
    """Thread-safe. `publish` brings the views up to date with the catalog; nothing changes in between."""

    def __init__(self, database: Database, tables: ResearchTables) -> None:
        self._database = database
        self._tables = tables
        self._log = get_logger("flight_server.storage")
        self._lock = threading.Lock()
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._published: dict[str, ResearchTable] = {}
        self._schemas: dict[str, pa.Schema] = {}
        self._warned: set[str] = set()
        self._version = 0

    @property
    def version(self) -> int:
        """Another number after each publication that changed which tables there are, or the columns of one."""
        return self._version

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Table -> its columns, in the types that a query gives, with true nullability and the remarks in `doc`."""
        return self._schemas

    def publish(self) -> None:
        """Ask the catalog and publish what changed, at once. Blocking; without news it is one query of the catalog.

        Raises CatalogError when the catalog does not answer, Unavailable when the server stops. A table that DuckDB
        cannot read is left as it was, with a line in the log.
        """
        with self._lock:
            now = self._readable(self._tables.tables())
            changed = {name: table for name, table in now.items() if table != self._published.get(name)}
            gone = [name for name in self._published if name not in now]
            if not changed and not gone:
                return
            try:
                if self._cursor is None:
                    self._cursor = self._database.cursor()
                self._change(self._cursor, changed, gone)
            except duckdb.ConnectionException:
                raise Unavailable("the server is stopping; connect again") from None

    def _readable(self, tables: list[ResearchTable]) -> dict[str, ResearchTable]:
        """By name; of names that SQL cannot tell apart, the first."""
        by_name: dict[str, ResearchTable] = {}
        for table in tables:
            by_name.setdefault(table.name.casefold(), table)
        return {table.name: table for table in by_name.values()}

    def _change(self, cursor: duckdb.DuckDBPyConnection, changed: Mapping[str, ResearchTable], gone: list[str]) -> None:
        try:
            schemas = self._in_one_transaction(cursor, changed, gone)
        except duckdb.ConnectionException:
            raise
        except duckdb.Error:
            # One of them cannot be read: each on its own, so that it is the only one left out.
            schemas = self._in_one_transaction(cursor, {}, gone)
            for name, table in changed.items():
                try:
                    schemas |= self._in_one_transaction(cursor, {name: table}, [])
                except duckdb.Error as error:
                    self._warn(table, error)
        kept = {name: schema for name, schema in self._schemas.items() if name not in gone}
        now = kept | schemas
        self._published = {name: table for name, table in self._published.items() if name in kept}
        self._published |= {name: changed[name] for name in schemas}
        if now != self._schemas:
            self._schemas = now
            self._version += 1

    def _in_one_transaction(
        self, cursor: duckdb.DuckDBPyConnection, changed: Mapping[str, ResearchTable], gone: list[str]
    ) -> dict[str, pa.Schema]:
        cursor.execute("BEGIN")
        try:
            schemas = {}
            for name, table in changed.items():
                view = f"{CATALOG}.{RESEARCH}.{quoted(name)}"
                cursor.execute(f"CREATE OR REPLACE VIEW {view} AS {self._select(cursor, table)}")
                before = self._published.get(name)
                if before is not None and before.arrow_schema.equals(table.arrow_schema, check_metadata=True):
                    schemas[name] = self._schemas[name]
                else:
                    given = cursor.execute(f"FROM {view} LIMIT 0").to_arrow_reader(1).schema
                    schemas[name] = _with_what_iceberg_knows(given, table.arrow_schema)
            for name in gone:
                cursor.execute(f"DROP VIEW IF EXISTS {CATALOG}.{RESEARCH}.{quoted(name)}")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")
        self._database.changed()
        return schemas

    @staticmethod
    def _select(cursor: duckdb.DuckDBPyConnection, table: ResearchTable) -> str:
        if table.relation is not None:
            return f"FROM {table.relation}"
        cursor.register("k2_shape", table.arrow_schema.empty_table())
        try:
            described = cursor.execute("DESCRIBE FROM k2_shape").fetchall()
        finally:
            cursor.unregister("k2_shape")
        return view_sql(Snapshot(), (), {name: sql_type for name, sql_type, *_ in described})

    def _warn(self, table: ResearchTable, error: duckdb.Error) -> None:
        if table.metadata_location not in self._warned:
            self._warned.add(table.metadata_location)
            reason = str(error).splitlines()[0]
            self._log.warning("a research table cannot be read by the engine", table=table.name, reason=reason)


def _with_what_iceberg_knows(given: pa.Schema, iceberg: pa.Schema) -> pa.Schema:
    """The types of a query's result, with the nullability and the remarks that the table has."""
    return pa.schema(
        [
            field.with_nullable(known.nullable).with_metadata(known.metadata)
            for field, known in zip(given, iceberg, strict=True)
        ]
    )
