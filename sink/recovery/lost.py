"""A table is not made where one was: its catalog may be lost, or be another one than was meant."""

from __future__ import annotations

from pyiceberg.catalog import Catalog

from common.errors import SettingsError
from sink.recovery.folders import Folder

#: A table's first metadata file, which another process may be writing at this moment; it has no rows.
_FIRST = "00000-"


def refuse_where_one_was(catalog: Catalog, name: str, location: str) -> None:
    """Raises SettingsError when the folder has the metadata of a table that was committed to; CatalogError.

    A table made anew there would take in the log a second time beside the rows that are there, or without those that
    the log no longer has.
    """
    folder = Folder(location, catalog.properties)
    files = sorted(file.rpartition("/")[2] for file, _ in folder.list("metadata") if ".metadata.json" in file)
    committed = [file for file in files if not file.startswith(_FIRST)]
    if committed:
        raise SettingsError(
            f"the catalog {catalog.name} has no table {name}, but {location} has its metadata ({committed[-1]}): if "
            "the catalog was lost, find it again with `k2 tables recover`; else use another warehouse"
        )
