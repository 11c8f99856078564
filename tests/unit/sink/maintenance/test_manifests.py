"""Manifests become few, and list what they listed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.expressions import GreaterThanOrEqual
from pyiceberg.manifest import ManifestFile
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.spec import UpdateSpec

from common.commits import DELETED_KEY
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.manifests import ManifestsPolicy, manifests_needed, rewrite_manifests
from tests.support.lake_tables import Filled
from tests.support.records import EPOCH


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path)


def manifests(filled: Filled) -> list[ManifestFile]:
    filled.table.reload()
    iceberg = filled.table.iceberg_table
    snapshot = iceberg.current_snapshot()
    assert snapshot is not None
    return snapshot.manifests(iceberg.io)


def listed(filled: Filled) -> list[tuple[Any, ...]]:
    """What is said of each file, but where."""
    return sorted(
        (
            entry.data_file.file_path,
            entry.snapshot_id,
            entry.sequence_number,
            entry.file_sequence_number,
            entry.data_file.spec_id,
            entry.data_file.record_count,
            tuple(sorted(entry.data_file.lower_bounds.items())),
        )
        for manifest in manifests(filled)
        for entry in manifest.fetch_manifest_entry(filled.table.iceberg_table.io)
    )


@given(st.dictionaries(st.integers(0, 3), st.integers(1, 10_000)), st.integers(1, 999))
def test_as_few_as_can_list_the_files(files: dict[int, int], files_max: int) -> None:
    needed = manifests_needed(files, ManifestsPolicy(files_max))
    assert sum(files.values()) / files_max <= needed < sum(files.values()) / files_max + len(files) + (not files)


def test_the_same_files_are_listed_in_fewer_manifests(filled: Filled) -> None:
    for number in range(6):
        filled.append(5, day=number % 3)
    before, offsets, ids = listed(filled), filled.table.committed_offsets(), filled.ids()
    assert len(manifests(filled)) == 6
    report = rewrite_manifests(filled.table, dry_run=True)
    assert report.to_text() == "6 manifests would become 1"
    assert len(manifests(filled)) == 6
    report = rewrite_manifests(filled.table)
    assert (report.manifests_before, report.manifests_after, report.files) == (6, 1, 6)
    assert len(manifests(filled)) == 1
    assert listed(filled) == before
    assert filled.ids() == ids
    assert filled.table.committed_offsets() == offsets
    snapshot = filled.table.iceberg_table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary.operation is Operation.REPLACE
    assert (snapshot.summary[DELETED_KEY], snapshot.summary["total-records"]) == ("{}", "30")
    assert rewrite_manifests(filled.table).to_text() == "nothing to rewrite: 1 manifest"
    filled.append(5)
    assert filled.ids() == list(range(35))


def test_a_manifest_lists_files_that_lie_together(filled: Filled) -> None:
    for number in range(9):
        filled.append(2, day=number % 3)
    rewrite_manifests(filled.table, ManifestsPolicy(files_max=3))
    assert len(manifests(filled)) == 3
    for manifest in manifests(filled):
        entries = manifest.fetch_manifest_entry(filled.table.iceberg_table.io)
        assert len({entry.data_file.partition[0] for entry in entries}) == 1
    scan = filled.table.iceberg_table.scan(
        row_filter=GreaterThanOrEqual("event_time", (EPOCH + timedelta(days=2)).isoformat())
    )
    assert len(list(scan.plan_files())) == 3


def test_a_few_too_many_are_let_be(filled: Filled) -> None:
    for _ in range(5):
        filled.append(2)
    assert rewrite_manifests(filled.table, ManifestsPolicy(spare=4)).manifests_after == 5
    assert rewrite_manifests(filled.table, ManifestsPolicy(spare=3)).manifests_after == 1


def test_files_of_two_specs_stay_in_manifests_of_their_own(filled: Filled) -> None:
    for _ in range(3):
        filled.append(4)
    with filled.table.iceberg_table.transaction() as transaction:
        UpdateSpec(transaction).add_field("symbol", "bucket[2]", "symbol_bucket").commit()
    filled.table.reload()
    for _ in range(3):
        filled.append(4)
    before = listed(filled)
    assert rewrite_manifests(filled.table).manifests_after == 2
    assert listed(filled) == before
    assert sorted(manifest.partition_spec_id for manifest in manifests(filled)) == [0, 1]
    report = compact(filled.table, CompactionPolicy(fan_out=2), int(EPOCH.timestamp() * 1e6))
    assert report.groups >= 2
    assert filled.ids() == list(range(24))


def test_manifests_of_what_was_taken_out_go_with_the_next_rewriting(filled: Filled) -> None:
    for _ in range(8):
        filled.append(4)
    compact(filled.table, CompactionPolicy(), int(EPOCH.timestamp() * 1e6))
    assert len(manifests(filled)) == 2  # what came in, and what went out
    rewrite_manifests(filled.table)
    assert len(manifests(filled)) == 1
    assert filled.ids() == list(range(32))


def test_an_empty_table_has_none(filled: Filled) -> None:
    assert rewrite_manifests(filled.table).manifests_before == 0
