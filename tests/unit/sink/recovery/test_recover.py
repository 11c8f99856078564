"""A catalog that was lost is made again from the warehouse, with the versions that it had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pyiceberg.schema import Schema

from common.datasets import QUOTES, TRADES
from common.errors import Refused, SettingsError
from common.iceberg import open_catalog
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.recovery.recover import RecoverReport, recover
from sink.table import IcebergTable
from tests.support.lakes import LATER_US, fill, lake_at, loaded, rows_of


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    settings = lake_at(tmp_path / "lake")
    IcebergTable.open(settings, QUOTES)
    table = fill(settings, 5)
    expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=2), LATER_US)
    return settings


def lose(lake: LakeSettings) -> None:
    """The catalog's file, and what SQLite keeps beside it."""
    for path in lake.data_dir.glob("catalog.db*"):
        path.unlink()


def metadata_of(lake: LakeSettings, name: str = "market/trades") -> list[Path]:
    return sorted((lake.data_dir / "warehouse" / name / "metadata").glob("*.metadata.json"))


def metadata_of_one(lake: LakeSettings) -> Schema:
    """The columns of the trades, from one of their metadata files."""
    tree = json.loads(metadata_of(lake)[0].read_text())
    return Schema.model_validate(tree["schemas"][0])


def by_name(reports: list[RecoverReport]) -> dict[str, RecoverReport]:
    return {report.table: report for report in reports}


def test_every_table_is_what_it_was(lake: LakeSettings) -> None:
    catalog = open_catalog(lake)
    research = catalog.create_table_if_not_exists  # a users' table lies in a folder with more than its name
    catalog.create_namespace("research")
    made = research(
        ("research", "mine"),
        loaded(lake).schema(),
        location=f"{lake.resolved_warehouse}/research/mine-0123456789ab",
    )
    before = loaded(lake)
    rows = rows_of(before)
    lose(lake)
    dry = recover(lake, dry_run=True)
    assert [report.table for report in dry] == ["market.quotes", "market.trades", "research.mine"]
    assert not open_catalog(lake).list_namespaces()
    reports = by_name(recover(lake))
    assert list(reports) == [report.table for report in dry]
    assert loaded(lake).metadata_location == before.metadata_location == reports["market.trades"].metadata_location
    assert reports["market.trades"].rows == 15
    assert reports["market.trades"].left_out == ()
    assert reports["market.trades"].to_json()["job"] == "recover"
    assert rows_of(loaded(lake)) == rows
    assert loaded(lake, "research.mine").metadata_location == made.metadata_location
    fill(lake, 1)
    assert [row["trade_id"] for row in rows_of(loaded(lake))] == list(range(18))
    assert recover(lake) == [], "nothing is lost any more"


def test_a_newest_file_that_is_torn_gives_way_to_the_one_before(lake: LakeSettings) -> None:
    newest = Path(loaded(lake).metadata_location.removeprefix("file://"))
    lose(lake)
    newest.write_bytes(newest.read_bytes()[:-100])
    report = by_name(recover(lake))["market.trades"]
    assert report.metadata_location.endswith(metadata_of(lake)[-2].name)
    assert [newest.name in sentence and "torn" in sentence for sentence in report.left_out] == [True]
    assert "left out" in report.to_text()
    # The version before it had not expired anything yet; its rows are the same.
    assert report.rows == 15


def test_a_writer_that_lost_a_race_is_not_taken(lake: LakeSettings) -> None:
    table = IcebergTable.open(lake, TRADES)
    base = table.iceberg_table.metadata_location
    fill(lake, 1)
    winner = loaded(lake).metadata_location
    # The loser: another file on the same version, with a later time; its data files are gone, as the sink removes them.
    tree = json.loads(Path(winner.removeprefix("file://")).read_text())
    tree["last-updated-ms"] += 60_000
    loser = Path(winner.removeprefix("file://")).with_name("00007-00000000-lost.metadata.json")
    lists = [snapshot["manifest-list"] for snapshot in tree["snapshots"]]
    tree["snapshots"][-1]["manifest-list"] = lists[-1].replace("snap-", "gone-")
    loser.write_text(json.dumps(tree))
    lose(lake)
    report = by_name(recover(lake, ["market.trades"]))["market.trades"]
    assert report.metadata_location == winner != base
    assert len(report.left_out) == 1
    assert loser.name in report.left_out[0]


def test_the_loser_of_an_older_race_is_not_even_tried(lake: LakeSettings) -> None:
    older = metadata_of(lake)[2]
    tree = json.loads(older.read_text())
    tree["last-updated-ms"] += 10**9
    tree["last-sequence-number"] += 100
    older.with_name("00009-later-by-its-name.metadata.json").write_text(json.dumps(tree))
    newest = loaded(lake).metadata_location
    lose(lake)
    report = by_name(recover(lake))["market.trades"]
    assert (report.metadata_location, report.left_out) == (newest, ())


def test_a_table_of_which_no_version_is_whole_is_refused_with_its_reason(lake: LakeSettings) -> None:
    first = loaded(lake).inspect.files()["file_path"].to_pylist()[0]
    lose(lake)
    Path(first.removeprefix("file://")).unlink()
    with pytest.raises(Refused, match=r"no version of market\.trades is whole.*lacks 1 file.*restore it from a backup"):
        recover(lake)
    assert not open_catalog(lake).list_namespaces(), "no other table either"
    assert [report.table for report in recover(lake, ["market.quotes"])] == ["market.quotes"]


def test_a_table_that_was_begun_anew_in_the_same_folder_is_noticed(lake: LakeSettings) -> None:
    uuid = str(loaded(lake).metadata.table_uuid)
    lose(lake)
    with pytest.raises(SettingsError, match=r"no table market\.trades, but .* has its metadata.*k2 tables recover"):
        IcebergTable.open(lake, TRADES)
    # What K2 refuses another tool may do.
    catalog = open_catalog(lake)
    catalog.create_table("market.trades", metadata_of_one(lake), location=f"{lake.resolved_warehouse}/market/trades")
    with pytest.raises(Refused, match=r"the catalog k2 has the table market\.trades"):
        recover(lake, ["market.trades"])
    lose(lake)
    with pytest.raises(Refused, match=rf"made more than once.*--uuid.*{uuid} with 15 rows"):
        recover(lake)
    with pytest.raises(SettingsError, match="name that table too"):
        recover(lake, uuid=uuid)
    assert recover(lake, ["market.trades"], uuid=uuid)[0].rows == 15


def test_a_table_that_was_dropped_gives_way_to_the_one_made_after_it(lake: LakeSettings) -> None:
    catalog = open_catalog(lake)
    catalog.create_namespace("research")
    for unique in ("ffffffffffff", "000000000000"):
        location = f"{lake.resolved_warehouse}/research/mine-{unique}"
        made = catalog.create_table(("research", "mine"), loaded(lake).schema(), location=location)
        if unique[0] == "f":
            catalog.drop_table(("research", "mine"))
    lose(lake)
    (report,) = recover(lake, ["research.mine"])
    assert report.metadata_location == made.metadata_location
    assert "an older table of that name" in report.left_out[0]


def test_what_is_not_there_and_what_was_copied_is_said(lake: LakeSettings) -> None:
    lose(lake)
    with pytest.raises(SettingsError, match=r"no table market\.bars; it has market\.quotes, market\.trades"):
        recover(lake, ["market.bars"])
    folder = lake.data_dir / "warehouse/market"
    shutil.copytree(folder / "trades", folder / "copied")
    with pytest.raises(Refused, match=r"market\.copied.*a copy, whose files lie elsewhere"):
        recover(lake, ["market.copied"])
