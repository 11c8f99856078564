"""Only files that nobody can want any more are deleted, however a run ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from common.datasets import TRADES
from common.errors import Refused
from common.iceberg import open_catalog
from common.offsets import PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.files import FileStore, StoredFile
from sink.maintenance.orphans import OrphansReport, remove_orphans
from sink.table import IcebergTable
from tests.support.records import table_rows, trade
from tests.support.upkeep import P0, append, assert_whole, files_of, filled, stopped_everywhere, trade_ids, trades

HOUR_US = 3_600_000_000
GRACE_S = 3_600.0
#: File times are the test's: everything was written at this time.
WRITTEN_US = 1_800_000_000_000_000
LATER_US = 4_000_000_000_000_000


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


def folder(lake: LakeSettings) -> Path:
    return lake.data_dir / "warehouse" / "market" / "trades"


def aged(lake: LakeSettings, at_us: int = WRITTEN_US) -> None:
    """Give every file of the table this time of writing."""
    for path in folder(lake).rglob("*"):
        os.utime(path, ns=(at_us * 1000, at_us * 1000))


def orphan(lake: LakeSettings, name: str = "data/00000-0-lost.parquet", at_us: int = WRITTEN_US) -> Path:
    path = folder(lake) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"lost")
    os.utime(path, ns=(at_us * 1000, at_us * 1000))
    return path


def run(lake: LakeSettings, now_us: int, **how: Any) -> OrphansReport:
    return remove_orphans(trades(lake), now_us=now_us, grace_s=GRACE_S, **how)


def test_nothing_that_the_table_refers_to_is_found(lake: LakeSettings) -> None:
    table = filled(lake, 5)
    expire(table, ExpiryPolicy(2, 0), LATER_US)  # a history file too
    report = remove_orphans(trades(lake), now_us=LATER_US, grace_s=0, delete=True)
    assert_whole(table)
    # What only the expired snapshots referred to is gone: their manifest lists.
    assert report.files == report.files_deleted == 3
    assert all("/metadata/snap-" in path for path in report.paths)


def test_a_file_goes_when_it_was_unused_for_the_grace_time_since_it_was_noted(lake: LakeSettings) -> None:
    filled(lake, 2)
    aged(lake)
    lost = orphan(lake)
    first = run(lake, WRITTEN_US + HOUR_US, delete=True)
    assert (first.files, first.files_due, first.files_deleted, lost.exists()) == (1, 0, 0, True)
    assert first.next_due_us == WRITTEN_US + 2 * HOUR_US
    early = run(lake, WRITTEN_US + 2 * HOUR_US - 1, delete=True)
    assert (early.files_due, early.files_deleted, lost.exists()) == (0, 0, True)
    assert early.next_due_us == first.next_due_us
    looked = run(lake, WRITTEN_US + 2 * HOUR_US)
    assert (looked.files_due, looked.files_deleted, lost.exists()) == (1, 0, True)
    done = run(lake, WRITTEN_US + 2 * HOUR_US, delete=True)
    assert (done.files_deleted, done.files_deleted_nbytes, lost.exists()) == (1, 4, False)
    assert run(lake, WRITTEN_US + 3 * HOUR_US).files == 0
    assert list((folder(lake) / "orphans").iterdir()) == []


def test_a_young_file_is_not_even_noted(lake: LakeSettings) -> None:
    filled(lake, 1)
    aged(lake)
    orphan(lake, at_us=WRITTEN_US + 1)
    report = run(lake, WRITTEN_US + HOUR_US, delete=True)
    assert (report.files, report.files_young) == (0, 1)


def test_what_a_run_with_a_shorter_grace_time_noted_stays_noted(lake: LakeSettings) -> None:
    """`k2 maintain` sweeps with a day while somebody wants an hour."""
    filled(lake, 1)
    aged(lake)
    lost = orphan(lake)
    run(lake, WRITTEN_US + HOUR_US)
    for delete in (True, False):
        by_day = remove_orphans(trades(lake), now_us=WRITTEN_US + HOUR_US + 1, grace_s=24 * GRACE_S, delete=delete)
        assert (by_day.files, by_day.files_young, by_day.files_deleted) == (0, 1, 0)
    assert run(lake, WRITTEN_US + 2 * HOUR_US, delete=True).files_deleted == 1
    assert not lost.exists()


def test_a_dry_run_changes_nothing(lake: LakeSettings) -> None:
    filled(lake, 1)
    aged(lake)
    orphan(lake)
    before = sorted(folder(lake).rglob("*"))
    run(lake, WRITTEN_US + HOUR_US, dry_run=True, delete=True)
    assert sorted(folder(lake).rglob("*")) == before
    run(lake, WRITTEN_US + HOUR_US)
    noted = sorted(folder(lake).rglob("*"))
    report = run(lake, WRITTEN_US + 9 * HOUR_US, dry_run=True, delete=True)
    assert (report.files_due, report.files_deleted) == (1, 0)
    assert sorted(folder(lake).rglob("*")) == noted


def test_an_old_file_of_an_expired_snapshot_waits_the_grace_time_after_it_became_unused(lake: LakeSettings) -> None:
    """A reader that pinned the snapshot goes on reading its files, which are as old as anything."""
    table = filled(lake, 3)
    rewritten = open_catalog(lake).load_table(TRADES.table)
    rows = rewritten.scan().to_arrow()
    replaced = {Path(task.file.file_path.removeprefix("file://")) for task in rewritten.scan().plan_files()}
    rewritten.overwrite(rows)
    table.reload()
    append(table, 9)
    aged(lake)
    now_us = WRITTEN_US + 30 * 24 * HOUR_US
    assert run(lake, now_us, delete=True).files == 0  # the snapshots still refer to them
    expire(table, ExpiryPolicy(1, 0), LATER_US)
    aged(lake)
    assert run(lake, now_us, delete=True).files_deleted == 0
    assert replaced <= files_of(lake)
    run(lake, now_us + HOUR_US, delete=True)
    assert replaced.isdisjoint(files_of(lake))
    assert_whole(trades(lake))
    assert trade_ids(lake) == list(range(10))


def test_a_commit_in_flight_keeps_its_files_however_late_it_lands(lake: LakeSettings) -> None:
    """The catalog was away for longer than the grace time, and answers the job before it answers the sink."""
    table = filled(lake, 1)
    files = table.write(table_rows("trade", [trade(3)], first_offset=3))
    aged(lake)
    report = run(lake, WRITTEN_US + 2 * HOUR_US, delete=True)
    assert (report.files, report.files_deleted) == (1, 0)
    table.commit(files, PartitionOffsets({P0: 3}), PartitionOffsets({P0: 4}), "late")
    aged(lake)
    assert run(lake, WRITTEN_US + 9 * HOUR_US, delete=True).files == 0
    assert trade_ids(lake) == [0, 1, 2, 3]


def test_what_was_committed_while_files_were_listed_is_referred_to(lake: LakeSettings) -> None:
    table = filled(lake, 1)

    class Commits:
        """Commits when the job has read what the table refers to."""

        def step(self, doing: str, total: int | None = None) -> None:
            if doing == "list files":
                append(table, 3)
                aged(lake)

        def advance(self, units: int = 1) -> None:
            pass

    report = remove_orphans(trades(lake), now_us=LATER_US, grace_s=0, delete=True, progress=Commits())
    assert report.files == 0
    assert trade_ids(lake) == [0, 1, 2, 3]


def test_what_became_used_before_it_would_be_deleted_stays(lake: LakeSettings) -> None:
    table = filled(lake, 1)
    files = table.write(table_rows("trade", [trade(3)], first_offset=3))

    class Commits:
        def step(self, doing: str, total: int | None = None) -> None:
            if doing == "delete files":
                table.commit(files, PartitionOffsets({P0: 3}), PartitionOffsets({P0: 4}), "late")

        def advance(self, units: int = 1) -> None:
            pass

    report = remove_orphans(trades(lake), now_us=LATER_US, grace_s=0, delete=True, progress=Commits())
    assert (report.files_due, report.files_deleted) == (1, 0)
    assert trade_ids(lake) == [0, 1, 2, 3]


@pytest.mark.parametrize("dying", [False, True])
def test_a_run_that_ends_at_any_step_loses_nothing(lake: LakeSettings, dying: bool) -> None:
    table = filled(lake, 3)
    lost = [orphan(lake, f"data/lost-{n}.parquet") for n in range(4)]
    needed = files_of(lake) - set(lost)
    left = []
    for _ in stopped_everywhere(
        lambda progress: remove_orphans(table, now_us=LATER_US, grace_s=0, delete=True, progress=progress), dying=dying
    ):
        assert needed <= files_of(lake)
        left.append(sum(path.exists() for path in lost))
    assert left[0] == 4
    assert 0 < min(left) < 4, "no run was stopped between two deletions"
    assert files_of(lake) == needed
    assert_whole(table)


def test_a_torn_note_only_makes_its_files_wait_anew(lake: LakeSettings) -> None:
    filled(lake, 1)
    aged(lake)
    lost = orphan(lake)
    run(lake, WRITTEN_US + HOUR_US)
    [note] = (folder(lake) / "orphans").iterdir()
    note.write_bytes(note.read_bytes()[:-9])
    assert run(lake, WRITTEN_US + 2 * HOUR_US, delete=True).files_due == 0
    assert lost.exists()
    assert run(lake, WRITTEN_US + 3 * HOUR_US, delete=True).files_deleted == 1


def test_of_two_notes_the_newest_counts_and_the_older_goes(lake: LakeSettings) -> None:
    """A run was killed between writing its note and deleting the one before."""
    filled(lake, 1)
    aged(lake)
    orphan(lake)
    run(lake, WRITTEN_US + HOUR_US)
    notes = folder(lake) / "orphans"
    [note] = notes.iterdir()
    older = notes / f"{WRITTEN_US:020d}-older.parquet"
    older.write_bytes(b"")
    assert run(lake, WRITTEN_US + 2 * HOUR_US).files_due == 1
    assert len(list(notes.iterdir())) == 1
    assert not note.exists()


def test_tables_that_share_a_folder_are_refused(lake: LakeSettings) -> None:
    table = filled(lake, 1)
    catalog = open_catalog(lake)
    catalog.register_table("market.copy", table.iceberg_table.metadata_location)
    lost = orphan(lake)
    with pytest.raises(Refused, match=r"market\.copy share the folder"):
        remove_orphans(trades(lake), now_us=LATER_US, grace_s=0, delete=True)
    assert lost.exists()


def test_a_file_that_cannot_be_deleted_is_told_and_does_not_keep_the_others(
    lake: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(lake, 1)
    locked, free = orphan(lake, "data/locked.parquet"), orphan(lake, "data/free.parquet")
    delete = FileStore.delete

    def refusing(store: FileStore, stored: StoredFile) -> None:
        if stored.path == str(locked):
            raise PermissionError("not yours")
        delete(store, stored)

    monkeypatch.setattr(FileStore, "delete", refusing)
    report = remove_orphans(trades(lake), now_us=LATER_US, grace_s=0, delete=True)
    assert (report.files_deleted, report.files_left, locked.exists(), free.exists()) == (1, 1, True, False)
    assert report.files_left_reason == "PermissionError: not yours"


def test_an_empty_table_has_no_orphans(lake: LakeSettings) -> None:
    IcebergTable.open(lake, TRADES)
    assert remove_orphans(trades(lake), now_us=LATER_US, grace_s=0, delete=True).files == 0
