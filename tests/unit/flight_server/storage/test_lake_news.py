"""What the lake hears of tables that nobody used before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.datasets import DEPTH, SHED, Dataset
from common.errors import SnapshotNotFound
from common.settings import FlightSettings, KafkaSettings, LakeSettings
from flight_server.storage.lake import Lake
from flight_server.storage.read_view import Snapshot
from tests.support.fake_log import FakeLog


def test_a_table_that_cannot_be_read_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of which a foreign tool expired what said what it holds."""
    settings = LakeSettings.load(data_dir=tmp_path)
    settings.prepare()
    lake = Lake(KafkaSettings.load(), settings, FlightSettings(threads=1), datasets=(), optional=(SHED, DEPTH))

    def newest(dataset: Dataset, _locations: object) -> Snapshot:
        if dataset is SHED:
            raise SnapshotNotFound("nobody knows")
        return Snapshot()

    log: Any = FakeLog()
    for dataset in (SHED, DEPTH):
        log.create(dataset.topic(asset_class="crypto", exchange="binance"))
    monkeypatch.setattr(lake._snapshots, "newest", newest)
    monkeypatch.setattr(FakeLog, "topics", lambda log, pattern: log._topics)
    try:
        assert [dataset for dataset, _ in lake._awake(log)] == [DEPTH]
    finally:
        lake.stop()
