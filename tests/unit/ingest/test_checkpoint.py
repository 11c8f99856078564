from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import K2Error, SettingsError
from common.offsets import KafkaPartition, PartitionOffsets
from ingest.checkpoint import Checkpoint, StateDirectory
from ingest.gaps import GapBook, GapLimits
from ingest.ledger import IdRange, Ledger

LIMITS = GapLimits(grace_s=0.0, alert_ids_min=10, alert_ids_max=100)


def checkpoint(next_offset: int = 7) -> Checkpoint:
    ledger = Ledger()
    ledger.take_trades("binance", "BTCUSDT", [(1, 5), (8, 9)])
    ledger.take_quote("binance", "BTCUSDT", 44)
    gaps = GapBook(LIMITS)
    gaps.observe(("binance", "BTCUSDT"), [IdRange(6, 7)], 1.0, 2_000_000)
    return Checkpoint(PartitionOffsets({KafkaPartition("cluster", "topic", 0): next_offset}), ledger, gaps)


def test_text_and_back_is_the_same_checkpoint() -> None:
    one = checkpoint()
    assert Checkpoint.from_text(one.to_text(), LIMITS) == one
    assert Checkpoint.from_text(one.to_text(), LIMITS).to_text() == one.to_text()


def test_a_checkpoint_from_before_there_were_gaps_is_read() -> None:
    tree = json.loads(checkpoint().to_text())
    del tree["gaps"]
    read = Checkpoint.from_text(json.dumps(tree | {"form": 1}), LIMITS)
    assert read == Checkpoint(checkpoint().covered, checkpoint().ledger, GapBook(LIMITS))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"form":9}', '{"form":1,"covered":{},"ledger":{}}'])
def test_a_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(K2Error):
        Checkpoint.from_text(text, LIMITS)


def test_a_saved_checkpoint_is_loaded_and_replaced_whole(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "deep" / "state") as state:
        assert state.load(LIMITS) is None
        state.save(checkpoint(7).to_text())
        state.save(checkpoint(8).to_text())
        assert state.load(LIMITS) == checkpoint(8)
    assert sorted(file.name for file in (tmp_path / "deep" / "state").iterdir()) == ["ingest.lock", "ledger.json"]


def test_a_half_written_checkpoint_of_a_crash_is_not_looked_at(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        state.save(checkpoint(7).to_text())
        (tmp_path / "ledger.new").write_text(checkpoint(8).to_text()[:20])
        assert state.load(LIMITS) == checkpoint(7)
        state.save(checkpoint(9).to_text())
        assert state.load(LIMITS) == checkpoint(9)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b'{"form":1}'])
def test_a_broken_checkpoint_says_which_file_to_remove(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.json").write_bytes(content)
    with (
        StateDirectory(tmp_path) as state,
        pytest.raises(SettingsError, match=r"ledger\.json cannot be read.*remove it"),
    ):
        state.load(LIMITS)


def test_a_second_ingest_on_the_state_directory_is_told_who_has_it(tmp_path: Path) -> None:
    with (
        StateDirectory(tmp_path),
        pytest.raises(SettingsError, match=rf"another ingest \(process {os.getpid()}\) already runs"),
    ):
        StateDirectory(tmp_path).open()
    with StateDirectory(tmp_path):
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import os,sys; from pathlib import Path; from ingest.checkpoint import StateDirectory\n"
    code += "StateDirectory(Path(sys.argv[1])).open(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with StateDirectory(tmp_path):
        pass


def test_a_state_directory_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        StateDirectory(tmp_path / "file").open()


def test_a_checkpoint_that_the_disk_refuses_leaves_the_old_one(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        state.save(checkpoint(7).to_text())
        (tmp_path / "ledger.new").mkdir()
        with pytest.raises(SettingsError, match="cannot be written"):
            state.save(checkpoint(8).to_text())
        assert state.load(LIMITS) == checkpoint(7)
