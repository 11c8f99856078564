"""A backup is whole or it is none; what comes out of it is what went in, wherever it comes to lie."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.clock import ManualClock
from common.commit_files import CommitLog
from common.datasets import QUOTES
from common.errors import Interrupted, K2Error, Refused, SettingsError
from common.iceberg import open_catalog
from common.offsets import PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.recovery.archive import Archive
from sink.recovery.backup import BackupReport, back_up, listed
from sink.recovery.folders import Folder
from sink.recovery.relocation import AvroFile
from sink.recovery.restore import restore
from sink.recovery.upkeep import prune_backups, verify_backups
from sink.table import IcebergTable
from tests.support.lakes import LATER_US, PARTITION, fill, lake_at, loaded, rows_of, said_of

CLOCK = ManualClock()


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    """Trades in 8 commits of which the first are expired, and one more table."""
    settings = lake_at(tmp_path / "lake")
    IcebergTable.open(settings, QUOTES)
    table = fill(settings, 6)
    expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=3), LATER_US)
    table = fill(settings, 2)
    oldest = min(table.iceberg_table.metadata.snapshots, key=lambda each: each.sequence_number or 0)
    table.iceberg_table.manage_snapshots().create_tag(oldest.snapshot_id, "audit").commit()
    return settings


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(Folder(str(tmp_path / "backups"), {}))


def taken(lake: LakeSettings, archive: Archive, **options: Any) -> BackupReport:
    CLOCK.advance(60)
    return back_up(lake, archive, clock=CLOCK, **options)


def path_of(archive: Archive) -> Path:
    return Path(archive.folder.location.removeprefix("file://"))


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Script:
    """A progress that does something at the n-th time that it is told anything."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.left, self._act = at, act
        self.doing: list[str] = []

    def step(self, doing: str, total: int | None = None) -> None:
        self.doing.append(doing)
        self.advance()

    def advance(self, units: int = 1) -> None:
        if self.left == 0:
            self._act()
        self.left -= 1


def stop() -> None:
    raise Interrupted("stopped by the test")


def test_what_comes_out_is_what_went_in(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    report = taken(lake, archive)
    assert [table.name for table in report.tables] == ["market.quotes", "market.trades"]
    before = loaded(lake)
    rows = rows_of(before)
    elsewhere = lake_at(tmp_path / "elsewhere")
    restored = restore(archive, elsewhere)
    shutil.move(lake.data_dir, tmp_path / "gone")  # whatever still led there would fail now
    after = loaded(elsewhere)
    assert after.metadata.location == f"file://{tmp_path}/elsewhere/warehouse/market/trades"
    assert rows_of(after) == rows
    assert len(rows) == 24
    assert IcebergTable.open(elsewhere, QUOTES).rows == 0
    assert restored.files == report.files
    assert [table.moved for table in restored.tables] == [True, True]
    (tmp_path / "gone").rename(lake.data_dir)
    assert said_of(after) == said_of(before)
    for snapshot in after.metadata.snapshots:
        for manifest in snapshot.manifests(after.io):
            assert manifest.manifest_length == len(after.io.new_input(manifest.manifest_path))
    assert rows_of(after, after.snapshot_by_name("audit").snapshot_id) == rows_of(  # type: ignore[union-attr]
        before,
        before.snapshot_by_name("audit").snapshot_id,  # type: ignore[union-attr]
    )
    pasts = [CommitLog(), CommitLog()]
    for past, table in zip(pasts, (before, after), strict=True):
        past.update(table)
    assert pasts[1].rows() == pasts[0].rows()
    assert pasts[1].rows().num_rows == 8


def test_the_writer_goes_on_where_it_was(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    taken(lake, archive)
    elsewhere = lake_at(tmp_path / "elsewhere")
    restore(archive, elsewhere)
    table = IcebergTable.open(elsewhere, QUOTES)
    table = fill(elsewhere, 2)
    assert table.committed_offsets() == PartitionOffsets({PARTITION: 30})
    assert [row["trade_id"] for row in rows_of(loaded(elsewhere))] == list(range(30))
    assert expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US) > 0


def test_at_the_old_place_no_file_is_another_one(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    taken(lake, archive)
    before = {name: (lake.data_dir / name).read_bytes() for name in files_below(lake.data_dir) if "warehouse" in name}
    shutil.move(lake.data_dir, tmp_path / "gone")
    restore(archive, lake)
    after = {name: (lake.data_dir / name).read_bytes() for name in files_below(lake.data_dir) if "warehouse" in name}
    new = after.keys() - before.keys()
    assert len(new) == 2, "the metadata files alone are new: those before them are gone"
    assert all(name.endswith(".metadata.json") for name in new)
    assert all(after[name] == before[name] for name in after.keys() - new)
    assert len(rows_of(loaded(lake))) == 24


def test_a_lake_that_was_moved_and_moved_back_is_backed_up_beside_what_it_was(
    lake: LakeSettings, archive: Archive, tmp_path: Path
) -> None:
    """Its manifests have the names of the old ones, and other paths in them."""
    first = taken(lake, archive)
    rows = rows_of(loaded(lake))
    shutil.move(lake.data_dir, tmp_path / "gone")
    moved = lake_at(tmp_path / "ekal")  # as long a name as the first
    restore(archive, moved)
    second = taken(moved, archive)
    assert second.files_copied == second.files
    fill(moved, 1)
    taken(moved, archive)
    back = lake_at(tmp_path / "lake")
    restore(archive, back)
    fill(back, 1)
    taken(back, archive)
    assert verify_backups(archive).findings == ()
    for backup_id, count in ((first.id, 24), (second.id, 24), (None, 30)):
        place = lake_at(tmp_path / f"of-{backup_id}")
        restore(archive, place, backup_id=backup_id)
        assert rows_of(loaded(place))[:24] == rows
        assert len(rows_of(loaded(place))) == count


def test_only_what_is_new_is_copied(lake: LakeSettings, archive: Archive) -> None:
    first = taken(lake, archive)
    assert first.files_copied == first.files
    assert taken(lake, archive).files_copied == 0
    fill(lake, 1)
    third = taken(lake, archive)
    # a data file, its manifest, the manifest list, the metadata
    assert third.files_copied == 4
    assert len(archive.ids()) == 3
    assert verify_backups(archive).findings == ()
    assert len(files_below(path_of(archive) / "files")) == first.files + 4


def test_a_dry_run_counts_and_writes_nothing(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    report = taken(lake, archive, dry_run=True)
    assert not path_of(archive).exists()
    real = taken(lake, archive)
    assert (report.id, report.files, report.files_copied) == (None, real.files, real.files_copied)
    elsewhere = lake_at(tmp_path / "elsewhere")
    assert restore(archive, elsewhere, dry_run=True).files == real.files
    assert listed(open_catalog(elsewhere))[1] == []
    assert not (elsewhere.data_dir / "warehouse").exists()


@pytest.mark.parametrize("told", [4, 5, 12])
def test_files_that_expire_while_they_are_copied(
    lake: LakeSettings, archive: Archive, tmp_path: Path, told: int
) -> None:
    """The table moves on, and every file that its old version alone had is deleted."""

    def expire() -> None:
        table = fill(lake, 1)
        before = files_below(lake.data_dir)
        table.iceberg_table.manage_snapshots().remove_tag("audit").commit()
        table.reload()
        expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US)
        iceberg = table.iceberg_table
        snapshot = iceberg.current_snapshot()
        assert snapshot is not None
        needed = set(iceberg.inspect.all_files()["file_path"].to_pylist())
        needed |= {manifest.manifest_path for manifest in snapshot.manifests(iceberg.io)}
        needed |= {snapshot.manifest_list, iceberg.metadata_location}
        kept = {path.removeprefix(f"file://{lake.data_dir}/") for path in needed}
        for name in before - kept:
            if "market/trades" in name and "/history/" not in name:
                (lake.data_dir / name).unlink()

    script = Script(told, expire)
    # The list is 0, the quotes are 1 to 3, the trades' metadata is read at 4 and its files are copied from 5 on.
    report = taken(lake, archive, progress=script, threads=1)
    assert report.tables_taken_anew == 1
    assert report.tables[-1].rows == 27
    elsewhere = lake_at(tmp_path / "elsewhere")
    restore(archive, elsewhere)
    assert [row["trade_id"] for row in rows_of(loaded(elsewhere))] == list(range(27))


def test_a_table_that_lacks_a_file_is_said_and_no_backup_is_made(lake: LakeSettings, archive: Archive) -> None:
    gone = next((lake.data_dir / "warehouse/market/trades/data").rglob("*.parquet"))
    gone.unlink()
    with pytest.raises(K2Error, match=rf"trades cannot be backed up.*{gone.name}.*k2 tables verify"):
        taken(lake, archive)
    assert archive.ids() == []
    assert archive.running() == []


def test_a_file_that_was_cut_is_said(lake: LakeSettings, archive: Archive) -> None:
    cut = next((lake.data_dir / "warehouse/market/trades/data").rglob("*.parquet"))
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(K2Error, match=rf"{cut.name} is damaged: it has"):
        taken(lake, archive)
    assert archive.ids() == []


def test_interrupted_again_and_again_it_goes_on_and_comes_to_its_end(lake: LakeSettings, archive: Archive) -> None:
    runs, copied = 0, 0
    while not archive.ids():
        assert archive.running() == []
        runs += 1
        with contextlib.suppress(Interrupted):
            # Eight words in: a few files further than the last time. Four are begun ahead, and copied again.
            copied += taken(lake, archive, progress=Script(8, stop), threads=1).files_copied
    assert 3 < runs < 20
    assert copied < 8
    assert archive.copied() == {}
    assert verify_backups(archive).findings == ()
    assert taken(lake, archive).files_copied == 0


class Killed(BaseException):
    """What SIGKILL is to a process: nothing is cleaned up after it."""


class Dying(Folder):
    """A folder that a process writes to until it is killed, at its n-th write, or half-way through it."""

    writes_left = 10**9

    def write(self, name: str, content: bytes) -> None:
        self._live()
        super().write(name, content)

    def copy(self, name: str, source: Folder, source_name: str, **options: Any) -> Any:
        self._live()
        return super().copy(name, source, source_name, **options)

    def delete(self, name: str) -> None:
        self._live()
        super().delete(name)

    def _live(self) -> None:
        if self.writes_left <= 0:
            raise Killed
        self.writes_left -= 1


def test_killed_at_any_write_a_backup_is_whole_or_none(lake: LakeSettings, tmp_path: Path) -> None:
    counting = Dying(str(tmp_path / "counted"), {})
    whole = taken(lake, Archive(counting), threads=1)
    writes = 10**9 - counting.writes_left
    # The mark, the files, the note, the manifest, the backup itself, the note's and the mark's end.
    for left in (0, 1, 5, *range(writes - 6, writes)):
        place = Dying(str(tmp_path / f"backups-{left}"), {})
        archive = Archive(place)
        place.writes_left = left
        with pytest.raises(Killed):
            taken(lake, archive, threads=1)
        place.writes_left = 10**9
        assert len(archive.ids()) == (1 if left >= writes - 2 else 0)
        assert verify_backups(archive).findings == ()
        with contextlib.suppress(Refused):
            prune_backups(archive, keep=1, clock=CLOCK)
            assert left in (0, writes - 1), "there is a mark of one that is at work, or was killed"
        last = taken(lake, archive)
        assert last.files_copied == (0 if left >= writes - 4 else whole.files)
        prune_backups(archive, keep=1, interrupted=True, clock=CLOCK)
        own = {f"backups/{last.id}.json", f"manifests/{last.id}.jsonl"}
        files = {file.key for file in archive.files(archive.backup())}
        assert files_below(path_of(archive)) == files | own


def test_a_pruning_and_a_backup_keep_away_from_each_other(lake: LakeSettings, archive: Archive) -> None:
    taken(lake, archive)
    archive.begin("prune-x")
    with pytest.raises(Refused, match="is being pruned"):
        taken(lake, archive)
    archive.end("prune-x")
    archive.begin("20260101T000000.000000Z-abcd")
    with pytest.raises(Refused, match="is in use"):
        prune_backups(archive, keep=1, clock=CLOCK)
    assert len(archive.ids()) == 1


def test_pruning_leaves_what_the_others_have(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    first = taken(lake, archive)
    table = fill(lake, 1)
    table.iceberg_table.manage_snapshots().remove_tag("audit").commit()
    table.reload()
    expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=1), LATER_US)
    second = taken(lake, archive)
    CLOCK.advance(86_400 * 10)
    with pytest.raises(SettingsError, match="nothing says"):
        prune_backups(archive, clock=CLOCK)
    assert prune_backups(archive, older_than_days=11, clock=CLOCK).removed == ()
    dry = prune_backups(archive, older_than_days=9, clock=CLOCK, dry_run=True)
    assert dry.removed == (first.id,)
    assert dry.files > 0
    assert len(archive.ids()) == 2
    real = prune_backups(archive, older_than_days=9, clock=CLOCK)
    assert (real.removed, real.files) == (dry.removed, dry.files)
    assert archive.ids() == [second.id]
    assert len(files_below(path_of(archive) / "files")) == second.files
    assert verify_backups(archive).findings == ()
    assert prune_backups(archive, keep=1, clock=CLOCK).removed == ()
    elsewhere = lake_at(tmp_path / "elsewhere")
    restore(archive, elsewhere)
    assert len(rows_of(loaded(elsewhere))) == 27


def test_verify_finds_what_was_changed(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    report = taken(lake, archive)
    taken(lake, archive)
    data = sorted((path_of(archive) / "files").rglob("*.parquet"))
    flipped, gone = data[0], data[1]
    content = bytearray(flipped.read_bytes())
    content[100] ^= 1
    flipped.write_bytes(content)
    gone.unlink()
    findings = verify_backups(archive).findings
    assert len(findings) == 2, "files that backups share are read once"
    assert any(flipped.name in finding and "sha256" in finding for finding in findings)
    assert any(gone.name in finding and "not there" in finding for finding in findings)
    elsewhere = lake_at(tmp_path / "elsewhere")
    with pytest.raises(K2Error, match="damaged"):
        restore(archive, elsewhere, threads=1)
    assert listed(open_catalog(elsewhere))[1] == []
    # What is not there is copied again by the next backup.
    assert taken(lake, archive).files_copied == 1
    manifest = path_of(archive) / f"manifests/{report.id}.jsonl"
    manifest.write_text(manifest.read_text().replace("data", "atad", 1))
    assert any(f"backup {report.id}" in finding for finding in verify_backups(archive).findings)


def test_only_an_empty_lake_is_restored_to(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no complete backup"):
        restore(archive, lake)
    taken(lake, archive)
    with pytest.raises(SettingsError, match="no backup 2020"):
        restore(archive, lake, backup_id="2020")
    with pytest.raises(Refused, match=r"market\.quotes already"):
        restore(archive, lake)
    before = files_below(lake.data_dir)
    catalog_lost = lake_at(tmp_path / "lake")
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
        (lake.data_dir / name).unlink(missing_ok=True)
    with pytest.raises(Refused, match=r"not in the backup.*k2 tables recover"):
        restore(archive, catalog_lost)
    assert files_below(lake.data_dir) | {"catalog.db"} >= {n for n in before if "warehouse" in n}


def test_a_restoration_that_was_interrupted_goes_on(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    report = taken(lake, archive)
    script = Script(10**9, stop)
    restore(archive, lake_at(tmp_path / "counted"), progress=script)
    told = 10**9 - script.left
    elsewhere = lake_at(tmp_path / "elsewhere")
    for number in (0, 1, 3, 7, told // 2, told - 2, told - 1):
        with pytest.raises(Interrupted):
            restore(archive, elsewhere, progress=Script(number, stop), threads=1)
        assert listed(open_catalog(elsewhere))[1] == []
    done = restore(archive, elsewhere)
    assert done.files_kept > report.files / 3
    assert rows_of(loaded(elsewhere)) == rows_of(loaded(lake))
    again = restore(archive, elsewhere)
    assert again.tables == done.tables, "registered already, each where it is"


def test_a_file_that_came_half_is_brought_again(lake: LakeSettings, archive: Archive, tmp_path: Path) -> None:
    taken(lake, archive)
    elsewhere = lake_at(tmp_path / "elsewhere")
    script = Script(10**9, stop)
    restore(archive, lake_at(tmp_path / "counted"), progress=script)
    with pytest.raises(Interrupted):
        restore(archive, elsewhere, progress=Script(10**9 - script.left - 1, stop))
    for path in list((elsewhere.data_dir / "warehouse").rglob("*.parquet"))[:2]:
        content = bytearray(path.read_bytes())
        content[50] ^= 1
        path.write_bytes(content)
    restore(archive, elsewhere)
    assert rows_of(loaded(elsewhere)) == rows_of(loaded(lake))


def test_the_list_of_backups_is_readable_by_others(lake: LakeSettings, archive: Archive) -> None:
    report = taken(lake, archive)
    tree = json.loads((path_of(archive) / f"backups/{report.id}.json").read_text())
    assert tree["format"] == 1
    assert [table["rows"] for table in tree["tables"]] == [0, 24]
    lines = (path_of(archive) / f"manifests/{report.id}.jsonl").read_text().splitlines()
    assert len(lines) == report.files
    assert {json.loads(line)["kind"] for line in lines} == {"data", "manifest", "manifest-list", "metadata", "history"}


def test_an_avro_file_that_is_not_changed_is_the_same(lake: LakeSettings) -> None:
    files = list((lake.data_dir / "warehouse").rglob("*.avro"))
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        file = AvroFile.read(content)
        written = file.with_records(lambda record: record)
        # To the letter; but that PyIceberg leaves three bytes of a checksum behind each block, which nobody reads.
        assert len(content) - len(written) == 3 * len(file.blocks)
        header = content.index(file.header["sync"]) + 16
        assert written[:header] == content[:header]
        assert AvroFile.read(written) == file
        assert AvroFile.read(written).with_records(lambda record: record) == written
        with pytest.raises(ValueError, match="no whole Avro file"):
            AvroFile.read(content[:-9])
