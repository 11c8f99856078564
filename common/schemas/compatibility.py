"""Whether one version of a schema may follow another. Pure.

Guarantee: what `faults` says nothing against can be read with the newer schema wherever it was written with the older
one (Avro 1.11, "Schema Resolution": BACKWARD in the terms of schema registries), and a table that has the older one's
columns needs no more than further optional columns for it. Each fault names its field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

#: What a value may be read as, beside what it was written as.
_PROMOTIONS: Final[Mapping[str, frozenset[str]]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}
_NAMED: Final = frozenset({"record", "enum", "fixed"})


def faults(newer: Mapping[str, Any], older: Mapping[str, Any]) -> list[str]:
    """Why `newer` may not follow `older`; empty when it may. Both are record schemas as parsed JSON."""
    return unreadable(newer, older) or list(_unfillable(newer, older))


def clashes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Why columns of one table cannot hold what is written with either, where neither follows the other; empty when
    they can. Both are record schemas as parsed JSON; the words are about `one`."""
    others = {field["name"]: field for field in other["fields"]}
    owners = {field.get("field-id"): field["name"] for field in other["fields"]}
    found = []
    for field in one["fields"]:
        name, field_id = field["name"], field.get("field-id")
        its = others.get(name)
        if its is not None and its.get("field-id") != field_id:
            found.append(f"the field {name!r} has the field-id {field_id}, and {its.get('field-id')} there")
        elif its is not None and _column(its["type"]) != _column(field["type"]):
            found.append(f"the field {name!r} is {_told(field['type'])}, and {_told(its['type'])} there")
        elif its is None and field_id in owners:
            found.append(f"the field {name!r} has the field-id {field_id} of {owners[field_id]!r} there")
    return found


def unreadable(reader: Any, writer: Any) -> list[str]:
    """Why what was written with `writer` cannot be read with `reader`, by Avro's rules; empty when it can."""
    return list(_unreadable("", reader, writer, _names(reader, {}), _names(writer, {})))


def _unfillable(newer: Mapping[str, Any], older: Mapping[str, Any]) -> Iterator[str]:
    """What Avro allows and a table's columns do not: a column is its field id, and keeps its name and type."""
    had = {field.get("field-id"): field for field in older["fields"]}
    ids = {field["name"]: field.get("field-id") for field in older["fields"]}
    kept = set()
    seen: dict[Any, str] = {}
    for field in newer["fields"]:
        name, field_id = field["name"], field.get("field-id")
        kept.add(name)
        if not isinstance(field_id, int):
            yield f"the field {name!r} has no field-id"
        elif field_id in seen:
            yield f"the field {name!r} has the field-id {field_id} of {seen[field_id]!r}"
        elif name in ids and ids[name] != field_id:
            yield f"the field {name!r} has the field-id {field_id}, and had {ids[name]}"
        elif field_id in had and had[field_id]["name"] != name:
            yield f"the field {name!r} has the field-id {field_id} of {had[field_id]['name']!r}"
        elif field_id in had and _column(field["type"]) != _column(had[field_id]["type"]):
            yield f"the field {name!r} is {_told(field['type'])}, and was {_told(had[field_id]['type'])}"
        elif field_id not in had and not _is_optional(field["type"]):
            yield f"the field {name!r} is new and cannot be null, which older rows are there"
        seen.setdefault(field_id, name)
    for field in older["fields"]:
        if field["name"] not in kept and not _is_optional(field["type"]):
            yield f"the field {field['name']!r} is gone, and a row cannot be without it"


def _is_optional(avro_type: Any) -> bool:
    return isinstance(avro_type, list) and "null" in avro_type


def _column(avro_type: Any) -> Any:
    """What of a type makes the column: an enum's symbols, for one, do not."""
    if isinstance(avro_type, list):
        return sorted(str(_column(branch)) for branch in avro_type)
    if not isinstance(avro_type, Mapping):
        return avro_type
    kind = avro_type["type"]
    parts = {key: avro_type.get(key) for key in ("logicalType", "precision", "scale", "size")}
    inner = {key: _column(avro_type[key]) for key in ("items", "values") if key in avro_type}
    return "string" if kind == "enum" else kind if not any(parts.values()) and not inner else (kind, parts, inner)


def _told(avro_type: Any) -> str:
    """A type in a few words."""
    if isinstance(avro_type, list):
        return " or ".join(map(_told, avro_type))
    if not isinstance(avro_type, Mapping):
        return str(avro_type)
    if avro_type.get("logicalType") == "decimal":
        return f"decimal({avro_type.get('precision')}, {avro_type.get('scale', 0)})"
    return str(avro_type.get("logicalType") or avro_type["type"])


def _names(avro_type: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The named types in a schema, by their names without namespace."""
    if isinstance(avro_type, list):
        for branch in avro_type:
            _names(branch, found)
    elif isinstance(avro_type, Mapping):
        if avro_type["type"] in _NAMED:
            found[_short(avro_type["name"])] = avro_type
        for field in avro_type.get("fields", ()):
            _names(field["type"], found)
        for key in ("type", "items", "values"):
            if isinstance(avro_type.get(key), Mapping | list):
                _names(avro_type[key], found)
    return found


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _resolved(avro_type: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(avro_type, str):
        return names.get(_short(avro_type), {"type": avro_type})
    if isinstance(avro_type, Mapping) and isinstance(avro_type["type"], Mapping | list):
        return _resolved(avro_type["type"], names)
    return avro_type


def _unreadable(
    where: str, reader: Any, writer: Any, readers: Mapping[str, Any], writers: Mapping[str, Any]
) -> Iterator[str]:
    reader, writer = _resolved(reader, readers), _resolved(writer, writers)
    if isinstance(writer, list):
        for branch in writer:
            yield from _unreadable(where, reader, branch, readers, writers)
        return
    if isinstance(reader, list):
        tries = [list(_unreadable(where, branch, writer, readers, writers)) for branch in reader]
        if all(tries):
            # The branch of the writer's own kind says most exactly what is wrong.
            kinds = [_resolved(branch, readers)["type"] for branch in reader]
            alike = kinds.index(writer["type"]) if writer["type"] in kinds else None
            yield from tries[alike] if alike is not None else [_other_type(where, reader, writer)]
        return
    kind = reader["type"]
    if kind != writer["type"]:
        if kind not in _PROMOTIONS.get(writer["type"], ()):
            yield _other_type(where, reader, writer)
        return
    if kind in _NAMED and not _same_name(reader, writer):
        yield f"the {_place(where)} is named {reader['name']!r}, and was {writer['name']!r}"
    elif kind == "record":
        yield from _unreadable_fields(where, reader, writer, readers, writers)
    elif kind == "enum":
        gone = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
        if gone and "default" not in reader:
            yield f"the {_place(where)} no longer has the symbol {gone[0]!r}"
    elif kind == "array":
        yield from _unreadable(f"{where}[]", reader["items"], writer["items"], readers, writers)
    elif kind == "map":
        yield from _unreadable(f"{where}{{}}", reader["values"], writer["values"], readers, writers)
    elif kind == "fixed" and reader["size"] != writer["size"]:
        yield f"the {_place(where)} has {reader['size']} bytes, and had {writer['size']}"
    else:
        decimals = [(one.get("precision"), one.get("scale", 0)) for one in (reader, writer) if _is_decimal(one)]
        if len(decimals) == 2 and decimals[0] != decimals[1]:
            yield _other_type(where, reader, writer)


def _unreadable_fields(
    where: str,
    reader: Mapping[str, Any],
    writer: Mapping[str, Any],
    readers: Mapping[str, Any],
    writers: Mapping[str, Any],
) -> Iterator[str]:
    written = {field["name"]: field for field in writer["fields"]}
    for field in reader["fields"]:
        path = f"{where}.{field['name']}" if where else field["name"]
        found = next((written[name] for name in (field["name"], *field.get("aliases", ())) if name in written), None)
        if found is not None:
            yield from _unreadable(path, field["type"], found["type"], readers, writers)
        elif "default" not in field:
            yield f"the field {path!r} is new and has no default"


def _same_name(reader: Mapping[str, Any], writer: Mapping[str, Any]) -> bool:
    names = {_short(name) for name in (reader["name"], *reader.get("aliases", ()))}
    return _short(writer["name"]) in names


def _is_decimal(avro_type: Mapping[str, Any]) -> bool:
    return avro_type.get("logicalType") == "decimal"


def _other_type(where: str, reader: Any, writer: Any) -> str:
    return f"the {_place(where)} is {_told(reader)}, and was {_told(writer)}"


def _place(where: str) -> str:
    return f"field {where!r}" if where else "record"
