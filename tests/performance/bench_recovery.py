"""What a backup, a restoration and the recovery of a catalog take, by the rows: the RPO and RTO of docs/runbook.md.

20 million trades in commits of 100,000, as of a sink that was behind, with the snapshots that its own expiry keeps. The
place of the backups is on the same disk, so that files are read and written by the same one; CPU is this process's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.datasets import TRADES
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.recovery.archive import Archive
from sink.recovery.backup import back_up
from sink.recovery.folders import Folder
from sink.recovery.recover import recover
from sink.recovery.restore import restore
from sink.recovery.upkeep import verify_backups
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.market_data import rows

_ROWS = 20_000_000
_COMMIT_ROWS = 100_000
_PARTITION = KafkaPartition("bench", "bench-topic-id", 0)
_KEPT = ExpiryPolicy(snapshots_kept_min=20, age_us_min=0)
_FAR_US = 4_000_000_000_000_000


def run(scale: float) -> list[Figure]:
    total = max(2 * _COMMIT_ROWS, int(_ROWS * scale))
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        lake = _settings(Path(folder) / "lake")
        table = _fill(lake, 0, total, total)
        archive = Archive(Folder(f"{folder}/backups", {}))
        figures: list[Figure] = []

        def measured(name: str, call: Callable[[], str]) -> None:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            beside = call()
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
            load = os.getloadavg()[0]
            figures.append(
                Figure("recovery", name, wall_s, "s", f"{cpu_s:.2f} s of CPU, load average {load:.1f}; {beside}")
            )

        measured("first backup", lambda: _short(back_up(lake, archive).to_text()))
        _fill(lake, total, total + _COMMIT_ROWS, total)
        measured("backup after one more commit", lambda: _short(back_up(lake, archive).to_text()))
        measured("backup without anything new", lambda: _short(back_up(lake, archive).to_text()))
        measured("verify", lambda: _short(verify_backups(archive).to_text()))
        elsewhere = _settings(Path(folder) / "elsewhere")
        measured("restore to another place", lambda: _short(restore(archive, elsewhere).to_text()))
        assert IcebergTable.open(elsewhere, TRADES).rows == total + _COMMIT_ROWS
        rows_before = table.committed_offsets()
        for path in lake.data_dir.glob("catalog.db*"):
            path.unlink()
        measured("recover the catalog", lambda: _short(f"market.trades: {recover(lake)[0].to_text()}"))
        assert IcebergTable.open(lake, TRADES).committed_offsets() == rows_before
        shutil.rmtree(elsewhere.data_dir)
    return figures


def _settings(folder: Path) -> LakeSettings:
    lake = LakeSettings.load(data_dir=folder)
    lake.prepare()
    return lake


def _fill(lake: LakeSettings, first: int, last: int, total: int) -> IcebergTable:
    table = IcebergTable.open(lake, TRADES)
    for number, offset in enumerate(range(first, last, _COMMIT_ROWS)):
        table.append(
            rows(offset, _COMMIT_ROWS, symbols=50, days=10, total=total + _COMMIT_ROWS),
            PartitionOffsets({_PARTITION: offset}),
            PartitionOffsets({_PARTITION: offset + _COMMIT_ROWS}),
            f"commit-{offset}",
        )
        if number % 20 == 19:
            expire_snapshots(table, _KEPT, _FAR_US)
    return table


def _short(text: str) -> str:
    """Without the id and the folder, which are of this run."""
    return text.partition(": ")[2]
