"""One suite over the real table of bars and its fake, and over the trades as the worker of bars reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.datasets import BARS, TRADES
from common.errors import CommitConflict
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import table_schema
from common.settings import LakeSettings
from sink.bars import TRADE_COLUMNS, bars_of
from sink.bars_table import BarsTable
from sink.table import IcebergTable
from tests.support.bars_bench import made
from tests.support.bars_oracle import in_order, oracle
from tests.support.fake_bars import FakeBars, FakeTrades
from tests.support.fake_table import FakeStore
from tests.support.records import table_rows

SECONDS = BARS["bars_1s"]
P0, P1 = (KafkaPartition("cluster", "topic-id-1", number) for number in range(2))
NONE = PartitionOffsets()
#: Two days, and two trades in a second of the first.
SENT = [made(i, at_s=s) for i, s in enumerate([0.0, 0.4, 5.0, 90_000.0, 0.8, 90_001.0])]


def at(offset: int) -> PartitionOffsets:
    return PartitionOffsets({P0: offset})


def more(first: int, until: int) -> pa.Table:
    """The bars of these trades alone."""
    return bars_of(table_rows("trade", SENT[first:until]).select(list(TRADE_COLUMNS)), SECONDS.width_us)


class Bars:
    """Makes handles on one and the same table of bars, and on one of trades."""

    def __init__(self, kind: str, folder: Path) -> None:
        lake, bars, trades = LakeSettings.load(data_dir=folder), FakeStore(), FakeStore(table_schema("trade"))
        handles: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], pa.Table]]] = {
            "iceberg": (
                lambda: BarsTable.open(lake, SECONDS),
                lambda: IcebergTable.open(lake, TRADES),
                lambda: BarsTable.open(lake, SECONDS).iceberg_table.scan().to_arrow(),
            ),
            "fake": (
                lambda: FakeBars(bars, SECONDS),
                lambda: FakeTrades(trades),
                lambda: pa.Table.from_pylist(bars.rows(), schema=table_schema("bar")),
            ),
        }
        self.table, self.trades, self.rows = handles[kind]


@pytest.fixture(params=["iceberg", "fake"])
def bars(request: pytest.FixtureRequest, tmp_path: Path) -> Bars:
    return Bars(request.param, tmp_path)


def test_bars_of_further_trades_are_merged_into_those_that_are_there(bars: Bars) -> None:
    table = bars.table()
    for first, until in ((0, 3), (3, 4), (4, 6)):
        base = table.committed_offsets()
        assert base == (at(first) if first else NONE)
        snapshot_id = table.land(table.prepare(more(first, until), base, at(until)), f"commit-{until}")
        assert bars.table().snapshot_id == snapshot_id
        assert in_order(bars.rows()) == oracle(SENT[:until], SECONDS.width_us)
    assert bars.table().landed("commit-4")


def test_of_two_handles_the_second_lands_nothing(bars: Bars) -> None:
    first, second = bars.table(), bars.table()
    changes = [table.prepare(more(0, 3), NONE, at(3)) for table in (first, second)]
    first.land(changes[0], "one")
    with pytest.raises(CommitConflict):
        second.land(changes[1], "two")
    second.discard(changes[1].files)
    assert second.committed_offsets() == at(3)
    assert not second.landed("two")
    assert in_order(bars.rows()) == oracle(SENT[:3], SECONDS.width_us)


def test_trades_without_bars_move_the_offsets_all_the_same(bars: Bars) -> None:
    table = bars.table()
    table.land(table.prepare(more(0, 0), NONE, at(4)), "one")
    assert bars.table().committed_offsets() == at(4)


def test_the_trades_between_two_positions_whichever_file_has_them(bars: Bars) -> None:
    writer = bars.trades()
    for first in (0, 3):
        rows = table_rows("trade", SENT[first : first + 3], first_offset=first)
        writer.commit(writer.write(rows), at(first) if first else NONE, at(first + 3), f"commit-{first}")
    other = table_rows("trade", SENT[:2], partition=1)
    writer.commit(writer.write(other), NONE, PartitionOffsets({P1: 2}), "other")
    reader = bars.trades()
    high = PartitionOffsets({P0: 5, P1: 1})
    found = [n for batch in reader.rows_between(at(1), high, TRADE_COLUMNS) for n in batch["trade_id"].to_pylist()]
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert sum(batch.num_rows for batch in reader.rows_between(high, high, TRADE_COLUMNS)) == 0
