"""What verifying sees of rows: each Kafka offset and each id of a venue once, what is missing, and who knows of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.commits import Loss
from common.datasets import TRADES, Dataset
from common.offsets import PartitionOffsets, topic_short
from common.schemas.arrow import table_schema
from sink.maintenance.ids import Ids, IdSet, Range, without
from sink.maintenance.jobs import counted

#: Findings that are told one by one; of more, only how many.
FINDINGS_MAX = 1_000
_RANGES_SHOWN = 3
_KEYS_SHOWN = 20
_OFFSET_COLUMNS = ("_kafka_topic", "_kafka_partition", "_kafka_offset")

#: (exchange, symbol)
Key = tuple[str, str]
#: The trade ids that a recorded gap covers, by key, in order, none overlapping.
Gaps = Mapping[Key, Sequence[Range]]


@dataclass
class Findings:
    lines: list[str] = field(default_factory=list)
    found: int = 0

    def add(self, line: str) -> None:
        self.found += 1
        if len(self.lines) < FINDINGS_MAX:
            self.lines.append(line)


class SeenRows:
    """What was seen of the rows: each offset, and each id of a venue, once."""

    def __init__(self, dataset: Dataset | None, taken: PartitionOffsets, findings: Findings) -> None:
        self._findings = findings
        self._taken = taken
        self._by_short = {(topic_short(p.topic_id), p.partition): p for p in taken}
        self._offsets: dict[tuple[str, int], IdSet] = {}
        self._twice: dict[str, tuple[int, int]] = {}
        self.ids: dict[Key, IdSet] = {}
        self._id_column = None if dataset is None else _dense_id(dataset)
        self._is_dense = dataset is not None and dataset.name == TRADES.name
        identity = () if self._id_column is None else ("exchange", "symbol", self._id_column)
        #: What is read of each row; nothing of a table that is not the log's.
        self.columns = () if dataset is None else (*_OFFSET_COLUMNS, *identity)
        self.read = 0
        self.offsets_without_row = 0
        self.ids_missing = 0
        self.ids_unrecorded = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.read += batch.num_rows
        if not self.columns or not batch.num_rows:
            return
        for (topic, partition), offsets in _groups(batch, ("_kafka_topic", "_kafka_partition"), "_kafka_offset"):
            seen = self._offsets.setdefault((topic, partition), IdSet())
            self._note(f"the offset {{}} of topic ...{topic} [{partition}]", seen.add(offsets))
        if self._id_column is not None:
            for (exchange, symbol), ids in _groups(batch, ("exchange", "symbol"), self._id_column):
                known = self.ids.setdefault((exchange, symbol), IdSet())
                self._note(f"the {self._id_column} {{}} of {exchange} {symbol}", known.add(ids))

    def end_file(self) -> None:
        for seen in (*self._offsets.values(), *self.ids.values()):
            seen.pack()

    def remarks(self, deletions: Sequence[Loss], gaps: Callable[[], Gaps | None]) -> list[str]:
        """Judge what was seen, once all of it was; the lines that are worth knowing.

        `gaps` reads what ops.gap_events has; it is asked only where trade ids are missing, None when there is no such
        table.
        """
        for what, (count, first) in self._twice.items():
            more = f", and {count - 1:,} others too" if count > 1 else ""
            self._findings.add(f"{what.format(first)} is there more than once{more}")
        lines = self._offset_remarks()
        if deletions and self.read:
            lines.append(f"{counted(len(deletions), 'snapshot')} deleted rows: what is missing may be theirs")
        if self._is_dense:
            lines += self._id_remarks(gaps, is_whole=not deletions)
        return lines

    def _offset_remarks(self) -> list[str]:
        lines = []
        for (topic, partition), seen in sorted(self._offsets.items()):
            name = f"topic ...{topic} [{partition}]"
            first, last = seen.first(), seen.last()
            assert first is not None and last is not None
            of = self._by_short.get((topic, partition))
            if of is None:
                self._findings.add(f"rows of {name} are there, of which the snapshot has taken in nothing")
                continue
            end = self._taken[of]
            if last >= end:
                self._findings.add(
                    f"the offset {last:,} of {name} is there, the snapshot has taken in what is below {end:,}"
                )
            missing = max(end, last + 1) - first - len(seen)
            self.offsets_without_row += missing
            begins = f" begins at offset {first:,}" if first else ""
            if missing or begins:
                holes = seen.holes(first, max(end - 1, last))
                without = f" has no row for {_shown(missing, holes, 'offset')}" if missing else ""
                lines.append(f"{name}{begins}{' and' if begins and without else ''}{without}")
        return lines

    def _id_remarks(self, gaps: Callable[[], Gaps | None], *, is_whole: bool) -> list[str]:
        lines = []
        lacking = {key: missing for key, ids in sorted(self.ids.items()) if (missing := _missing(ids))}
        recorded = gaps() if lacking else None
        for (exchange, symbol), missing in lacking.items():
            ids = self.ids[exchange, symbol]
            self.ids_missing += missing
            lines.append(f"{exchange} {symbol} lacks {_shown(missing, _holes(ids), 'trade')}")
            if recorded is not None:
                known = recorded.get((exchange, symbol), ())
                unknown = sum(last - first + 1 for first, last in without(_holes(ids), known))
                self.ids_unrecorded += unknown
                if unknown and is_whole:  # what was deleted on purpose cannot be told from what never came
                    which = _shown(unknown, without(_holes(ids), known), "trade")
                    self._findings.add(f"{exchange} {symbol} lacks {which} that ops.gaps does not know of")
        if lacking and recorded is None:
            lines.append("whether these are known is not recorded: there is no table ops.gap_events")
        if len(lines) > _KEYS_SHOWN:
            lines[_KEYS_SHOWN:] = [f"{len(lines) - _KEYS_SHOWN:,} more symbols lack trades"]
        return lines

    def _note(self, what: str, twice: tuple[int, int | None]) -> None:
        count, first = twice
        if first is not None:
            before, earliest = self._twice.get(what, (0, first))
            self._twice[what] = (before + count, min(earliest, first))


def _missing(ids: IdSet) -> int:
    """How many ids are missing between the first and the last."""
    first, last = ids.first(), ids.last()
    return 0 if first is None or last is None else last - first + 1 - len(ids)


def _holes(ids: IdSet) -> Iterator[Range]:
    first, last = ids.first(), ids.last()
    assert first is not None and last is not None
    return ids.holes(first, last)


def _groups(batch: pa.RecordBatch, by: tuple[str, str], of: str) -> Iterator[tuple[tuple[Any, Any], Ids]]:
    """The values of the column `of` for each pair of values of the columns `by`."""
    codes: npt.NDArray[np.int64] = np.zeros(batch.num_rows, np.int64)
    encoded = [pc.dictionary_encode(batch.column(name)) for name in by]
    for column in encoded:
        codes = codes * len(column.dictionary) + column.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    values = batch.column(of).to_numpy(zero_copy_only=False)[order]
    found, begins = np.unique(codes[order], return_index=True)
    width = len(encoded[1].dictionary)
    firsts, seconds = (column.dictionary.to_pylist() for column in encoded)
    for code, ids in zip(found.tolist(), np.split(values, begins[1:]), strict=True):
        yield (firsts[code // width], seconds[code % width]), ids


def _dense_id(dataset: Dataset) -> str | None:
    """The column that has the venue's number of a record; None where that is no number."""
    kind = table_schema(dataset.schema_name).field(dataset.id_column).type
    return dataset.id_column if pa.types.is_integer(kind) else None


def _shown(count: int, ranges: Iterator[Range], noun: str) -> str:
    """How many there are, and the first ranges of them."""
    shown = [str(a) if a == b else f"{a} to {b}" for a, b in itertools.islice(ranges, _RANGES_SHOWN)]
    more = ", ..." if next(ranges, None) is not None else ""
    return f"{counted(count, noun)} ({', '.join(shown)}{more})"
