"""The jobs of maintenance on a store that speaks S3 over HTTP. Skips, or with K2_REQUIRE_S3=1 fails, without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.settings import LakeSettings
from k2.tables import tables
from sink.maintenance.orphans import remove_orphans
from sink.maintenance.verify import verify
from tests.integration.s3_server import S3Server
from tests.support.upkeep import append, filled, trade_ids, trades

LATER_US = 4_000_000_000_000_000
BUCKET = "tidy"


@pytest.fixture(scope="module")
def s3(s3_store: S3Server) -> S3Server:
    s3_store.make_bucket(BUCKET)
    return s3_store


def test_the_commands_in_their_order(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = s3.properties("operator")
    lake = LakeSettings.load(
        data_dir=tmp_path,
        catalog_uri=f"sqlite:///{tmp_path / 'catalog.db'}",
        warehouse=f"s3://{BUCKET}/warehouse",
        catalog_properties=properties,
    )
    monkeypatch.setenv("K2_LAKE_CATALOG_URI", f"sqlite:///{tmp_path / 'catalog.db'}")
    monkeypatch.setenv("K2_LAKE_WAREHOUSE", f"s3://{BUCKET}/warehouse")
    monkeypatch.setenv("K2_LAKE_CATALOG_PROPERTIES", json.dumps(properties))

    def run(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(tables, [*arguments, "trades", "--json", "--data-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.stdout.splitlines()[0])
        return found

    table = filled(lake, 5)
    lost = f"s3://{BUCKET}/warehouse/market/trades/data/lost.parquet"
    with open_catalog(lake).load_table(TRADES.table).io.new_output(lost).create() as stream:
        stream.write(b"lost")
    assert run("stats", "--deep")["data_files"] == 5
    assert run("compact")["files_before"] == 5
    assert run("expire", "--keep", "1", "--older-than", "0s")["snapshots_expired"] == 5
    # A store's time of writing is its own; so the time of the run is what is far away.
    first = remove_orphans(trades(lake), now_us=LATER_US, delete=True)
    assert (first.files_deleted, first.files_due) == (0, 0)
    assert first.files > 6
    swept = remove_orphans(trades(lake), now_us=LATER_US + 86_400_000_000, delete=True)
    assert swept.files_deleted == first.files
    assert run("orphans", "--older-than", "0s", "--delete")["files"] == 0
    table.reload()
    append(table, 15)
    assert run("verify", "--deep")["findings"] == []
    assert trade_ids(lake) == list(range(16))
    data_file = next(iter(trades(lake).iceberg_table.scan().plan_files())).file.file_path
    trades(lake).iceberg_table.io.delete(data_file)
    assert any(data_file in finding for finding in verify(trades(lake), quick=True).findings)
