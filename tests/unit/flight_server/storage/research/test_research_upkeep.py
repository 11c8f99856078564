"""Research tables: dropped, expired, written to by others, read as they were."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from common.clock import ManualClock
from common.errors import (
    CatalogError,
    SnapshotNotFound,
    TableNotFound,
    Unsupported,
)
from common.settings import LakeSettings
from flight_server.storage.as_of import AsOfSnapshot, AsOfTime
from flight_server.storage.research import TABLE_PROPERTIES, ResearchTables
from flight_server.storage.research_upkeep import KEEP_UNREACHABLE_S
from tests.support.research import APPEND, REPLACE, SIMPLE, files_under, put, rows_of, simple


def later(research: ResearchTables) -> int:
    """More than an hour later: how many files the sweep deletes."""
    clock = research._unreachable._clock
    assert isinstance(clock, ManualClock)
    clock.advance(KEEP_UNREACHABLE_S + 1)
    return research.sweep()


def test_drop_and_make_again(research: ResearchTables, engine: Any, settings: LakeSettings) -> None:
    put(research, "t", simple(1))
    put(research, "t", simple(2), APPEND)
    held = research.table("t")
    assert held is not None
    assert research.drop("T")
    assert not research.drop("t", if_exists=True)
    with pytest.raises(TableNotFound):
        research.drop("t")
    assert research.tables() == []
    put(research, "t", simple(3))
    assert research.sweep() == 0
    assert engine.execute(f"SELECT count(*) FROM {held.relation}").fetchall() == [(2,)]  # who has it open reads on
    assert later(research) > 0
    assert rows_of(engine, research, "t", "id") == [(3,)]
    table = research.table("t")
    assert table is not None
    folders = {name.split("/")[0] for name in files_under(settings)}
    assert len(folders) == 1 and folders.pop() in table.metadata_location


def test_old_snapshots_expire_and_their_files_go(
    research: ResearchTables, engine: Any, settings: LakeSettings, foreign: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any mix of writes each snapshot that is kept is whole, and what none of them reaches is gone."""
    for name, value in (("SNAPSHOTS_KEPT_KEY", "k2.snapshots-kept"), ("_AT_ONCE", 3)):
        monkeypatch.setattr(f"flight_server.storage.research_upkeep.{name}", value)
    monkeypatch.setitem(TABLE_PROPERTIES, "k2.snapshots-kept", "5")  # type: ignore[arg-type]
    monkeypatch.setitem(TABLE_PROPERTIES, "commit.manifest.min-count-to-merge", "3")  # type: ignore[arg-type]
    rng = random.Random(7)
    expected: dict[int, int] = {}
    put(research, "t", simple(0))
    rows, replaced = 1, 0
    for number in range(1, 60):
        if rng.random() < 0.3:
            put(research, "t", simple(number), REPLACE)
            rows, replaced = 1, replaced + 1
        else:
            put(research, "t", simple(number), APPEND)
            rows += 1
        table = foreign.load_table("research.t")
        current = table.metadata.current_snapshot()
        assert current is not None
        expected[current.snapshot_id] = rows
        if rng.random() < 0.2:
            later(research)
        assert len(table.metadata.snapshots) <= 8
    assert replaced > 5
    later(research)
    table = foreign.load_table("research.t")
    for snapshot in table.metadata.snapshots:
        if snapshot.snapshot_id in expected:
            assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows == expected[snapshot.snapshot_id]
    reached = {
        entry.data_file.file_path.rpartition("/")[2]
        for snapshot in table.metadata.snapshots
        for manifest in snapshot.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io)
    }
    names = {name.rpartition("/")[2] for name in files_under(settings)}
    assert {name for name in names if name.endswith(".parquet")} == reached
    assert len({name for name in names if name.startswith("snap-")}) == len(table.metadata.snapshots)


def test_a_table_of_another_tool_keeps_its_snapshots(research: ResearchTables, foreign: Catalog) -> None:
    foreign.create_namespace("research")
    foreign.create_table("research.theirs", SIMPLE)
    for number in range(30):
        put(research, "theirs", simple(number), APPEND)
    assert len(foreign.load_table("research.theirs").metadata.snapshots) == 30


def test_truncate_keeps_the_columns(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    put(research, "t", simple(1, 2), owner="ann")
    assert research.truncate("t") == 2
    assert rows_of(engine, research, "t") == []
    table = research.table("t")
    assert table is not None and (table.owner, table.rows) == ("ann", 0)
    assert len(foreign.load_table("research.t").metadata.schemas) == 1
    put(research, "t", simple(3), APPEND)
    assert rows_of(engine, research, "t", "id") == [(3,)]
    with pytest.raises(TableNotFound):
        research.truncate("absent")


def test_an_older_state_can_be_read_by_id_and_by_time(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    def count(as_of: AsOfSnapshot | AsOfTime) -> int:
        select = research.select_at("T", research.snapshot_at("T", as_of))
        return int(engine.execute(f"SELECT count(*) FROM ({select})").fetchone()[0])

    with pytest.raises(TableNotFound):
        count(AsOfSnapshot(1))
    put(research, "t", simple(1))
    put(research, "t", simple(2, 3), APPEND)
    put(research, "t", simple(4), REPLACE)
    first, second, third = foreign.load_table("research.t").metadata.snapshot_log
    assert [count(AsOfSnapshot(entry.snapshot_id)) for entry in (first, second, third)] == [1, 3, 1]
    assert [count(AsOfTime(entry.timestamp_ms * 1_000)) for entry in (first, second, third)] == [1, 3, 1]
    for unknown in (AsOfSnapshot(1), AsOfTime(0)):
        with pytest.raises(SnapshotNotFound, match=r"research\.t has no such snapshot"):
            count(unknown)
    put(research, "t", pa.table({"other": [1]}), REPLACE)
    with pytest.raises(Unsupported, match="other columns then"):
        count(AsOfSnapshot(first.snapshot_id))


def test_what_another_engine_writes_is_seen(research: ResearchTables, engine: Any, foreign: Catalog) -> None:
    assert research.tables() == []
    foreign.create_namespace("research")
    table = foreign.create_table("research.Theirs", SIMPLE)
    assert [(known.name, known.relation) for known in research.tables()] == [("Theirs", None)]
    table.append(simple(1))
    (known,) = research.tables()
    assert known.rows == 1
    assert rows_of(engine, research, "theirs", "id") == [(1,)]
    put(research, "theirs", simple(2), APPEND)
    assert foreign.load_table("research.Theirs").scan().to_arrow().num_rows == 2
    foreign.drop_table("research.Theirs")
    assert research.tables() == []


def test_a_partitioned_table_of_another_engine_is_not_written_to(research: ResearchTables, foreign: Catalog) -> None:
    put(research, "t", simple(1))
    with foreign.load_table("research.t").update_spec() as update:
        update.add_identity("name")
    for mode in (APPEND, REPLACE):
        with pytest.raises(Unsupported, match="partitioned by another tool"):
            put(research, "t", simple(2), mode)


def test_a_broken_table_does_not_hide_the_others(research: ResearchTables, settings: LakeSettings) -> None:
    put(research, "whole", simple(1))
    put(research, "broken", simple(1))
    table = research.table("broken")
    assert table is not None
    Path(table.metadata_location.removeprefix("file://")).write_text("{}")
    assert [known.name for known in ResearchTables(settings).tables()] == ["whole"]


def test_listing_reads_only_what_changed(research: ResearchTables, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        put(research, f"t{number}", simple(number))
    research.tables()
    loaded: list[str] = []
    real = research._load

    def load(name: str) -> Any:
        loaded.append(name)
        return real(name)

    monkeypatch.setattr(research, "_load", load)
    research.tables()
    assert loaded == []
    put(research, "t3", simple(9), APPEND)
    loaded.clear()
    assert [table.rows for table in research.tables()] == [1, 1, 1, 2, 1]
    assert loaded == ["t3"]


def test_a_catalog_that_is_gone_is_said(tmp_path: Path) -> None:
    research = ResearchTables(LakeSettings.load(data_dir=tmp_path, catalog_uri=f"sqlite:///{tmp_path}/no/where.db"))
    with pytest.raises(CatalogError, match="catalog"):
        research.tables()
