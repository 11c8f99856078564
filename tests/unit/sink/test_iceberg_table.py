"""The table: its schema, its fence, and what its newest snapshot says about the log."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.types import ListType, MapType

from common.datasets import DATASETS, INSTRUMENTS, QUOTES, TRADES, Dataset
from common.errors import CatalogError, CommitConflict, CommitStateUnknown, K2Error, SettingsError
from common.iceberg import open_catalog
from common.offsets import SUMMARY_KEY, KafkaPartition, PartitionOffsets
from common.schemas.arrow import FIELD_ID_KEY, audit_fields, avro_schema, table_schema
from common.settings import LakeSettings
from sink.table import IcebergTable, WrittenFiles
from tests.support.records import table_rows, trade

P0 = KafkaPartition("cluster", "topic-id-1", 0)
P1 = KafkaPartition("cluster", "topic-id-1", 1)
OTHER = KafkaPartition("older-cluster", "topic-id-0", 0)
NONE = PartitionOffsets()


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def table(lake: LakeSettings) -> IcebergTable:
    return IcebergTable.open(lake, TRADES)


def offsets(**next_offsets: int) -> PartitionOffsets:
    return PartitionOffsets({{"p0": P0, "p1": P1, "other": OTHER}[name]: n for name, n in next_offsets.items()})


def trades(first: int, count: int) -> pa.Table:
    return table_rows("trade", [trade(i) for i in range(first, first + count)], first_offset=first)


def trade_ids(table: IcebergTable) -> list[int]:
    return sorted(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())


def files_on_disk(lake: LakeSettings) -> set[str]:
    return {path.name for path in lake.data_dir.rglob("*.parquet")}


# --- the schema -------------------------------------------------------------------------------------------------------


def avro_facts(avro_type: Any) -> tuple[str, bool, dict[str, int]]:
    """An Avro type in Iceberg's words: name, required, ids of nested fields. Written from the two specifications."""
    required = True
    if isinstance(avro_type, list):
        required = False
        (avro_type,) = (branch for branch in avro_type if branch != "null")
    if isinstance(avro_type, str):
        return {"string": "string", "long": "long", "int": "int"}[avro_type], required, {}
    if avro_type.get("logicalType") == "decimal":
        return f"decimal({avro_type['precision']}, {avro_type['scale']})", required, {}
    if avro_type.get("logicalType") == "timestamp-micros":
        return "timestamptz", required, {}
    return {
        "enum": ("string", required, {}),
        "array": (
            f"list<{avro_facts(avro_type.get('items', 'string'))[0]}>",
            required,
            {"element": avro_type.get("element-id", 0)},
        ),
        "map": ("map<string, string>", required, {k: avro_type.get(f"{k}-id", 0) for k in ("key", "value")}),
    }[avro_type["type"]]


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_avro_arrow_and_iceberg_agree_in_names_ids_types_and_nullability(lake: LakeSettings, dataset: Dataset) -> None:
    IcebergTable.open(lake, dataset)
    iceberg = IcebergTable.open(lake, dataset).iceberg_table.schema()  # as the catalog gives it back
    arrow = table_schema(dataset.schema_name)
    avro = avro_schema(dataset.schema_name)["fields"]

    assert (
        [f.name for f in iceberg.fields] == arrow.names == [f["name"] for f in avro] + [f.name for f in audit_fields()]
    )
    for avro_field, field, arrow_field in zip(avro, iceberg.fields, arrow, strict=False):
        kind, required, nested = avro_facts(avro_field["type"])
        assert field.field_id == avro_field["field-id"] == int(arrow_field.metadata[FIELD_ID_KEY])
        assert (str(field.field_type), field.required) == (kind, required)
        assert arrow_field.nullable is not required
        if isinstance(field.field_type, ListType):
            assert {"element": field.field_type.element_id} == nested
        if isinstance(field.field_type, MapType):
            assert {"key": field.field_type.key_id, "value": field.field_type.value_id} == nested
    for field, arrow_field in zip(iceberg.fields[len(avro) :], audit_fields(), strict=True):
        assert field.field_id == int(arrow_field.metadata[FIELD_ID_KEY])
        assert field.required
        assert not arrow_field.nullable
    every_id = [field.field_id for field in iceberg.fields] + [
        i for f in avro for i in avro_facts(f["type"])[2].values()
    ]
    assert len(every_id) == len(set(every_id))


def test_the_data_files_carry_the_field_ids_and_the_sort_order(lake: LakeSettings, table: IcebergTable) -> None:
    rows = pa.concat_tables(
        [
            table_rows("trade", [trade(i, symbol="ETHUSDT") for i in (3, 1)]),
            table_rows("trade", [trade(i) for i in (9, 7)], first_offset=2),
        ]
    )
    table.append(rows, NONE, offsets(p0=4), "one")
    (path,) = lake.data_dir.rglob("*.parquet")
    written = pq.ParquetFile(path)
    ids = {field.name: int(field.metadata[FIELD_ID_KEY]) for field in written.schema_arrow}
    assert ids == {field.name: int(field.metadata[FIELD_ID_KEY]) for field in table_schema("trade")}
    assert written.read(columns=["symbol", "trade_id"]).to_pydict() == {
        "symbol": ["BTCUSDT", "BTCUSDT", "ETHUSDT", "ETHUSDT"],
        "trade_id": [7, 9, 1, 3],
    }
    assert written.metadata.row_group(0).column(0).compression == "ZSTD"
    order = table.iceberg_table.sort_order()
    assert [table.iceberg_table.schema().find_column_name(f.source_id) for f in order.fields] == list(
        TRADES.sort_columns
    )


def test_the_largest_values_come_back_exactly(table: IcebergTable) -> None:
    from decimal import Decimal

    price, quantity = Decimal("1000000000.00000001"), Decimal("1000000000000000.00000001")
    odd = trade(
        1,
        price=price,
        quantity=quantity,
        trade_conditions=["@", "Ω"],
        vendor_data={"k": "v", "": "é"},
        transaction_time=None,
    )
    table.append(table_rows("trade", [odd]), NONE, offsets(p0=1), "one")
    columns = ("price", "quantity", "trade_conditions", "vendor_data", "transaction_time")
    (row,) = next(iter(table.scan(columns))).to_pylist()
    assert (row["price"], row["quantity"]) == (price, quantity)
    assert (row["trade_conditions"], dict(row["vendor_data"])) == (["@", "Ω"], {"k": "v", "": "é"})
    assert row["transaction_time"] is None


def test_a_table_made_for_another_schema_is_refused(lake: LakeSettings) -> None:
    catalog = open_catalog(lake)
    catalog.create_namespace("market")
    catalog.create_table("market.trades", schema=pa.schema([pa.field("trade_id", pa.string())]))
    with pytest.raises(SettingsError, match=r"market\.trades was made for another schema"):
        IcebergTable.open(lake, TRADES)


# --- offsets and data land together -----------------------------------------------------------------------------------


def test_a_new_table_has_taken_in_nothing(table: IcebergTable) -> None:
    assert table.committed_offsets() == NONE
    assert table.snapshot_id is None
    assert table.rows == 0


def test_one_snapshot_holds_rows_offsets_and_commit_id(lake: LakeSettings, table: IcebergTable) -> None:
    snapshot_id = table.append(trades(0, 3), NONE, offsets(p0=3), "commit-1")
    seen = IcebergTable.open(lake, TRADES)
    assert seen.committed_offsets() == offsets(p0=3)
    assert seen.snapshot_id == snapshot_id
    assert seen.rows == 3
    assert trade_ids(seen) == [0, 1, 2]
    assert seen.landed("commit-1")
    assert not seen.landed("commit-2")


def test_the_entries_of_all_other_partitions_are_carried_forward(table: IcebergTable) -> None:
    table.append(trades(0, 1), NONE, offsets(other=7), "one")
    table.append(trades(1, 1), NONE, offsets(p0=1), "two")
    table.append(trades(2, 1), offsets(p0=1), offsets(p0=2), "three")
    assert table.committed_offsets() == offsets(other=7, p0=2)


def test_a_commit_without_files_moves_the_offsets_only(table: IcebergTable) -> None:
    table.append(trades(0, 2), NONE, offsets(p0=2), "one")
    table.append(trades(2, 0), offsets(p0=2), offsets(p0=5), "two")
    assert table.committed_offsets() == offsets(p0=5)
    assert trade_ids(table) == [0, 1]


def test_an_ancestor_speaks_for_a_snapshot_of_a_foreign_tool(lake: LakeSettings, table: IcebergTable) -> None:
    table.append(trades(0, 2), NONE, offsets(p0=2), "one")
    foreign = open_catalog(lake).load_table("market.trades")
    foreign.append(trades(100, 1))
    assert SUMMARY_KEY not in foreign.current_snapshot().summary.additional_properties
    assert table.committed_offsets() == offsets(p0=2)
    table.append(trades(2, 1), offsets(p0=2), offsets(p0=3), "two")
    assert table.committed_offsets() == offsets(p0=3)
    assert trade_ids(table) == [0, 1, 2, 100]


def test_a_history_that_was_cut_off_behind_the_entry_is_refused(lake: LakeSettings, table: IcebergTable) -> None:
    with_entry = table.append(trades(0, 2), NONE, offsets(p0=2), "one")
    foreign = open_catalog(lake).load_table("market.trades")
    foreign.append(trades(100, 1))
    foreign.maintenance.expire_snapshots().by_id(with_entry).commit()
    with pytest.raises(K2Error, match=r"no snapshot that is kept .* could double rows"):
        table.committed_offsets()


# --- the fence --------------------------------------------------------------------------------------------------------


def test_of_two_writers_on_one_base_the_second_gets_a_conflict_and_leaves_no_files(lake: LakeSettings) -> None:
    first, second = IcebergTable.open(lake, TRADES), IcebergTable.open(lake, TRADES)
    first.append(trades(0, 10), NONE, offsets(p0=10), "a")
    on_disk = files_on_disk(lake)
    with pytest.raises(CommitConflict):
        second.append(trades(0, 10), NONE, offsets(p0=10), "b")
    assert files_on_disk(lake) == on_disk
    assert trade_ids(IcebergTable.open(lake, TRADES)) == list(range(10))
    assert second.committed_offsets() == offsets(p0=10)
    with pytest.raises(CommitConflict, match=r"has taken in .* up to 10, not 0"):
        second.append(trades(0, 10), NONE, offsets(p0=10), "b")


def test_a_base_that_is_behind_or_ahead_of_the_table_is_a_conflict(table: IcebergTable) -> None:
    table.append(trades(0, 5), NONE, offsets(p0=5), "one")
    for base in (NONE, offsets(p0=4), offsets(p0=6)):
        with pytest.raises(CommitConflict):
            table.append(trades(5, 1), base, offsets(p0=7), "two")
    assert trade_ids(table) == list(range(5))


def test_files_of_a_conflict_can_be_committed_on_the_new_base(lake: LakeSettings) -> None:
    ours, other = IcebergTable.open(lake, TRADES), IcebergTable.open(lake, TRADES)
    files = ours.write(trades(0, 2))
    other.append(trades(50, 1), NONE, offsets(p1=1), "other")
    with pytest.raises(CommitConflict):
        ours.commit(files, NONE, offsets(p0=2), "ours")
    assert ours.committed_offsets() == offsets(p1=1)
    ours.commit(files, NONE, offsets(p0=2), "ours")
    assert ours.committed_offsets() == offsets(p0=2, p1=1)
    assert trade_ids(ours) == [0, 1, 50]


def test_the_very_first_snapshot_is_fenced_too(lake: LakeSettings) -> None:
    tables = [IcebergTable.open(lake, TRADES) for _ in range(4)]
    start = threading.Barrier(len(tables))
    landed: list[str] = []

    def write(number: int) -> None:
        start.wait()
        try:
            tables[number].append(trades(0, 3), NONE, offsets(p0=3), str(number))
            landed.append(str(number))
        except (CommitConflict, CommitStateUnknown):
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(len(tables))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(landed) == 1
    assert trade_ids(IcebergTable.open(lake, TRADES)) == [0, 1, 2]


def test_three_tables_of_one_sqlite_catalog_are_committed_from_three_threads(lake: LakeSettings) -> None:
    failures: list[BaseException] = []

    def work(dataset: Dataset) -> None:
        try:
            table = IcebergTable.open(lake, dataset)
            rows = pa.Table.from_pylist([], schema=table_schema(dataset.schema_name))
            for n in range(8):
                table.append(rows, offsets(p0=n), offsets(p0=n + 1), f"{dataset.name}-{n}")
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(dataset,)) for dataset in (TRADES, QUOTES, INSTRUMENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(IcebergTable.open(lake, d).committed_offsets() == offsets(p0=8) for d in (TRADES, QUOTES, INSTRUMENTS))


# --- outcomes that are not known --------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_when_the_answer_is_lost_nothing_is_deleted_and_the_history_tells(
    lake: LakeSettings, table: IcebergTable, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    catalog = table.iceberg_table.catalog
    real_commit = catalog.commit_table

    def lossy_commit(*arguments: Any) -> Any:
        if when == "after":
            real_commit(*arguments)
        raise TimeoutError("the answer was lost")

    files = table.write(trades(0, 2))
    with monkeypatch.context() as patched:
        patched.setattr(catalog, "commit_table", lossy_commit)
        with pytest.raises(CommitStateUnknown, match=r"did not say whether commit one to market\.trades landed"):
            table.commit(files, NONE, offsets(p0=2), "one")
    assert {Path(path).name for path in files.paths} <= files_on_disk(lake)
    assert table.landed("one") is (when == "after")
    if when == "before":
        table.commit(files, NONE, offsets(p0=2), "one")
    assert trade_ids(table) == [0, 1]
    assert table.committed_offsets() == offsets(p0=2)


def test_a_request_that_arrives_after_it_was_given_up_cannot_land_twice(
    table: IcebergTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = table.iceberg_table.catalog
    real_commit = catalog.commit_table
    late: list[Any] = []

    def delayed_commit(*arguments: Any) -> Any:
        late.append(arguments)
        raise TimeoutError("no answer yet")

    with monkeypatch.context() as patched:
        patched.setattr(catalog, "commit_table", delayed_commit)
        with pytest.raises(CommitStateUnknown):
            table.append(trades(0, 2), NONE, offsets(p0=2), "one")
    assert not table.landed("one")
    table.append(trades(0, 2), NONE, offsets(p0=2), "two")
    with pytest.raises(CommitFailedException):
        real_commit(*late[0])
    table.reload()
    assert trade_ids(table) == [0, 1]


# --- the catalog in trouble -------------------------------------------------------------------------------------------


def test_a_catalog_that_is_no_database_is_one_clear_sentence(lake: LakeSettings) -> None:
    lake.prepare()
    (lake.data_dir / "catalog.db").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(CatalogError, match=r"could not open the catalog k2 at sqlite:.*file is not a database"):
        IcebergTable.open(lake, TRADES)


def test_a_catalog_locked_for_good_is_an_unknown_outcome_and_later_a_plain_commit(
    lake: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.iceberg._SQLITE_BUSY_S", 0)
    table = IcebergTable.open(lake, TRADES)
    files = table.write(trades(0, 1))
    blocker = sqlite3.connect(lake.data_dir / "catalog.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(CommitStateUnknown, match="database is locked"):
        table.commit(files, NONE, offsets(p0=1), "one")
    blocker.execute("ROLLBACK")
    blocker.close()
    assert not table.landed("one")
    table.commit(files, NONE, offsets(p0=1), "one")
    assert trade_ids(table) == [0]


def test_a_warehouse_that_cannot_be_written_leaves_the_table_as_it_was(lake: LakeSettings, table: IcebergTable) -> None:
    table.append(trades(0, 1), NONE, offsets(p0=1), "one")
    data = next(lake.data_dir.rglob("*.parquet")).parent
    data.rename(data.with_name("moved"))
    data.write_bytes(b"a file where the folder was")
    with pytest.raises(CatalogError, match=r"could not write data files of market\.trades"):
        table.append(trades(1, 1), offsets(p0=1), offsets(p0=2), "two")
    assert table.committed_offsets() == offsets(p0=1)


def test_an_unreadable_offsets_entry_is_refused(lake: LakeSettings, table: IcebergTable) -> None:
    foreign = open_catalog(lake).load_table("market.trades")
    foreign.append(trades(0, 1), snapshot_properties={SUMMARY_KEY: json.dumps([1, 2])})
    with pytest.raises(K2Error, match="Kafka offsets cannot be read"):
        table.committed_offsets()


def test_a_password_never_stands_in_an_error(tmp_path: Path) -> None:
    settings = LakeSettings.load(data_dir=tmp_path, catalog_uri="mysql+nodriver://user:secret@host/db")
    with pytest.raises(CatalogError) as caught:
        open_catalog(settings)
    assert "secret" not in str(caught.value)


def test_discarding_files_twice_is_harmless(lake: LakeSettings, table: IcebergTable) -> None:
    files = table.write(trades(0, 1))
    assert (files.rows, len(files.paths)) == (1, 1)
    assert files.nbytes > 0
    table.discard(files)
    table.discard(files)
    table.discard(WrittenFiles((), 0))
    assert files_on_disk(lake) == set()
