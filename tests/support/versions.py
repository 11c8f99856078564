"""Later versions of the packaged schemas, as a release of K2 to come might have them."""

from __future__ import annotations

import json
from typing import Any

from common.schemas.arrow import avro_schema_text

#: The field that version 2.1 of a trade has beyond the packaged one, and its id.
ADDED, ADDED_ID = "block_id", 40


def trade_2_1(**field: Any) -> str:
    """A trade with one further optional field; `field` replaces what is said of it."""
    schema = json.loads(avro_schema_text("trade"))
    added = {"name": ADDED, "type": ["null", "string"], "default": None, "field-id": ADDED_ID, "doc": "Made up."}
    schema["fields"].append(added | field)
    return json.dumps(schema)


def changed(schema_text: str, of: str, /, **what: Any) -> str:
    """The schema with some things said otherwise of one of its fields; None takes a key away."""
    schema = json.loads(schema_text)
    for field in schema["fields"]:
        if field["name"] == of:
            field.update(what)
            for key in [key for key, value in what.items() if value is None and key != "default"]:
                del field[key]
    return json.dumps(schema)


def without(schema_text: str, name: str) -> str:
    """The schema without one of its fields."""
    schema = json.loads(schema_text)
    schema["fields"] = [field for field in schema["fields"] if field["name"] != name]
    return json.dumps(schema)
