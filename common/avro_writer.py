"""Avro bytes by a function that is compiled from the schema: what fastavro writes, in a third of the time.

It knows what K2's schemas are made of, in the form in which ingest gives it: text, enum, long, instants as integers of
microseconds, Decimal, maps of texts, arrays of Decimal, null or one of those, and empty arrays. Whatever else a record
holds it refuses, with any exception at all; common/codec.py then asks fastavro, which writes it or says what is wrong.
So this function never decides that a record is bad, and a record that it writes is one that fastavro writes alike (a
property test).
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, NoReturn

#: No column holds a number of more digits before the point; beyond, an exponent could ask for gigabytes.
ADJUSTED_MAX: Final = 40
#: Arithmetic that says so rather than round.
EXACT: Final = decimal.Context(prec=200, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[decimal.Inexact])

#: Texts remembered per field: exchange, symbol, currency and their like repeat, and there are fewer of them.
_TEXTS_MAX: Final = 4_096
#: Instants remembered per field: those of one batch of frames repeat.
_INSTANTS_MAX: Final = 256

#: 14 bits of a varint as two bytes that go on, and 14 bits as the one or two bytes that end it.
_INNER: Final = tuple(bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14))
_LAST: Final = tuple(bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7)) for n in range(1 << 14))
_MASK: Final = (1 << 14) - 1
_LONG_MAX: Final = 1 << 63


class Refused(Exception):
    """Not a record for this writer."""


def zigzag(number: int) -> bytes:
    """An Avro long. Raises Refused beyond 64 bits."""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    if rest < 1 << 14:
        return _LAST[rest]
    if rest < 1 << 28:
        return _INNER[rest & _MASK] + _LAST[rest >> 14]
    if rest < 1 << 42:
        return _INNER[rest & _MASK] + _INNER[rest >> 14 & _MASK] + _LAST[rest >> 28]
    if rest < 1 << 56:
        return _INNER[rest & _MASK] + _INNER[rest >> 14 & _MASK] + _INNER[rest >> 28 & _MASK] + _LAST[rest >> 42]
    if rest >= 2 * _LONG_MAX:
        raise Refused
    low = _INNER[rest & _MASK] + _INNER[rest >> 14 & _MASK]
    return low + _INNER[rest >> 28 & _MASK] + _INNER[rest >> 42 & _MASK] + _LAST[rest >> 56]


def compiled_writer(avro_schema: Mapping[str, Any], header: bytes) -> Callable[[Mapping[str, Any]], bytes]:
    """A function from a record to `header` and the record's Avro bytes; it raises anything for what it does not know.

    A schema with a type that it does not know gives a function that refuses every record that has a value there.
    """
    names: dict[str, Any] = {
        "header": header,
        "join": b"".join,
        "refuse": _refuse,
        "long": zigzag,
        "number": _number,
        "entries": _entries,
        "numbers": _numbers,
    }
    parts = ["header"]
    for index, field in enumerate(avro_schema["fields"]):
        parts.append(_expression(field["type"], f"record[{field['name']!r}]", f"f{index}", names))
    source = (
        "def write(record):\n"
        f"    if len(record) != {len(parts) - 1}: refuse()\n"
        f"    return join(({', '.join(parts)},))\n"
    )
    exec(source, names)  # the names in it are the schema's own fields, written as Python literals
    write: Callable[[Mapping[str, Any]], bytes] = names["write"]
    return write


def _expression(kind: Any, value: str, name: str, names: dict[str, Any]) -> str:
    """The Python expression for the bytes of one field; what it needs goes into `names` under `name`."""
    if kind == "string":
        names[name] = _Texts()
        return f"{name}[{value}]"
    if kind == "long":
        return f"(long(v) if type(v := {value}) is int else refuse())"
    if isinstance(kind, list) and len(kind) == 2 and kind[0] == "null":
        return f"(b'\\0' if (v := {value}) is None else b'\\2' + {_expression(kind[1], 'v', name, names)})"
    if isinstance(kind, dict):
        if kind["type"] == "enum":
            names[name] = {symbol: zigzag(index) for index, symbol in enumerate(kind["symbols"])}
            return f"{name}[{value}]"
        if kind.get("logicalType") == "timestamp-micros":
            names[name] = _Instants()
            return f"({name}[v] if type(v := {value}) is int else refuse())"
        if kind.get("logicalType") == "decimal" and kind["type"] == "bytes":
            return f"number({value}, {kind.get('scale', 0)}, {10 ** kind['precision'] - 1})"
        if kind["type"] == "map" and kind["values"] == "string":
            names[name] = _Texts()
            return f"entries({value}, {name})"
        items = kind.get("items")
        if kind["type"] == "array" and isinstance(items, dict) and items.get("logicalType") == "decimal":
            return f"numbers({value}, {items.get('scale', 0)}, {10 ** items['precision'] - 1})"
        if kind["type"] == "array":
            return f"(b'\\0' if {value} == [] else refuse())"
    return "refuse()"


def _refuse() -> NoReturn:
    raise Refused


def _number(value: Any, scale: int, largest: int) -> bytes:
    """A decimal: the length and the two's complement of its count of 10**-scale."""
    if type(value) is not Decimal or value.adjusted() > ADJUSTED_MAX:
        raise Refused
    exact = EXACT.scaleb(value, scale)
    unscaled = int(exact)
    if unscaled != exact or not -largest <= unscaled <= largest:
        raise Refused
    length = (unscaled.bit_length() + 8) // 8
    return _LAST[length << 1] + unscaled.to_bytes(length, "big", signed=True)


def _entries(value: Any, texts: _Texts) -> bytes:
    """A map of texts: one block of its entries, and the end."""
    if type(value) is not dict:
        raise Refused
    if not value:
        return b"\0"
    return zigzag(len(value)) + b"".join([texts[key] + texts[one] for key, one in value.items()]) + b"\0"


def _numbers(values: Any, scale: int, largest: int) -> bytes:
    """An array of decimals: one block of them, and the end."""
    if type(values) is not list:
        raise Refused
    if not values:
        return b"\0"
    return zigzag(len(values)) + b"".join([_number(value, scale, largest) for value in values]) + b"\0"


class _Texts(dict[str, bytes]):
    """The bytes of texts, the first ones that came remembered."""

    def __missing__(self, text: str) -> bytes:
        body = text.encode()
        encoded = zigzag(len(body)) + body
        if len(self) < _TEXTS_MAX:
            self[text] = encoded
        return encoded


class _Instants(dict[int, bytes]):
    """The bytes of instants, the latest ones remembered."""

    def __missing__(self, instant: int) -> bytes:
        if len(self) >= _INSTANTS_MAX:
            self.clear()
        encoded = self[instant] = zigzag(instant)
        return encoded
