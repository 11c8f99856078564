"""What the lake and the processes are at a moment: files, snapshots, bytes of metadata, memory."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.datasets import TRADES
from common.errors import CatalogError
from common.settings import LakeSettings
from sink.maintenance.stats import stats
from sink.maintenance.tables import open_tables

#: What must not grow, by how much it may differ from a third of the run to the next, and how many samples make one.
_BOUNDED = ("data_files", "files", "snapshots", "manifests", "metadata_nbytes")
_GROWTH_MAX = 1.5
_THIRD_MIN = 10


@dataclass(frozen=True)
class Sample:
    """`files` and `data_files` are of market.trades: in its folder, and in its newest snapshot."""

    at_s: float
    rows: int
    data_files: int
    files: int
    snapshots: int
    manifests: int
    metadata_nbytes: int
    rss_mb: Mapping[str, int]


class Sampler(threading.Thread):
    """Takes a sample every `interval_s`. `pids` tells which processes run now."""

    def __init__(self, lake: LakeSettings, pids: Callable[[], Mapping[str, int]], interval_s: float) -> None:
        super().__init__(name="sampler")
        self._lake = lake
        self._pids = pids
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._begin_s = time.monotonic()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._ended.wait(self._interval_s):
            # Expiry may take a manifest list away between loading the table and reading it.
            with contextlib.suppress(CatalogError):
                self.samples.append(self.sample())

    def end(self) -> list[Sample]:
        self._ended.set()
        self.join()
        return self.samples

    def sample(self) -> Sample:
        [table] = open_tables(self._lake, (TRADES.table,))
        found = stats(table)
        folder = Path(table.iceberg_table.metadata.location.removeprefix("file://"))
        return Sample(
            at_s=round(time.monotonic() - self._begin_s, 1),
            rows=found.rows,
            data_files=found.data_files,
            files=sum(path.is_file() for path in folder.rglob("*")),
            snapshots=found.snapshots,
            manifests=found.manifests,
            metadata_nbytes=found.metadata_nbytes,
            rss_mb={name: rss for name, pid in self._pids().items() if (rss := _rss_mb(pid))},
        )


def grown(samples: Sequence[Sample]) -> list[str]:
    """What of the table grows with the time that it is written to, as sentences. Pure.

    Of each figure the median of the last third may be half as large again as that of the second; the first third is
    left to what the keeping of snapshots, and the grace time of files, let grow at first.
    """
    third = len(samples) // 3
    if third < _THIRD_MIN:
        return []
    said = []
    for name in _BOUNDED:
        before, after = (
            statistics.median(getattr(one, name) for one in part)
            for part in (samples[third : 2 * third], samples[2 * third :])
        )
        if after > before * _GROWTH_MAX:
            said.append(f"{name} grew from {before:,.0f} to {after:,.0f}, the medians of the second and the last third")
    return said


def _rss_mb(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss // 1_000_000)
    except psutil.NoSuchProcess:  # it was killed just now
        return 0
