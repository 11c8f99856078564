"""A result as bytes: what `k2 query --format` writes.

    table     a drawn table for people: the first ROWS_SHOWN_MAX rows, and how many there are in all; on a terminal
              the columns that have room, the others named
    lines     the same rows, a line for each column: for results that are wide
    csv       RFC 4180 with a header line and "\\n" ends; a null is nothing, an empty string is ""
    json      one object a line. Decimals are strings, because a JSON number is read as a double nearly everywhere;
              integers are numbers; times are ISO 8601 strings (UTC as Z); binary is base64; NaN and the infinities
              are strings; lists, structs and maps are arrays and objects
    arrow     an Arrow IPC stream, types untouched
    parquet   a Parquet file (zstd), types untouched

No format rounds: decimals are written digit for digit, with their scale. All are written batch by batch, so memory does
not grow with the result; nothing is ever sought, so that a pipe will do.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.drawn_table import Column as Drawn
from clients.drawn_table import drawn, records

Format = Literal["table", "lines", "csv", "json", "arrow", "parquet"]
FORMATS: tuple[Format, ...] = ("table", "lines", "csv", "json", "arrow", "parquet")
BINARY_FORMATS: frozenset[Format] = frozenset({"arrow", "parquet"})

# Two screens of a large terminal; more is for a file.
ROWS_SHOWN_MAX = 100
Column = list[Any]


def write(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], format: Format, out: BinaryIO, *, width: int | None = None
) -> int:
    """Write a result to `out` and give back its number of rows.

    `width` is the terminal's in characters, for a table; None = unlimited. What `batches` or `out` raise passes
    through; `out` is flushed and stays open.
    """
    rows = _WRITERS[format](schema, batches, out, width)
    out.flush()
    return rows


def drawn_rows(table: pa.Table, width: int | None) -> str:
    """The rows as a drawn table, without their number."""
    return drawn(_columns(table.schema), _first_rows(table.to_batches())[0], width)


def _write_table(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int | None) -> int:
    shown, row_count = _first_rows(batches)
    _write_shown(drawn(_columns(schema), shown, width), len(shown), row_count, out)
    return row_count


def _columns(schema: pa.Schema) -> list[Drawn]:
    return [Drawn(field.name, _is_number(field.type), _is_text(field.type)) for field in schema]


def _write_lines(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int | None) -> int:
    shown, row_count = _first_rows(batches)
    _write_shown(records(schema.names, shown), len(shown), row_count, out)
    return row_count


def _first_rows(batches: Iterable[pa.RecordBatch]) -> tuple[list[list[str]], int]:
    """The rows that are shown, as texts, and how many there are in all."""
    shown: list[list[str]] = []
    row_count = 0
    for batch in batches:
        first = batch.slice(0, max(0, ROWS_SHOWN_MAX - row_count))
        shown += ([_table_text(value) for value in row] for row in _rows(first))
        row_count += batch.num_rows
    return shown, row_count


def _write_shown(text: str, shown: int, row_count: int, out: BinaryIO) -> None:
    if row_count > shown:
        text += f"... {row_count - shown:,} more\n"
    out.write(f"{text}{row_count:,} {'row' if row_count == 1 else 'rows'}\n".encode())


def _write_csv(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int | None) -> int:
    out.write((",".join(map(_csv_text, schema.names)) + "\n").encode())
    row_count = 0
    for batch in batches:
        out.write("".join(",".join(map(_csv_text, row)) + "\n" for row in _rows(batch)).encode())
        row_count += batch.num_rows
    return row_count


def _write_json(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int | None) -> int:
    names = _distinct(schema.names)
    row_count = 0
    for batch in batches:
        lines = (_json_text(dict(zip(names, row, strict=True))) + "\n" for row in _rows(batch))
        out.write("".join(lines).encode())
        row_count += batch.num_rows
    return row_count


def _write_arrow(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int | None) -> int:
    with pa.ipc.new_stream(Counted(out), schema) as writer:
        return _forward(batches, writer.write_batch)


def _write_parquet(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int | None) -> int:
    with pq.ParquetWriter(Counted(out), schema, compression="zstd") as writer:
        return _forward(batches, writer.write_batch)


def _forward(batches: Iterable[pa.RecordBatch], write_batch: Callable[[pa.RecordBatch], object]) -> int:
    row_count = 0
    for batch in batches:
        write_batch(batch)
        row_count += batch.num_rows
    return row_count


_WRITERS: dict[Format, Callable[[pa.Schema, Iterable[pa.RecordBatch], BinaryIO, int | None], int]] = {
    "table": _write_table,
    "lines": _write_lines,
    "csv": _write_csv,
    "json": _write_json,
    "arrow": _write_arrow,
    "parquet": _write_parquet,
}


class Counted:
    """A writable file for Arrow over one that cannot tell its position, such as a pipe; closing it closes nothing."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._position_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._out.write(view)
        self._position_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._position_bytes

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    if batch.num_columns == 0:
        return itertools.repeat((), batch.num_rows)
    return zip(*(_values(column) for column in batch.columns), strict=True)


def _values(array: pa.Array) -> Column:
    """The array's values as JSON has them: None, bool, int, float, str, list, dict; exact decimals and times as str."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _values(array.storage)
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_decimal(kind):
        return [None if value is None else _digits(value) for value in array.to_pylist()]
    if pa.types.is_timestamp(kind):
        return [value and value.replace(" ", "T", 1) for value in pc.cast(array, pa.string()).to_pylist()]
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return list(pc.cast(array, pa.string()).to_pylist())
    if pa.types.is_floating(kind):
        return [value if value is None or math.isfinite(value) else _not_finite(value) for value in array.to_pylist()]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) or _is_string(kind):
        return list(array.to_pylist())
    if _is_binary(kind):
        return [None if value is None else base64.b64encode(value).decode() for value in array.to_pylist()]
    if pa.types.is_map(kind):
        return [value if value is None else dict(value) for value in _nested(array, _map_items)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _nested(array, _values)
    if pa.types.is_struct(kind):
        names = _distinct([field.name for field in kind])
        rows = zip(*(_values(column) for column in array.flatten()), strict=True) if names else [()] * len(array)
        valid = array.is_valid().to_pylist()
        return [dict(zip(names, row, strict=True)) if here else None for here, row in zip(valid, rows, strict=True)]
    return [None if value is None else str(value) for value in array.to_pylist()]


def _nested(array: pa.Array, convert: Callable[[pa.Array], Column]) -> Column:
    return [convert(scalar.values) if scalar.is_valid else None for scalar in array]


def _map_items(entries: pa.StructArray) -> Column:
    keys = [key if isinstance(key, str) else _json_text(key) for key in _values(entries.field(0))]
    return list(zip(keys, _values(entries.field(1)), strict=True))


def _digits(value: Decimal) -> str:
    return format(value, "f")


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(plain or pa.types.is_fixed_size_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    """Whether a value may go on in the next line without being misread."""
    while pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_string(kind) or pa.types.is_nested(kind) or _is_binary(kind)


def _distinct(names: list[str]) -> list[str]:
    """The names, a repeated one with its count behind a colon, so that no column of a JSON object hides another."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return distinct


def _json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def _plain_text(value: object) -> str:
    """A value as people write it: strings bare, nested values as JSON."""
    return value if isinstance(value, str) else _json_text(value)


def _table_text(value: object) -> str:
    return "NULL" if value is None else _plain_text(value)


def _csv_text(value: object) -> str:
    if value is None:
        return ""
    text = _plain_text(value)
    if text and not any(mark in text for mark in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'
