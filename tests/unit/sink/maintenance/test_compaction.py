"""Small files become large ones: which, how sorted, and that no row is lost or doubled whoever else is at work."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.table.snapshots import Operation

import sink.layout
from common.commits import DELETED_KEY
from common.errors import CatalogError, CommitConflict, Interrupted, Overtaken
from common.offsets import SUMMARY_KEY
from sink.maintenance.compaction import Candidate, CompactionPolicy, compact, plan, settled_partitions
from sink.maintenance.jobs import Unwatched
from sink.maintenance.replace import replace_files
from tests.support.lake_tables import Filled, data_files
from tests.support.records import EPOCH

POLICY = CompactionPolicy()
DAY_US = 86_400_000_000
#: The noon of the day that the rows are of, and long after it.
SAME_DAY_US = int(EPOCH.timestamp() * 1e6) + DAY_US // 2
LATER_US = SAME_DAY_US + 10 * DAY_US


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path)


# -- which files


def candidates() -> st.SearchStrategy[list[Candidate]]:
    one = st.tuples(
        st.sampled_from([(0, ()), (0, (5,)), (0, (6,)), (1, (5, 2))]),
        st.integers(1, 300 * 1024**2),
        st.booleans(),
    )
    return st.lists(one, max_size=80).map(
        lambda found: [
            Candidate(f"f{n}", partition, n, max(1, nbytes // 8), nbytes, is_sorted)
            for n, (partition, nbytes, is_sorted) in enumerate(found)
        ]
    )


@given(candidates(), st.booleans(), st.integers(2, 10))
def test_a_plan_is_of_small_files_each_once_in_groups_of_one_partition(
    found: list[Candidate], is_settled: bool, fan_out: int
) -> None:
    policy = CompactionPolicy(fan_out=fan_out, files_max=20)
    settled = frozenset(file.partition for file in found) if is_settled else frozenset()
    groups = plan(found, policy, settled)
    counts = Counter(file.path for group in groups for file in group)
    assert set(counts.values()) <= {1}
    for group in groups:
        assert len({file.partition for file in group}) == 1
        assert 2 <= len(group) <= policy.files_max
        assert sum(file.nbytes for file in group) <= policy.target_bytes
        assert all(before.sequence_number < after.sequence_number for before, after in pairwise(group))
        rows = sum(file.rows for file in group)
        assert rows <= policy.rows_in_memory_max or all(file.is_sorted for file in group)
    assert plan(list(reversed(found)), policy, settled) == groups or len({f.partition for f in found}) > 1


@given(st.integers(2, 8), st.integers(100, 500))
@settings(max_examples=10, deadline=None)
def test_files_and_rewriting_grow_by_the_logarithm_of_the_commits(fan_out: int, commits: int) -> None:
    policy = CompactionPolicy(fan_out=fan_out, target_bytes=10**12, files_max=10**6)
    size = policy.small_bytes
    files: list[Candidate] = []
    written = most = 0
    for number in range(commits):
        files.append(Candidate(f"f{number}", (0, ()), number, 1, size))
        for group in plan(files, policy, frozenset()):
            gone = {file.path for file in group}
            nbytes = sum(file.nbytes for file in group)
            files = [file for file in files if file.path not in gone]
            files.append(Candidate(f"g{number}", (0, ()), group[0].sequence_number, len(group), nbytes))
            written += nbytes
        most = max(most, len(files))
    powers = math.log(commits, fan_out) + 1
    assert most <= (fan_out - 1) * (powers + 1)
    assert written <= commits * size * powers
    assert sum(file.nbytes for file in files) == commits * size


def test_a_day_that_is_over_is_made_of_one_file_but_a_large_one_is_not_written_for_a_small_one() -> None:
    def of(*sizes: int) -> list[Candidate]:
        return [Candidate(f"f{n}", (0, (5,)), n, 1, size) for n, size in enumerate(sizes)]

    day = frozenset({(0, (5,))})
    mb = 1024**2
    assert [len(group) for group in plan(of(mb, 2 * mb, 9 * mb), POLICY, day)] == [3]
    assert plan(of(mb, 90 * mb), POLICY, day) == []
    assert [len(group) for group in plan(of(mb, 2 * mb, 90 * mb), POLICY, day)] == [2]
    assert plan(of(mb, 2 * mb, 9 * mb), POLICY, frozenset()) == []


def test_a_day_is_settled_when_it_has_been_over_for_a_while(filled: Filled) -> None:
    metadata = filled.table.iceberg_table.metadata
    day = SAME_DAY_US // DAY_US
    found = [Candidate("a", (0, (day,)), 1, 1, 1), Candidate("b", (0, (day + 1,)), 1, 1, 1)]
    midnight_us = (day + 1) * DAY_US
    hour_us = 3_600_000_000
    for now_us, settled in [
        (midnight_us + hour_us - 1_000_000, set()),
        (midnight_us + hour_us, {(0, (day,))}),
        (midnight_us + DAY_US + hour_us, {(0, (day,)), (0, (day + 1,))}),
    ]:
        assert settled_partitions(metadata, found, POLICY, now_us) == settled


# -- what it does


def read(path: str) -> pa.Table:
    return pq.ParquetFile(path.removeprefix("file://")).read()


@pytest.mark.parametrize("rows_in_memory_max", [1_000_000, 100, 7])
def test_the_rows_are_the_same_in_one_sorted_file(filled: Filled, rows_in_memory_max: int) -> None:
    for _ in range(9):
        filled.append(50)
    before = filled.table.iceberg_table.scan().to_arrow().sort_by("_kafka_offset")
    offsets = filled.table.committed_offsets()
    policy = CompactionPolicy(rows_in_memory_max=rows_in_memory_max)
    report = compact(filled.table, policy, SAME_DAY_US)
    assert (report.groups, report.files_before, report.files_after, report.rows) == (1, 9, 1, 450)
    (file,) = filled.files()
    rows = read(file.file_path)
    order = [(name, "ascending") for name in filled.dataset.sort_columns]
    assert rows.equals(rows.sort_by(order))
    assert filled.table.iceberg_table.scan().to_arrow().sort_by("_kafka_offset").equals(before)
    assert filled.table.committed_offsets() == offsets
    snapshot = filled.table.iceberg_table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary.operation is Operation.REPLACE
    assert snapshot.summary[DELETED_KEY] == "{}"
    assert snapshot.summary[SUMMARY_KEY] == offsets.to_text()
    assert (snapshot.summary["total-records"], snapshot.summary["total-data-files"]) == ("450", "1")
    assert compact(filled.table, policy, SAME_DAY_US).to_text() == "nothing to compact"


def test_each_partition_is_a_commit_and_stays_one(filled: Filled) -> None:
    for number in range(24):
        filled.append(5, day=number % 3)
    snapshots = len(filled.table.iceberg_table.metadata.snapshots)
    report = compact(filled.table, POLICY, SAME_DAY_US)
    assert (report.groups, report.files_before, report.files_after) == (3, 24, 3)
    assert len({file.partition[0] for file in filled.files()}) == 3
    assert len(filled.table.iceberg_table.metadata.snapshots) == snapshots + 3
    assert filled.ids() == list(range(120))


def test_a_large_file_is_written_by_row_groups(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink.layout, "GROUP_ROWS", 100)
    for _ in range(2):
        filled.append(220, symbols=2)
    compact(filled.table, CompactionPolicy(rows_in_memory_max=50), LATER_US)
    assert filled.ids() == list(range(440))
    (file,) = filled.files()
    written = pq.ParquetFile(file.file_path.removeprefix("file://"))
    assert [written.metadata.row_group(n).num_rows for n in range(written.num_row_groups)] == [100] * 4 + [40]


def test_an_older_snapshot_is_read_as_before(filled: Filled) -> None:
    for _ in range(8):
        filled.append(10)
    pinned = filled.table.snapshot_id
    compact(filled.table, POLICY, SAME_DAY_US)
    filled.append(10)
    assert filled.ids(pinned) == list(range(80))
    assert filled.ids() == list(range(90))


def test_files_of_a_table_that_was_never_sorted_are_sorted(tmp_path: Path) -> None:
    """Such as PyIceberg's own writer makes, which does not say how."""
    filled = Filled(tmp_path)
    for _ in range(8):
        filled.append(10)
    files = filled.files()
    foreign = filled.other().iceberg_table
    foreign.append(foreign.scan().to_arrow().slice(0, 10).sort_by([("trade_id", "descending")]))
    report = compact(filled.table, POLICY, SAME_DAY_US)
    assert report.files_before == len(files) + 1
    (file,) = filled.files()
    rows = read(file.file_path)
    assert rows.equals(rows.sort_by([(name, "ascending") for name in filled.dataset.sort_columns]))
    assert rows.num_rows == 90


def test_files_with_columns_that_the_table_has_no_more_are_left_as_they_are(filled: Filled) -> None:
    for _ in range(8):
        filled.append(10)
    with filled.table.iceberg_table.update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("vendor_data")
    report = compact(filled.table, POLICY, SAME_DAY_US)
    assert (report.groups, report.groups_left, report.files_after) == (0, 1, 0)
    assert "of other columns left as it is" in report.to_text()
    assert len(filled.files()) == 8
    assert filled.ids() == list(range(80))


def test_a_dry_run_says_what_would_be_done_and_does_nothing(filled: Filled) -> None:
    for _ in range(8):
        filled.append(10)
    pinned, stored = filled.table.snapshot_id, filled.stored()
    report = compact(filled.table, POLICY, SAME_DAY_US, dry_run=True)
    assert (report.groups, report.files_before, report.rows) == (1, 8, 80)
    assert report.to_text().startswith("would compact 8 files of ")
    filled.table.reload()
    assert (filled.table.snapshot_id, filled.stored()) == (pinned, stored)


def test_an_empty_table_has_nothing_to_compact(filled: Filled) -> None:
    assert compact(filled.table, POLICY, SAME_DAY_US).groups == 0


# -- who else is at work


class Watching(Unwatched):
    """Does something at the n-th call."""

    def __init__(self, at: int, what: Any) -> None:
        super().__init__()
        self._left = at
        self._what = what
        self.calls = 0

    def step(self, doing: str, total: int | None = None) -> None:
        self.calls += 1
        self._left -= 1
        if self._left == 0:
            self._what()


def test_what_is_appended_meanwhile_stays(filled: Filled) -> None:
    for _ in range(8):
        filled.append(10)
    writer = filled.other()
    report = compact(filled.table, POLICY, SAME_DAY_US, progress=Watching(2, lambda: filled.append(10, table=writer)))
    assert report.groups == 1
    assert filled.ids() == list(range(90))
    assert len(filled.files()) == 2
    filled.append(10, table=writer)
    assert filled.ids() == list(range(100))


def test_a_job_whose_files_another_one_replaced_yields(filled: Filled) -> None:
    for number in range(16):
        filled.append(10, day=number % 2)
    other = filled.other()
    report = compact(
        filled.table,
        POLICY,
        SAME_DAY_US,
        progress=Watching(2, lambda: compact(other, POLICY, SAME_DAY_US)),
    )
    assert (report.groups, report.groups_yielded) == (0, 2)
    assert "2 groups left to another job" in report.to_text()
    assert filled.ids() == list(range(160))
    live = {file.file_path for file in filled.files()}
    assert len(live) == 2
    assert len(filled.stored()) == 16 + 2  # what the one that yielded wrote is gone again


def test_the_commit_is_tried_again_on_what_others_committed(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are first at the last moment, after the state was loaded: three times, and then without end."""
    for _ in range(8):
        filled.append(10)
    writer, reload, times = filled.other(), filled.table.reload, 3

    def late() -> None:
        nonlocal times
        reload()
        if times:
            times -= 1
            filled.append(1, table=writer)

    monkeypatch.setattr(filled.table, "reload", late)
    assert compact(filled.table, POLICY, SAME_DAY_US).groups == 1
    assert times == 0
    monkeypatch.undo()
    assert filled.ids() == list(range(filled.end))

    times = 10_000
    monkeypatch.setattr(filled.table, "reload", late)
    path = filled.files()[0].file_path
    with pytest.raises(CommitConflict, match="others committed 20 times in between"):
        replace_files(filled.table, [path], [])
    monkeypatch.undo()
    assert filled.ids() == list(range(filled.end))


def test_a_file_that_is_not_there_cannot_be_replaced(filled: Filled) -> None:
    filled.append(10)
    metadata = set((filled.folder / "warehouse").rglob("*.avro"))
    with pytest.raises(Overtaken, match=r"1 of 2 data files of market\.trades"):
        replace_files(filled.table, [filled.files()[0].file_path, "file:///nowhere"], [])
    assert filled.ids() == list(range(10))
    assert set((filled.folder / "warehouse").rglob("*.avro")) == metadata


@pytest.mark.parametrize("rows_in_memory_max", [1_000_000, 6])
def test_stopped_at_any_step_it_has_done_whole_groups_and_left_no_file(tmp_path: Path, rows_in_memory_max: int) -> None:
    policy = CompactionPolicy(rows_in_memory_max=rows_in_memory_max)

    def stop() -> None:
        raise Interrupted("stopped")

    watched = Watching(0, stop)
    done = 0
    for at in range(1, 200):
        filled = Filled(tmp_path / str(at))
        for number in range(4):
            filled.append(8, day=number % 2)
        watched = Watching(at, stop)
        try:
            compact(filled.table, policy, LATER_US, progress=watched)
            done += 1
        except Interrupted:
            pass
        assert filled.ids() == list(range(32))
        live = {file.file_path for file in filled.files()}
        metadata = filled.table.iceberg_table.metadata
        replaced = {
            row["file_path"]
            for snapshot in metadata.snapshots
            for row in filled.table.iceberg_table.inspect.files(snapshot.snapshot_id).to_pylist()
        }
        assert filled.stored() == live | replaced
        if done:
            break
    assert done == 1
    assert watched.calls >= 3


def test_a_file_that_cannot_be_read_stops_the_job_and_changes_nothing(filled: Filled) -> None:
    for _ in range(8):
        filled.append(10)
    path = Path(filled.files()[3].file_path.removeprefix("file://"))
    kept, stored = path.read_bytes(), filled.stored()
    path.write_bytes(kept[:100])
    with pytest.raises(CatalogError, match=r"could not rewrite data files of market\.trades"):
        compact(filled.table, POLICY, SAME_DAY_US)
    path.write_bytes(kept)
    assert filled.stored() == stored
    assert filled.ids() == list(range(80))
    assert len(data_files(filled.table)) == 8
