"""What everybody who works with PyIceberg (0.12) needs: a catalog connection, its errors as ours, a cheap transaction.

The homes of PyIceberg are this module, the sink's and the flight server's: tests/unit/test_rooms.py lists them.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from pyiceberg.io import load_file_io
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import TableProperties, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import _apply_table_update, _TableMetadataUpdateContext
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _OverwriteFiles
from sqlalchemy import select
from sqlalchemy.orm import Session

from common.errors import CatalogError, K2Error
from common.settings import LakeSettings

_SQLITE_BUSY_S = 30
_TOUCH = b"k2 was here"
#: Where the table does not say: manifests are merged from 20 on, into ones of 8 MiB.
_MANIFEST_BYTES, _MANIFESTS_MERGED_MIN = 8 * 1024**2, 20


def open_catalog(settings: LakeSettings) -> Catalog:
    """A catalog connection of one's own. Raises SettingsError (data directory), CatalogError (unreachable)."""
    properties: dict[str, Any] = {"warehouse": settings.resolved_warehouse, **settings.catalog_properties}
    uri = properties.setdefault("uri", settings.resolved_catalog_uri)
    sqlite = uri.startswith("sqlite:")
    if settings.catalog_uri is None or settings.warehouse is None:
        settings.prepare()
    if sqlite and "timeout=" not in uri:
        # Writers of several tables share the file; one waits for the other instead of failing.
        properties["uri"] = f"{uri}{'&' if '?' in uri else '?'}timeout={_SQLITE_BUSY_S}"
    if "type" not in properties and not uri.startswith(("http:", "https:", "thrift:")):
        properties["type"] = "sql"
    with translated(f"open the catalog {settings.catalog_name} at {_without_password(uri)}"):
        catalog = _load_catalog(settings.catalog_name, properties)
        if sqlite and hasattr(catalog, "engine"):
            with catalog.engine.connect() as connection:  # readers do not wait for a writer, nor it for them
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return catalog


def listed_tables(settings: LakeSettings) -> list[str]:
    """The names of all tables of a catalog, which is opened and left as it is. Raises SettingsError, CatalogError."""
    properties = {**settings.catalog_properties, "init_catalog_tables": "false"}
    catalog = open_catalog(settings.model_copy(update={"catalog_properties": properties}))
    with translated(f"list the tables of the catalog {settings.catalog_name}"):
        names = [catalog.list_tables(namespace) for namespace in catalog.list_namespaces()]
    return sorted(".".join(name) for of_namespace in names for name in of_namespace)


def touch_store(settings: LakeSettings) -> None:
    """Write a small file beside the tables, read it, and delete it. Raises CatalogError."""
    name = f"{settings.resolved_warehouse.rstrip('/')}/k2-doctor-{uuid.uuid4().hex}"
    with translated(f"write, read and delete a file in {settings.resolved_warehouse}"):
        store = load_file_io(dict(settings.catalog_properties), settings.resolved_warehouse)
        with store.new_output(name).create() as out:
            out.write(_TOUCH)
        try:
            with store.new_input(name).open() as file:
                if file.read() != _TOUCH:
                    raise CatalogError(f"{settings.resolved_warehouse} gave back another file than it was given")
        finally:
            store.delete(name)


class ThriftyTransaction(Transaction):
    """PyIceberg's transaction without its cost of history.

    `Transaction.table_metadata` copies the whole metadata deeply each time it is read, about 20 times per append. Here
    the staged updates are applied once, to what they change, and the rest is shared with the table's own metadata:
    nothing of PyIceberg changes metadata in place. One append, metadata with 100 / 300 snapshots: 141 / 325 ms with
    PyIceberg's, 35 / 51 ms with one deep copy for all; a commit on 120 snapshots took 65 ms of CPU with two such
    copies, 46 with none (two busy cores).
    """

    _seen: tuple[object, object, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        seen = self._seen
        if seen is None or seen[0] is not self._updates or seen[1] is not self._table.metadata:
            metadata, context = self._table.metadata, _TableMetadataUpdateContext()
            for update in self._updates:
                metadata = _apply_table_update(update, metadata, context)
            seen = self._seen = (self._updates, self._table.metadata, metadata)
        return seen[2]


class MergingOverwrite(_OverwriteFiles):
    """PyIceberg's overwrite, which leaves as few manifests as its merging append does.

    Without this each commit leaves its manifest of added files and the one that lists what left, for ever.
    """

    @classmethod
    def of(cls, transaction: Transaction, summary: Mapping[str, str]) -> Self:
        """To be used as a context: at its end the snapshot is staged in the transaction."""
        table = transaction._table
        return cls(Operation.OVERWRITE, transaction, table.io, snapshot_properties=dict(summary))

    def _existing_manifests(self) -> list[ManifestFile]:
        return [m for m in super()._existing_manifests() if m.has_added_files() or m.has_existing_files()]

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        properties = self._transaction.table_metadata.properties
        merger: _ManifestMergeManager[Any] = _ManifestMergeManager(
            target_size_bytes=int(properties.get(TableProperties.MANIFEST_TARGET_SIZE_BYTES, _MANIFEST_BYTES)),
            min_count_to_merge=int(properties.get(TableProperties.MANIFEST_MIN_MERGE_COUNT, _MANIFESTS_MERGED_MIN)),
            merge_enabled=True,
            snapshot_producer=self,
        )
        rows = [manifest for manifest in manifests if manifest.content == ManifestContent.DATA]
        return merger.merge_manifests(rows) + [m for m in manifests if m.content != ManifestContent.DATA]


def summary_entry(snapshot: Snapshot, key: str) -> str | None:
    return None if snapshot.summary is None else snapshot.summary.get(key)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """PyIceberg's, SQLAlchemy's and the file store's exceptions as CatalogError; ours pass."""
    try:
        yield
    except K2Error:
        raise
    except (NoSuchTableError, NoSuchNamespaceError) as error:
        raise CatalogError(f"could not {doing}: it is gone from the catalog ({reason(error)})") from None
    except Exception as error:  # noqa: BLE001 - catalogs and file stores raise without a common base
        raise CatalogError(f"could not {doing}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """A library's exception in one line."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def ensure_namespace(catalog: Catalog, namespace: str) -> None:
    """Make the namespace if it is missing, whoever else does so at the same moment."""
    try:
        catalog.create_namespace_if_not_exists(namespace)
    except Exception:  # whoever was first in between: only whether it is there now matters
        if not catalog.namespace_exists(namespace):
            raise


def _load_catalog(name: str, properties: dict[str, Any]) -> Catalog:
    try:
        return load_catalog(name, **properties)
    except Exception as error:
        # Two processes that meet at a new SQL catalog both make its tables; the second find them made.
        if "already exists" not in str(error):
            raise
        return load_catalog(name, **properties)


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if "@" in rest else uri


def metadata_locations(catalog: Catalog, namespace: str) -> dict[str, str | None]:
    """Table -> where its metadata is, by one query; None where the kind of catalog tells only by loading.

    Raises what the catalog raises, but for a namespace that does not exist, which has no tables.
    """
    found = locations_in(catalog, (namespace,))
    return {name.removeprefix(f"{namespace}."): location for name, location in found.items()}


def locations_in(catalog: Catalog, namespaces: Collection[str]) -> dict[str, str | None]:
    """As `metadata_locations`, of several namespaces and by the tables' full names; of an SQL catalog still one query,
    so that all of it is of one moment."""
    if isinstance(catalog, SqlCatalog):
        query = select(IcebergTables.table_namespace, IcebergTables.table_name, IcebergTables.metadata_location).where(
            IcebergTables.catalog_name == catalog.name, IcebergTables.table_namespace.in_(namespaces)
        )
        only_tables = catalog._iceberg_type_filter()
        with Session(catalog.engine) as session:
            rows = session.execute(query if only_tables is None else query.where(only_tables)).all()
        return {f"{row.table_namespace}.{row.table_name}": row.metadata_location for row in rows}
    found: dict[str, str | None] = {}
    for namespace in namespaces:
        with contextlib.suppress(NoSuchNamespaceError):
            found |= {f"{namespace}.{identifier[-1]}": None for identifier in catalog.list_tables(namespace)}
    return found
