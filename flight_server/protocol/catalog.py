"""The results of the catalog commands: schemas to the letter of the specification, rows in the order it asks for.

Nullability differs between them on purpose: `catalog_name` may be null in GetDbSchemas and GetTables, never in
GetCatalogs. Source: Arrow Flight SQL specification, format/FlightSql.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import pyarrow as pa

from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.columns import with_column_metadata
from flight_server.protocol.patterns import name_filter, pattern_filter

#: The schemas whose tables clients may change: their sessions' own, and the Iceberg namespace for everybody.
_WRITABLE = frozenset({"main", "research"})


class TableInfo(Protocol):
    """A table as the catalog shows it; `arrow_schema` has true nullability and the remarks in metadata `doc`."""

    @property
    def catalog(self) -> str: ...
    @property
    def schema(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def arrow_schema(self) -> pa.Schema: ...


def _required(name: str, data_type: pa.DataType) -> pa.Field:
    return pa.field(name, data_type, nullable=False)


CATALOGS = pa.schema([_required("catalog_name", pa.string())])
DB_SCHEMAS = pa.schema([("catalog_name", pa.string()), _required("db_schema_name", pa.string())])
TABLES = pa.schema(
    [
        ("catalog_name", pa.string()),
        ("db_schema_name", pa.string()),
        _required("table_name", pa.string()),
        _required("table_type", pa.string()),
    ]
)
TABLES_WITH_SCHEMA = TABLES.append(_required("table_schema", pa.binary()))
TABLE_TYPES = pa.schema([_required("table_type", pa.string())])
PRIMARY_KEYS = pa.schema(
    [
        ("catalog_name", pa.string()),
        ("db_schema_name", pa.string()),
        _required("table_name", pa.string()),
        _required("column_name", pa.string()),
        ("key_name", pa.string()),
        _required("key_sequence", pa.int32()),
    ]
)
FOREIGN_KEYS = pa.schema(
    [
        ("pk_catalog_name", pa.string()),
        ("pk_db_schema_name", pa.string()),
        _required("pk_table_name", pa.string()),
        _required("pk_column_name", pa.string()),
        ("fk_catalog_name", pa.string()),
        ("fk_db_schema_name", pa.string()),
        _required("fk_table_name", pa.string()),
        _required("fk_column_name", pa.string()),
        _required("key_sequence", pa.int32()),
        ("fk_key_name", pa.string()),
        ("pk_key_name", pa.string()),
        _required("update_rule", pa.uint8()),
        _required("delete_rule", pa.uint8()),
    ]
)


def tables_schema(command: sql.CommandGetTables) -> pa.Schema:
    """Four columns, or five with `include_schema`; the same in FlightInfo and in the stream."""
    return TABLES_WITH_SCHEMA if command.include_schema else TABLES


def catalogs(names: Iterable[str]) -> pa.Table:
    """The answer to GetCatalogs."""
    return pa.table([sorted(set(names))], schema=CATALOGS)


def db_schemas(command: sql.CommandGetDbSchemas, known: Iterable[tuple[str, str]]) -> pa.Table:
    """The answer to GetDbSchemas out of (catalog, schema) pairs."""
    in_catalog = name_filter(command.catalog if command.HasField("catalog") else None)
    matches = pattern_filter(command.db_schema_filter_pattern if command.HasField("db_schema_filter_pattern") else None)
    found = sorted({(catalog, name) for catalog, name in known if in_catalog(catalog) and matches(name)})
    return _columns(found, DB_SCHEMAS)


def tables(command: sql.CommandGetTables, known: Iterable[TableInfo]) -> pa.Table:
    """The answer to GetTables."""
    in_catalog = name_filter(command.catalog if command.HasField("catalog") else None)
    in_schema = pattern_filter(
        command.db_schema_filter_pattern if command.HasField("db_schema_filter_pattern") else None
    )
    matches = pattern_filter(
        command.table_name_filter_pattern if command.HasField("table_name_filter_pattern") else None
    )
    kinds = set(command.table_types)
    found = sorted(
        (
            table
            for table in known
            if in_catalog(table.catalog)
            and in_schema(table.schema)
            and matches(table.name)
            and (not kinds or table.kind in kinds)
        ),
        key=lambda table: (table.catalog, table.schema, table.name, table.kind),
    )
    rows: list[tuple[object, ...]] = [(table.catalog, table.schema, table.name, table.kind) for table in found]
    if command.include_schema:
        rows = [(*row, table_schema(table)) for row, table in zip(rows, found, strict=True)]
    return _columns(rows, tables_schema(command))


def table_schema(table: TableInfo) -> bytes:
    """The table's Arrow schema as one IPC message, its fields with Flight SQL's column metadata."""
    described = with_column_metadata(
        table.arrow_schema,
        catalog=table.catalog,
        db_schema=table.schema,
        table=table.name,
        read_only=table.schema not in _WRITABLE,
    )
    return bytes(described.serialize().to_pybytes())


def table_types(kinds: Iterable[str]) -> pa.Table:
    """The answer to GetTableTypes."""
    return pa.table([sorted(set(kinds))], schema=TABLE_TYPES)


def _columns(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
