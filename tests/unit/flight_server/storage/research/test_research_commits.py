"""Research tables: each write is one snapshot or nothing, whatever fails and whoever else writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException

from common.errors import (
    CatalogError,
    CommitConflict,
    CommitStateUnknown,
    InvalidStatement,
    K2Error,
)
from common.settings import LakeSettings
from flight_server.storage import research_write
from flight_server.storage.research import ResearchTables, WriteMode
from tests.support.research import APPEND, CREATE, CREATE_APPEND, REPLACE, SIMPLE, files_under, put, rows_of, simple


def test_nothing_is_to_be_seen_before_the_commit(research: ResearchTables, engine: Any) -> None:
    write = research.begin_write("t", SIMPLE, CREATE)
    write.write(simple(1))
    assert research.tables() == [] and research.table("t") is None
    write.commit()
    write = research.begin_write("t", SIMPLE, APPEND)
    write.write(simple(2))
    assert rows_of(engine, research, "t", "id") == [(1,)]
    write.write(simple(3))
    done: list[int] = []
    committing = threading.Thread(target=lambda: done.append(write.commit()))  # a transaction's end is another call
    committing.start()
    committing.join()
    assert done == [2]
    assert rows_of(engine, research, "t", "id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE])
def test_an_aborted_write_leaves_no_files(
    research: ResearchTables, engine: Any, settings: LakeSettings, mode: WriteMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(research_write, "_GROUP_BYTES", 1)
    monkeypatch.setattr(research_write, "_FILE_BYTES", 100)
    if mode is not CREATE:
        put(research, "t", simple(1))
    before = files_under(settings)
    write = research.begin_write("t", SIMPLE, mode)
    for number in range(20):
        write.write(simple(number))
    assert len(files_under(settings)) > len(before) + 2
    write.abort()
    write.abort()
    assert files_under(settings) == before
    with pytest.raises(InvalidStatement, match="over"):
        write.write(simple(1))
    assert [table.name for table in research.tables()] == ([] if mode is CREATE else ["t"])


def crash_points() -> list[tuple[str, Callable[[pytest.MonkeyPatch], None]]]:
    """Between any two steps of a commit the process may die, or the store may refuse."""

    def dies(*_: Any, **__: Any) -> Any:
        raise OSError("no space left")

    def at(path: str) -> Callable[[pytest.MonkeyPatch], None]:
        return lambda monkeypatch: monkeypatch.setattr(path, dies)

    return [
        ("the first byte of a data file", at("pyiceberg.io.pyarrow.ParquetFormatWriter.write")),
        ("the end of a data file", at("pyiceberg.io.pyarrow.ParquetFormatWriter.close")),
        ("the manifest", at("pyiceberg.table.update.snapshot._SnapshotProducer._manifests")),
        ("the manifest list", at("pyiceberg.table.update.snapshot.write_manifest_list")),
        ("the metadata", at("pyiceberg.catalog.MetastoreCatalog._write_metadata")),
        ("the catalog", at("sqlalchemy.orm.Session.commit")),
    ]


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE])
@pytest.mark.parametrize(("where", "breaks"), crash_points(), ids=[where for where, _ in crash_points()])
def test_a_failure_at_any_step_leaves_the_table_as_it_was(
    research: ResearchTables,
    settings: LakeSettings,
    engine: Any,
    mode: WriteMode,
    where: str,
    breaks: Callable[[pytest.MonkeyPatch], None],
) -> None:
    if mode is not CREATE:
        put(research, "t", simple(1))
    write = research.begin_write("t", SIMPLE, mode)
    with pytest.MonkeyPatch.context() as monkeypatch:
        breaks(monkeypatch)
        with pytest.raises(K2Error) as caught:
            write.write(simple(2))
            write.commit()
    assert isinstance(caught.value, CommitStateUnknown if where in ("the metadata", "the catalog") else CatalogError)
    again = ResearchTables(settings)  # a new process
    if mode is CREATE:
        assert again.tables() == []
    else:
        assert rows_of(engine, again, "t", "id") == [(1,)]
    put(again, "t", simple(3), REPLACE)
    assert rows_of(engine, again, "t", "id") == [(3,)]


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE])
def test_a_commit_whose_answer_is_lost_is_found(
    research: ResearchTables, engine: Any, mode: WriteMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not CREATE:
        put(research, "t", simple(1))
    write = research.begin_write("t", SIMPLE, mode)
    write.write(simple(2))
    real = type(research._catalog()).commit_table

    def lost(*args: Any, **more: Any) -> Any:
        real(*args, **more)
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(research._catalog()), "commit_table", lost)
    assert write.commit() == 1
    assert rows_of(engine, research, "t", "id") == ([(1,), (2,)] if mode is APPEND else [(2,)])


def test_after_an_unknown_outcome_nothing_is_deleted(
    research: ResearchTables, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = research.begin_write("t", SIMPLE, CREATE)
    write.write(simple(1))

    def gone(*_: Any, **__: Any) -> Any:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(research._catalog()), "commit_table", gone)
    with pytest.raises(CommitStateUnknown, match="look at the table"):
        write.commit()
    write.abort()
    assert any(name.endswith(".parquet") for name in files_under(settings))


@pytest.mark.parametrize("mode", [CREATE, CREATE_APPEND, REPLACE])
def test_of_two_that_make_a_table_the_second_conflicts(
    research: ResearchTables, settings: LakeSettings, engine: Any, mode: WriteMode
) -> None:
    first, second = (research.begin_write("t", SIMPLE, mode) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    first.commit()
    after_first = files_under(settings)
    with pytest.raises(CommitConflict, match="made by somebody else meanwhile"):
        second.commit()
    assert rows_of(engine, research, "t", "id") == [(1,)]
    assert files_under(settings) == after_first


def test_of_two_replacements_the_second_conflicts(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    first, second = (research.begin_write("t", SIMPLE, REPLACE) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    second.commit()
    with pytest.raises(CommitConflict, match="changed by somebody else"):
        first.commit()
    assert rows_of(engine, research, "t", "id") == [(2,)]


def test_a_replacement_conflicts_with_an_append(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    replacing = research.begin_write("t", SIMPLE, REPLACE)
    put(research, "t", simple(1), APPEND)
    with pytest.raises(CommitConflict):
        replacing.commit()
    assert rows_of(engine, research, "t", "id") == [(0,), (1,)]


def test_two_appends_both_land(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    first, second = (research.begin_write("t", SIMPLE, APPEND) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    assert (second.commit(), first.commit()) == (1, 1)
    assert rows_of(engine, research, "t", "id") == [(0,), (1,), (2,)]


def test_an_append_conflicts_with_other_columns_and_with_a_drop(research: ResearchTables, engine: Any) -> None:
    put(research, "t", simple(0))
    first, second = (research.begin_write("t", SIMPLE, APPEND) for _ in range(2))
    first.write(simple(1))
    second.write(simple(2))
    put(research, "t", pa.table({"other": [1]}), REPLACE)
    with pytest.raises(CommitConflict, match="were changed by somebody else"):
        first.commit()
    research.drop("t")
    put(research, "t", simple(9))
    with pytest.raises(CommitConflict, match="dropped by somebody else"):
        second.commit()
    assert rows_of(engine, research, "t", "id") == [(9,)]


def test_appends_from_many_threads_and_processes_all_land(settings: LakeSettings, engine: Any) -> None:
    """Each pair of threads with a catalog connection of its own, as processes have."""
    tables = [ResearchTables(settings) for _ in range(3)]
    put(tables[0], "t", simple())
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(4):
                put(tables[number % 3], "t", simple(number * 100 + index), APPEND)
        except BaseException as error:  # noqa: BLE001  (carried to the test's thread)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    expected = sorted((number * 100 + index,) for number in range(6) for index in range(4))
    assert rows_of(engine, tables[0], "t", "id") == expected


def test_a_lost_race_at_the_last_step_is_a_conflict_and_leaves_no_data(
    research: ResearchTables, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(research, "t", simple(0))
    before = {name for name in files_under(settings) if name.endswith((".parquet", ".avro"))}

    def loses(*_: Any, **__: Any) -> Any:
        raise CommitFailedException("another was first")

    write = research.begin_write("t", SIMPLE, REPLACE)
    write.write(simple(1))
    with monkeypatch.context() as patched:
        patched.setattr(type(research._catalog()), "commit_table", loses)
        with pytest.raises(CommitConflict):
            write.commit()
    assert {name for name in files_under(settings) if name.endswith((".parquet", ".avro"))} == before
