"""A table gets the columns that it lacks, by their field ids, beside whoever else commits to it.

Guarantee: a change of columns is a commit of its own, of metadata alone: it moves no offsets and no snapshot, so that
wherever it is interrupted nothing but a column without values is there. Field ids are those of the Avro schemas, which
is why this is not PyIceberg's `update_schema`, which numbers anew. No column ever goes, and none changes.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import pyarrow_to_schema
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.update import (
    AddSchemaUpdate,
    AssertCurrentSchemaId,
    AssertTableUUID,
    SetCurrentSchemaUpdate,
)
from pyiceberg.types import NestedField

from common.errors import CommitConflict, SettingsError
from common.iceberg import translated
from common.telemetry import get_logger

_log = get_logger("sink")
#: Whoever was first has added columns, or has committed rows; each of these is over in tens of milliseconds.
_TRIES_MAX = 20


def with_columns(table: Table, name: str, wanted: pa.Schema, reload: Callable[[], Table]) -> Table:
    """The table, which has every column of `wanted` by now; those that it lacked, which must be nullable, were added.

    Raises SettingsError when the table has one of them as something else; CommitConflict when others were first all the
    time; CatalogError: whether the columns are there the next load tells.
    """
    for _ in range(_TRIES_MAX):
        missing = _missing(table.schema(), name, wanted)
        if not missing:
            return table
        schema = table.schema()
        numbers = [known.schema_id for known in table.metadata.schemas]
        grown = Schema(*schema.fields, *missing, schema_id=max(numbers) + 1)
        requirements = (
            AssertTableUUID(uuid=table.metadata.table_uuid),
            AssertCurrentSchemaId.model_validate({"current-schema-id": schema.schema_id}),
        )
        updates = (AddSchemaUpdate(schema=grown), SetCurrentSchemaUpdate())
        with translated(f"add columns to {name}"):
            try:
                table.catalog.commit_table(table, requirements, updates)
                _log.info("the table has further columns", table=name, columns=[field.name for field in missing])
            except CommitFailedException:
                pass  # another commit was first; the next load says what it was
            table = reload()
    raise CommitConflict(
        f"columns could not be added to {name}: other commits were first {_TRIES_MAX} times; is a maintenance job "
        "running in a loop?"
    )


def _missing(schema: Schema, name: str, wanted: pa.Schema) -> list[NestedField]:
    missing: list[NestedField] = []
    for field in pyarrow_to_schema(wanted).fields:
        found = next((known for known in schema.fields if known.field_id == field.field_id), None)
        taken = next((known for known in schema.fields if known.name.casefold() == field.name.casefold()), None)
        if found is None and taken is None and not field.required:
            missing.append(field)
        elif found is None or (found.name, found.field_type) != (field.name, field.field_type):
            raise SettingsError(
                f"the table {name} was made for another schema: its column {field.field_id} is "
                f"{found or taken or 'missing'}, K2 writes {field.name}: {field.field_type}; use another data directory"
            )
    return missing
