"""The answer to GetXdbcTypeInfo: K2's SQL types as JDBC and ODBC number and describe them."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from flight_server.protocol import FlightSql_pb2 as sql

XDBC_TYPE_INFO = pa.schema(
    [
        pa.field("type_name", pa.string(), nullable=False),
        pa.field("data_type", pa.int32(), nullable=False),
        pa.field("column_size", pa.int32()),
        pa.field("literal_prefix", pa.string()),
        pa.field("literal_suffix", pa.string()),
        pa.field("create_params", pa.list_(pa.field("item", pa.string(), nullable=False))),
        pa.field("nullable", pa.int32(), nullable=False),
        pa.field("case_sensitive", pa.bool_(), nullable=False),
        pa.field("searchable", pa.int32(), nullable=False),
        pa.field("unsigned_attribute", pa.bool_()),
        pa.field("fixed_prec_scale", pa.bool_(), nullable=False),
        pa.field("auto_increment", pa.bool_()),
        pa.field("local_type_name", pa.string()),
        pa.field("minimum_scale", pa.int32()),
        pa.field("maximum_scale", pa.int32()),
        pa.field("sql_data_type", pa.int32(), nullable=False),
        pa.field("datetime_subcode", pa.int32()),
        pa.field("num_prec_radix", pa.int32()),
        pa.field("interval_precision", pa.int32()),
    ]
)


class _Type(NamedTuple):
    name: str
    data_type: int
    column_size: int | None = None
    quoted: bool = False
    create_params: list[str] | None = None
    unsigned: bool | None = None
    scale: tuple[int, int] | None = None
    subcode: int | None = None
    radix: int | None = None


_TYPES = (
    _Type("BOOLEAN", sql.XDBC_BIT, 1),
    _Type("TINYINT", sql.XDBC_TINYINT, 3, unsigned=False, scale=(0, 0), radix=10),
    _Type("SMALLINT", sql.XDBC_SMALLINT, 5, unsigned=False, scale=(0, 0), radix=10),
    _Type("INTEGER", sql.XDBC_INTEGER, 10, unsigned=False, scale=(0, 0), radix=10),
    _Type("BIGINT", sql.XDBC_BIGINT, 19, unsigned=False, scale=(0, 0), radix=10),
    _Type(
        "DECIMAL", sql.XDBC_DECIMAL, 38, create_params=["precision", "scale"], unsigned=False, scale=(0, 38), radix=10
    ),
    _Type("REAL", sql.XDBC_REAL, 24, unsigned=False, radix=2),
    _Type("DOUBLE", sql.XDBC_DOUBLE, 53, unsigned=False, radix=2),
    _Type("VARCHAR", sql.XDBC_VARCHAR, quoted=True),
    _Type("BLOB", sql.XDBC_VARBINARY, quoted=True),
    _Type("DATE", sql.XDBC_DATE, 10, quoted=True, subcode=sql.XDBC_SUBCODE_DATE),
    _Type("TIME", sql.XDBC_TIME, 15, quoted=True, scale=(6, 6), subcode=sql.XDBC_SUBCODE_TIME),
    _Type("TIMESTAMP", sql.XDBC_TIMESTAMP, 26, quoted=True, scale=(6, 6), subcode=sql.XDBC_SUBCODE_TIMESTAMP),
    _Type(
        "TIMESTAMP WITH TIME ZONE",
        sql.XDBC_TIMESTAMP,
        32,
        quoted=True,
        scale=(6, 6),
        subcode=sql.XDBC_SUBCODE_TIMESTAMP_WITH_TIMEZONE,
    ),
)


def xdbc_type_info(command: sql.CommandGetXdbcTypeInfo) -> pa.Table:
    """The types, or those with the number asked for, by number and then by name."""
    wanted = command.data_type if command.HasField("data_type") else None
    found = sorted(
        (kind for kind in _TYPES if wanted is None or kind.data_type == wanted),
        key=lambda kind: (kind.data_type, kind.name),
    )
    return pa.Table.from_pylist([_row(kind) for kind in found], schema=XDBC_TYPE_INFO)


def _row(kind: _Type) -> dict[str, object]:
    quote = "'" if kind.quoted else None
    dated = kind.subcode is not None
    return {
        "type_name": kind.name,
        "data_type": kind.data_type,
        "column_size": kind.column_size,
        "literal_prefix": quote,
        "literal_suffix": quote,
        "create_params": kind.create_params,
        "nullable": sql.NULLABILITY_NULLABLE,
        "case_sensitive": kind.data_type == sql.XDBC_VARCHAR,
        "searchable": sql.SEARCHABLE_FULL,
        "unsigned_attribute": kind.unsigned,
        "fixed_prec_scale": False,
        "auto_increment": None,
        "local_type_name": kind.name,
        "minimum_scale": kind.scale[0] if kind.scale else None,
        "maximum_scale": kind.scale[1] if kind.scale else None,
        "sql_data_type": sql.XDBC_DATETIME if dated else kind.data_type,
        "datetime_subcode": kind.subcode,
        "num_prec_radix": kind.radix,
        "interval_precision": None,
    }
