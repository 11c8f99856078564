"""What a table is made of, counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyiceberg.expressions import EqualTo

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.refs import tag
from sink.maintenance.stats import SIZE_CLASSES, described, size_classes, stats
from sink.table import IcebergTable
from tests.support.upkeep import filled, trades


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


def test_sizes_fall_into_classes() -> None:
    sizes = [0, SIZE_CLASSES[0] - 1, SIZE_CLASSES[0], SIZE_CLASSES[-1], 10**12]
    classes = size_classes(sizes)
    assert [one.below_nbytes for one in classes] == [*SIZE_CLASSES, None]
    assert [one.files for one in classes] == [2, 1, 0, 0, 0, 0, 2]
    assert sum(one.nbytes for one in classes) == sum(sizes)


def test_a_tables_parts_are_counted(lake: LakeSettings) -> None:
    table = filled(lake, 5)
    tag(table, "audit", table.snapshot_id)
    expire(table, ExpiryPolicy(2, 0), 4_000_000_000_000_000)
    report = stats(trades(lake), deep=True)
    folder = lake.data_dir / "warehouse" / "market" / "trades" / "data"
    files = list(folder.rglob("*.parquet"))
    assert (report.rows, report.data_files, report.snapshots, report.commits) == (15, 5, 2, 5)
    assert report.data_nbytes == sum(path.stat().st_size for path in files)
    assert sum(one.files for one in report.sizes) == 5
    assert report.tags == {"audit": table.snapshot_id}
    assert report.sort_fields == TRADES.sort_columns
    assert report.kafka_partitions == 1
    assert report.uncompressed_nbytes is not None
    assert report.uncompressed_nbytes > 0
    table.reload()
    assert report.metadata_nbytes == Path(table.iceberg_table.metadata_location.removeprefix("file://")).stat().st_size
    assert report.to_json()["sizes"][0]["files"] == 5


def test_an_empty_table_has_nothing(lake: LakeSettings) -> None:
    report = stats(IcebergTable.open(lake, TRADES), deep=True)
    assert (report.rows, report.data_files, report.manifests, report.snapshot_id) == (0, 0, 0, None)
    assert "0 rows in 0 files" in report.to_text()
    assert described(IcebergTable.open(lake, TRADES))["rows"] == 0


def test_the_short_description_is_the_long_ones(lake: LakeSettings) -> None:
    filled(lake, 3)
    open_catalog(lake).load_table(TRADES.table).delete(EqualTo("trade_id", 1))
    table = trades(lake)
    report, short = stats(table), described(table)
    assert (short["rows"], short["data_files"], short["data_nbytes"], short["snapshots"]) == (
        report.rows,
        report.data_files,
        report.data_nbytes,
        report.snapshots,
    )
