"""A later version of a schema in the log: the decoder's rows, the table's columns, and what stands beside them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException

import sink.table
from common.codec import Decoder, Encoder
from common.datasets import TRADES
from common.errors import CatalogError, CommitConflict, SettingsError
from common.log import ConsumerBatch
from common.offsets import PartitionOffsets
from common.registry import EmbeddedRegistry
from common.schemas.arrow import field_id, joined_rows, table_schema
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.table import IcebergTable
from tests.support.lake_tables import PARTITION, Filled, trades_of
from tests.support.records import EPOCH, trade
from tests.support.versions import ADDED, ADDED_ID, trade_2_1

REGISTRY = EmbeddedRegistry()
OLD = Encoder(TRADES, REGISTRY, topic="old")
NEW = Encoder(TRADES, REGISTRY, topic="new", schema_text=trade_2_1())


def batch(*values: bytes, first: int = 0) -> ConsumerBatch:
    numbers = list(range(first, first + len(values)))
    return ConsumerBatch("t", "cluster", "topic-id-1", [0] * len(values), numbers, list(values))


def new_trade(trade_id: int, **changes: Any) -> bytes:
    return NEW.encode(trade(trade_id, **{ADDED: f"b{trade_id}"} | changes))


def decoded(decoder: Decoder, *values: bytes, first: int = 0) -> pa.RecordBatch:
    found = decoder.decode(batch(*values, first=first))
    assert not found.errors
    return found.record_batch


# --- rows -------------------------------------------------------------------------------------------------------------


def test_old_and_new_messages_in_one_batch_give_rows_of_all_columns_in_their_order() -> None:
    decoder = Decoder(TRADES, REGISTRY)
    rows = decoded(decoder, OLD.encode(trade(1)), new_trade(2), OLD.encode(trade(3)), new_trade(4, **{ADDED: None}))
    assert rows.column("trade_id").to_pylist() == [1, 2, 3, 4]
    assert rows.column(ADDED).to_pylist() == [None, "b2", None, None]
    assert rows.column("_kafka_offset").to_pylist() == [0, 1, 2, 3]
    assert rows.schema.names == [*table_schema("trade").names, ADDED]
    assert field_id(rows.schema.field(ADDED)) == ADDED_ID
    later = decoded(decoder, OLD.encode(trade(5)))
    assert later.schema == rows.schema == decoder.schema, "a column that was seen stays"


def test_a_broken_message_beside_later_ones_is_the_only_one_refused() -> None:
    found = Decoder(TRADES, REGISTRY).decode(batch(OLD.encode(trade(1)), new_trade(2)[:-3], new_trade(3)))
    assert found.record_batch.column(ADDED).to_pylist() == [None, "b3"]
    assert [error.offset for error in found.errors] == [1]


def test_two_versions_of_two_releases_make_two_columns() -> None:
    other = Encoder(TRADES, REGISTRY, topic="other", schema_text=trade_2_1(name="venue_flags", **{"field-id": 41}))
    decoder = Decoder(TRADES, REGISTRY)
    rows = decoded(decoder, other.encode(trade(1, venue_flags="x")), new_trade(2))
    assert rows.select(["venue_flags", ADDED]).to_pylist() == [
        {"venue_flags": "x", ADDED: None},
        {"venue_flags": None, ADDED: "b2"},
    ]


@pytest.mark.parametrize("name", ["price", "Price", "_kafka_offset"])
def test_a_field_that_takes_the_name_of_a_column_is_refused_message_by_message(name: str) -> None:
    text = trade_2_1(name=name)
    schema = json.loads(text)
    schema["fields"] = [field for field in schema["fields"] if field["field-id"] != 9 or name != "price"]
    clash = Encoder(TRADES, REGISTRY, topic=f"clash.{name}", schema_text=json.dumps(schema))
    decoder = Decoder(TRADES, REGISTRY)
    found = decoder.decode(batch(clash.encode(trade(1, **{name: "x"})), OLD.encode(trade(2))))
    assert found.record_batch.column("trade_id").to_pylist() == [2]
    assert f"its field '{name}' has the field-id {ADDED_ID}, and the column of that name has" in str(found.errors[0])
    assert decoder.schema == table_schema("trade")


def test_a_field_that_takes_the_id_of_a_column_under_another_name_is_refused() -> None:
    """Its values would be lost without a word: columns are told apart by their ids, values are read by their names."""
    other = Encoder(TRADES, REGISTRY, topic="other", schema_text=trade_2_1(name="auction_id"))
    decoder = Decoder(TRADES, REGISTRY)
    found = decoder.decode(batch(new_trade(1), other.encode(trade(2, auction_id="x"))))
    assert found.record_batch.column(ADDED).to_pylist() == ["b1"]
    assert f"its field 'auction_id' has the field-id {ADDED_ID}, and the column '{ADDED}' has it" in str(
        found.errors[0]
    )


def test_rows_of_before_and_after_are_joined() -> None:
    decoder = Decoder(TRADES, REGISTRY)
    before, after = decoded(decoder, OLD.encode(trade(1))), decoded(decoder, new_trade(2), first=1)
    rows = joined_rows([before, after], table_schema("trade"))
    assert rows.column(ADDED).to_pylist() == [None, "b2"]
    assert joined_rows([], table_schema("trade")).schema == table_schema("trade")


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path)


def new_rows(first: int, count: int, *, day: int = 0) -> pa.Table:
    """As `trades_of`, with the new column."""
    encoded = [
        new_trade(n, symbol=f"S{n % 3}", event_time=EPOCH + timedelta(days=day, milliseconds=n))
        for n in range(first, first + count)
    ]
    return pa.Table.from_batches([decoded(Decoder(TRADES, REGISTRY), *encoded, first=first)])


def added_of(table: IcebergTable) -> dict[int, str | None]:
    table.reload()
    rows = table.iceberg_table.scan(selected_fields=("trade_id", ADDED)).to_arrow()
    return dict(zip(rows["trade_id"].to_pylist(), rows[ADDED].to_pylist(), strict=True))


def test_a_table_gets_the_column_under_its_own_id_before_the_first_row_that_has_it(filled: Filled) -> None:
    filled.append(3)
    before = filled.table.iceberg_table.metadata
    filled.append_rows(new_rows(3, 2))
    filled.append(2)
    table = filled.table.iceberg_table
    assert table.schema().find_field(ADDED).field_id == ADDED_ID
    assert not table.schema().find_field(ADDED).required
    assert added_of(filled.table) == {0: None, 1: None, 2: None, 3: "b3", 4: "b4", 5: None, 6: None}
    schemas = [snapshot.schema_id for snapshot in table.metadata.snapshots]
    assert schemas == [before.current_schema_id, *[table.metadata.current_schema_id] * 2]
    then = table.scan(snapshot_id=before.current_snapshot_id).to_arrow()
    assert ADDED not in then.column_names, "the past has the columns that it had"


def test_two_sinks_that_add_the_same_column_add_it_once(filled: Filled) -> None:
    one, other = filled.table, filled.other()
    one.write(new_rows(0, 1))
    other.write(new_rows(0, 1))
    for table in (one, other):
        table.reload()
        assert [field.name for field in table.iceberg_table.schema().fields].count(ADDED) == 1
        assert len(table.iceberg_table.metadata.schemas) == 2


def test_a_sink_that_knows_nothing_of_the_new_column_lands_its_files_all_the_same(filled: Filled) -> None:
    zero, ten = PartitionOffsets(), PartitionOffsets({PARTITION: 10})
    late = filled.other()
    files = late.write(trades_of(0, 10))
    filled.table.write(new_rows(10, 1))  # only its columns: it dies before the commit
    assert filled.table.committed_offsets() == zero, "a change of columns moves no offsets"
    late.commit(files, zero, ten, "late")
    assert added_of(late) == dict.fromkeys(range(10))
    filled.end = 10
    filled.append_rows(new_rows(10, 2))
    assert added_of(late) == dict.fromkeys(range(10)) | {10: "b10", 11: "b11"}


def test_the_fence_holds_whatever_columns_there_are(filled: Filled) -> None:
    zero, ten = PartitionOffsets(), PartitionOffsets({PARTITION: 10})
    late = filled.other()
    files = late.write(trades_of(0, 10))
    filled.append_rows(new_rows(0, 10))
    late.reload()
    with pytest.raises(CommitConflict, match="another writer was first"):
        late.commit(files, zero, ten, "late")
    assert added_of(filled.table) == {n: f"b{n}" for n in range(10)}


@pytest.mark.parametrize("landed", [True, False])
def test_an_unknown_outcome_of_a_new_column_is_found_out_by_the_next_write(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    catalog = type(filled.table.iceberg_table.catalog)
    commit = catalog.commit_table

    def lost(self: Any, *args: Any) -> Any:
        if landed:
            commit(self, *args)
        raise OSError("the answer was lost")

    monkeypatch.setattr(catalog, "commit_table", lost)
    with pytest.raises(CatalogError, match=r"add columns to market\.trades: OSError: the answer was lost"):
        filled.table.write(new_rows(0, 2))
    monkeypatch.undo()
    filled.append_rows(new_rows(0, 2))
    assert added_of(filled.table) == {0: "b0", 1: "b1"}
    assert len(filled.table.iceberg_table.metadata.schemas) == 2


def test_columns_are_not_added_for_ever(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(*_: Any) -> Any:
        raise CommitFailedException("somebody was first")

    monkeypatch.setattr(type(filled.table.iceberg_table.catalog), "commit_table", first)
    with pytest.raises(CommitConflict, match=r"columns could not be added to market\.trades"):
        filled.table.write(new_rows(0, 1))


def test_a_table_of_an_earlier_release_gets_the_columns_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = table_schema("trade")
    earlier = pa.schema([field for field in now if field.name != "vendor_data"])
    monkeypatch.setattr(sink.table, "table_schema", lambda _: earlier)
    made = Filled(tmp_path)
    made.append_rows(trades_of(0, 2).select(earlier.names))
    monkeypatch.undo()
    opened = IcebergTable.open(made.settings, TRADES)
    field = opened.iceberg_table.schema().find_field("vendor_data")
    assert field.field_id == field_id(now.field("vendor_data"))
    made.append(2, table=opened)
    assert made.ids() == [0, 1, 2, 3]


def test_a_column_that_is_something_else_is_refused(filled: Filled) -> None:
    filled.append_rows(new_rows(0, 1))
    number = pa.field(ADDED, pa.int64(), metadata={b"PARQUET:field_id": str(ADDED_ID).encode()})
    rows = trades_of(1, 1).append_column(number, pa.array([7], pa.int64()))
    with pytest.raises(SettingsError, match=rf"its column {ADDED_ID} is {ADDED_ID}: {ADDED}: optional string"):
        filled.table.write(rows)


@pytest.mark.parametrize("rows_in_memory_max", [1_000_000, 8])
def test_files_of_before_and_after_are_compacted_together(filled: Filled, rows_in_memory_max: int) -> None:
    for _ in range(3):
        filled.append(5)
        filled.append_rows(new_rows(filled.end, 5))
    before = added_of(filled.table)
    policy = CompactionPolicy(rows_in_memory_max=rows_in_memory_max)
    report = compact(filled.table, policy, int((EPOCH + timedelta(days=3)).timestamp() * 1e6))
    assert (report.groups, report.groups_left, report.files_before) == (1, 0, 6)
    assert added_of(filled.table) == before
    assert len(filled.files()) == 1
