"""Paths are moved, however they are spelled, and nothing else is."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import Unsupported
from sink.recovery.relocation import (
    AvroFile,
    Move,
    kind_of,
    moved_manifest,
    moved_metadata,
    moved_position_deletes,
    relative,
    spelled,
)

MOVE = Move("file:///old/t", "s3://new/place/t")
PATH_ID, POS_ID = 2147483546, 2147483545


@pytest.mark.parametrize("path", ["file:///old/t/data/a", "file:/old/t/data/a", "/old/t/data/a"])
def test_a_path_is_the_same_however_it_is_spelled(path: str) -> None:
    assert spelled(path) == "file:///old/t/data/a"
    assert relative("file:/old/t", path) == relative("/old/t/", path) == "data/a"
    assert MOVE.path(path) == "s3://new/place/t/data/a"


def test_other_stores_are_spelled_as_they_are() -> None:
    assert spelled("s3://bucket/a") == "s3://bucket/a"
    assert relative("s3://bucket/t", "s3://bucket/t2/a").startswith("outside/")
    assert Move("file:/old/t/", "file:///old/t").stays


def test_places_among_the_properties_move_along_or_go() -> None:
    tree = {
        "location": "file:///old/t",
        "properties": {
            "write.data.path": "file:/old/t/d",
            "write.metadata.path": "file:///other",
            "x": "file:///old/t",
        },
    }
    made = moved_metadata(tree, MOVE, {"mark": "m"}).decode()
    assert '"write.data.path":"s3://new/place/t/d"' in made
    assert "write.metadata.path" not in made
    assert '"x":"file:///old/t"' in made
    assert '"mark":"m"' in made


def test_the_rows_of_position_deletes_are_the_same_with_their_new_paths() -> None:
    schema = pa.schema(
        [
            pa.field("file_path", pa.string(), False, {"PARQUET:field_id": str(PATH_ID)}),
            pa.field("pos", pa.int64(), False, {"PARQUET:field_id": str(POS_ID)}),
        ]
    )
    rows = {"file_path": ["file:/old/t/data/a", "file:/old/t/data/a", "file:/old/t/data/b"], "pos": [1, 5, 0]}
    out = io.BytesIO()
    pq.write_table(pa.table(rows, schema=schema), out)
    moved = pq.read_table(io.BytesIO(moved_position_deletes(out.getvalue(), MOVE)))
    assert moved["file_path"].to_pylist() == [f"s3://new/place/t/data/{name}" for name in "aab"]
    assert moved["pos"].to_pylist() == [1, 5, 0]
    assert [field.metadata[b"PARQUET:field_id"] for field in moved.schema] == [b"%d" % PATH_ID, b"%d" % POS_ID]


def manifest(**changes: Any) -> bytes:
    """A manifest with one file of deletes, in the fewest fields."""
    bound = {
        "type": "array",
        "logicalType": "map",
        "items": {
            "type": "record",
            "name": "bound",
            "fields": [{"name": "key", "type": "int"}, {"name": "value", "type": "bytes"}],
        },
    }
    data_file = {
        "type": "record",
        "name": "r2",
        "fields": [
            {"name": "content", "type": "int", "field-id": 134},
            {"name": "file_path", "type": "string", "field-id": 100},
            {"name": "file_format", "type": "string", "field-id": 101},
            {"name": "file_size_in_bytes", "type": "long", "field-id": 104},
            {"name": "lower_bounds", "type": ["null", bound], "field-id": 125},
            {"name": "upper_bounds", "type": ["null", {"type": "array", "items": "bound"}], "field-id": 128},
            {"name": "referenced_data_file", "type": ["null", "string"], "field-id": 143},
        ],
    }
    schema = {"type": "record", "name": "manifest_entry", "fields": [{"name": "data_file", "type": data_file}]}
    values = {
        "content": 1,
        "file_path": "file:///old/t/data/deletes.parquet",
        "file_format": "PARQUET",
        "file_size_in_bytes": 10,
        "lower_bounds": [{"key": PATH_ID, "value": b"file:///old/t/data/a"}, {"key": POS_ID, "value": b"\0"}],
        "upper_bounds": [{"key": PATH_ID, "value": b"file:///old/t/data/b"}, {"key": POS_ID, "value": b"\1"}],
        "referenced_data_file": "file:///old/t/data/a",
    } | changes
    out = io.BytesIO()
    fastavro.writer(out, schema, [{"data_file": values}], metadata={"content": "deletes"})
    return out.getvalue()


def moved(content: bytes) -> dict[str, Any]:
    file = AvroFile.read(moved_manifest(content, MOVE, {"s3://new/place/t/data/deletes.parquet": 77}))
    assert file.header["meta"]["content"] == b"deletes"
    (record,) = file.records
    found: dict[str, Any] = record["data_file"]
    return found


def test_what_a_manifest_says_of_position_deletes_moves_with_them() -> None:
    entry = moved(manifest())
    assert (entry["file_path"], entry["file_size_in_bytes"]) == ("s3://new/place/t/data/deletes.parquet", 77)
    assert entry["referenced_data_file"] == "s3://new/place/t/data/a"
    assert entry["lower_bounds"] == [
        {"key": PATH_ID, "value": b"s3://new/place/t/data/a"},
        {"key": POS_ID, "value": b"\0"},
    ]


def test_a_bound_that_was_cut_off_is_left_out() -> None:
    entry = moved(manifest(upper_bounds=[{"key": PATH_ID, "value": b"file:///ole"}, {"key": POS_ID, "value": b"\1"}]))
    assert entry["lower_bounds"] == [{"key": POS_ID, "value": b"\0"}]
    assert entry["upper_bounds"] == [{"key": POS_ID, "value": b"\1"}]


def test_a_deletion_vector_is_not_moved() -> None:
    assert kind_of({"content": 1, "file_format": "puffin"}) == "deletion-vector"
    with pytest.raises(Unsupported, match="restore to where the table was"):
        moved_manifest(manifest(file_format="PUFFIN"), MOVE, {})
