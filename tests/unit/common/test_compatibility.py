"""Which schema may follow which: known cases of Avro's rules and of the tables'; fastavro judges the rest."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import DATASETS
from common.schemas.arrow import avro_schema, avro_schema_text
from common.schemas.compatibility import faults, unreadable
from tests.support.versions import changed, trade_2_1, without

TRADE = avro_schema_text("trade")
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 8}


def _record(*fields: dict[str, Any], name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_each_packaged_schema_may_follow_itself(dataset: Any) -> None:
    assert faults(avro_schema(dataset.schema_name), avro_schema(dataset.schema_name)) == []


@pytest.mark.parametrize(
    ("newer", "says"),
    [
        (trade_2_1(), None),
        (trade_2_1(type=["null", DECIMAL]), None),
        (trade_2_1(name="price_unit"), None),
        (changed(TRADE, "price", doc="Another remark."), None),
        (without(TRADE, "vendor_data"), None),
        (changed(trade_2_1(), "block_id", default=None, type="string"), "'block_id' is new and cannot be null"),
        (without(TRADE, "price"), "'price' is gone"),
        (changed(TRADE, "price", name="px"), "'px' is new and has no default"),
        (changed(TRADE, "price", name="px", aliases=["price"]), "'px' has the field-id 9 of 'price'"),
        (changed(TRADE, "price", **{"field-id": 40}), "'price' has the field-id 40, and had 9"),
        (trade_2_1(**{"field-id": 9}), "'block_id' has the field-id 9 of 'price'"),
        (changed(trade_2_1(), "block_id", **{"field-id": None}), "'block_id' has no field-id"),
        (
            changed(TRADE, "price", type=DECIMAL | {"scale": 6}),
            r"'price' is decimal\(18, 6\), and was dec",
        ),
        (changed(TRADE, "trade_id", type="string"), "'trade_id' is string, and was long"),
        (changed(TRADE, "trade_id", type="double"), "'trade_id' is double, and was long"),
        (
            changed(TRADE, "side", type={"type": "enum", "name": "Side", "symbols": ["BUY", "SELL", "UNKNOWN"]}),
            "'side' no longer has the symbol 'SELL_SHORT'",
        ),
        (
            changed(
                TRADE,
                "side",
                type={"type": "enum", "name": "Side", "symbols": ["BUY", "SELL", "SELL_SHORT", "UNKNOWN", "CROSS"]},
            ),
            None,
        ),
        (changed(TRADE, "source_sequence", type="long"), "'source_sequence' is long, and was null"),
        (
            changed(TRADE, "trade_conditions", type={"type": "array", "items": "long", "element-id": 14}),
            r"'trade_conditions\[\]' is long, and was string",
        ),
        (json.dumps(json.loads(TRADE) | {"name": "Deal"}), "the record is named 'Deal', and was 'Trade'"),
    ],
)
def test_a_trade_that_may_follow_or_why_not(newer: str, says: str | None) -> None:
    found = faults(json.loads(newer), json.loads(TRADE))
    if says is None:
        assert found == []
    else:
        assert any(re.search(says, fault) for fault in found), found


def test_what_was_dropped_may_not_come_back_as_something_else() -> None:
    without_it = json.loads(without(TRADE, "vendor_data"))
    assert faults(without_it, json.loads(TRADE)) == []
    back = json.loads(changed(TRADE, "vendor_data", type=["null", "string"]))
    assert any("vendor_data" in fault for fault in faults(back, json.loads(TRADE)))


_SIMPLE = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"]
_types = st.recursive(
    st.sampled_from(
        [
            *_SIMPLE,
            {"type": "fixed", "name": "F", "size": 2},
            {"type": "fixed", "name": "F", "size": 3},
            {"type": "enum", "name": "E", "symbols": ["A", "B"]},
            {"type": "enum", "name": "E", "symbols": ["A", "B", "C"]},
            {"type": "enum", "name": "E", "symbols": ["B"], "default": "B"},
        ]
    ),
    lambda inner: st.one_of(
        inner.map(lambda items: {"type": "array", "items": items}),
        inner.map(lambda values: {"type": "map", "values": values}),
    ),
    max_leaves=2,
)
_fields = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(_types, st.sampled_from(_SIMPLE[1:]).map(lambda one: ["null", one])),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda field: field[0],
)


def _schema(fields: list[tuple[str, Any, bool]]) -> dict[str, Any]:
    built = []
    for name, kind, optional in fields:
        field: dict[str, Any] = {"name": name, "type": _renamed(kind, name)}
        if optional and (kind == "null" or (isinstance(kind, list) and kind[0] == "null")):
            field["default"] = None
        built.append(field)
    return _record(*built)


def _renamed(kind: Any, name: str) -> Any:
    """Named types are defined once in a schema: each field has its own."""
    if isinstance(kind, dict):
        kind = {key: _renamed(value, name) if key in ("items", "values") else value for key, value in kind.items()}
        return kind | ({"name": f"{kind['name']}_{name}"} if "name" in kind else {})
    return kind


def _sample(kind: Any, which: int) -> Any:
    """A value of the type; over all `which`, at least one of each symbol and each branch."""
    if isinstance(kind, list):
        return _sample(kind[which % len(kind)], which)
    if isinstance(kind, str):
        values = {"null": None, "boolean": True, "int": 7, "long": 2**40, "float": 0.5, "double": 0.25}
        return values.get(kind, b"ab" if kind == "bytes" else "ab")
    match kind["type"]:
        case "fixed":
            return bytes(kind["size"])
        case "enum":
            return kind["symbols"][which % len(kind["symbols"])]
        case "array":
            return [_sample(kind["items"], which)]
        case _:
            return {"k": _sample(kind["values"], which)}


_PLAIN = [*_SIMPLE, *(["null", kind] for kind in _SIMPLE[1:])]


@pytest.mark.parametrize("reader", _PLAIN, ids=str)
def test_every_pair_of_plain_types_is_as_fastavro_has_it(reader: Any) -> None:
    for writer in _PLAIN:
        _check([("a", writer, False)], [("a", reader, False)])


@settings(max_examples=300, deadline=None)
@given(writer=_fields, reader=_fields)
def test_fastavro_reads_what_is_called_readable_and_refuses_some_of_what_is_not(
    writer: list[tuple[str, Any, bool]], reader: list[tuple[str, Any, bool]]
) -> None:
    _check(writer, reader)


def _check(writer: list[tuple[str, Any, bool]], reader: list[tuple[str, Any, bool]]) -> None:
    written, read = _schema(writer), _schema(reader)
    refused = []
    for which in range(6):
        value = {field["name"]: _sample(field["type"], which) for field in written["fields"]}
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(written), value)
        out.seek(0)
        try:
            fastavro.schemaless_reader(out, fastavro.parse_schema(written), fastavro.parse_schema(read))
        except Exception as error:  # noqa: BLE001  (fastavro raises builtins without a common base)
            refused.append(error)
    assert bool(unreadable(read, written)) == bool(refused), (unreadable(read, written), refused)
