"""One suite over the real table and its fake: what a writer may rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.datasets import TRADES
from common.errors import CommitConflict
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import FIELD_ID_KEY, table_schema
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.support.fake_table import FakeStore, FakeTable
from tests.support.records import table_rows, trade
from tests.support.versions import ADDED, ADDED_ID

P0 = KafkaPartition("cluster", "topic-id-1", 0)
P1 = KafkaPartition("cluster", "topic-id-1", 1)
NONE = PartitionOffsets()
Open = Callable[[], Any]


@pytest.fixture(params=["iceberg", "fake"])
def open_table(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Makes writers' handles on one and the same table."""
    lake = LakeSettings.load(data_dir=tmp_path)
    store = FakeStore(table_schema("trade"))
    handles: dict[str, Open] = {"iceberg": lambda: IcebergTable.open(lake, TRADES), "fake": lambda: FakeTable(store)}
    return handles[str(request.param)]


def rows(first: int, count: int) -> Any:
    return table_rows("trade", [trade(i) for i in range(first, first + count)], first_offset=first)


def at(p0: int = 0, p1: int = 0) -> PartitionOffsets:
    return PartitionOffsets({p: n for p, n in ((P0, p0), (P1, p1)) if n})


def test_a_new_table_is_empty(open_table: Open) -> None:
    table = open_table()
    assert table.committed_offsets() == NONE
    assert table.snapshot_id is None


def test_what_is_written_is_not_there_before_it_is_committed(open_table: Open) -> None:
    writer, reader = open_table(), open_table()
    files = writer.write(rows(0, 3))
    assert reader.committed_offsets() == NONE
    snapshot_id = writer.commit(files, NONE, at(3), "one")
    assert reader.committed_offsets() == at(3)
    assert reader.snapshot_id == writer.snapshot_id == snapshot_id
    assert reader.landed("one")
    assert not reader.landed("two")


def test_other_partitions_are_carried_forward_and_may_be_written_by_others(open_table: Open) -> None:
    first, second = open_table(), open_table()
    first.commit(first.write(rows(0, 1)), NONE, at(p0=1), "one")
    second.committed_offsets()
    second.commit(second.write(rows(1, 1)), NONE, at(p1=1), "two")
    assert first.committed_offsets() == at(1, 1)


def test_an_old_view_is_a_conflict_and_the_files_may_be_used_again(open_table: Open) -> None:
    first, second = open_table(), open_table()
    files = second.write(rows(1, 1))
    first.commit(first.write(rows(0, 1)), NONE, at(p0=1), "one")
    with pytest.raises(CommitConflict):
        second.commit(files, NONE, at(p1=1), "two")
    assert second.committed_offsets() == at(p0=1)
    second.commit(files, NONE, at(p1=1), "two")
    assert first.committed_offsets() == at(1, 1)


@pytest.mark.parametrize("base", [NONE, at(4), at(6)])
def test_a_base_that_the_table_does_not_say_is_a_conflict(open_table: Open, base: PartitionOffsets) -> None:
    table = open_table()
    table.commit(table.write(rows(0, 5)), NONE, at(5), "one")
    files = table.write(rows(5, 1))
    with pytest.raises(CommitConflict):
        table.commit(files, base, at(7), "two")
    table.discard(files)
    table.discard(files)
    assert table.committed_offsets() == at(5)
    assert not table.landed("two")


def test_no_rows_move_the_offsets_all_the_same(open_table: Open) -> None:
    table = open_table()
    table.commit(table.write(rows(0, 0)), NONE, at(4), "one")
    assert open_table().committed_offsets() == at(4)


def further_of(table: Any) -> list[str]:
    """The columns that the newest snapshot says it has, beyond those of the dataset."""
    if isinstance(table, FakeTable):
        return [field.name for field in table._store.current.further]  # type: ignore[union-attr]
    metadata = table.iceberg_table.metadata
    schemas = {schema.schema_id: schema for schema in metadata.schemas}
    names = [field.name for field in schemas[metadata.current_snapshot().schema_id].fields]
    return names[len(table_schema("trade").names) :]


def test_a_column_more_is_in_the_snapshots_of_those_who_know_it(open_table: Open) -> None:
    """Who had loaded the table before commits as before, and moves no fence: the column is metadata alone."""
    first, second = open_table(), open_table()
    field = pa.field(ADDED, pa.string(), metadata={FIELD_ID_KEY: str(ADDED_ID).encode()})
    files = first.write(rows(0, 2).append_column(field, pa.array(["b0", "b1"])))
    second.commit(second.write(rows(5, 1)), NONE, at(p1=1), "old")
    assert further_of(open_table()) == []
    first.committed_offsets()
    first.commit(files, NONE, at(p0=2), "new")
    assert further_of(open_table()) == [ADDED]
    second.committed_offsets()
    second.commit(second.write(rows(6, 1)), at(p1=1), at(p1=2), "old again")
    assert further_of(open_table()) == [ADDED]
