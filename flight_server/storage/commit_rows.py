"""Pure: the commits of a table as clients see them, with the text of the cut that each one is."""

from __future__ import annotations

import re
from collections.abc import Set

import pyarrow as pa
import pyarrow.compute as pc

from common.commits import next_column, partitions_of
from common.offsets import PartitionOffsets
from flight_server.storage.read_view import Cut, TableCut

_TIME = pa.timestamp("us", "UTC")
#: A row for each time that a snapshot became the current one of its table, and one without a time for a snapshot that
#: never did. `current_until` is when another one did so; `cut` is what AT (VERSION => ...) takes.
COMMITS = pa.schema(
    [
        pa.field("table_name", pa.string(), nullable=False),
        pa.field("snapshot_id", pa.int64(), nullable=False),
        pa.field("parent_snapshot_id", pa.int64()),
        pa.field("sequence_number", pa.int64(), nullable=False),
        pa.field("committed_at", _TIME, nullable=False),
        pa.field("current_from", _TIME),
        pa.field("current_until", _TIME),
        pa.field("is_kept", pa.bool_(), nullable=False),
        pa.field("operation", pa.string()),
        pa.field("added_rows", pa.int64()),
        pa.field("total_rows", pa.int64()),
        pa.field("schema_id", pa.int32()),
        pa.field("cut", pa.string()),
    ]
)
#: Texts are made for so many rows at a time, so that none of their columns exceeds what 32-bit offsets reach.
_TEXTS = 100_000
#: Stand where the numbers go in a cut's text; no offset is as large.
_MARK = 8 * 10**18
_MARKS = re.compile(rf"{str(_MARK)[:4]}\d{{15}}")


def ops_rows(table: str, rows: pa.Table, kept_ids: Set[int], *, with_cuts: bool) -> pa.Table:
    """The rows of a history (see common.commits), in order, as COMMITS; `cut` is null without `with_cuts`."""
    count = rows.num_rows
    from_ms = rows["current_ms"].combine_chunks()
    until_ms = pa.concat_arrays([from_ms[1:], pa.nulls(min(count, 1), pa.int64())])
    ids = rows["snapshot_id"].combine_chunks()
    columns = {
        "table_name": pa.repeat(table, count),
        "committed_at": _times(rows["committed_ms"].combine_chunks()),
        "current_from": _times(from_ms),
        "current_until": _times(until_ms),
        "is_kept": pc.is_in(ids, pa.array(sorted(kept_ids), pa.int64())),
        "cut": _cuts(table, rows) if with_cuts else pa.nulls(count, pa.string()),
    }
    listed = [columns[name] if name in columns else rows[name] for name in COMMITS.names]
    return pa.table(listed, schema=COMMITS)


def _times(milliseconds: pa.Array) -> pa.Array:
    return pc.multiply(milliseconds, 1_000).cast(_TIME)


def _cuts(table: str, rows: pa.Table) -> pa.ChunkedArray:
    """The text of each row's cut, as Cut.to_text gives it; null where nobody knows the offsets."""
    partitions = partitions_of(rows.schema)
    marked = PartitionOffsets({partition: _MARK + 1 + index for index, partition in enumerate(partitions)})
    text = Cut({table: TableCut(_MARK, marked)}).to_text()
    columns = [
        "snapshot_id" if (index := int(mark) - _MARK) == 0 else next_column(index - 1) for mark in _MARKS.findall(text)
    ]
    pieces = _MARKS.split(text)
    chunks = []
    for begin in range(0, rows.num_rows, _TEXTS):
        part = rows.slice(begin, _TEXTS)
        joined: list[object] = [pieces[0]]
        for column, piece in zip(columns, pieces[1:], strict=True):
            joined += [part[column].combine_chunks().cast(pa.string()), piece]
        texts = pc.binary_join_element_wise(*joined, "")
        chunks.append(pc.if_else(part["has_offsets"].combine_chunks(), texts, pa.scalar(None, pa.string())))
    return pa.chunked_array(chunks, pa.string())
