"""Expiry as a job: it says what it would do, and ends at any step without a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.commit_files import CommitLog
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire
from tests.support.upkeep import append, assert_whole, filled, stopped_everywhere, trade_ids, trades

LATER_US = 4_000_000_000_000_000
POLICY = ExpiryPolicy(2, 0)


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


def test_a_dry_run_says_what_would_go(lake: LakeSettings) -> None:
    table = filled(lake, 5)
    report = expire(table, POLICY, LATER_US, dry_run=True)
    assert (report.snapshots_expired, report.snapshots_kept) == (3, 2)
    assert len(trades(lake).iceberg_table.metadata.snapshots) == 5


def test_what_was_committed_since_the_last_load_is_seen(lake: LakeSettings) -> None:
    table = filled(lake, 3)
    stale = trades(lake)
    append(table, 9)
    report = expire(stale, POLICY, LATER_US)
    assert (report.snapshots_expired, report.snapshots_kept) == (2, 2)
    assert trade_ids(lake) == list(range(10))


@pytest.mark.parametrize("dying", [False, True])
def test_an_end_at_any_step_loses_no_row_and_no_commit(lake: LakeSettings, dying: bool) -> None:
    table = filled(lake, 5)
    ended = 0
    for ended in stopped_everywhere(lambda progress: expire(table, POLICY, LATER_US, progress=progress), dying=dying):
        assert trade_ids(lake) == list(range(15)), ended
        assert_whole(trades(lake))
    assert ended > 0
    fresh = trades(lake)
    assert len(fresh.iceberg_table.metadata.snapshots) == 2
    log = CommitLog()
    log.update(fresh.iceberg_table)
    assert log.rows().num_rows == 5
