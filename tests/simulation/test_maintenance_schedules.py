"""Seeded schedules of writers, readers and every job of maintenance on one table, against what must be in it.

What must hold at each moment: the table has every row of the log that was committed but for those that a snapshot
declared deleted, each once; every snapshot that is kept reads as it did when it was made; and an instant that the
history calls whole has lost no row since.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.commit_files import CommitLog
from common.errors import CommitConflict, Overtaken
from common.offsets import PartitionOffsets
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.jobs import Unwatched
from sink.maintenance.manifests import rewrite_manifests
from sink.maintenance.orphans import remove_orphans
from sink.maintenance.retention import RetentionPolicy, delete_old
from sink.table import IcebergTable
from tests.support.lake_tables import PARTITION, Filled
from tests.support.records import EPOCH

_SEEDS = range(4)
_STEPS = 24


@dataclass
class World:
    """A table, and beside it what must be in it. Ids are offsets; `day_of` says of which day each row is."""

    filled: Filled
    rng: random.Random
    day_of: dict[int, int] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    #: Snapshot -> the ids that it had when it was made.
    seen: dict[int, list[int]] = field(default_factory=dict)
    #: Next offset -> the sequence number of the commit that it is the cut of, and whether rows below it were deleted
    #: since.
    instants: dict[int, tuple[int, bool]] = field(default_factory=dict)
    day: int = 0
    did: dict[str, int] = field(default_factory=dict)

    @property
    def now_us(self) -> int:
        return int((EPOCH + timedelta(days=self.day, hours=12)).timestamp()) * 1_000_000

    def expected(self) -> list[int]:
        return sorted(set(self.day_of) - self.deleted)

    # -- what may happen

    def append(self, table: IcebergTable | None = None) -> None:
        """Rows of this day, or late ones of a day before."""
        count, day = self.rng.randint(1, 12), self.day - self.rng.choice([0, 0, 0, 1, 2])
        first = self.filled.end
        self.filled.append(count, day=day, table=table)
        self.day_of |= dict.fromkeys(range(first, first + count), day)
        metadata = (table or self.filled.table).iceberg_table.metadata
        self.instants[self.filled.end] = (metadata.last_sequence_number, False)
        self.count("append")

    def next_day(self) -> None:
        self.day += 1

    def compact(self, table: IcebergTable | None = None, progress: Unwatched | None = None) -> None:
        policy = CompactionPolicy(fan_out=self.rng.choice([2, 3]), rows_in_memory_max=self.rng.choice([5, 1_000]))
        report = compact(table or self.filled.table, policy, self.now_us, progress=progress or Unwatched())
        self.count("compact", report.groups)
        self.count("yielded", report.groups_yielded)

    def retain(self, table: IcebergTable | None = None) -> None:
        days = self.rng.choice([2, 3])
        try:
            report = delete_old(table or self.filled.table, RetentionPolicy("event_time", days), self.now_us)
        except (Overtaken, CommitConflict):
            self.count("yielded")
            return
        gone = {n for n, day in self.day_of.items() if day < self.day - days} - self.deleted
        assert report.rows == len(gone), "whole days are in whole files"
        if gone:
            lowest = min(gone)
            assert PartitionOffsets.from_text(report.deleted_from) == PartitionOffsets({PARTITION: lowest})
            self.instants = {end: (at, lost or end > lowest) for end, (at, lost) in self.instants.items()}
        self.deleted |= gone
        self.count("retain", len(gone))

    def rewrite_manifests(self, table: IcebergTable | None = None) -> None:
        report = rewrite_manifests(table or self.filled.table)
        self.count("manifests", report.manifests_before - report.manifests_after)

    def expire(self, table: IcebergTable | None = None) -> None:
        policy = ExpiryPolicy(self.rng.randint(1, 6), 0)
        self.count("expire", expire(table or self.filled.table, policy, 2**62).snapshots_expired)

    def sweep(self) -> None:
        """With no grace at all, as nobody reads an expired snapshot here: what is found goes at once."""
        far_us = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
        self.count("sweep", remove_orphans(self.filled.table, now_us=far_us, grace_s=0, delete=True).files_deleted)

    def compact_while_others_work(self) -> None:
        """At one step of it, another connection commits something."""
        other = self.filled.other()
        work = self.rng.choice([self.append, self.compact, self.retain, self.rewrite_manifests, self.expire])
        self.compact(progress=_At(self.rng.randint(1, 4), lambda: work(other)))

    def count(self, what: str, number: int = 1) -> None:
        self.did[what] = self.did.get(what, 0) + number

    # -- what must hold

    def check(self) -> None:
        table = self.filled.table
        assert self.filled.ids() == self.expected()
        assert table.committed_offsets() == PartitionOffsets({PARTITION: self.filled.end} if self.filled.end else {})
        metadata = table.iceberg_table.metadata
        current = metadata.current_snapshot()
        if current is None:
            return
        assert table.rows == len(self.expected())
        self.seen.setdefault(current.snapshot_id, self.expected())
        older = [snapshot.snapshot_id for snapshot in metadata.snapshots if snapshot.snapshot_id in self.seen]
        for snapshot_id in self.rng.sample(older, min(2, len(older))):
            assert self.filled.ids(snapshot_id) == self.seen[snapshot_id]
        self._check_instants(current.snapshot_id)

    def _check_instants(self, current: int) -> None:
        log = CommitLog()
        log.update(self.filled.table.iceberg_table)
        losses = log.losses(current)
        for end, (at, lost) in self.instants.items():
            cut = PartitionOffsets({PARTITION: end})
            refused = any(loss.sequence_number > at and loss.touches(cut) for loss in losses)
            assert refused == lost, (end, losses)


class _At(Unwatched):
    def __init__(self, at: int, what: object) -> None:
        super().__init__()
        self._left, self._what = at, what

    def step(self, doing: str, total: int | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            self._what()  # type: ignore[operator]


@pytest.fixture(scope="module")
def done() -> dict[str, int]:
    return {}


@pytest.mark.parametrize("seed", _SEEDS)
def test_the_table_is_the_log_minus_what_was_declared_deleted(seed: int, tmp_path: Path, done: dict[str, int]) -> None:
    rng = random.Random(seed)
    world = World(Filled(tmp_path), rng)
    actions = (
        [world.append] * 6
        + [world.next_day, world.compact, world.retain, world.rewrite_manifests, world.expire, world.sweep]
        + [world.compact_while_others_work] * 3
    )
    for _ in range(_STEPS):
        rng.choice(actions)()
        world.check()
    for what, number in world.did.items():
        done[what] = done.get(what, 0) + number


def test_all_that_may_happen_did(done: dict[str, int]) -> None:
    """A schedule in which nothing is deleted or replaced proves nothing."""
    if not done:
        pytest.skip("the schedules did not run in this session")
    assert {what for what, number in done.items() if number > 0} >= {
        *("append", "compact", "retain", "manifests", "expire", "sweep"),
    }
