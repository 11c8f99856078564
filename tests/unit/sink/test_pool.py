"""Arrow's memory goes back behind each piece of work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from common.datasets import TRADES
from common.settings import LakeSettings
from sink import table as table_module
from sink.table import IcebergTable
from tests.support.records import table_rows, trade

#: Some 60 MB in small pieces, freed; what the process holds before and after it gives back, in MB.
_SCRIPT = """
import pyarrow as pa, pyarrow.compute as pc
from common.memory import resident_bytes
from sink.pool import give_back
one = pa.array(range(4_000))
held = [pc.add(one, number) for number in range(2_000)]
del held
before = resident_bytes()
give_back()
print(pa.default_memory_pool().backend_name, (before - resident_bytes()) // 1_000_000)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell what a process holds")
def test_what_was_freed_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    backend, freed_mb = done.stdout.split()
    assert backend != "mimalloc" or int(freed_mb) > 30


def test_a_write_gives_back_when_its_copies_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(table_module, "give_back", lambda: held.append(pa.total_allocated_bytes()))
    table = IcebergTable.open(LakeSettings.load(data_dir=tmp_path / "lake"), TRADES)
    rows = table_rows("trade", [trade(number, symbol=f"S{number % 7}") for number in range(2_000)])
    before = pa.total_allocated_bytes()
    assert table.write(rows).rows == 2_000
    assert len(held) == 1
    assert held[0] - before < rows.nbytes // 2
