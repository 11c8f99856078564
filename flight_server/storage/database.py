"""The one in-memory DuckDB database of a flight server: catalog `k2`, its schemas of views, the tail's tables.

One writer (the publisher) changes `market`, `ops` and `tail`, another one (research_views) `research`, each one
transaction at a time; every reader's transaction sees one published state of each, whole, for as long as it is open:
that is DuckDB's MVCC, and it is what makes a query's cut exact and what pins it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from common.datasets import MARKET, OPS
from common.errors import SettingsError, Unavailable
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.arrow_stream import ArrowStream
from flight_server.storage.macros import MACROS
from flight_server.storage.read_view import literal, quoted

CATALOG = "k2"
TAIL = "tail"
RESEARCH = "research"
#: The function, and the variable of a cursor, that say which cut a statement is of.
CUT_FUNCTION = "k2_cut"
#: The row of tail.positions that counts publications instead of offsets.
_GENERATION_ROW = -1

#: How files of an object store are read. What Iceberg writes is never changed under its name, so nothing that was read
#: once is asked about again: no HEAD for a file whose length is known, no check of what is cached.
_REMOTE = {
    "enable_http_metadata_cache": "true",  # a length and a tag for each file that was ever read
    "validate_external_file_cache": "NO_VALIDATION",
    "httpfs_connection_caching": "true",
    "s3_url_compatibility_mode": "true",  # `*` and `?` are letters; no other endpoint can stand in an address
}

#: What DuckDB's optimizer must not do. It makes the first rows of each group, `row_number() OVER (...) = 1`, out of an
#: aggregate of row ids, and where such a query has a condition on columns that it does not give, over a SELECT of
#: columns, can take the values of these for row ids (1.5.5): rows are missing without a word, or the statement fails
#: inside. Every table of K2 is a SELECT of columns.
DISABLED_OPTIMIZERS = "top_n_window_elimination"

#: Statements that move positions are kept for so many sets of partitions.
_MOVES_KEPT = 64

#: What each cursor has prepared. Clients cannot run it: EXECUTE is none of their statements.
_PREPARED = "k2_positions"
_POSITIONS = f"SELECT number, next_offset FROM {CATALOG}.{TAIL}.positions"


class Database:
    """Opens locked down: no file or network access but to the warehouse, no extension, no change of settings."""

    def __init__(self, settings: FlightSettings, lake: LakeSettings | None) -> None:
        config: dict[str, Any] = {
            "memory_limit": f"{settings.memory_bytes_max}B",
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        if settings.threads is not None:
            config["threads"] = settings.threads
        spill = settings.spill_dir or (None if lake is None else lake.data_dir / "spill")
        config["temp_directory"] = "" if spill is None else str(spill)
        self._root = duckdb.connect(":memory:", config=config)
        # Not in `config`: given there, DuckDB 1.5 shows the bound and does not hold it.
        self._root.execute(f"SET max_temp_directory_size = '{settings.spill_bytes_max}B'")
        self._root.execute("SET GLOBAL TimeZone = 'UTC'")
        # A checkpoint of a database in memory saves nothing and compresses the tail's row groups, on the publisher's
        # thread; of a column of 128-bit decimals single rows are then read 15 times slower (19 ms against 1.2).
        self._root.execute("SET GLOBAL checkpoint_threshold = '1 TiB'")
        self._root.execute(f"SET GLOBAL disabled_optimizers = {literal(DISABLED_OPTIMIZERS)}")
        self._root.execute("SET GLOBAL parquet_metadata_cache = true")
        if lake is None or not lake.is_object_store:
            # The kernel keeps local files too. DuckDB would keep each range that was ever read until memory is short,
            # of files that are gone as well, and to look there takes longer than to read it again.
            self._root.execute("SET GLOBAL enable_external_file_cache = false")
        self._root.execute("SET GLOBAL prefetch_all_parquet_files = true")  # 3 to 5 % less work for scans
        if lake is not None:
            self._open_warehouse(lake)
        self._root.execute(f"ATTACH ':memory:' AS {CATALOG}")
        self._root.execute(f"USE {CATALOG}")
        self._root.execute(f"CREATE SCHEMA {MARKET}")
        self._root.execute(f"CREATE SCHEMA {OPS}")
        self._root.execute(f"CREATE SCHEMA {TAIL}")
        self._root.execute(f"CREATE SCHEMA {RESEARCH}")
        self._root.execute(f"CREATE MACRO {MARKET}.{CUT_FUNCTION}() AS CAST(getvariable('{CUT_FUNCTION}') AS VARCHAR)")
        for macro in MACROS:
            self._root.execute(macro.create(CATALOG))
        self._root.execute(f"CREATE TABLE {TAIL}.positions (number INTEGER, next_offset BIGINT)")
        self._root.execute(f"INSERT INTO {TAIL}.positions VALUES ({_GENERATION_ROW}, 0)")
        self._writer = self.cursor()
        # It looks at new files once, when a view is bound to them. Their metadata would be kept until memory is short.
        self._writer.execute("SET SESSION parquet_metadata_cache = false")
        self._root.execute("SET enable_external_access = false")
        # A session's own time zone is the one setting that a cursor may change.
        self._root.execute("SET allowed_configs = ['TimeZone']")
        self._root.execute("SET lock_configuration = true")
        self._inserts: dict[str, _Insert] = {}
        self._moves: dict[tuple[int, ...], str] = {}
        self._statement_numbers = itertools.count()
        self._version = 0
        self._version_lock = threading.Lock()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A new connection, on which names are looked up in market, then in research. One thread at a time."""
        try:
            cursor = self._root.cursor()
            cursor.execute(f"SET search_path = '{CATALOG}.{MARKET},{CATALOG}.{RESEARCH}'")
            cursor.execute(f"PREPARE {_PREPARED} AS {_POSITIONS}")
        except duckdb.ConnectionException:
            raise Unavailable("the server is stopping; connect again") from None
        return cursor

    def close(self) -> None:
        """Close the writer and the database; open cursors of readers end with errors."""
        self._writer.close()
        self._root.close()

    # -- reading

    @staticmethod
    def begin(cursor: duckdb.DuckDBPyConnection) -> tuple[int, dict[int, int]]:
        """Open a read-only transaction on the cursor, and `positions` in it.

        One call, and a prepared statement: 0.08 ms, where two calls and the SELECT itself take 0.24 ms.
        """
        return _positions(cursor.execute(f"BEGIN TRANSACTION READ ONLY; EXECUTE {_PREPARED}").fetchall())

    @staticmethod
    def positions(cursor: duckdb.DuckDBPyConnection) -> tuple[int, dict[int, int]]:
        """(generation, next offset by partition number) as the cursor's transaction sees them."""
        return _positions(cursor.execute(f"EXECUTE {_PREPARED}").fetchall())

    @staticmethod
    def tell_cut(cursor: duckdb.DuckDBPyConnection, cut: str | None) -> None:
        """Make `k2_cut()` say this on the cursor, until the next call."""
        cursor.execute(f"SET VARIABLE {CUT_FUNCTION} = {'NULL' if cut is None else literal(cut)}")

    def can_read(self, relation: str) -> bool:
        """Whether the files of a relation are there: DuckDB looks at them when it binds it."""
        with self.cursor() as cursor:
            try:
                cursor.execute(f"SELECT 1 FROM {relation} LIMIT 0")
            except duckdb.Error:
                return False
        return True

    @property
    def version(self) -> int:
        """Another number after each publication, of either writer. Read before a transaction begins, it says of what
        that sees that nothing newer has been published for as long as it stays the same."""
        return self._version

    def changed(self) -> None:
        """To be called by each writer when its transaction is committed."""
        with self._version_lock:
            self._version += 1

    # -- writing: the publisher only

    @contextmanager
    def publication(self) -> Iterator[None]:
        """One transaction: all of what is written within becomes visible at once, or none of it.

        Raises Unavailable when the engine cannot do it now: a file of the snapshot to be shown is gone or cannot be
        reached (a view is bound to its files when it is made), or there is no memory for the rows.
        """
        with self._translated():
            self._writer.execute("BEGIN")
            try:
                yield
                self._writer.execute("COMMIT")
                self.changed()
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with contextlib.suppress(duckdb.Error):  # what failed may have ended the transaction already
            self._writer.execute("ROLLBACK")
        # What a prepared INSERT reads was made known within a transaction too, and may be gone with it.
        for relation in list(self._inserts):
            with contextlib.suppress(duckdb.Error):
                self._forget(relation)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise Unavailable(f"the engine could not publish the tables' newer state ({reason}); try again") from None

    def column_types(self, schema: pa.Schema) -> dict[str, str]:
        """The SQL type of each column of an Arrow schema, in order."""
        self._writer.register("k2_shape", schema.empty_table())
        try:
            return {name: kind for name, kind, *_ in self._writer.execute("DESCRIBE SELECT * FROM k2_shape").fetchall()}
        finally:
            self._writer.unregister("k2_shape")

    def create_segment(self, name: str, columns: Mapping[str, str]) -> str:
        """Create an empty tail table and return its full name."""
        relation = f"{CATALOG}.{TAIL}.{quoted(name)}"
        shape = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns.items())
        self._writer.execute(f"CREATE TABLE {relation} ({shape})")
        return relation

    def insert(self, relation: str, rows: pa.Table) -> None:
        """Within a publication. Raises duckdb.Error."""
        self._writer.execute(self._insert(relation, rows))

    def append(self, rows: Mapping[str, pa.Table], moved: Mapping[int, int]) -> None:
        """A publication of its own: these rows into their segments, and next offsets by partition number.

        This is what happens a hundred times a second: one call, of statements that were prepared once. Raises as
        `publication`.
        """
        with self._translated():
            try:
                steps = [self._insert(relation, some) for relation, some in rows.items()]
                if moved:
                    steps.append(self._move(moved))
                self._writer.execute("; ".join(("BEGIN", *steps, "COMMIT")))
            except BaseException:
                self._roll_back()
                raise
            self.changed()

    def _insert(self, relation: str, rows: pa.Table) -> str:
        """The statement that inserts these rows, to be run next.

        With RETURNING DuckDB inserts on one thread: with two, a few hundred rows cost 1.6 times as much.
        """
        insert = self._inserts.get(relation)
        if insert is not None and insert.schema == rows.schema:
            insert.stream.fill(rows)
            return f"EXECUTE {insert.name}"
        self._forget(relation)
        name = f"k2_insert_{next(self._statement_numbers)}"
        insert = self._inserts[relation] = _Insert(name, rows.schema, ArrowStream(rows))
        self._writer.register(f"{name}_rows", insert.stream.capsule)
        self._writer.execute(f"PREPARE {name} AS INSERT INTO {relation} SELECT * FROM {name}_rows RETURNING 1")
        return f"EXECUTE {name}"

    def _forget(self, relation: str) -> None:
        insert = self._inserts.pop(relation, None)
        if insert is not None:
            self._writer.execute(f"DEALLOCATE {insert.name}")
            self._writer.unregister(f"{insert.name}_rows")

    def _move(self, moved: Mapping[int, int]) -> str:
        """The statement that moves these positions. It is prepared for their numbers, which are mostly the same: with
        numbers as parameters it took twice the time."""
        numbers = tuple(sorted(moved))
        name = self._moves.get(numbers)
        if name is None:
            while len(self._moves) >= _MOVES_KEPT:
                self._writer.execute(f"DEALLOCATE {self._moves.pop(next(iter(self._moves)))}")
            name = f"k2_move_{next(self._statement_numbers)}"
            cases = " ".join(f"WHEN {number} THEN ${place}::BIGINT" for place, number in enumerate(numbers, 1))
            self._writer.execute(
                f"PREPARE {name} AS UPDATE {CATALOG}.{TAIL}.positions SET next_offset = CASE number {cases} END "
                f"WHERE number IN ({', '.join(map(str, numbers))})"
            )
            self._moves[numbers] = name
        return f"EXECUTE {name}({', '.join(f'{moved[number]}::BIGINT' for number in numbers)})"

    def drop_segment(self, relation: str) -> None:
        self._forget(relation)
        self._writer.execute(f"DROP TABLE {relation}")

    def replace_view(self, table: str, select: str) -> None:
        """`table` is a full name, as in "market.trades"."""
        schema, _, name = table.partition(".")
        self._writer.execute(f"CREATE OR REPLACE VIEW {CATALOG}.{schema}.{quoted(name)} AS {select}")

    def create_view(self, table: str, select: str) -> None:
        """A view over the published tables that stays as it is, in a transaction of its own."""
        with self.publication():
            self.replace_view(table, select)

    def set_positions(
        self, generation: int, changed: Iterable[tuple[int, int]], added: Iterable[tuple[int, int]]
    ) -> None:
        """Move the generation and the changed partitions' next offsets; add the new partitions'."""
        self._writer.execute(self._move({_GENERATION_ROW: generation, **dict(changed)}))
        for number, offset in added:
            self._writer.execute(f"INSERT INTO {CATALOG}.{TAIL}.positions VALUES ({number}, {offset})")

    # -- opening

    def _open_warehouse(self, lake: LakeSettings) -> None:
        warehouse = lake.resolved_warehouse.rstrip("/")
        extensions = ["avro", "iceberg"]
        directories = [warehouse + "/"]
        if warehouse.startswith("file://"):
            directories.append(warehouse.removeprefix("file://") + "/")
        elif lake.is_object_store:
            extensions.insert(0, "httpfs")
        for name in extensions:
            self._root.execute(f"LOAD {literal(str(_extension_path(name)))}")
        if "httpfs" in extensions:
            self._root.execute(_s3_secret(lake.catalog_properties))
            for name, value in _REMOTE.items():
                self._root.execute(f"SET GLOBAL {name} = {literal(value)}")
        listed = ", ".join(literal(directory) for directory in directories)
        self._root.execute(f"SET allowed_directories = [{listed}]")


class _Insert(NamedTuple):
    """An INSERT that was prepared for a segment."""

    name: str
    schema: pa.Schema
    stream: ArrowStream


def _positions(found: list[tuple[int, int]]) -> tuple[int, dict[int, int]]:
    rows = dict(found)
    return rows.pop(_GENERATION_ROW), rows


def _extension_path(name: str) -> Path:
    """The signed extension file that the PyPI package duckdb-extension-<name> ships."""
    try:
        package = importlib.import_module(f"duckdb_extension_{name}")
    except ImportError:
        raise SettingsError(f"the package duckdb-extension-{name} is not installed; run `uv sync`") from None
    folder = Path(str(package.__file__)).parent
    found = next(folder.rglob(f"v{duckdb.__version__}/{name}.duckdb_extension"), None)
    if found is None:
        raise SettingsError(
            f"duckdb-extension-{name} has no file for DuckDB {duckdb.__version__}; install equal versions"
        )
    return found


def _s3_secret(properties: Mapping[str, str]) -> str:
    """CREATE SECRET from PyIceberg's s3.* catalog properties, so that both read the store alike."""
    options = ["TYPE s3"]
    for key, option in (("access-key-id", "KEY_ID"), ("secret-access-key", "SECRET"), ("region", "REGION")):
        if value := properties.get(f"s3.{key}"):
            options.append(f"{option} {literal(value)}")
    if endpoint := properties.get("s3.endpoint"):
        scheme, _, host = endpoint.rpartition("://")
        options += [
            f"ENDPOINT {literal(host)}",
            "URL_STYLE 'path'",
            f"USE_SSL {'false' if scheme == 'http' else 'true'}",
        ]
    return f"CREATE SECRET k2_store ({', '.join(options)})"
