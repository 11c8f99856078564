"""What was written, and so what every answer must be: the oracle of a world, in plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.datasets import GAP_EVENTS, TRADES, Bars, Dataset
from common.offsets import KafkaPartition, PartitionOffsets
from flight_server.storage.read_view import Cut
from tests.simulation.parts import DATASETS, Row, difference
from tests.support.bars_oracle import oracle

#: Gaps whose states follow each other in a world.
_GAPS = 5


@dataclass
class Truth:
    """The committed records of the log, usable or not, and what is in them."""

    #: Of each dataset: of each partition, the usable records by offset.
    records: dict[str, dict[KafkaPartition, dict[int, int]]] = field(
        default_factory=lambda: {dataset.name: {} for dataset in DATASETS}
    )
    #: Those that are none: topic and position -> the bytes that lie there.
    broken: dict[tuple[str, KafkaPartition, int], bytes | None] = field(default_factory=dict)
    #: The trades, by number; those of a later release have a further column.
    trades: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    added: dict[int, str] = field(default_factory=dict)
    next_number: int = 1

    def between(self, dataset: Dataset, low: PartitionOffsets | None, until: PartitionOffsets) -> list[Row]:
        """The log's usable records with low <= offset < until, in order of position."""
        return sorted(
            (partition.topic_id[-8:], partition.partition, offset, number)
            for partition, records in self.records[dataset.name].items()
            if (end := until.next_offset(partition))
            for offset, number in records.items()
            if offset < end and (low is None or offset >= low.next_offset(partition))
        )

    def compare(
        self,
        dataset: Dataset,
        rows: list[Row],
        until: PartitionOffsets,
        cut: Cut,
        *,
        low: PartitionOffsets | None = None,
        least: int = 0,
    ) -> None:
        expected = [row for row in self.between(dataset, low, until) if row[3] >= least]
        assert sorted(rows) == expected, f"{dataset.table} {difference(rows, expected, cut)}"

    def bars(self, bars: Bars, until: PartitionOffsets) -> list[dict[str, Any]]:
        """The bars of the trades below these offsets."""
        return oracle([self.trades[row[3]] for row in self.between(TRADES, None, until)], bars.width_us)

    def further(self, until: PartitionOffsets) -> dict[int, str]:
        """The trades below these offsets that have the further column, and its value."""
        return {row[3]: self.added[row[3]] for row in self.between(TRADES, None, until) if row[3] in self.added}

    def gaps(self, until: PartitionOffsets) -> dict[str, int]:
        """The newest state of each gap below these offsets, by the number of its record."""
        newest: dict[str, int] = {}
        for row in self.between(GAP_EVENTS, None, until):
            newest[gap_of(row[3])] = max(row[3], newest.get(gap_of(row[3]), 0))
        return newest


def gap_of(number: int) -> str:
    """The gap that a gap event of this number is about."""
    return f"gap-{number % _GAPS}"
