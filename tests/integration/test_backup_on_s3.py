"""Backups in a store that speaks S3 over HTTP, of a lake that lies in one. Skips, or with K2_REQUIRE_S3=1 fails,
without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.settings import LakeSettings
from sink.recovery.archive import Archive
from sink.recovery.backup import back_up
from sink.recovery.folders import Folder
from sink.recovery.recover import recover
from sink.recovery.restore import restore
from sink.recovery.upkeep import prune_backups, verify_backups
from tests.integration.s3_server import S3Server
from tests.support.lakes import fill, lake_at, loaded, rows_of, said_of

_LAKE, _BACKUPS = "lake", "backups"


@pytest.fixture(scope="module")
def s3(s3_store: S3Server) -> S3Server:
    for bucket in (_LAKE, _BACKUPS):
        s3_store.make_bucket(bucket)
    return s3_store


def _in_store(s3: S3Server, folder: Path, name: str) -> LakeSettings:
    lake = LakeSettings.load(
        data_dir=folder / name,
        catalog_uri=f"sqlite:///{folder / name}.db",
        warehouse=f"s3://{_LAKE}/{name}",
        catalog_properties=s3.properties(name),
    )
    lake.prepare()
    return lake


def test_a_lake_in_a_store_comes_back_there_and_on_a_disk(s3: S3Server, tmp_path: Path) -> None:
    lake = _in_store(s3, tmp_path, "first")
    archive = Archive(Folder(f"s3://{_BACKUPS}/all", s3.properties("backup")))
    fill(lake, 3)
    whole = back_up(lake, archive)
    fill(lake, 1)
    more = back_up(lake, archive)
    assert 0 < more.files_copied < whole.files_copied
    assert not verify_backups(archive).findings

    moved = _in_store(s3, tmp_path, "second")
    restore(archive, moved)
    assert rows_of(loaded(moved)) == rows_of(loaded(lake))
    assert said_of(loaded(moved)) == said_of(loaded(lake))
    on_disk = lake_at(tmp_path / "disk")
    restore(archive, on_disk)
    assert rows_of(loaded(on_disk)) == rows_of(loaded(lake))


def test_a_lost_catalog_is_found_again_in_a_store(s3: S3Server, tmp_path: Path) -> None:
    lake = _in_store(s3, tmp_path, "third")
    fill(lake, 2)
    rows = rows_of(loaded(lake))
    for file in tmp_path.glob("third.db*"):
        file.unlink()
    recover(lake)
    assert rows_of(loaded(lake)) == rows


def test_a_pruned_backup_leaves_the_newer_one_whole(s3: S3Server, tmp_path: Path) -> None:
    lake = _in_store(s3, tmp_path, "fourth")
    archive = Archive(Folder(f"s3://{_BACKUPS}/pruned", s3.properties("backup")))
    for commits in (2, 1):
        fill(lake, commits)
        back_up(lake, archive)
    prune_backups(archive, keep=1)
    assert not verify_backups(archive).findings
    moved = _in_store(s3, tmp_path, "fifth")
    restore(archive, moved)
    assert rows_of(loaded(moved)) == rows_of(loaded(lake))
