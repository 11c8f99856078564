"""Which data files of a snapshot can hold rows that a query asks for, by the bounds that Iceberg keeps of each: pure.

Guarantee: a file that has a row which meets all conditions is always among those found. It may find more; never less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: A value that bounds are compared with: a number, a text, or microseconds since 1970 for a time.
Value = int | str

#: The manifests' columns of a file, beside its bounds.
PATH, ADDED_BY, ROWS = "path", "added_by", "rows"


@dataclass(frozen=True)
class Condition:
    """What a row must meet: its `column` lies in one of the intervals, both ends included, None being open.

    A row whose column is NULL does not meet it.
    """

    column: str
    intervals: tuple[tuple[Value | None, Value | None], ...]


def lower(column: str) -> str:
    """The index's column with the files' lower bounds of `column`."""
    return f"lower.{column}"


def upper(column: str) -> str:
    """The index's column with the files' upper bounds of `column`."""
    return f"upper.{column}"


class FileIndex:
    """The live data files of one snapshot. Immutable."""

    def __init__(
        self,
        paths: np.ndarray,
        added_by: np.ndarray,
        rows: int,
        bounds: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """See `of` and `joined`. `bounds` are (lower, upper) of each column."""
        self._paths = paths
        self._added_by = added_by
        self.rows = rows
        self._bounds = bounds

    @classmethod
    def of(cls, files: pa.Table) -> Self:
        """Of a row per file: PATH, ADDED_BY (the id of the snapshot that added it), ROWS, and `lower` and `upper` of
        columns, as strings or as int64, times in microseconds. NULL means that a bound is not known."""
        bounds = {}
        for name in files.column_names:
            column = name.removeprefix(lower(""))
            if name == lower(column):
                low, high = files.column(name), files.column(upper(column))
                bounds[column] = (_comparable(low, _LEAST), _comparable(high, _GREATEST))
        paths = np.array(files.column(PATH).to_pylist(), object)
        return cls(paths, files.column(ADDED_BY).to_numpy(), int(pc.sum(files.column(ROWS)).as_py() or 0), bounds)

    @classmethod
    def joined(cls, parts: Sequence[FileIndex]) -> Self:
        """All files of these, of which there is at least one; all have bounds of the same columns."""
        bounds = {
            column: (
                np.concatenate([part._bounds[column][0] for part in parts]),
                np.concatenate([part._bounds[column][1] for part in parts]),
            )
            for column in parts[0]._bounds
        }
        return cls(
            np.concatenate([part._paths for part in parts]),
            np.concatenate([part._added_by for part in parts]),
            sum(part.rows for part in parts),
            bounds,
        )

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def added_by(self) -> frozenset[int]:
        """The ids of the snapshots that added the files."""
        return frozenset(self._added_by.tolist())

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, in order of their names."""
        return tuple(sorted(self._paths))

    def matching(self, conditions: Sequence[Condition]) -> list[tuple[str, int]]:
        """(path, id of the snapshot that added it) of each file that can hold rows which meet all of the conditions.

        Conditions on columns that the index does not have, or on values of another type, leave nothing out.
        """
        found = np.arange(len(self._paths))
        # Numbers first: they are compared a hundred times faster, and what they leave out need not be compared again.
        for condition in sorted(conditions, key=_is_text):
            bounds = self._bounds.get(condition.column)
            if bounds is not None and len(found) and (bounds[0].dtype == object) == _is_text(condition):
                found = found[_may_hold(bounds[0][found], bounds[1][found], condition)]
        return list(zip(self._paths[found].tolist(), self._added_by[found].tolist(), strict=True))


#: In place of bounds that are not known: below and above every number; above every text is what no text begins with.
_LEAST, _GREATEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_TEXT_GREATEST = "\U0010ffff" * 32


def _comparable(bounds: pa.ChunkedArray, unknown: int) -> np.ndarray:
    if pa.types.is_string(bounds.type):
        text = "" if unknown == _LEAST else _TEXT_GREATEST
        return np.array([text if bound is None else bound for bound in bounds.to_pylist()], object)
    return np.asarray(pc.fill_null(bounds, unknown).to_numpy())


def _is_text(condition: Condition) -> bool:
    return any(isinstance(value, str) for interval in condition.intervals for value in interval)


def _may_hold(low: np.ndarray, high: np.ndarray, condition: Condition) -> np.ndarray:
    kept = np.zeros(len(low), bool)
    for begin, end in condition.intervals:
        here = np.ones(len(low), bool)
        if begin is not None:
            here &= np.asarray(high >= begin, bool)
        if end is not None:
            here &= np.asarray(low <= end, bool)
        kept |= here
    return kept


def decoded_bounds(raw: pa.Table, texts: Mapping[str, bool]) -> pa.Table:
    """Bounds as a manifest has them (Iceberg's single-value serialisation) as the values that `FileIndex.of` takes.

    `raw` has PATH, ADDED_BY, ROWS, and binary `lower` and `upper` of each column; `texts` says which columns are
    strings; the others are integers of four or eight bytes, little endian.
    """
    columns: dict[str, Any] = {name: raw.column(name) for name in (PATH, ADDED_BY, ROWS)}
    for column, is_text in texts.items():
        for name in (lower(column), upper(column)):
            found = raw.column(name).combine_chunks() if raw.num_rows else pa.array([], pa.binary())
            columns[name] = _texts(found) if is_text else _numbers(found)
    return pa.table(columns)


def _texts(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:  # cut within a character: such a bound says nothing
        return pa.array([_text(value) for value in values.to_pylist()], pa.string())


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _numbers(values: pa.Array) -> pa.Array:
    """Without a Python object per value: a manifest may list tens of thousands of files."""
    found = np.zeros(len(values), np.int64)
    known = np.zeros(len(values), bool)
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    for width, kind in ((4, "<i4"), (8, "<i8")):
        here = lengths == width
        if here.any():
            chosen = values.filter(pa.array(here))
            _, offsets, data = chosen.buffers()
            start = int(np.frombuffer(offsets, "<i4")[chosen.offset])
            found[here] = np.frombuffer(data, kind, count=len(chosen), offset=start)
            known |= here
    return pa.array(found, mask=~known)
