"""The trades and a table of bars in memory that keep the contracts of sink.table and sink.bars_table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from common.datasets import Bars
from common.errors import CatalogError
from common.offsets import PartitionOffsets, topic_short
from common.schemas.arrow import table_schema
from sink.bars import BAR_SCHEMA, folded
from sink.bars_layout import Span, pieces, rewrites
from tests.support.fake_table import FakeStore, FakeTable

_DAY_US = 86_400_000_000


class FakeTrades(FakeTable):
    """A reader's handle on the table of trades."""

    def rows_between(
        self, low: PartitionOffsets, high: PartitionOffsets, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """As of the last load."""
        wanted = {(topic_short(p.topic_id), p.partition): (low.next_offset(p), until) for p, until in high.items()}
        for number in self._files:
            if number not in self._store.files:
                raise CatalogError("a data file of the fake table is gone")
            rows = self._store.files[number]
            places = zip(*(rows.column(name).to_pylist() for name in table_schema("trade").names[-3:]), strict=True)
            kept = []
            for topic, partition, offset in places:
                begin, end = wanted.get((topic, partition), (0, 0))
                kept.append(begin <= offset < end)
            yield from rows.filter(pa.array(kept, pa.bool_())).select(list(columns)).to_batches()


@dataclass(frozen=True)
class FakeChange:
    """Files of bars that lie in the store, and those that they take the place of."""

    files: tuple[int, ...]
    replacing: tuple[int, ...]
    base: PartitionOffsets
    to: PartitionOffsets


class FakeBars(FakeTable):
    """A writer's handle on a table of bars. What is written anew, and how bars are merged, is the real one's."""

    def __init__(self, store: FakeStore, bars: Bars) -> None:
        super().__init__(store)
        self._bars = bars

    @property
    def name(self) -> str:
        return self._bars.table

    @property
    def width_us(self) -> int:
        return self._bars.width_us

    def prepare(self, more: pa.Table, base: PartitionOffsets, to: PartitionOffsets) -> FakeChange:
        held = [number for number in self._files if number in self._store.files]
        if len(held) < len(self._files):
            raise CatalogError("a data file of the fake bars is gone")
        period_us = None if self._bars.day_column is None else _DAY_US
        start_us = more.column("bar_start").cast(pa.int64()).to_numpy()
        written: list[int] = []
        replacing: list[int] = []
        for one in rewrites([self._span(number) for number in held], start_us, period_us=period_us):
            old = [held[index] for index in one.files]
            there = pa.concat_tables([BAR_SCHEMA.empty_table(), *(self._store.files[number] for number in old)])
            bars = folded(there, more.take(pa.array(one.bars)), self.width_us)
            written += [self._store.put(piece) for piece in pieces(bars, period_us=period_us)]
            replacing += old
        return FakeChange(tuple(written), tuple(replacing), base, to)

    def land(self, change: FakeChange, commit_id: str) -> int:
        return self.commit(change.files, change.base, change.to, commit_id, replacing=change.replacing)

    def expire(self, now_us: int) -> int:
        """Another job of a world has it expire."""
        return 0

    def _span(self, number: int) -> Span:
        start_us = self._store.files[number].column("bar_start").cast(pa.int64()).to_pylist()
        return Span(min(start_us), max(start_us), len(start_us))
