"""An export as an Iceberg table of its own: its files, and a SQLite catalog beside them.

The files are the export's own, made and named as those of any export; one commit takes them all in at the end. The
table is whole or not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.transforms import DayTransform, IdentityTransform, Transform

from clients.export.manifest import ExportError, Manifest
from clients.export.plan import DATE
from common.iceberg import reason, summary_entry

CATALOG, TABLE = "_catalog.db", "export.rows"
_EXPORT_KEY = "k2.export-id"


def check(manifest: Manifest) -> None:
    """Raises ExportError for a result that no Iceberg table can hold."""
    _spec(manifest, _schema(manifest))


def commit(folder: Path, manifest: Manifest) -> None:
    """The table `export.rows` in the folder's catalog, with all files. Called again, it leaves what is there.

    Raises ExportError.
    """
    location = folder.resolve()
    try:
        catalog = SqlCatalog("export", uri=f"sqlite:///{location / CATALOG}", warehouse=location.as_uri())
        catalog.create_namespace_if_not_exists("export")
        try:
            table = catalog.load_table(TABLE)
        except NoSuchTableError:
            schema = _schema(manifest)
            at = f"{location.as_uri()}/_table"
            table = catalog.create_table(TABLE, schema, at, partition_spec=_spec(manifest, schema))
        if manifest.id in [summary_entry(each, _EXPORT_KEY) for each in table.metadata.snapshots]:
            return
        paths = [f"{location.as_uri()}/{each.path}" for each in manifest.files]
        table.add_files(paths, snapshot_properties={_EXPORT_KEY: manifest.id, "k2.cut": manifest.cut or ""})
    except ExportError:
        raise
    except Exception as error:  # noqa: BLE001  (catalogs and file stores raise without a common base)
        raise ExportError(f"the files are written and the Iceberg table is not: {reason(error)}") from None


def _schema(manifest: Manifest) -> Schema:
    try:
        return assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(manifest.schema))
    except Exception as error:  # noqa: BLE001  (each kind of type has its own)
        raise ExportError(
            f"the result cannot be an Iceberg table ({reason(error)}); cast that column, or take --format parquet"
        ) from None


def _spec(manifest: Manifest, schema: Schema) -> PartitionSpec:
    fields = []
    for number, name in enumerate(manifest.request.partition_by):
        is_day = name == DATE and manifest.date_of is not None
        source = schema.find_field(manifest.date_of if is_day and manifest.date_of else name)
        transform: Transform[Any, Any] = DayTransform() if is_day else IdentityTransform()
        fields.append(PartitionField(source.field_id, 1000 + number, transform, name))
    return PartitionSpec(*fields)
