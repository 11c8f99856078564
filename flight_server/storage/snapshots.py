"""The newest committed state of each table, read from the Iceberg catalog."""

from __future__ import annotations

from typing import Any, Protocol

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
from sqlalchemy.exc import SQLAlchemyError

from common.datasets import Dataset
from common.errors import SnapshotNotFound, Unavailable
from common.offsets import SUMMARY_KEY, PartitionOffsets
from common.settings import LakeSettings
from flight_server.storage.read_view import Snapshot, literal


class SnapshotSource(Protocol):
    """Where snapshots come from."""

    def newest(self, dataset: Dataset) -> Snapshot:
        """The table's current snapshot; an empty Snapshot when the table does not exist or was never committed to.

        Blocking. Raises Unavailable when the catalog does not answer.
        """
        ...


class IcebergSnapshots:
    """Snapshots of an Iceberg catalog. Not thread-safe: the SQL catalog keeps a connection per thread."""

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        self._catalog: Catalog | None = None

    def newest(self, dataset: Dataset) -> Snapshot:
        try:
            table = self._open().load_table(dataset.table)
        except (NoSuchTableError, NoSuchNamespaceError):
            return Snapshot()
        except (SQLAlchemyError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise Unavailable(
                f"the catalog {self._settings.catalog_name} did not answer for {dataset.table} ({reason}); "
                "check K2_LAKE_CATALOG_URI and that its database runs"
            ) from None
        current = table.metadata.current_snapshot()
        if current is None:
            return Snapshot()
        relation = f"iceberg_scan({literal(table.metadata_location)}, snapshot_from_id => {current.snapshot_id})"
        columns = tuple(column.name for column in table.schema().fields)
        return Snapshot(current.snapshot_id, relation, columns, _offsets(table.metadata, current, dataset.table))

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
