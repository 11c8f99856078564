"""The newest committed state of each table, read from the Iceberg catalog."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import FileFormat, ManifestContent
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import IntegerType, LongType, NestedField, StringType, TimestampType, TimestamptzType
from sqlalchemy.exc import SQLAlchemyError

from common.datasets import Dataset
from common.errors import SnapshotNotFound, Unavailable
from common.iceberg import locations_in
from common.offsets import SUMMARY_KEY, PartitionOffsets
from common.schemas.arrow import field_id, plain, table_schema
from common.settings import LakeSettings
from flight_server.storage.file_index import FileIndex
from flight_server.storage.manifests import ManifestReader
from flight_server.storage.read_view import Snapshot, literal, read_files

#: Up to this many data files a snapshot is read as those files; beyond, by `iceberg_scan`, which reads its manifests
#: for each query and leaves out files by their statistics. A point query, milliseconds, two cores: 10 files 2.5 against
#: 11.7, 64 files 8.9 against 10.9, 256 files 40 against 21.
_FILES_MAX = 32
#: The same in an object store, where `iceberg_scan` fetches metadata and manifest list (three requests) each time it is
#: bound. Binding 1,000 names takes 13 to 16 ms (local files, two busy cores).
_FILES_MAX_REMOTE = 1_000
#: What DuckDB takes for a pattern in the name of a file.
_PATTERN = re.compile(r"[*?\[]")


class SnapshotSource(Protocol):
    """Where snapshots come from."""

    def newest(self, dataset: Dataset, locations: Mapping[str, str | None] | None = None) -> Snapshot:
        """The table's current snapshot; an empty Snapshot when the table does not exist or was never committed to.

        `locations`: where the newest metadata is, where that was asked already. Blocking. Raises Unavailable when the
        catalog does not answer.
        """
        ...


class LoadedTables:
    """Tables as they were loaded last: who needs one again does not fetch its metadata again. Thread-safe."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def find(self, name: str, location: str | None) -> Table | None:
        """The table of this full name if it was loaded from there; None where that is not known."""
        table = self._tables.get(name)
        return table if table is not None and location is not None and table.metadata_location == location else None

    def keep(self, name: str, table: Table) -> None:
        self._tables[name] = table


class IcebergSnapshots:
    """Snapshots of an Iceberg catalog. Not thread-safe: the SQL catalog keeps a connection per thread."""

    def __init__(
        self,
        settings: LakeSettings,
        manifests: ManifestReader | None = None,
        loaded: LoadedTables | None = None,
    ) -> None:
        """Without `manifests` the snapshots have no index of their files."""
        self._settings = settings
        self._files_max = _FILES_MAX_REMOTE if settings.is_object_store else _FILES_MAX
        self._loaded = loaded or LoadedTables()
        self._manifests = manifests
        self._catalog: Catalog | None = None
        #: Table -> manifest -> what it lists (None: not only plain files). A manifest never changes.
        self._listed: dict[str, dict[tuple[str, int], FileIndex | None]] = {}
        #: Table -> snapshot that only appended, and added a file that is there -> the offsets it took in. They outlive
        #: their snapshots' expiry here.
        self._taken: dict[str, dict[int, tuple[PartitionOffsets, PartitionOffsets]]] = {}
        #: Table -> its snapshot as it was found last: a snapshot never changes.
        self._found: dict[str, Snapshot] = {}
        #: Table -> the metadata that was read last. Asking where it is costs one query; reading it costs more the more
        #: snapshots there are, and no other Python runs meanwhile.
        self._read: dict[str, str] = {}

    def locations(self, datasets: Iterable[Dataset]) -> Mapping[str, str | None]:
        """Where the newest metadata of all these tables is, for `newest`: one query where the catalog is SQL.

        Blocking. Raises Unavailable when the catalog does not answer.
        """
        namespaces = {dataset.namespace for dataset in datasets}
        with self._answering(", ".join(sorted(namespaces))):
            return locations_in(self._open(), namespaces)

    def newest(self, dataset: Dataset, locations: Mapping[str, str | None] | None = None) -> Snapshot:
        known = self.locations((dataset,)) if locations is None else locations
        if dataset.table not in known:
            self._found.pop(dataset.table, None)
            self._read.pop(dataset.table, None)
            return Snapshot()
        location = known[dataset.table]
        if location is not None and self._read.get(dataset.table) == location:
            return self._found.get(dataset.table, Snapshot())
        table = self._loaded.find(dataset.table, location) or self._load(dataset)
        current = None if table is None else table.metadata.current_snapshot()
        if table is None or current is None:
            self._found.pop(dataset.table, None)
            if table is not None:
                self._read[dataset.table] = table.metadata_location
            return Snapshot()
        # `iceberg_scan` of a snapshot gives the columns of that snapshot, which may not be the table's newest.
        schemas = {schema.schema_id: schema for schema in table.metadata.schemas}
        fields = schemas.get(current.schema_id or 0, table.schema()).fields
        columns = tuple(field.name for field in fields)
        found = self._found.get(dataset.table)
        if found is not None and found.snapshot_id == current.snapshot_id and found.columns == columns:
            self._read[dataset.table] = table.metadata_location
            return found
        offsets = _offsets(table.metadata, current, dataset.table)
        index = self._index(table, current, dataset)
        one_schema = len(table.metadata.schemas) == 1
        files = index.paths if index is not None and one_schema and 0 < len(index) <= self._files_max else ()
        if files:
            relation = read_files(files)
        else:
            relation = f"iceberg_scan({literal(table.metadata_location)}, snapshot_from_id => {current.snapshot_id})"
        found = self._found[dataset.table] = Snapshot(
            current.snapshot_id,
            relation,
            columns,
            offsets,
            files,
            _rows(current),
            index,
            {} if one_schema else {field.name: field.field_id for field in fields},
            _grown_from(table.metadata, current),
            self._taken_in(table.metadata, index, dataset.table),
            self._settings.is_object_store,
            further_columns(fields, dataset),
        )
        self._read[dataset.table] = table.metadata_location
        return found

    def _index(self, table: Table, snapshot: Any, dataset: Dataset) -> FileIndex | None:
        """The snapshot's files; None when they are not plain files of rows, or nobody reads manifests here.

        Each manifest is read once: a commit adds one or merges some. Raises Unavailable.
        """
        if self._manifests is None:
            return None
        name = dataset.table
        columns = _indexed_columns(table, dataset)
        schema_id = int(table.metadata.current_schema_id)
        before = self._listed.get(name, {})
        now: dict[tuple[str, int], FileIndex | None] = {}
        try:
            manifests = snapshot.manifests(table.io)
        except OSError as error:
            raise Unavailable(
                f"the manifests of {name} cannot be listed ({str(error).splitlines()[0]}); check the file store"
            ) from None
        for manifest in manifests:
            key = (manifest.manifest_path, schema_id)
            if manifest.content != ManifestContent.DATA:
                now[key] = None
            elif key in before:
                now[key] = before[key]
            else:
                now[key] = self._manifests.read(manifest.manifest_path, int(manifest.added_snapshot_id), columns)
        self._listed[name] = now
        listed = [found for found in now.values() if found is not None]
        return None if len(listed) < len(now) or not listed else FileIndex.joined(listed)

    def _taken_in(
        self, metadata: Any, index: FileIndex | None, name: str
    ) -> Mapping[int, tuple[PartitionOffsets, PartitionOffsets]]:
        """The offsets that the files' snapshots took in, of those that only appended, as far as they were seen here.

        As many as there are files at most: what compaction has taken up is not asked for again.
        """
        if index is None:
            return {}
        known = self._taken.get(name, {})
        snapshots = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
        found = {adder: known.get(adder) or _taken_by(adder, snapshots) for adder in index.added_by}
        self._taken[name] = {adder: taken for adder, taken in found.items() if taken is not None}
        return self._taken[name]

    def _load(self, dataset: Dataset) -> Table | None:
        try:
            with self._answering(dataset.table):
                table = self._open().load_table(dataset.table)
        except (NoSuchTableError, NoSuchNamespaceError):
            return None
        self._loaded.keep(dataset.table, table)
        return table

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise Unavailable(
                f"the catalog {self._settings.catalog_name} did not answer for {what} ({reason}); "
                "check K2_LAKE_CATALOG_URI and that its database runs"
            ) from None

    def _open(self) -> Catalog:
        if self._catalog is None:
            settings = self._settings
            self._catalog = load_catalog(
                settings.catalog_name,
                **{
                    "type": "sql",
                    "uri": settings.resolved_catalog_uri,
                    "warehouse": settings.resolved_warehouse,
                    **settings.catalog_properties,
                },
            )
        return self._catalog


def further_columns(fields: Sequence[NestedField], dataset: Dataset) -> tuple[pa.Field, ...]:
    """What a table has beyond the dataset's packaged schema, by field ids, as Arrow has it; all of it may be null."""
    known = {field_id(field) for field in table_schema(dataset.schema_name)}
    further = [field for field in fields if field.field_id not in known]
    if not further:
        return ()
    return tuple(plain(field).with_nullable(True) for field in schema_to_pyarrow(Schema(*further)))


def plain_files(table: Table, snapshot: Any) -> list[str] | None:
    """The data files whose rows are exactly the snapshot's, in the table's one schema; None when there is more to it.

    Such as deletes, files of an older schema, or more files than are worth naming.
    """
    if len(table.metadata.schemas) != 1:
        return None
    counted = (snapshot.summary or {}).get("total-data-files")
    if counted is None or not 0 < int(counted) <= _FILES_MAX:
        return None
    paths: list[str] = []
    for manifest in snapshot.manifests(table.io):
        if manifest.content != ManifestContent.DATA:
            return None
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            path = entry.data_file.file_path
            if entry.data_file.file_format != FileFormat.PARQUET or _PATTERN.search(path):
                return None
            paths.append(path)
    return sorted(paths) if len(paths) == int(counted) else None


def _indexed_columns(table: Table, dataset: Dataset) -> dict[str, tuple[int, bool]]:
    """The columns whose bounds are kept: name -> (field id, whether it is a string). Strings that the files are not
    sorted by lie anywhere in each file."""
    numbers = (IntegerType, LongType, TimestampType, TimestamptzType)
    return {
        field.name: (field.field_id, isinstance(field.field_type, StringType))
        for field in table.schema().fields
        if isinstance(field.field_type, numbers)
        or (isinstance(field.field_type, StringType) and field.name in dataset.sort_columns)
    }


def _only_appends(snapshot: Any) -> bool:
    return snapshot.summary is not None and snapshot.summary.operation is Operation.APPEND


def _grown_from(metadata: Any, snapshot: Any) -> frozenset[int | None]:
    """The ancestors out of which the snapshot came by nothing but appends and changes of layout (Iceberg's replace);
    None among them is the empty table."""
    found: list[int | None] = []
    current = snapshot
    while current is not None and current.summary is not None:
        if current.summary.operation not in (Operation.APPEND, Operation.REPLACE):
            break
        parent = current.parent_snapshot_id
        found.append(parent)
        current = None if parent is None else metadata.snapshot_by_id(parent)
    return frozenset(found)


def _taken_by(snapshot_id: int, snapshots: Mapping[int, Any]) -> tuple[PartitionOffsets, PartitionOffsets] | None:
    """The offsets that a snapshot took in; None when it did more than append, or nobody knows any more."""
    snapshot = snapshots.get(snapshot_id)
    if snapshot is None or not _only_appends(snapshot):
        return None
    parent = snapshot.parent_snapshot_id
    begin = PartitionOffsets() if parent is None else _own_offsets(snapshots.get(parent))
    end = _own_offsets(snapshot)
    return None if begin is None or end is None else (begin, end)


def _rows(snapshot: Any) -> int:
    return int((snapshot.summary or {}).get("total-records") or 0)


def _own_offsets(snapshot: Any) -> PartitionOffsets | None:
    entry = None if snapshot is None or snapshot.summary is None else snapshot.summary.get(SUMMARY_KEY)
    return None if entry is None else PartitionOffsets.from_text(entry)


def _offsets(metadata: Any, snapshot: Any, table: str) -> PartitionOffsets:
    """The next offsets of a snapshot; a snapshot by a foreign writer has none, then its ancestors' hold (rule 1)."""
    current = snapshot
    while current is not None:
        entry = None if current.summary is None else current.summary.get(SUMMARY_KEY)
        if entry is not None:
            return PartitionOffsets.from_text(entry)
        parent = current.parent_snapshot_id
        current = None if parent is None else metadata.snapshot_by_id(parent)
    raise SnapshotNotFound(
        f"no snapshot in the history of {table} says which Kafka offsets it holds ({SUMMARY_KEY}); "
        "a foreign tool may have expired them: roll the table back to a snapshot of the sink's"
    )
