"""The fault matrix on a SQLite catalog; tests/integration has the same on PostgreSQL and on Iceberg's REST catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.settings import LakeSettings
from sink.worker import Passed
from tests.support.fault_matrix import CELLS, Fault, measure


@pytest.mark.parametrize(("fault", "step"), CELLS, ids=[f"{f.name}-{s.name}".lower() for f, s in CELLS])
def test_no_trade_is_lost_or_doubled(fault: Fault, step: Passed, tmp_path: Path) -> None:
    measure("SQLite", LakeSettings.load(data_dir=tmp_path / "lake"), fault, step, tmp_path)
