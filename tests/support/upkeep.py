"""Tables with a past for the tests of maintenance, and a watcher that ends a job at its n-th step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from common.datasets import TRADES
from common.errors import Interrupted
from common.iceberg import open_catalog
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance.jobs import MaintainedTable, Progress
from sink.maintenance.tables import AnyTable
from sink.maintenance.verify import verify
from sink.table import IcebergTable
from tests.support.records import table_rows, trade

P0 = KafkaPartition("cluster", "topic-id-1", 0)
R = TypeVar("R")


def filled(lake: LakeSettings, commits: int, *, rows: int = 3) -> IcebergTable:
    """market.trades with so many commits of `rows` trades each, at consecutive offsets of one partition."""
    table = IcebergTable.open(lake, TRADES)
    begin = table.committed_offsets().next_offset(P0)
    for first in range(begin, begin + commits * rows, rows):
        append(table, first, rows)
    return table


def append(table: IcebergTable, first: int, rows: int = 1) -> int:
    """A commit of the trades and offsets from `first` on; the snapshot's id."""
    records = [trade(first + n) for n in range(rows)]
    return table.append(
        table_rows("trade", records, first_offset=first),
        PartitionOffsets({P0: first}),
        PartitionOffsets({P0: first + rows}),
        f"commit-{first}",
    )


def trades(lake: LakeSettings) -> AnyTable:
    """The same table as a job sees it, through a connection of its own."""
    catalog = open_catalog(lake)
    return AnyTable(catalog, catalog.load_table(TRADES.table))


def trade_ids(lake: LakeSettings) -> list[int]:
    """The trade ids of the table as it is now, in order."""
    table = IcebergTable.open(lake, TRADES)
    return sorted(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())


def files_of(lake: LakeSettings) -> set[Path]:
    """Every file in the table's folder but the notes on orphans."""
    root = lake.data_dir / "warehouse" / "market" / "trades"
    return {path for path in root.rglob("*") if path.is_file() and path.parent.name != "orphans"}


class Stopping:
    """Ends the job at its n-th step: with Interrupted, or with `dying`, which nothing catches, as a killed process."""

    def __init__(self, steps: int, *, dying: bool = False) -> None:
        self._left = steps
        self._dying = dying

    def step(self, doing: str, total: int | None = None) -> None:
        if self._left == 0:
            raise Died if self._dying else Interrupted(f"stopped before {doing}")
        self._left -= 1

    def advance(self, units: int = 1) -> None:
        self.step("the next part")


class Died(BaseException):
    """The process is gone here."""


def stopped_everywhere(job: Callable[[Progress], R], *, dying: bool = False) -> Iterator[int]:
    """Run the job again and again, each time ended one step later, until it comes through; yields between the runs."""
    for steps in range(10_000):
        try:
            job(Stopping(steps, dying=dying))
        except (Interrupted, Died):
            yield steps
            continue
        return
    raise AssertionError("the job never comes to its end")


def assert_whole(table: MaintainedTable) -> None:
    """The table is what it says, in every kept snapshot and every row."""
    report = verify(table)
    assert report.findings == ()
