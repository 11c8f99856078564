"""Any table of the catalog as the jobs see it: the market's, the users' in `research`, those of other tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from common.datasets import MARKET
from common.errors import TableNotFound
from common.iceberg import metadata_locations, open_catalog, translated
from common.settings import LakeSettings


class AnyTable:
    """A table by its name, through a catalog connection that others may share. One thread at a time."""

    def __init__(self, catalog: Catalog, table: Table) -> None:
        self._catalog = catalog
        self._table = table

    @property
    def name(self) -> str:
        return ".".join(self._table.name())

    @property
    def iceberg_table(self) -> Table:
        return self._table

    def reload(self) -> None:
        with translated(f"load the table {self.name}"):
            self._table = self._catalog.load_table(self.name)


def table_names(catalog: Catalog) -> list[str]:
    """The full names of all tables, in order. Raises CatalogError."""
    with translated("list the tables"):
        namespaces = sorted(".".join(namespace) for namespace in catalog.list_namespaces())
        return [f"{namespace}.{name}" for namespace in namespaces for name in sorted(_names_in(catalog, namespace))]


def open_tables(settings: LakeSettings, names: Sequence[str] = ()) -> list[AnyTable]:
    """The tables of these names, in the order given, all tables when none is; none is made.

    A name without a namespace is one of the market's. Raises TableNotFound, CatalogError, SettingsError.
    """
    catalog = open_catalog(settings)
    present = table_names(catalog)
    wanted = [name if "." in name else f"{MARKET}.{name}" for name in names] or present
    for name in wanted:
        if name not in present:
            raise TableNotFound(f"there is no table {name} in the catalog; {_there_are(present)}")
    with translated("load the tables"):
        return [AnyTable(catalog, catalog.load_table(name)) for name in dict.fromkeys(wanted)]


def _names_in(catalog: Catalog, namespace: str) -> Iterable[str]:
    return metadata_locations(catalog, namespace)


def _there_are(names: Sequence[str]) -> str:
    return f"there are {', '.join(names)}" if names else "there are none yet"
