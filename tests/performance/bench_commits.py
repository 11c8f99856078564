"""What a commit and the planning of a query cost after 10, 100, 1,000 and 10,000 commits, with what runs by default.

A commit is 1,000 trades. As when the sink commits once a second: its own expiry runs at every 20th commit and keeps the
newest snapshots, compaction runs at every 60th, the rewriting of manifests at every 600th. CPU is this process's. From
1,000 commits on a table of 100 is asked by turns: what a machine does in one minute it may not do in another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
#: From so many commits on a table is compared with one of so few. Both have then as many behind the last compaction.
_OLD, _YOUNG = 1_000, 100
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


@dataclass
class _Cost:
    """What was spent on a table, by the sink, by maintenance, by a server that follows, and by planning."""

    sink: _Spent = field(default_factory=_Spent)
    upkeep: _Spent = field(default_factory=_Spent)
    server: _Spent = field(default_factory=_Spent)
    planning: _Spent = field(default_factory=_Spent)


def run(scale: float) -> list[Figure]:
    last = int(_COMMITS * scale)
    marks = [commits for commits in (10, 100, 1_000, 10_000) if commits < last] + [last]
    figures: list[Figure] = []
    with _table(last) as table:
        for mark in marks:
            count = min(_MEASURED, mark // 2, mark - table.done)
            table.grow_to(mark - count)
            figures += _by_turns(table, count, last) if mark >= _OLD else _alone(table, count)
    return figures


def _alone(table: _Table, count: int) -> list[Figure]:
    cost = _Cost()
    table.grow_to(table.done + count, cost)
    for _ in range(_QUERIES):
        table.plan(cost)
    return _figures(table, count, cost)


def _by_turns(table: _Table, count: int, commits: int) -> list[Figure]:
    cost, young_cost = _Cost(), _Cost()
    with _table(commits) as young:
        young.grow_to(_YOUNG)
        for _ in range(count):
            table.grow_to(table.done + 1, cost)
            young.grow_to(young.done + 1, young_cost)
        for _ in range(_QUERIES):
            table.plan(cost)
            young.plan(young_cost)
    return _figures(table, count, cost, young_cost)


def _figures(table: _Table, count: int, cost: _Cost, young: _Cost | None = None) -> list[Figure]:
    found = []
    for name, part, times, beside in (
        ("a commit", "sink", count, table.described()),
        ("maintenance for a commit", "upkeep", count, "compaction and manifests"),
        ("the server takes it up", "server", count, "it follows the table"),
        ("planning by PyIceberg", "planning", _QUERIES, "one symbol, half an hour"),
    ):
        spent: _Spent = getattr(cost, part)
        name = f"{name}, after {table.done:,}"
        beside = f"{spent.wall_s / times * 1000:.1f} ms; {beside}"
        found.append(Figure("commits", name, spent.cpu_s / times * 1000, "ms of CPU", beside))
        if young is not None:
            fewer: _Spent = getattr(young, part)
            beside = f"{fewer.cpu_s / times * 1000:.1f} ms of CPU by turns with it"
            found.append(
                Figure("commits", f"{name}, times that after {_YOUNG}", spent.cpu_s / fewer.cpu_s, "x", beside)
            )
    return found


@contextmanager
def _table(commits: int) -> Iterator[_Table]:
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        lake = LakeSettings.load(data_dir=Path(folder))
        lake.prepare()
        table = _Table(lake, commits)
        try:
            yield table
        finally:
            table.close()


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

    def grow_to(self, commits: int, cost: _Cost | None = None) -> None:
        """Commit until there are so many."""
        cost = cost or _Cost()
        while self.done < commits:
            at = self.done * _ROWS
            batch = rows(at, _ROWS, symbols=20, days=1, total=max(self._total, 20 * _ROWS))
            base, to = (PartitionOffsets({_PARTITION: n} if n else {}) for n in (at, at + _ROWS))
            self.done += 1
            cost.sink.measure(lambda batch=batch, base=base, to=to: self._commit(batch, base, to))  # type: ignore[misc]
            if self.done % 60 == 0:
                cost.upkeep.measure(lambda: compact(self._table, CompactionPolicy(), START_US))
            if self.done % 600 == 0:
                cost.upkeep.measure(lambda: rewrite_manifests(self._table, ManifestsPolicy(spare=20)))
            cost.server.measure(lambda: self._snapshots.newest(TRADES))

    def _commit(self, batch: Any, base: PartitionOffsets, to: PartitionOffsets) -> None:
        self._table.append(batch, base, to, f"commit-{self.done}")
        if self.done % 20 == 0:
            expire_snapshots(self._table, _KEPT, 2**62)

    def plan(self, cost: _Cost) -> None:
        where = "symbol = 'S003USDT' and event_time < '2024-08-09T00:30:00+00:00'"
        cost.planning.measure(lambda: list(self._table.iceberg_table.scan(row_filter=where).plan_files()))

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
