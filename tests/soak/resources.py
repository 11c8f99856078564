"""What processes hold: memory over time, and files, threads and sockets at a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

#: Of a run, the part in which caches fill and pools grow: memory is looked at behind it.
WARM_UP = 1 / 3
_LOOKS, _LOOK_S = 20, 0.15


@dataclass(frozen=True)
class Held:
    """`files` are all open descriptors, sockets among them."""

    files: int
    threads: int
    sockets: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """The least of each in some seconds: what a job has open while it works is not held."""
        process, looks = psutil.Process(pid), []
        for _ in range(_LOOKS):
            looks.append((process.num_fds(), process.num_threads(), len(process.net_connections())))
            time.sleep(_LOOK_S)
        return cls(*(min(values) for values in zip(*looks, strict=True)))


@dataclass(frozen=True)
class Reading:
    """Of one moment: each process's memory, and figures of the feed by name."""

    at_s: float
    rss_bytes: Mapping[str, int]
    figures: Mapping[str, float]


class Watch(threading.Thread):
    """Takes a reading every so many seconds until it is ended."""

    def __init__(
        self, pids: Callable[[], Mapping[str, int]], figures: Callable[[], Mapping[str, float]], interval_s: float
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._pids, self._figures, self._interval_s = pids, figures, interval_s
        self._ended = threading.Event()
        self._begin_s = time.monotonic()
        self.readings: list[Reading] = []

    def run(self) -> None:
        while not self._ended.wait(self._interval_s):
            at_s = round(time.monotonic() - self._begin_s, 1)
            self.readings.append(Reading(at_s, dict(_rss_of(self._pids())), dict(self._figures())))

    def end(self) -> list[Reading]:
        self._ended.set()
        self.join()
        return self.readings


def slope_per_hour(readings: Sequence[tuple[float, float]]) -> float:
    """By how much an hour the line of least squares through (seconds, value) rises; 0 of fewer than two. Pure."""
    if len(readings) < 2:
        return 0.0
    seconds, values = zip(*readings, strict=True)
    return 3600 * float(np.polyfit(seconds, values, 1)[0])


def memory_of(name: str, readings: Sequence[Reading]) -> list[tuple[float, float]]:
    """(seconds, MB) of a process behind the warm-up."""
    begin_s = readings[-1].at_s * WARM_UP if readings else 0.0
    return [
        (one.at_s, one.rss_bytes[name] / 1e6) for one in readings if one.at_s >= begin_s and one.rss_bytes.get(name)
    ]


def _rss_of(pids: Mapping[str, int]) -> list[tuple[str, int]]:
    found = []
    for name, pid in pids.items():
        try:
            found.append((name, int(psutil.Process(pid).memory_info().rss)))
        except psutil.NoSuchProcess:  # it ended just now
            continue
    return found
