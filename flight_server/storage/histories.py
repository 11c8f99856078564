"""The past of the tables: what a cut, a snapshot or a time means for one, whether all of it is still there, and which
columns it had. Asked only by statements that read the past; the catalog is then asked where the newest metadata is, and
what was read once is not read again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

from common.commit_files import CommitLog
from common.datasets import Dataset
from common.errors import SnapshotExpired, Unavailable
from common.iceberg import metadata_locations, open_catalog, reason, translated
from common.schemas.arrow import FIELD_ID_KEY
from common.settings import LakeSettings
from flight_server.storage.as_of import AsOf, AsOfCut, check_complete, table_cut
from flight_server.storage.read_view import TableCut
from flight_server.storage.snapshots import LoadedTables

_T = TypeVar("_T")
#: How often a question is asked again when history files are merged under it.
_ASKED_MAX = 3


class Histories:
    """Thread-safe; one question at a time. Every question blocks on the catalog and the file store, and raises
    CatalogError or Unavailable when they do not answer.
    """

    def __init__(self, settings: LakeSettings, loaded: LoadedTables | None = None) -> None:
        self._settings = settings
        self._loaded = loaded or LoadedTables()
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._logs: dict[str, CommitLog] = {}
        #: Table -> where the metadata is that its log goes by.
        self._read: dict[str, str] = {}

    def table_cut(self, dataset: Dataset, as_of: AsOf) -> TableCut:
        """The positions that `as_of` means for a table. Raises as as_of.table_cut; nothing is asked for a cut."""
        if isinstance(as_of, AsOfCut):
            return table_cut(dataset.table, as_of)
        return self._asked(dataset, lambda log: table_cut(dataset.table, as_of, log))

    def check_complete(self, dataset: Dataset, wanted: TableCut, now_id: int | None) -> None:
        """Raises SnapshotExpired unless all rows of the cut are in the snapshot that is read now."""
        self._asked(dataset, lambda log: check_complete(dataset.table, wanted, now_id, log), knowing=now_id)

    def columns(self, dataset: Dataset, wanted: TableCut, shown: pa.Schema) -> tuple[tuple[str, str], ...] | None:
        """The columns that the table had at a cut, as (name now, name then), in the order of now; None: as now.

        `shown` are those that it has now. Columns are the same when their field ids are. Raises SnapshotExpired when
        nobody knows them.
        """
        now = {int(field.metadata[FIELD_ID_KEY]): field.name for field in shown}

        def find(log: CommitLog) -> tuple[tuple[str, str], ...] | None:
            if wanted.snapshot_id is None or log.metadata is None:
                return None
            schemas = {schema.schema_id: schema for schema in log.metadata.schemas}
            commit = log.by_id(wanted.snapshot_id)
            if commit is None and len(schemas) == 1:
                schema = log.metadata.schema()
            elif commit is not None and commit.schema_id in schemas:
                schema = schemas[commit.schema_id]
            else:
                raise SnapshotExpired(
                    f"nobody knows any more which columns {dataset.table} had in the snapshot {wanted.snapshot_id}; "
                    "name a later instant"
                )
            then = {field.field_id: field.name for field in schema.fields}
            if all(then.get(field_id) == name for field_id, name in now.items()):
                return None
            return tuple((name, then[field_id]) for field_id, name in now.items() if field_id in then)

        return self._asked(dataset, find, knowing=wanted.snapshot_id)

    def rows(self, dataset: Dataset) -> tuple[pa.Table, frozenset[int]]:
        """All commits of a table (see common.commits), and the ids of the snapshots that are kept."""
        return self._asked(dataset, lambda log: (log.rows(), log.kept_ids))

    def _asked(self, dataset: Dataset, question: Callable[[CommitLog], _T], *, knowing: int | None = None) -> _T:
        """The answer as of the newest metadata; with `knowing` as of any that has that snapshot."""
        with self._lock:
            log = self._logs.get(dataset.table)
            for asked in itertools.count(1):
                if log is None or asked > 1 or knowing is None or not log.is_kept(knowing):
                    log = self._newest(dataset)
                try:
                    return question(log)
                except OSError as error:
                    # A file may be gone because it was merged: then newer metadata lists another one.
                    if not isinstance(error, FileNotFoundError) or asked == _ASKED_MAX:
                        raise Unavailable(
                            f"the history of {dataset.table} cannot be read ({reason(error)}); check the file store"
                        ) from None
            raise AssertionError

    def _newest(self, dataset: Dataset) -> CommitLog:
        log = self._logs.get(dataset.table) or CommitLog()
        if self._catalog is None:
            self._catalog = open_catalog(self._settings)
        with translated(f"ask the catalog for {dataset.table}"):
            location = metadata_locations(self._catalog, dataset.namespace).get(dataset.name)
            if location is not None and location == self._read.get(dataset.table):
                return log
            try:
                table = self._loaded.find(dataset.table, location) or self._catalog.load_table(dataset.table)
            except (NoSuchTableError, NoSuchNamespaceError):
                self._logs.pop(dataset.table, None)
                self._read.pop(dataset.table, None)
                return CommitLog()
        self._loaded.keep(dataset.table, table)
        log.update(table)
        self._logs[dataset.table] = log
        self._read[dataset.table] = table.metadata_location
        return log
