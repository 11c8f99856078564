"""`k2 tables verify` and `orphans` on a table of 12 million rows in 240 files: time of the CPU, and memory.

Each is a process of its own, so that its memory is its own; beside it stands what the same command takes on an empty
table, which is what Python, its imports and the catalog take.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.market_data import rows

_ROWS, _COMMITS, _SYMBOLS, _DAYS = 12_000_000, 24, 100, 10
_PARTITION = KafkaPartition("bench", "bench-id", 0)
_COMMANDS = {
    "verify": ("verify",),
    "verify --deep": ("verify", "--deep"),
    "verify --quick": ("verify", "--quick"),
    "orphans": ("orphans", "--dry-run"),
}


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    cpu_s: float
    rss_mb: float


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale) // (_COMMITS * _SYMBOLS) * _COMMITS * _SYMBOLS
    figures = []
    with tempfile.TemporaryDirectory(prefix="k2-verify-") as name:
        full, empty = (LakeSettings.load(data_dir=Path(name) / part) for part in ("full", "empty"))
        IcebergTable.open(empty, TRADES)
        files = _fill(full, count)
        for command, words in _COMMANDS.items():
            idle, cost = (_cost(lake, words) for lake in (empty, full))
            beside = f"{count:,} rows, {files} files; empty table: {idle.cpu_s:.1f} s, {idle.rss_mb:.0f} MB"
            figures += [
                Figure("verify", f"{command}: CPU", cost.cpu_s, "s", beside),
                Figure("verify", f"{command}: peak RSS", cost.rss_mb, "MB", beside),
            ]
    return figures


def _fill(lake: LakeSettings, count: int) -> int:
    """The table, a commit for every stretch of the log; the number of its files. Trade ids are dense in each symbol."""
    table = IcebergTable.open(lake, TRADES)
    step = count // _COMMITS
    for first in range(0, count, step):
        stretch = rows(first, step, symbols=_SYMBOLS, days=_DAYS, total=count)
        ids = np.arange(first, first + step, dtype=np.int64) // _SYMBOLS
        at = stretch.schema.get_field_index("trade_id")
        stretch = stretch.set_column(at, stretch.schema.field(at), pa.array(ids))
        base, to = (PartitionOffsets({_PARTITION: offset}) for offset in (first, first + step))
        table.append(stretch, base, to, f"bench-{first}")
    return len(list(table.iceberg_table.scan().plan_files()))


def _cost(lake: LakeSettings, words: tuple[str, ...]) -> Cost:
    """Run `k2 tables ...` on the lake; it must find nothing wrong.

    The highest memory is asked for while it runs, which is exact but for the last moments: what the system keeps of an
    ended child begins with its parent's memory.
    """
    command = [sys.executable, "-m", "k2.cli", "tables", *words, "--data-dir", str(lake.data_dir)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    highest_kb = 0
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{child.pid}/status").read_text())
        highest_kb = max(highest_kb, int(found[1]) if found else 0)
        time.sleep(0.02)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return Cost(used.ru_utime + used.ru_stime, highest_kb / 1024)
