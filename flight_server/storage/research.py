"""Users' own Iceberg tables: the namespace `research`, written with PyIceberg (0.12) and read by anybody.

What holds:

- A write is one snapshot. Its rows stream into data files that nothing refers to; `commit` makes all of them part of
  the table in one compare-and-swap of the catalog, or none. A write that is aborted, or whose process dies, never was.
- After CommitConflict nothing landed, and the files are gone. After CommitStateUnknown nobody knows, and nothing is
  deleted.
- Tables are ordinary ones (format 2, Parquet with zstd, column statistics, not partitioned), each in a folder of its
  own that a later table of the same name does not share. Other engines on the same catalog read and write them too.
- What a reader has open stays readable: files are deleted an hour after they became unreachable.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids, schema_to_pyarrow
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from common.clock import Clock, SystemClock
from common.errors import CatalogError, InvalidStatement, SnapshotNotFound, TableNotFound, Unsupported
from common.iceberg import ensure_namespace, metadata_locations, open_catalog, reason, translated
from common.settings import LakeSettings
from common.telemetry import get_logger
from flight_server.storage.as_of import AsOfSnapshot, AsOfTime
from flight_server.storage.read_view import literal, read_files
from flight_server.storage.research_types import storable
from flight_server.storage.research_upkeep import SNAPSHOTS_KEPT, SNAPSHOTS_KEPT_KEY, Unreachable
from flight_server.storage.research_write import (
    GROUP_ROWS,
    Append,
    Create,
    Replace,
    ResearchWrite,
    Target,
    arrow_columns,
)
from flight_server.storage.snapshots import plain_files

NAMESPACE = "research"
#: Table property: the principal that made the table.
OWNER_KEY = "k2.owner"
COMMENT_KEY = "comment"

TABLE_PROPERTIES: Mapping[str, str] = {
    "format-version": "2",
    # A conflicting commit fails here first; whether it may be made again is decided in ResearchWrite.
    "commit.retry.num-retries": "0",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    SNAPSHOTS_KEPT_KEY: str(SNAPSHOTS_KEPT),
    "write.parquet.compression-codec": "zstd",
    "write.parquet.row-group-limit": str(GROUP_ROWS),
}
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,127}")
_RESERVED = re.compile(r"(?:k2|duckdb|sqlite|pg|iceberg)_|information_schema$")


class WriteMode(Enum):
    """What a write does with the table of its name; each of them in one step."""

    CREATE = "create"  #: makes it; fails if it exists
    APPEND = "append"  #: adds rows; fails if it does not exist
    REPLACE = "replace"  #: makes it, or puts new columns and rows in the place of the old ones
    CREATE_APPEND = "create_append"  #: adds rows; makes it when it does not exist


@dataclass(frozen=True)
class ResearchTable:
    """One table as of one commit. `relation` is SQL that gives its rows, None while it has no snapshot.

    `arrow_schema` has its columns in Iceberg's own types, nullability and comments (`doc`) included.
    """

    name: str
    metadata_location: str
    snapshot_id: int | None
    relation: str | None
    arrow_schema: pa.Schema
    rows: int
    owner: str | None = None
    comment: str | None = None


class ResearchTables:
    """The namespace, through one catalog connection that is opened at first use. Thread-safe; every call blocks on the
    catalog. Raises CatalogError when that does not answer.
    """

    def __init__(self, settings: LakeSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._log = get_logger("flight_server.storage")
        self._lock = threading.Lock()
        self._opened: Catalog | None = None
        self._known: dict[str, ResearchTable] = {}
        self._unreadable: set[str] = set()
        self._unreachable = Unreachable(clock or SystemClock())
        self._turns: dict[str, threading.Lock] = {}

    def tables(self) -> list[ResearchTable]:
        """All tables as they are now, by name. One query of the catalog; metadata is read only of what changed.

        A table that cannot be read (a foreign tool broke it) is left out, with a line in the log.
        """
        listed = self._locations()
        with self._lock:
            known = dict(self._known)
        found: dict[str, ResearchTable] = {}
        for name, location in listed.items():
            before = known.get(name)
            if before is not None and location == before.metadata_location:
                found[name] = before
                continue
            try:
                table = self._load(name)
                if table is not None:
                    found[name] = _described(name, table)
            except (CatalogError, Unsupported) as error:
                if location is None or location not in self._unreadable:
                    self._log.warning("a research table cannot be read", table=name, reason=str(error))
                    self._unreadable.add(location or "")
        with self._lock:
            self._known = found
        return [found[name] for name in sorted(found)]

    def table(self, name: str) -> ResearchTable | None:
        """One table as it is now, whatever the case of `name`; None when there is none."""
        stored = self._find(valid_name(name))
        return None if stored is None else _described(stored.name()[-1], stored)

    def snapshot_at(self, name: str, as_of: AsOfSnapshot | AsOfTime) -> int:
        """The id of one of the table's snapshots, or of the one that was current at a time.

        Raises TableNotFound, SnapshotNotFound, and Unsupported when the table had other columns then.
        """
        return int(self._snapshot_at(name, as_of)[1].snapshot_id)

    def select_at(self, name: str, snapshot_id: int) -> str:
        """The SELECT that gives the table's rows as of one of its snapshots. Raises as `snapshot_at`."""
        table, found = self._snapshot_at(name, AsOfSnapshot(snapshot_id))
        return (
            f"SELECT * FROM iceberg_scan({literal(table.metadata_location)}, snapshot_from_id => {found.snapshot_id})"
        )

    def begin_write(
        self,
        name: str,
        schema: pa.Schema,
        mode: WriteMode,
        *,
        owner: str | None = None,
        comment: str | None = None,
        sql_types: Sequence[str] | None = None,
    ) -> ResearchWrite:
        """A write of rows of `schema`; nothing is to be seen of it before its `commit`.

        `sql_types`: DuckDB's names for the columns' types, where the rows are a query's (see research_types.storable).
        `owner` and `comment` become properties of a table that is made or replaced. Raises InvalidStatement (a name, a
        column, or the table exists already), TableNotFound, Unsupported (a type that Iceberg lacks), CatalogError.
        """
        name = valid_name(name)
        current = self._find(name)
        if current is None and mode is WriteMode.APPEND:
            raise TableNotFound(
                f"the table {NAMESPACE}.{name} does not exist; create it, or use the mode create_append"
            )
        if current is not None and mode is WriteMode.CREATE:
            raise InvalidStatement(
                f"the table {NAMESPACE}.{name} exists already; append to it, replace it, or choose another name"
            )
        properties = {key: value for key, value in ((OWNER_KEY, owner), (COMMENT_KEY, comment)) if value is not None}
        if current is None:
            return self._begin_create(name, storable(schema, sql_types), schema, properties)
        _check_writable(current)
        if mode is WriteMode.REPLACE:
            return self._begin_replace(current, storable(schema, sql_types), schema, properties)
        if sql_types is not None:
            storable(schema, sql_types)
        target = Target(current.metadata, current.schema(), current.io)
        return self._write(current.name()[-1], target, schema, Append(current))

    def drop(self, name: str, *, if_exists: bool = False) -> bool:
        """Take the table out of the catalog; True when it was there. Its files are deleted by a later `sweep`.

        Raises TableNotFound when it is not there, unless `if_exists`.
        """
        name = valid_name(name)
        table = self._find(name)
        if table is None and if_exists:
            return False
        with translated(f"drop the table {NAMESPACE}.{name}"):
            try:
                if table is None:
                    raise NoSuchTableError(name)
                self._catalog().drop_table(table.name())
            except NoSuchTableError:
                if if_exists:
                    return False
                raise TableNotFound(f"the table {NAMESPACE}.{name} does not exist") from None
        with self._lock:
            self._known.pop(table.name()[-1], None)
        self._unreachable.dropped(table.metadata, table.metadata_location, table.io)
        return True

    def truncate(self, name: str) -> int:
        """Leave the table with its columns and no rows; returns how many it had. Raises as a commit does."""
        table = self._find(valid_name(name))
        if table is None:
            raise TableNotFound(f"the table {NAMESPACE}.{valid_name(name)} does not exist")
        _check_writable(table)
        had = _described(table.name()[-1], table).rows
        target = Target(table.metadata, table.schema(), table.io)
        self._write(table.name()[-1], target, arrow_columns(table.schema()), Replace(table, None, {})).commit()
        return had

    def sweep(self) -> int:
        """Delete files that nobody can reach any more, if they are due; returns how many."""
        return self._unreachable.sweep()

    # -- inside

    def _snapshot_at(self, name: str, as_of: AsOfSnapshot | AsOfTime) -> tuple[Table, Snapshot]:
        table = self._find(valid_name(name))
        if table is None:
            raise TableNotFound(f"the table {NAMESPACE}.{valid_name(name)} does not exist")
        full_name = f"{NAMESPACE}.{table.name()[-1]}"
        if isinstance(as_of, AsOfSnapshot):
            found = table.snapshot_by_id(as_of.snapshot_id)
        else:
            found = table.snapshot_as_of_timestamp(as_of.time_us // 1_000)
        if found is None:
            raise SnapshotNotFound(f"{full_name} has no such snapshot; give the id of one, or a time since its first")
        if found.schema_id is not None and table.schemas()[found.schema_id] != table.schema():
            raise Unsupported(f"{full_name} had other columns then; K2 reads tables with those they have now")
        return table, found

    def _catalog(self) -> Catalog:
        with self._lock:
            if self._opened is None:
                self._opened = open_catalog(self._settings)
            return self._opened

    def _locations(self) -> dict[str, str | None]:
        """Table -> where its metadata is; None where the kind of catalog tells only by loading."""
        catalog = self._catalog()
        with translated(f"list the tables of {NAMESPACE}"):
            return metadata_locations(catalog, NAMESPACE)

    def _load(self, name: str) -> Table | None:
        with translated(f"load the table {NAMESPACE}.{name}"):
            try:
                return self._catalog().load_table((NAMESPACE, name))
            except (NoSuchTableError, NoSuchNamespaceError):
                return None

    def _find(self, name: str) -> Table | None:
        """The table of that name; names that differ in case only are one."""
        stored = next((stored for stored in self._locations() if stored.casefold() == name), None)
        return None if stored is None else self._load(stored)

    def _begin_create(
        self, name: str, columns: pa.Schema, schema: pa.Schema, properties: Mapping[str, str]
    ) -> ResearchWrite:
        catalog = self._catalog()
        folder = f"{self._settings.resolved_warehouse.rstrip('/')}/{NAMESPACE}/{name}-{uuid.uuid4().hex[:12]}"
        with translated(f"begin the table {NAMESPACE}.{name}"):
            ensure_namespace(catalog, NAMESPACE)
            transaction = catalog.create_table_transaction(
                (NAMESPACE, name), _iceberg(columns, 0), location=folder, properties={**TABLE_PROPERTIES, **properties}
            )
            metadata = transaction.table_metadata
            target = Target(metadata, metadata.schema(), transaction._table.io)
        return self._write(name, target, schema, Create(transaction))

    def _begin_replace(
        self, table: Table, columns: pa.Schema, schema: pa.Schema, properties: Mapping[str, str]
    ) -> ResearchWrite:
        metadata = table.metadata
        present = arrow_columns(table.schema())
        new = None
        if not columns.equals(present, check_metadata=True):
            numbered = _iceberg(columns, metadata.last_column_id)
            new = Schema(*numbered.fields, schema_id=max(known.schema_id for known in metadata.schemas) + 1)
        target = Target(metadata, new or table.schema(), table.io)
        return self._write(table.name()[-1], target, schema, Replace(table, new, properties))

    def _write(self, name: str, target: Target, schema: pa.Schema, change: Create | Append | Replace) -> ResearchWrite:
        def load() -> Table | None:
            return self._load(name)

        turn = self._turn(name)
        return ResearchWrite(f"{NAMESPACE}.{name}", target, schema, change, load, turn, self._unreachable)

    def _turn(self, name: str) -> threading.Lock:
        with self._lock:
            return self._turns.setdefault(name, threading.Lock())


def valid_name(name: str) -> str:
    """The table's name as it is stored: in lower case. Raises InvalidStatement when it may not be one."""
    folded = name.casefold()
    if not _NAME.fullmatch(folded):
        raise InvalidStatement(
            f"{name[:140]!r} cannot be the name of a {NAMESPACE} table: use up to 128 letters a-z, digits and _, "
            "not beginning with a digit"
        )
    if _RESERVED.match(folded):
        raise InvalidStatement(f"names such as {name} are reserved; choose another one for the {NAMESPACE} table")
    return folded


def _check_writable(table: Table) -> None:
    if not table.spec().is_unpartitioned():
        raise Unsupported(
            f"{NAMESPACE}.{table.name()[-1]} is partitioned by another tool; K2 reads it, write to it with that tool"
        )
    if table.metadata.format_version != 2:
        raise Unsupported(
            f"{NAMESPACE}.{table.name()[-1]} has the Iceberg format {table.metadata.format_version}; K2 writes format 2"
        )


def _described(name: str, table: Table) -> ResearchTable:
    current = table.metadata.current_snapshot()
    relation, rows = None, 0
    if current is not None:
        with translated(f"read a manifest of {NAMESPACE}.{name}"):
            relation = _relation(table, current)
        rows = int((None if current.summary is None else current.summary.get("total-records")) or 0)
    properties = table.metadata.properties
    with translated(f"understand the columns of {NAMESPACE}.{name}"):
        return ResearchTable(
            name=name,
            metadata_location=table.metadata_location,
            snapshot_id=None if current is None else int(current.snapshot_id),
            relation=relation,
            arrow_schema=schema_to_pyarrow(table.schema(), include_field_ids=False),
            rows=rows,
            owner=properties.get(OWNER_KEY),
            comment=properties.get(COMMENT_KEY),
        )


def _relation(table: Table, snapshot: Snapshot) -> str:
    """SQL that gives the snapshot's rows, as quickly as that can be had."""
    files = plain_files(table, snapshot)
    if files is not None:
        return read_files(files)
    return f"iceberg_scan({literal(table.metadata_location)}, snapshot_from_id => {snapshot.snapshot_id})"


def _iceberg(columns: pa.Schema, last_id: int) -> Schema:
    """Arrow's columns in Iceberg, numbered from behind `last_id`. Raises InvalidStatement when names are ambiguous."""
    numbers = iter(range(last_id + 1, last_id + 1_000_000))
    try:
        return assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(columns), lambda: next(numbers))
    except ValueError as error:
        raise InvalidStatement(f"these columns cannot be a table: {reason(error)}") from None
