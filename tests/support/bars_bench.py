"""Trades committed by hand to a real table, the workers of its bars, and what plain Python makes of the same trades."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from common.clock import SystemClock
from common.datasets import BARS, TRADES, Bars
from common.iceberg import MergingOverwrite, ThriftyTransaction
from common.offsets import SUMMARY_KEY, KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.bars_table import BarsTable
from sink.bars_worker import BarsPassed, BarsWorker
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.table import IcebergTable
from tests.support.bars_oracle import in_order, oracle
from tests.support.records import EPOCH, table_rows, trade

PARTITIONS = tuple(KafkaPartition("cluster", "topic-id-1", number) for number in range(2))
LATER_US = 4_000_000_000_000_000


class Crash(Exception):
    """The process ends here."""


def made(trade_id: int, *, at_s: float, symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    """A trade so many seconds into the day, at a price that its id says."""
    return trade(
        trade_id,
        symbol=symbol,
        event_time=EPOCH + timedelta(seconds=at_s),
        price=Decimal(100 + trade_id % 7) + Decimal(trade_id).scaleb(-8),
        quantity=Decimal(1 + trade_id % 5).scaleb(-3),
        **changes,
    )


class BarsBench:
    """One warehouse. `trades` is the writer's handle; every worker has handles of its own."""

    def __init__(self, lake: LakeSettings, bars: Sequence[Bars] = tuple(BARS.values())) -> None:
        self.lake = lake
        self.bars = bars
        self.trades = IcebergTable.open(lake, TRADES)
        self.sent: list[dict[str, Any]] = []
        self.crash_at: dict[BarsPassed, int] = {}

    def commit(self, records: Sequence[dict[str, Any]], partition: int = 0) -> None:
        """The next trades of a partition, in one snapshot."""
        here = PARTITIONS[partition]
        base = self.trades.committed_offsets()
        first = base.next_offset(here)
        rows = table_rows("trade", records, partition=partition, first_offset=first)
        self.trades.append(rows, base, PartitionOffsets({here: first + len(records)}), uuid.uuid4().hex)
        self.sent += records

    def compact(self) -> None:
        """All files of the trades become one, as a maintenance job has it: the offsets stay."""
        self.trades.reload()
        table = self.trades.iceberg_table
        rows = table.scan().to_arrow()
        snapshot = table.metadata.current_snapshot()
        assert snapshot is not None and snapshot.summary is not None
        files = self.trades.write(rows.cast(table_rows("trade", []).schema))
        transaction = ThriftyTransaction(table)
        with MergingOverwrite.of(transaction, {SUMMARY_KEY: str(snapshot.summary[SUMMARY_KEY])}) as change:
            for task in table.scan().plan_files():
                change.delete_data_file(task.file)
            for data_file in files.data_files:
                change.append_data_file(data_file)
        self.trades.swap(transaction, uuid.uuid4().hex)

    def expire_trades(self) -> None:
        self.trades.reload()
        expire_snapshots(self.trades, ExpiryPolicy(snapshots_kept_min=1), LATER_US)

    def worker(self, **more: Any) -> BarsWorker:
        tables = [self.table(bars) for bars in self.bars]
        return BarsWorker(IcebergTable.open(self.lake, TRADES), tables, SystemClock(), hook=self._hook, **more)

    def table(self, bars: Bars) -> BarsTable:
        return BarsTable.open(self.lake, bars)

    def run(self, worker: BarsWorker) -> None:
        for _ in range(100):
            if not worker.step():
                return
        raise AssertionError(f"the bars do not come to an end: {worker.stats}")

    def run_with_crashes(self) -> int:
        """Run to the end, with a new worker after each crash; returns how many crashed."""
        crashes = 0
        while True:
            try:
                self.run(self.worker())
                return crashes
            except Crash:
                crashes += 1

    def rows(self, bars: Bars) -> list[dict[str, Any]]:
        """What the table has, read afresh, as the oracle gives it."""
        found = self.table(bars).iceberg_table.scan().to_arrow()
        return in_order(found)

    def assert_whole(self) -> None:
        """Every table has the bars of all trades that were sent, each once, and says so."""
        for bars in self.bars:
            assert self.rows(bars) == oracle(self.sent, bars.width_us), bars.name
            assert self.table(bars).committed_offsets() == self.trades.committed_offsets()

    def files(self, bars: Bars) -> dict[str, int]:
        """Path -> rows of the table's data files."""
        table: pa.Table = self.table(bars).iceberg_table.inspect.files()
        return dict(zip(table["file_path"].to_pylist(), table["record_count"].to_pylist(), strict=True))

    def _hook(self, passed: BarsPassed) -> None:
        left = self.crash_at.get(passed)
        if left is not None:
            self.crash_at[passed] = left - 1
            if left == 1:
                raise Crash(passed.value)
