"""`k2 bars` on a warehouse without bars, with some, and with wrong names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import K2Error
from common.settings import LakeSettings
from k2.bars import bars
from tests.support.bars_bench import BarsBench, made


def test_bars_are_shown_brought_up_to_date_and_made_anew(tmp_path: Path) -> None:
    bench = BarsBench(LakeSettings.load(data_dir=tmp_path))
    bench.commit([made(i, at_s=i * 0.7) for i in range(12)])
    here = ["--data-dir", str(tmp_path)]
    found = CliRunner().invoke(bars, ["status", "bars_1s", *here], catch_exceptions=False)
    assert found.output == "market.bars_1s: 0 bars in 0 files, 12 trades behind\n"
    assert CliRunner().invoke(bars, ["update", *here], catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(bars, ["rebuild", "market.bars_1d", *here], catch_exceptions=False).exit_code == 0
    bench.assert_whole()
    found = CliRunner().invoke(bars, ["status", "--json", *here], catch_exceptions=False)
    assert json.loads(found.output.splitlines()[3]) == {
        "table": "market.bars_1d",
        "bars": 1,
        "files": 1,
        "trades_behind": 0,
    }


def test_a_wrong_name_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(K2Error, match="there is no table of bars"):
        CliRunner().invoke(bars, ["status", "bars_9s", "--data-dir", str(tmp_path / "none")], catch_exceptions=False)
    assert not (tmp_path / "none").exists()
