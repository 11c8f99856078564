"""Flight SQL's column metadata: what JDBC, ODBC and Power BI show of a column beyond its Arrow type."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as kinds

_PREFIX = "ARROW:FLIGHT:SQL:"
#: Where common.schemas.arrow keeps a column's description.
DOC_KEY = b"doc"

#: Digits, or characters of the text form, of the types that have a fixed number of them (ODBC's COLUMN_SIZE).
_PRECISION = {
    pa.int8(): 3,
    pa.int16(): 5,
    pa.int32(): 10,
    pa.int64(): 19,
    pa.uint8(): 3,
    pa.uint16(): 5,
    pa.uint32(): 10,
    pa.uint64(): 20,
    pa.float32(): 7,
    pa.float64(): 15,
    pa.bool_(): 1,
    pa.date32(): 10,
}
_NAMES = {
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "REAL",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
    pa.null(): "NULL",
}


def sql_type_name(data_type: pa.DataType) -> str:
    """The SQL name of an Arrow type, as a column definition would write it."""
    if data_type in _NAMES:
        return _NAMES[data_type]
    if kinds.is_decimal(data_type):
        return f"DECIMAL({data_type.precision},{data_type.scale})"
    if kinds.is_timestamp(data_type):
        return "TIMESTAMP WITH TIME ZONE" if data_type.tz else "TIMESTAMP"
    if kinds.is_map(data_type):
        return f"MAP({sql_type_name(data_type.key_type)}, {sql_type_name(data_type.item_type)})"
    if kinds.is_fixed_size_list(data_type):
        return f"{sql_type_name(data_type.value_type)}[{data_type.list_size}]"
    if kinds.is_list(data_type) or kinds.is_large_list(data_type):
        return f"{sql_type_name(data_type.value_type)}[]"
    if kinds.is_struct(data_type):
        return f"STRUCT({', '.join(f'{field.name} {sql_type_name(field.type)}' for field in data_type)})"
    if kinds.is_dictionary(data_type):
        return sql_type_name(data_type.value_type)
    for test, name in (
        (kinds.is_string, "VARCHAR"),
        (kinds.is_large_string, "VARCHAR"),
        (kinds.is_binary, "BLOB"),
        (kinds.is_large_binary, "BLOB"),
        (kinds.is_fixed_size_binary, "BLOB"),
        (kinds.is_time, "TIME"),
        (kinds.is_interval, "INTERVAL"),
        (kinds.is_duration, "INTERVAL"),
        (kinds.is_date, "DATE"),
    ):
        if test(data_type):
            return name
    return str(data_type).upper()


def precision_and_scale(data_type: pa.DataType) -> tuple[int | None, int | None]:
    """ODBC's column size and decimal digits; None where the type has none."""
    if kinds.is_decimal(data_type):
        return data_type.precision, data_type.scale
    if kinds.is_timestamp(data_type) or kinds.is_time(data_type):
        digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[data_type.unit]
        characters = 19 if kinds.is_timestamp(data_type) else 8
        return characters + (digits + 1 if digits else 0), digits
    if kinds.is_integer(data_type):
        return _PRECISION[data_type], 0
    return _PRECISION.get(data_type), None


def with_column_metadata(
    schema: pa.Schema, *, catalog: str, db_schema: str, table: str, read_only: bool = True
) -> pa.Schema:
    """The schema with each field's metadata as Flight SQL names it, beside what the field carried before."""
    return pa.schema(
        [_described(field, catalog, db_schema, table, read_only) for field in schema], metadata=schema.metadata
    )


def _described(field: pa.Field, catalog: str, db_schema: str, table: str, read_only: bool) -> pa.Field:
    precision, scale = precision_and_scale(field.type)
    text = kinds.is_string(field.type) or kinds.is_large_string(field.type)
    said = {
        "CATALOG_NAME": catalog,
        "SCHEMA_NAME": db_schema,
        "DB_SCHEMA_NAME": db_schema,
        "TABLE_NAME": table,
        "TYPE_NAME": sql_type_name(field.type),
        "PRECISION": None if precision is None else str(precision),
        "SCALE": None if scale is None else str(scale),
        "IS_AUTO_INCREMENT": "0",
        "IS_CASE_SENSITIVE": "1" if text else "0",
        "IS_READ_ONLY": "1" if read_only else "0",
        "IS_SEARCHABLE": "1",
    }
    metadata: dict[bytes, bytes] = dict(field.metadata or {})
    metadata |= {f"{_PREFIX}{key}".encode(): value.encode() for key, value in said.items() if value is not None}
    if remarks := metadata.get(DOC_KEY):
        metadata[f"{_PREFIX}REMARKS".encode()] = remarks
    return field.with_metadata(metadata)
