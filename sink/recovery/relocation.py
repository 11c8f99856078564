"""A table's metadata for another place: every path moved, and not a byte of anything else changed. Pure.

Iceberg writes absolute paths: into metadata.json, into manifest lists, into manifests, and into files of position
deletes. Here each is read as what it is, JSON or Avro, its paths are replaced, and it is written again with the same
Avro schema (to the letter, field ids included), the same sync marker and the same key-value metadata. So snapshot ids,
sequence numbers, statistics, summaries and fields that this version of K2 does not know stay as they were.

Two lengths follow from the contents and are set anew: `manifest_length` in a manifest list, and `file_size_in_bytes` of
a file of position deletes in its manifest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import Unsupported

#: Iceberg's reserved id of the column `file_path` of position deletes.
_DELETE_FILE_PATH_ID = 2147483546
#: Table properties that name a place.
_PLACES = (
    "write.data.path",
    "write.metadata.path",
    "write.object-storage.path",
    "write.folder-storage.path",
)
#: Where files of a table go that lay outside of it.
OUTSIDE = "outside/"
_HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": 16}},
        ],
    }
)
_LONG = fastavro.parse_schema("long")
_POSITION, _EQUALITY = 1, 2
#: Kinds of files that manifests list.
DATA, EQUALITY_DELETES = "data", "equality-deletes"
POSITION_DELETES, DELETION_VECTOR = "position-deletes", "deletion-vector"


@dataclass(frozen=True)
class Move:
    """A table's location, and the one it gets. Files that lie outside of the old one get a name in the new one."""

    old: str
    new: str

    @property
    def stays(self) -> bool:
        """True when nothing is to be moved."""
        return spelled(self.old).rstrip("/") == spelled(self.new).rstrip("/")

    def path(self, path: str) -> str:
        return f"{self.new.rstrip('/')}/{relative(self.old, path)}"


def relative(location: str, path: str) -> str:
    """The path below a table's location; of a file outside of it, a name that follows from its whole path."""
    base, path = spelled(location).rstrip("/") + "/", spelled(path)
    if path.startswith(base):
        return path.removeprefix(base)
    return f"{OUTSIDE}{hashlib.sha256(path.encode()).hexdigest()[:16]}-{path.rpartition('/')[2]}"


def spelled(path: str) -> str:
    """The path as K2 spells it. Hadoop's libraries write file:/a for file:///a, and some tools write /a."""
    return f"file://{path.removeprefix('file:')}" if re.match(r"(file:)?/(?!/)", path) else path


# -- metadata.json


def metadata_tree(content: bytes, name: str) -> dict[str, Any]:
    """The JSON of a metadata file, which is packed when its name says so. Raises ValueError when it is torn."""
    text = gzip.decompress(content) if ".gz.metadata" in name or name.endswith(".metadata.json.gz") else content
    tree = json.loads(text)
    if not isinstance(tree, dict) or "format-version" not in tree or "location" not in tree:
        raise ValueError("it is no table's metadata")
    return tree


def moved_metadata(tree: Mapping[str, Any], move: Move, mark: Mapping[str, str]) -> bytes:
    """The metadata file of the moved table, with `mark` among its properties if it does not stay.

    Its `metadata-log` is empty: the versions before it do not come along.
    """
    made = dict(tree)
    made["location"] = move.new.rstrip("/")
    made["metadata-log"] = []
    made["snapshots"] = [
        {**snapshot, "manifest-list": move.path(snapshot["manifest-list"])} for snapshot in tree.get("snapshots") or []
    ]
    for key in ("statistics", "partition-statistics"):
        if key in tree:
            made[key] = [{**file, "statistics-path": move.path(file["statistics-path"])} for file in tree[key] or []]
    if not move.stays:
        made["properties"] = {**dict(_properties(tree.get("properties") or {}, move)), **mark}
    return json.dumps(made, separators=(",", ":")).encode()


def _properties(properties: Mapping[str, str], move: Move) -> Iterator[tuple[str, str]]:
    """A place below the table moves with it; one elsewhere is left to the default, which is below the table."""
    base = spelled(move.old).rstrip("/")
    for key, value in properties.items():
        place = spelled(value).rstrip("/")
        if key not in _PLACES:
            yield key, value
        elif place == base or place.startswith(f"{base}/"):
            yield key, move.new.rstrip("/") + place.removeprefix(base)


# -- Avro


@dataclass(frozen=True)
class AvroFile:
    """An Object Container File as its header and its blocks of records, without interpretation of logical types."""

    header: Mapping[str, Any]
    schema: Any
    blocks: tuple[tuple[Mapping[str, Any], ...], ...]

    @classmethod
    def read(cls, content: bytes) -> AvroFile:
        """Raises ValueError when it is torn."""
        try:
            reader: Any = fastavro.block_reader(io.BytesIO(content))
            schema = fastavro.parse_schema(_plain(json.loads(reader.metadata["avro.schema"])))
            header: Any = fastavro.schemaless_reader(io.BytesIO(content), _HEADER, None)
            blocks: Any = tuple(
                tuple(fastavro.schemaless_reader(block.bytes_, schema, None) for _ in range(block.num_records))
                for block in reader
            )
        except Exception as error:  # noqa: BLE001 - a torn file shows itself as anything
            raise ValueError(f"it is no whole Avro file ({type(error).__name__}: {error})") from None
        return cls(header, schema, blocks)

    @property
    def records(self) -> Iterator[Mapping[str, Any]]:
        return (record for block in self.blocks for record in block)

    def with_records(self, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
        """The file with each record changed, and with nothing else changed."""
        meta = dict(self.header["meta"])
        if meta.get("avro.codec", b"null") not in (b"null", b"deflate"):
            meta["avro.codec"] = b"deflate"
        packed = meta.get("avro.codec") == b"deflate"
        out = io.BytesIO()
        fastavro.schemaless_writer(out, _HEADER, {**self.header, "meta": meta})
        for block in self.blocks:
            body = io.BytesIO()
            for record in block:
                fastavro.schemaless_writer(body, self.schema, changed(dict(record)))
            data = _deflated(body.getvalue()) if packed else body.getvalue()
            fastavro.schemaless_writer(out, _LONG, len(block))
            fastavro.schemaless_writer(out, _LONG, len(data))
            out.write(data)
            out.write(self.header["sync"])
        return out.getvalue()


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def _plain(schema: Any) -> Any:
    """The schema without logical types, so that values are read and written as the bytes they are."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    return schema


def moved_manifest_list(content: bytes, move: Move, lengths: Mapping[str, int]) -> bytes:
    """The manifest list of the moved table; `lengths` has the moved manifests' by their new paths."""

    def changed(entry: dict[str, Any]) -> dict[str, Any]:
        path = move.path(entry["manifest_path"])
        return entry | {"manifest_path": path, "manifest_length": lengths[path]}

    return AvroFile.read(content).with_records(changed)


def moved_manifest(content: bytes, move: Move, sizes: Mapping[str, int]) -> bytes:
    """The manifest of the moved table; `sizes` has those of moved files of position deletes by their new paths.

    Raises Unsupported for a deletion vector, whose file has the path of its data file inside.
    """

    def changed(entry: dict[str, Any]) -> dict[str, Any]:
        data_file = dict(entry["data_file"])
        if kind_of(data_file) == DELETION_VECTOR:
            raise Unsupported(
                f"{data_file['file_path']} is a deletion vector, which K2 does not move; restore to where the table was"
            )
        path = data_file["file_path"] = move.path(data_file["file_path"])
        if path in sizes:
            data_file["file_size_in_bytes"] = sizes[path]
        if data_file.get("referenced_data_file") is not None:
            data_file["referenced_data_file"] = move.path(data_file["referenced_data_file"])
        if data_file.get("content") == _POSITION:
            data_file |= _moved_bounds(data_file, move)
        return entry | {"data_file": data_file}

    return AvroFile.read(content).with_records(changed)


def _moved_bounds(data_file: Mapping[str, Any], move: Move) -> dict[str, Any]:
    """The bounds of the paths in a file of position deletes; none where one is cut off and cannot be moved."""
    base = spelled(move.old).rstrip("/") + "/"
    bounds = {key: list(data_file.get(key) or []) for key in ("lower_bounds", "upper_bounds")}
    paths = [entry for entries in bounds.values() for entry in entries if entry["key"] == _DELETE_FILE_PATH_ID]
    movable = all(spelled(entry["value"].decode(errors="replace")).startswith(base) for entry in paths)

    def moved(entries: list[Any]) -> list[Any] | None:
        made = []
        for entry in entries:
            if entry["key"] != _DELETE_FILE_PATH_ID:
                made.append(entry)
            elif movable:
                made.append({**entry, "value": move.path(entry["value"].decode()).encode()})
        return made or None

    return {key: moved(entries) for key, entries in bounds.items() if key in data_file}


def moved_position_deletes(content: bytes, move: Move) -> bytes:
    """A Parquet file of position deletes for the moved table: the same rows, in the order of the new paths."""
    rows = pq.read_table(pa.BufferReader(content))
    paths = pa.array([move.path(path) for path in rows["file_path"].to_pylist()], pa.string())
    index = rows.schema.get_field_index("file_path")
    field = rows.schema.field(index)
    rows = rows.set_column(index, field, paths.cast(field.type))
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("file_path", "ascending"), ("pos", "ascending")]))
    out = io.BytesIO()
    pq.write_table(rows, out, compression="zstd")
    return out.getvalue()


# -- what there is


def kind_of(data_file: Mapping[str, Any]) -> str:
    """What a manifest's entry is about."""
    content, form = data_file.get("content") or 0, str(data_file["file_format"]).upper()
    if content == _POSITION:
        return DELETION_VECTOR if form == "PUFFIN" else POSITION_DELETES
    return EQUALITY_DELETES if content == _EQUALITY else DATA
