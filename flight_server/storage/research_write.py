"""One write into one Iceberg table: rows streamed into data files, then one commit that shows all of them or none.

Beside `research` the flight server's home of PyIceberg's writing side (0.12). What is used below its public interface:
the writer of a single Parquet file, which takes row groups one at a time, and staging updates on a transaction.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError, ValidationException
from pyiceberg.io import FileIO
from pyiceberg.io.fileformat import FileFormatFactory, FileFormatWriter
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import Table, Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.table.update import (
    AddSchemaUpdate,
    AssertLastAssignedFieldId,
    AssertRefSnapshotId,
    RemoveSnapshotRefUpdate,
    SetCurrentSchemaUpdate,
    SetPropertiesUpdate,
    TableUpdate,
)
from pyiceberg.typedef import Record

from common.errors import CommitConflict, CommitStateUnknown, InvalidStatement, K2Error
from common.iceberg import ThriftyTransaction, reason, summary_entry, translated
from common.offsets import COMMIT_ID_KEY
from flight_server.storage.research_types import as_columns, matched, storable
from flight_server.storage.research_upkeep import Unreachable, expire

#: A row group is written when this many rows (DuckDB's own size) or bytes of Arrow are gathered: what a write holds.
GROUP_ROWS = 122_880
_GROUP_BYTES = 32 * 1024**2
#: A file is closed after this many bytes of Arrow, which are some 100 MB of Parquet.
_FILE_BYTES = 512 * 1024**2
#: How often an append is tried when another process was first. Each try is one commit, some 20 ms.
_APPEND_TRIES = 20


@dataclass(frozen=True)
class Target:
    """What data files are made for."""

    metadata: TableMetadata
    schema: Schema
    io: FileIO


@dataclass(frozen=True)
class Create:
    """The table is made by the commit; `transaction` is PyIceberg's for that."""

    transaction: Transaction


@dataclass(frozen=True)
class Append:
    """Rows come in addition; `table` as it was when the write began."""

    table: Table


@dataclass(frozen=True)
class Replace:
    """Rows, and columns if `schema` is not None, come in the place of those that `table` had when the write began."""

    table: Table
    schema: Schema | None
    properties: Mapping[str, str]


class ResearchWrite:
    """Rows on their way into one table. `write` any number of times, then `commit` or `abort`, from any thread.

    Holds one row group in memory. While it is not committed it may take further rows, also those of later statements of
    the same transaction.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        schema: pa.Schema,
        change: Create | Append | Replace,
        load: Callable[[], Table | None],
        turn: AbstractContextManager[object],
        unreachable: Unreachable,
    ) -> None:
        """`name` is the full one, for messages; `load` gives the table as it is now in the catalog; commits of one
        process to one table take `turn`, so that only other processes' can come between; `unreachable` takes what a
        commit lets go.
        """
        self.name = name
        self._change = change
        self._load = load
        self._turn = turn
        self._unreachable = unreachable
        self._target = target
        self._columns = arrow_columns(target.schema)
        self._schema = schema
        self._places = matched(schema, self._columns, table=name)
        self._lock = threading.RLock()
        self._pending: list[pa.Table] = []
        self._files = _Files(target)
        self._over: str | None = None
        #: Rows taken so far.
        self.rows = 0

    @property
    def columns(self) -> pa.Schema:
        """The table's columns, as rows are stored."""
        return self._columns

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Take rows: columns by name, in any order, of the types the write began with or of others that can be cast.

        Raises InvalidStatement when a value does not fit its column, and CatalogError when the store does not take the
        file. Either ends the write as `abort` does.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        with self._lock:
            self._check_open()
            try:
                if table.schema != self._schema:
                    self._places = matched(table.schema, self._columns, table=self.name)
                    self._schema = table.schema
                for start in range(0, table.num_rows, GROUP_ROWS):
                    part = as_columns(table.slice(start, GROUP_ROWS), self._places, self._columns)
                    self._pending.append(part)
                    self.rows += part.num_rows
                    if (
                        sum(part.num_rows for part in self._pending) >= GROUP_ROWS
                        or sum(part.nbytes for part in self._pending) >= _GROUP_BYTES
                    ):
                        self._flush()
            except BaseException:
                self.abort()
                raise

    def commit(self) -> int:
        """Make all rows part of the table, in one snapshot, and return how many they are.

        No rows appended make no snapshot. Raises CommitConflict (nothing landed: the table was changed, made or dropped
        by somebody else meanwhile; appends of others are no conflict for an append), CommitStateUnknown, CatalogError
        (nothing landed). Whatever is raised, the write is over.
        """
        with self._lock:
            self._check_open()
            try:
                self._flush()
                with translated(f"write a data file of {self.name}"):
                    self._files.close()
                with self._turn:
                    self._commit()
            except BaseException:
                self.abort()  # which deletes nothing once the catalog was asked and did not say no
                raise
            self._over = "it is committed"
            return self.rows

    def abort(self) -> None:
        """Forget the rows and delete the files. Nothing happens after a commit. Idempotent."""
        with self._lock:
            if self._over is None:
                self._over = "it was given up"
                self._pending.clear()
                self._files.discard()

    # -- inside

    def _check_open(self) -> None:
        if self._over is not None:
            raise InvalidStatement(f"the write to {self.name} is over: {self._over}")

    def _flush(self) -> None:
        if self._pending:
            rows = pa.concat_tables(self._pending)
            self._pending.clear()
            with translated(f"write a data file of {self.name}"):
                self._files.write(rows)

    def _commit(self) -> None:
        change = self._change
        if isinstance(change, Create):
            self._land(change.transaction, snapshot=bool(self._files.written))
        elif isinstance(change, Replace):
            self._land(self._replacing(change))
        elif self._files.written:
            self._append(change)

    def _append(self, change: Append) -> None:
        """The append on the newest state, while that differs in rows only from the one that the files were made for."""
        for attempt in range(_APPEND_TRIES):
            table = self._current(change.table)
            spec_id = change.table.metadata.default_spec_id
            if table.schema() != self._target.schema or table.metadata.default_spec_id != spec_id:
                raise CommitConflict(
                    f"the columns of {self.name} were changed by somebody else meanwhile; nothing was appended"
                )
            try:
                self._land(ThriftyTransaction(table))
                return
            except CommitConflict:
                if attempt == _APPEND_TRIES - 1:
                    raise

    def _replacing(self, change: Replace) -> Transaction:
        metadata = change.table.metadata
        table = self._current(change.table)
        if table.metadata_location != change.table.metadata_location:
            raise CommitConflict(
                f"{self.name} was changed by somebody else meanwhile; it stands as they left it, try again"
            )
        updates: list[TableUpdate] = []
        if change.schema is not None:
            updates.append(AddSchemaUpdate.model_validate({"schema": change.schema}))
            updates.append(SetCurrentSchemaUpdate.model_validate({"schema-id": -1}))
        if change.properties:
            updates.append(SetPropertiesUpdate(updates=dict(change.properties)))
        # As other engines replace a table: its line of snapshots begins anew, the old ones stay readable by their ids.
        updates.append(RemoveSnapshotRefUpdate.model_validate({"ref-name": "main"}))
        stands = AssertRefSnapshotId.model_validate({"ref": "main", "snapshot-id": metadata.current_snapshot_id})
        numbered = AssertLastAssignedFieldId.model_validate({"last-assigned-field-id": metadata.last_column_id})
        transaction = ThriftyTransaction(table)
        with translated(f"prepare a commit to {self.name}"):
            transaction._apply((), (stands, numbered))
            transaction._apply(tuple(updates))
        return transaction

    def _current(self, began: Table) -> Table:
        table = self._load()
        if table is None or table.metadata.table_uuid != began.metadata.table_uuid:
            raise CommitConflict(f"{self.name} was dropped by somebody else meanwhile; nothing was written")
        return table

    def _land(self, transaction: Transaction, *, snapshot: bool = True) -> None:
        """The one step. Raises CommitConflict when it is certain that nothing landed, else CommitStateUnknown."""
        commit_id = uuid.uuid4().hex
        producer = transaction.update_snapshot(snapshot_properties={COMMIT_ID_KEY: commit_id}).merge_append()
        if snapshot:
            with translated(f"prepare a commit to {self.name}"), producer as append:
                for data_file in self._files.written:
                    append.append_data_file(data_file)
        before = transaction._table.metadata
        with translated(f"prepare a commit to {self.name}"):
            expired = expire(transaction, before)
        table_uuid = transaction.table_metadata.table_uuid
        self._over = "the catalog did not say whether it landed"
        try:
            transaction.commit_transaction()
        except (CommitFailedException, ValidationException, TableAlreadyExistsError):
            self._over = None
            producer._clean_all_uncommitted()
            what = "made" if isinstance(self._change, Create) else "changed"
            raise CommitConflict(
                f"{self.name} was {what} by somebody else meanwhile; it stands as they left it, try again"
            ) from None
        except Exception as error:  # noqa: BLE001  (whatever else came from the catalog's client, the outcome is not known)
            if not self._landed(commit_id, table_uuid, snapshot):
                raise CommitStateUnknown(
                    f"the catalog did not say whether the write to {self.name} landed ({reason(error)}); "
                    "look at the table before writing again"
                ) from None
        self._unreachable.expired(before, expired, self._target.io)

    def _landed(self, commit_id: str, table_uuid: uuid.UUID, snapshot: bool) -> bool:
        """Whether a commit whose answer was lost is to be seen in the catalog. False says nothing."""
        try:
            table = self._load()
        except K2Error:
            return False
        if table is None or table.metadata.table_uuid != table_uuid:
            return False
        history = ancestors_of(table.metadata.current_snapshot(), table.metadata)
        return not snapshot or any(summary_entry(entry, COMMIT_ID_KEY) == commit_id for entry in history)


class _Files:
    """Data files of one table, written a row group at a time. PyIceberg's and the store's exceptions pass."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # Names stay as they are: the field ids say which column is which, but DuckDB 1.5.5 looks for members of structs
        # by name, and finds NULL where the name was made fit for Avro.
        self._columns = schema_to_pyarrow(target.schema, include_field_ids=True)
        self._path = ""
        self._writer: FileFormatWriter | None = None
        self._nbytes = 0
        self.written: list[DataFile] = []

    def write(self, rows: pa.Table) -> None:
        if self._writer is None:
            metadata = self._target.metadata
            place = load_location_provider(metadata.location, metadata.properties)
            self._path = place.new_data_location(f"{uuid.uuid4()}.parquet")
            output = self._target.io.new_output(self._path)
            self._writer = FileFormatFactory.get(FileFormat.PARQUET).create_writer(
                output, self._target.schema, metadata.properties
            )
            self._nbytes = 0
        self._writer.write(rows.combine_chunks().cast(self._columns))
        self._nbytes += rows.nbytes
        if self._nbytes >= _FILE_BYTES:
            self.close()

    def close(self) -> None:
        """End the open file, if there is one; it is in `written` then."""
        if self._writer is None:
            return
        statistics = self._writer.close()
        self._writer = None
        self.written.append(
            DataFile.from_args(
                content=DataFileContent.DATA,
                file_path=self._path,
                file_format=FileFormat.PARQUET,
                partition=Record(),
                file_size_in_bytes=len(self._target.io.new_input(self._path)),
                sort_order_id=None,
                spec_id=self._target.metadata.default_spec_id,
                equality_ids=None,
                key_metadata=None,
                **statistics.to_serialized_dict(),
            )
        )

    def discard(self) -> None:
        """Delete what was written. An orphan, where the store does not delete, is harmless."""
        paths = [data_file.file_path for data_file in self.written]
        self.written.clear()
        if self._path and self._path not in paths:
            paths.append(self._path)
        if self._writer is not None:
            with contextlib.suppress(Exception):  # it is deleted next, however its end goes
                self._writer.close()
            self._writer = None
        for path in paths:
            with contextlib.suppress(OSError):
                self._target.io.delete(path)


def arrow_columns(schema: Schema) -> pa.Schema:
    """The columns of a table of format 2 in the types that `storable` gives, without field ids."""
    return storable(schema_to_pyarrow(schema, include_field_ids=False))
