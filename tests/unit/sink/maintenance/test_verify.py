"""Each kind of damage is found, and a table without damage is found clean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.expressions import EqualTo

from common.datasets import GAP_EVENTS, QUOTES, TRADES
from common.iceberg import open_catalog
from common.offsets import COMMIT_ID_KEY, SUMMARY_KEY, KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance.tables import AnyTable
from sink.maintenance.verify import VerifyReport, verify
from sink.table import IcebergTable
from tests.support.records import EPOCH, quote, table_rows, trade
from tests.support.upkeep import P0, files_of, filled, trades


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


def land(lake: LakeSettings, ids: Sequence[int], offsets: Sequence[int], next_offset: int, **changes: Any) -> None:
    """A commit that no fence looks at, as a broken writer might make it: these trade ids at these offsets."""
    rows = table_rows("trade", [trade(i, **changes) for i in ids])
    column = rows.schema.get_field_index("_kafka_offset")
    rows = rows.set_column(column, rows.schema.field(column), [list(offsets)])
    taken = PartitionOffsets({P0: next_offset})
    open_catalog(lake).load_table(TRADES.table).append(
        rows, snapshot_properties={SUMMARY_KEY: taken.to_text(), COMMIT_ID_KEY: f"foreign-{offsets[0]}"}
    )


def gap(first: int, last: int, *, symbol: str = "BTCUSDT", state: str = "open") -> dict[str, Any]:
    gap_id = f"binance:{symbol}:{first}"
    return {
        "message_id": f"{gap_id}:1",
        "gap_id": gap_id,
        "exchange": "binance",
        "symbol": symbol,
        "first_id": first,
        "last_id": last,
        "state": state,
        "severity": "warning",
        "missing_ids": last - first + 1,
        "backfilled_ids": 0,
        "opened_time": EPOCH,
        "updated_time": EPOCH,
        "closed_time": None,
        "closed_by": None,
        "reason": None,
    }


def checked(lake: LakeSettings, **how: Any) -> VerifyReport:
    return verify(trades(lake), **how)


def data_files(lake: LakeSettings) -> list[Path]:
    return sorted(path for path in files_of(lake) if path.suffix == ".parquet")


@pytest.mark.parametrize("how", [{}, {"quick": True}, {"deep": True}])
def test_a_whole_table_is_clean(lake: LakeSettings, how: dict[str, bool]) -> None:
    filled(lake, 4)
    report = checked(lake, **how)
    assert report.is_clean
    assert report.remarks == ()
    assert (report.files, report.rows, report.snapshots, report.kafka_partitions) == (4, 12, 4, 1)
    assert report.rows_read == (0 if how.get("quick") else 12)


def test_an_empty_table_is_clean(lake: LakeSettings) -> None:
    IcebergTable.open(lake, TRADES)
    assert checked(lake).is_clean


def test_a_missing_file_is_found_also_of_an_older_snapshot(lake: LakeSettings) -> None:
    filled(lake, 3)
    table = open_catalog(lake).load_table(TRADES.table)
    table.delete(EqualTo("trade_id", 0))  # rewrites the first file
    [rewritten] = [path for path in data_files(lake) if pq.read_table(path)["trade_id"].to_pylist() == [0, 1, 2]]
    rewritten.unlink()
    report = checked(lake)
    assert report.findings == (f"the file file://{rewritten} is missing",)


def test_a_file_of_another_size_is_found(lake: LakeSettings) -> None:
    filled(lake, 2)
    path = data_files(lake)[0]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    assert f"has {size + 1:,} bytes, not {size:,} as recorded" in checked(lake, quick=True).findings[0]


def test_bytes_that_were_changed_are_found_by_a_deep_check(lake: LakeSettings) -> None:
    filled(lake, 1, rows=1_000)
    [path] = data_files(lake)
    footer = pq.ParquetFile(path).metadata
    column = next(
        footer.row_group(0).column(n)
        for n in range(footer.num_columns)
        if footer.row_group(0).column(n).path_in_schema == "price"
    )
    broken = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    broken[begin : begin + 60] = b"\xff" * 60
    path.write_bytes(broken)
    assert checked(lake).is_clean  # prices are not compared with anything
    [finding] = checked(lake, deep=True).findings
    assert f"the file file://{path} cannot be read" in finding


def test_a_missing_manifest_and_a_missing_manifest_list_are_found(lake: LakeSettings) -> None:
    filled(lake, 3)
    table = open_catalog(lake).load_table(TRADES.table)
    first, newest = table.metadata.snapshots[0], table.metadata.snapshots[-1]
    Path(first.manifest_list.removeprefix("file://")).unlink()
    report = checked(lake)
    assert len(report.findings) == 1
    assert f"the manifest list of snapshot {first.snapshot_id} cannot be read" in report.findings[0]
    assert report.rows_read == 9
    manifest = newest.manifests(table.io)[0].manifest_path
    Path(manifest.removeprefix("file://")).unlink()
    report = checked(lake)
    assert any(manifest in finding and "missing" in finding for finding in report.findings)
    assert "rows were not looked at" in report.remarks[0]


def test_a_file_with_other_rows_than_its_manifest_says_is_found(lake: LakeSettings) -> None:
    filled(lake, 2)
    path = data_files(lake)[0]
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    findings = checked(lake).findings
    assert any("has 2 rows, not 3 as recorded" in finding for finding in findings)


def test_an_offset_that_is_there_twice_is_found(lake: LakeSettings) -> None:
    filled(lake, 2)
    land(lake, [10, 11, 12], [5, 6, 4], 7)
    [finding] = checked(lake).findings
    assert finding == "the offset 4 of topic ...pic-id-1 [0] is there more than once, and 1 others too"


def test_an_offset_twice_in_one_file_is_found(lake: LakeSettings) -> None:
    filled(lake, 1)
    land(lake, [10, 11], [3, 3], 4)
    assert checked(lake).findings == ("the offset 3 of topic ...pic-id-1 [0] is there more than once",)


def test_a_trade_that_is_there_twice_is_found(lake: LakeSettings) -> None:
    filled(lake, 2)
    land(lake, [1, 20], [6, 7], 8)
    report = checked(lake)
    assert report.findings == ("the trade_id 1 of binance BTCUSDT is there more than once",)


def test_equal_ids_of_two_symbols_are_two_trades(lake: LakeSettings) -> None:
    filled(lake, 1)
    land(lake, [0, 1], [3, 4], 5, symbol="ETHUSDT")
    report = checked(lake)
    assert report.is_clean
    assert report.keys == 2


def test_a_row_behind_what_the_table_says_it_has_taken_in_is_found(lake: LakeSettings) -> None:
    filled(lake, 1)
    land(lake, [3], [9], 4)
    assert checked(lake).findings == (
        "the offset 9 of topic ...pic-id-1 [0] is there, the snapshot has taken in what is below 4",
    )


def test_rows_of_a_topic_that_the_table_says_nothing_of_are_found(lake: LakeSettings) -> None:
    filled(lake, 1)
    rows = table_rows("trade", [trade(3)], topic_id="topic-id-2", first_offset=0)
    open_catalog(lake).load_table(TRADES.table).append(rows)
    assert checked(lake).findings == (
        "rows of topic ...pic-id-2 [0] are there, of which the snapshot has taken in nothing",
    )


def test_holes_are_counted_and_are_no_findings(lake: LakeSettings) -> None:
    filled(lake, 1)
    land(lake, [6, 7, 20], [4, 5, 9], 12)
    report = checked(lake)
    assert report.is_clean
    assert (report.offsets_without_row, report.ids_missing) == (6, 15)
    assert report.remarks == (
        "topic ...pic-id-1 [0] has no row for 6 offsets (3, 6 to 8, 10 to 11)",
        "binance BTCUSDT lacks 15 trades (3 to 5, 8 to 19)",
        "whether these are known is not recorded: there is no table ops.gap_events",
    )


def test_a_missing_trade_is_a_finding_unless_a_gap_is_recorded_of_it(lake: LakeSettings) -> None:
    filled(lake, 1)
    land(lake, [6, 7, 20], [3, 4, 5], 6)
    land(lake, [0, 2], [6, 7], 8, symbol="ETHUSDT")
    gaps = IcebergTable.open(lake, GAP_EVENTS)
    report = checked(lake)
    assert report.findings == (
        "binance BTCUSDT lacks 15 trades (3 to 5, 8 to 19) that ops.gaps does not know of",
        "binance ETHUSDT lacks 1 trade (1) that ops.gaps does not know of",
    )
    known = [gap(8, 15), gap(3, 4), gap(14, 18, state="filled"), gap(1, 1, symbol="ETHUSDT")]
    rows = table_rows("gap", known, topic_id="gaps")
    source = KafkaPartition("cluster", "gaps", 0)
    gaps.append(rows, PartitionOffsets(), PartitionOffsets({source: len(known)}), "gaps")
    report = checked(lake)
    assert report.findings == ("binance BTCUSDT lacks 2 trades (5, 19) that ops.gaps does not know of",)
    assert (report.ids_missing, report.ids_unrecorded) == (16, 2)


def test_a_log_that_began_late_is_told(lake: LakeSettings) -> None:
    table = IcebergTable.open(lake, TRADES)
    rows = table_rows("trade", [trade(1)], first_offset=1_000)
    table.append(rows, PartitionOffsets(), PartitionOffsets({P0: 1_001}), "first")
    report = checked(lake)
    assert report.is_clean
    assert report.remarks == ("topic ...pic-id-1 [0] begins at offset 1,000",)


def test_rows_that_were_deleted_on_purpose_are_told_with_the_holes(lake: LakeSettings) -> None:
    filled(lake, 3)
    open_catalog(lake).load_table(TRADES.table).delete(EqualTo("trade_id", 4))
    report = checked(lake)
    assert report.is_clean
    assert report.offsets_without_row == 1
    assert "1 snapshot deleted rows: what is missing may be theirs" in report.remarks


def test_quotes_are_rising_and_not_dense(lake: LakeSettings) -> None:
    table = IcebergTable.open(lake, QUOTES)
    rows = table_rows("quote", [quote(n) for n in (5, 90, 91, 5)])
    table.append(rows, PartitionOffsets(), PartitionOffsets({P0: 4}), "first")
    catalog = open_catalog(lake)
    report = verify(AnyTable(catalog, catalog.load_table(QUOTES.table)))
    assert report.findings == ("the quote_id 5 of binance BTCUSDT is there more than once",)
    assert report.ids_missing == 0


def test_a_table_of_users_is_checked_for_its_files_and_counts(lake: LakeSettings) -> None:
    catalog = open_catalog(lake)
    catalog.create_namespace("research")
    rows = pa.table({"n": [1, 2, 3, 4, 5]})
    table = catalog.create_table("research.mine", rows.schema)
    table.append(rows)
    report = verify(AnyTable(catalog, table))
    assert report.is_clean
    assert (report.rows, report.rows_read) == (5, 0)
    [file] = [task.file.file_path for task in table.scan().plan_files()]
    pq.write_table(rows.slice(0, 1), file.removeprefix("file://"))
    assert any("has 1 rows, not 5" in finding for finding in verify(AnyTable(catalog, table)).findings)


def test_findings_beyond_a_thousand_are_counted(lake: LakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sink.maintenance.verify_rows.FINDINGS_MAX", 2)
    filled(lake, 4)
    for path in data_files(lake):
        path.write_bytes(path.read_bytes() + b"x")
    report = checked(lake, quick=True)
    assert (report.findings_found, len(report.findings)) == (4, 2)
    assert report.to_text().splitlines()[-1] == "WRONG: 2 more of these"


def test_partitions_are_told_apart(lake: LakeSettings) -> None:
    table = filled(lake, 1)
    other = KafkaPartition("cluster", "topic-id-1", 1)
    rows = table_rows("trade", [trade(3), trade(4)], partition=1)
    table.append(rows, PartitionOffsets(), PartitionOffsets({other: 2}), "other")
    land(lake, [5], [5], 6)
    report = checked(lake)
    assert report.findings == (
        "rows of topic ...pic-id-1 [1] are there, of which the snapshot has taken in nothing",
    ), "the last commit forgot the other partition"
    assert report.remarks == ("topic ...pic-id-1 [0] has no row for 2 offsets (3 to 4)",)
