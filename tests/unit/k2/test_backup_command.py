"""`k2 backup` and `k2 restore` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from common.errors import K2Error, Refused, SettingsError
from common.settings import LakeSettings
from k2.cli import cli
from tests.support.lakes import fill, lake_at, loaded, rows_of


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    settings = lake_at(tmp_path / "lake")
    fill(settings, 2)
    return settings


def run(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exception is not None:
        raise done.exception
    return done.output


def told(*words: object) -> Any:
    return json.loads(run(*words, "--json"))


def test_a_lake_goes_there_and_back(lake: LakeSettings, tmp_path: Path) -> None:
    place, other = tmp_path / "backups", tmp_path / "other"
    data = ("--data-dir", lake.data_dir)
    assert "there is no complete backup" in run("backup", "list", place)
    assert told("backup", place, *data, "--dry-run")["files_copied"] == 7
    assert "7 files" in run("backup", "--data-dir", lake.data_dir, place)
    assert told("backup", "take", place, *data)["files_copied"] == 0
    first, second = told("backup", "list", place)
    assert (first["nbytes_copied"] > 0, second["nbytes_copied"]) == (True, 0)
    assert second["id"] in run("backup", "list", place)
    assert told("backup", "verify", place)["findings"] == []
    assert told("backup", "prune", place, "--keep", 1)["removed"] == [first["id"]]
    assert told("restore", place, "--data-dir", other)["tables"][0]["rows"] == 6
    assert rows_of(loaded(lake_at(other))) == rows_of(loaded(lake))


def test_what_is_wrong_is_said(lake: LakeSettings, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    with pytest.raises(SettingsError, match="no complete backup in"):
        run("restore", place, "--data-dir", tmp_path / "other")
    run("backup", place, "--data-dir", lake.data_dir)
    with pytest.raises(Refused, match="already"):
        run("restore", place, "--data-dir", lake.data_dir)
    with pytest.raises(SettingsError, match="no backup 1999"):
        run("restore", place, "--backup", "1999", "--data-dir", tmp_path / "other")
    with pytest.raises(SettingsError, match="in no store that K2 knows"):
        run("backup", "ftp://host/x", "--data-dir", lake.data_dir)
    next((place / "files").rglob("*.parquet")).unlink()
    with pytest.raises(K2Error, match="1 files or lists"):
        run("backup", "verify", place)
