"""What a commit and the planning of a query cost after 10, 100, 1,000 and 10,000 commits, with what runs by default.

A commit is 1,000 trades. As when the sink commits once a second: its own expiry runs at every 20th commit and keeps the
120 newest snapshots, compaction runs at every 60th, the rewriting of manifests at every 600th. CPU is this process's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import FlightSettings, LakeSettings, SinkSettings
from flight_server.storage.database import Database
from flight_server.storage.manifests import ManifestReader
from flight_server.storage.snapshots import IcebergSnapshots
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.maintenance.manifests import ManifestsPolicy, rewrite_manifests
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.market_data import START_US, rows

_COMMITS = 10_000
_ROWS = 1_000
_PARTITION = KafkaPartition("bench", "bench-topic-id", 0)
#: Commits that a figure is the mean of, and queries.
_MEASURED, _QUERIES = 60, 20
#: What a commit a second keeps in life: so many, and all of the last ten seconds.
_KEPT = ExpiryPolicy(SinkSettings().snapshots_kept_min, age_us_min=0)


@dataclass
class _Spent:
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def measure(self, call: Callable[[], object]) -> None:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        call()
        self.cpu_s += time.process_time() - cpu_s
        self.wall_s += time.perf_counter() - wall_s

    def figure(self, name: str, count: int, beside: str) -> Figure:
        return Figure(
            "commits", name, self.cpu_s / count * 1000, "ms of CPU", f"{self.wall_s / count * 1000:.1f} ms; {beside}"
        )


def run(scale: float) -> list[Figure]:
    last = int(_COMMITS * scale)
    marks = [commits for commits in (10, 100, 1_000, 10_000) if commits < last] + [last]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        lake = LakeSettings.load(data_dir=Path(folder))
        lake.prepare()
        table = _Table(lake, last)
        for mark in marks:
            count = min(_MEASURED, mark // 2, mark - table.done)
            table.grow_to(mark - count)
            sink, upkeep, server = table.grow_to(mark)
            planning = _Spent()
            planning.measure(table.plan)
            figures += [
                sink.figure(f"a commit, after {mark:,}", count, table.described()),
                upkeep.figure(f"maintenance for a commit, after {mark:,}", count, "compaction and manifests"),
                server.figure(f"the server takes it up, after {mark:,}", count, "it follows the table"),
                planning.figure(f"planning by PyIceberg, after {mark:,}", _QUERIES, "one symbol, half an hour"),
            ]
        table.close()
    return figures


class _Table:
    def __init__(self, lake: LakeSettings, commits: int) -> None:
        self._lake = lake
        self._table = IcebergTable.open(lake, TRADES)
        self._total = commits * _ROWS
        self.done = 0
        self._database = Database(FlightSettings.load(), lake)
        self._snapshots = IcebergSnapshots(lake, ManifestReader(self._database.cursor))

    def close(self) -> None:
        self._database.close()

    def grow_to(self, commits: int) -> tuple[_Spent, _Spent, _Spent]:
        """Commit until there are so many; what the sink, maintenance, and a server that follows spent."""
        sink, upkeep, server = _Spent(), _Spent(), _Spent()
        while self.done < commits:
            at = self.done * _ROWS
            batch = rows(at, _ROWS, symbols=20, days=1, total=max(self._total, 20 * _ROWS))
            base, to = (PartitionOffsets({_PARTITION: n} if n else {}) for n in (at, at + _ROWS))
            self.done += 1
            sink.measure(lambda batch=batch, base=base, to=to: self._commit(batch, base, to))  # type: ignore[misc]
            if self.done % 60 == 0:
                upkeep.measure(lambda: compact(self._table, CompactionPolicy(), START_US))
            if self.done % 600 == 0:
                upkeep.measure(lambda: rewrite_manifests(self._table, ManifestsPolicy(spare=20)))
            server.measure(lambda: self._snapshots.newest(TRADES))
        return sink, upkeep, server

    def _commit(self, batch: Any, base: PartitionOffsets, to: PartitionOffsets) -> None:
        self._table.append(batch, base, to, f"commit-{self.done}")
        if self.done % 20 == 0:
            expire_snapshots(self._table, _KEPT, 2**62)

    def plan(self) -> None:
        for _ in range(_QUERIES):
            where = "symbol = 'S003USDT' and event_time < '2024-08-09T00:30:00+00:00'"
            assert list(self._table.iceberg_table.scan(row_filter=where).plan_files())

    def described(self) -> str:
        self._table.reload()
        iceberg = self._table.iceberg_table
        snapshot = iceberg.current_snapshot()
        assert snapshot is not None
        assert snapshot.summary is not None
        size = Path(iceberg.metadata_location.removeprefix("file://")).stat().st_size
        return (
            f"{snapshot.summary['total-data-files']} files, {len(snapshot.manifests(iceberg.io))} manifests, "
            f"{len(iceberg.metadata.snapshots)} snapshots, metadata {size / 1000:.0f} kB"
        )
