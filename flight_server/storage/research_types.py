"""Pure: which columns an Iceberg table can hold, and Arrow rows as those columns. Nothing is cut or rounded silently.

What Iceberg (format 2) holds exactly is kept. What it lacks is widened where a wider type has every value: unsigned and
small integers, half floats, coarse times, enums as strings. A value that does not fit its column (a nanosecond in a
column of microseconds, a HUGEINT of 39 digits) is refused with the column's name, and so is a type that cannot be held
at all (intervals, unions, bit strings, times with a zone), with what to cast it to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InvalidStatement, Unsupported

#: SQL types that Arrow shows as something else, so that they must be refused by name: -> what to do instead.
_REFUSED_SQL = {
    "BIT": "VARCHAR",
    "TIME WITH TIME ZONE": "TIME or VARCHAR",
    "UHUGEINT": "DECIMAL(38, 0), HUGEINT or VARCHAR",
    "BIGNUM": "DECIMAL(38, 0) or VARCHAR",
    "VARIANT": "JSON or VARCHAR",
    "GEOMETRY": "VARCHAR",
    "INTERVAL": "VARCHAR, or take epoch_us() of it",
}
_REFUSED_WORD = re.compile("|".join(rf"\b{name}\b" for name in _REFUSED_SQL))
_IN_QUOTES = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
_NAME_LENGTH_MAX = 255
_DOC = b"doc"


def storable(schema: pa.Schema, sql_types: Sequence[str] | None = None) -> pa.Schema:
    """The columns of an Iceberg table that can hold rows of `schema`; nullability and `doc` of the columns are kept.

    `sql_types` are DuckDB's names for the types, one per column, where the rows are a query's: Arrow alone does not
    tell a UUID from a string or a BIT from a BLOB. Raises Unsupported or InvalidStatement, naming the column.
    """
    if not len(schema):
        raise InvalidStatement("a table needs at least one column")
    taken: set[str] = set()
    fields = []
    for index, field in enumerate(schema):
        name = field.name
        if not name or len(name) > _NAME_LENGTH_MAX or any(ord(character) < 32 for character in name):
            raise InvalidStatement(
                f"column {index + 1} has the name {name[:40]!r}: a column of a table needs a name of at most "
                f"{_NAME_LENGTH_MAX} printable characters"
            )
        if name.casefold() in taken:
            raise InvalidStatement(
                f"the column {name} is there twice (upper and lower case are one); rename one of them"
            )
        taken.add(name.casefold())
        sql_type = None if sql_types is None else sql_types[index]
        metadata = {_DOC: field.metadata[_DOC]} if field.metadata and _DOC in field.metadata else None
        fields.append(pa.field(name, _column_type(name, field.type, sql_type), field.nullable, metadata))
    return pa.schema(fields)


def matched(schema: pa.Schema, columns: pa.Schema, *, table: str) -> list[int | None]:
    """For each of the table's columns the index of the column of `schema` with its name, whatever its case.

    None for one that is absent and nullable: it becomes NULL. Raises InvalidStatement when a column is unknown, twice,
    or missing where a value is needed, and when its type cannot be cast.
    """
    places: dict[str, int] = {}
    for index, name in enumerate(schema.names):
        if name.casefold() in places:
            raise InvalidStatement(f"the column {name} is there twice; name each column of {table} once")
        places[name.casefold()] = index
    known = {name.casefold() for name in columns.names}
    for name in schema.names:
        if name.casefold() not in known:
            raise InvalidStatement(f"{table} has no column {name}; its columns are {', '.join(columns.names)}")
    found = []
    for column in columns:
        place = places.get(column.name.casefold())
        if place is None and not column.nullable:
            raise InvalidStatement(f"the column {column.name} of {table} needs a value and is not among those given")
        if place is not None:
            _cast(pa.array([], schema.field(place).type), column)
        found.append(place)
    return found


def as_columns(rows: pa.Table, places: Sequence[int | None], columns: pa.Schema) -> pa.Table:
    """The rows with exactly these columns, in their order and types. Raises InvalidStatement when a value does not fit.

    `rows` may come from anywhere: it is validated whole before anything reads into its buffers.
    """
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InvalidStatement(f"the rows are not valid: {_line(error)}") from None
    arrays = []
    for place, column in zip(places, columns, strict=True):
        if place is None:
            arrays.append(pa.chunked_array([pa.nulls(rows.num_rows, column.type)]))
            continue
        given = rows.column(place)
        if given.null_count and not column.nullable:
            raise InvalidStatement(f"the column {column.name} may not be NULL, and a row has no value in it")
        chunks = [_cast(chunk, column) for chunk in given.chunks]
        arrays.append(pa.chunked_array(chunks, column.type))
    return pa.Table.from_arrays(arrays, schema=columns)


def _column_type(name: str, arrow_type: pa.DataType, sql_type: str | None) -> pa.DataType:
    if sql_type is not None:
        refused = _REFUSED_WORD.search(_IN_QUOTES.sub("", sql_type))
        if refused is not None:
            raise _cannot_hold(name, refused.group(), _REFUSED_SQL[refused.group()])
        if sql_type == "UUID" and pa.types.is_string(arrow_type):
            return pa.uuid()
    if isinstance(arrow_type, pa.UuidType):
        return arrow_type
    return _stored(name, arrow_type)


def _stored(name: str, arrow_type: pa.DataType) -> pa.DataType:
    kinds = pa.types
    if kinds.is_dictionary(arrow_type) or kinds.is_run_end_encoded(arrow_type):
        return _stored(name, arrow_type.value_type)
    if kinds.is_boolean(arrow_type) or isinstance(arrow_type, pa.Bool8Type):
        return pa.bool_()
    if kinds.is_null(arrow_type):
        return pa.int32()  # as DuckDB's own CREATE TABLE AS SELECT NULL
    if arrow_type == pa.uint64():
        return pa.decimal128(20, 0)
    if kinds.is_integer(arrow_type):
        return pa.int64() if arrow_type in (pa.int64(), pa.uint32()) else pa.int32()
    if kinds.is_floating(arrow_type):
        return pa.float64() if kinds.is_float64(arrow_type) else pa.float32()
    if kinds.is_decimal(arrow_type):
        if arrow_type.precision > 38 or arrow_type.scale < 0 or arrow_type.scale > arrow_type.precision:
            raise _cannot_hold(name, str(arrow_type), "DECIMAL(38, s) or VARCHAR")
        return pa.decimal128(arrow_type.precision, arrow_type.scale)
    if kinds.is_string(arrow_type) or kinds.is_large_string(arrow_type) or kinds.is_string_view(arrow_type):
        return pa.string()
    if isinstance(arrow_type, pa.JsonType):
        return pa.string()
    if kinds.is_binary(arrow_type) or kinds.is_large_binary(arrow_type) or kinds.is_binary_view(arrow_type):
        return pa.binary()
    if kinds.is_fixed_size_binary(arrow_type):
        return arrow_type if arrow_type.byte_width else pa.binary()
    if kinds.is_date(arrow_type):
        return pa.date32()
    if kinds.is_time(arrow_type):
        return pa.time64("us")
    if kinds.is_timestamp(arrow_type):
        return pa.timestamp("us", "UTC" if arrow_type.tz else None)
    if kinds.is_map(arrow_type):
        return pa.map_(_stored(name, arrow_type.key_type), _stored(name, arrow_type.item_type))
    if kinds.is_list(arrow_type) or kinds.is_large_list(arrow_type) or kinds.is_fixed_size_list(arrow_type):
        return pa.list_(_stored(name, arrow_type.value_type))
    if kinds.is_struct(arrow_type):
        members = [(field.name, _stored(f"{name}.{field.name}", field.type)) for field in arrow_type]
        if not members or len({member.casefold() for member, _ in members}) < len(members):
            raise InvalidStatement(f"the struct in column {name} needs members, each with a name of its own")
        return pa.struct(members)
    if kinds.is_union(arrow_type):
        raise _cannot_hold(name, "UNION", "a struct of its members, or VARCHAR")
    if kinds.is_interval(arrow_type) or kinds.is_duration(arrow_type):
        raise _cannot_hold(name, "INTERVAL", _REFUSED_SQL["INTERVAL"])
    if kinds.is_list_view(arrow_type) or kinds.is_large_list_view(arrow_type):
        raise _cannot_hold(
            name, str(arrow_type), "a list"
        )  # Arrow 26 casts those with nulls to arrays that are not valid
    raise _cannot_hold(name, str(arrow_type), "VARCHAR or BLOB")


def _cannot_hold(name: str, what: str, instead: str) -> Unsupported:
    return Unsupported(f"column {name} is {what}, which an Iceberg table cannot hold exactly; cast it to {instead}")


def _cast(array: pa.Array, column: pa.Field) -> pa.Array:
    try:
        return _as_type(array, column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InvalidStatement(f"column {column.name} cannot take what is given: {_line(error)}") from None


def _as_type(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if array.type == wanted:
        return array
    if pa.types.is_run_end_encoded(array.type):
        return _as_type(pc.run_end_decode(array), wanted)
    if pa.types.is_dictionary(array.type):
        return _as_type(array.dictionary_decode(), wanted)
    if isinstance(wanted, pa.UuidType) and not pa.types.is_fixed_size_binary(array.type):
        return _uuids(array.cast(pa.string()))
    if pa.types.is_integer(array.type) and pa.types.is_decimal(wanted):
        return array.cast(pa.decimal128(38, min(wanted.scale, 18))).cast(wanted)  # Arrow asks for room for any integer
    return array.cast(wanted)


def _uuids(texts: pa.StringArray) -> pa.Array:
    """Texts of 32 hexadecimal digits, with dashes or without, as UUIDs."""
    digits = pc.replace_substring(texts.drop_null(), "-", "")
    wrong = digits.filter(pc.invert(pc.match_substring_regex(digits, "^[0-9a-fA-F]{32}$")))
    if len(wrong):
        raise pa.ArrowInvalid(f"{wrong[0].as_py()[:40]!r} is no UUID")
    data = np.frombuffer(bytes.fromhex("".join(digits.to_pylist())), np.uint8).reshape(-1, 16)
    present = texts.is_valid().to_numpy(zero_copy_only=False)
    spread = np.zeros((len(texts), 16), np.uint8)
    spread[present] = data
    validity = None if texts.null_count == 0 else pa.array(present).buffers()[1]
    storage = pa.Array.from_buffers(pa.binary(16), len(texts), [validity, pa.py_buffer(spread.tobytes())])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
