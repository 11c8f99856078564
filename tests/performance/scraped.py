"""The metrics of a process, as Prometheus would read them."""

from __future__ import annotations

import re
import urllib.request


class Metrics:
    """One metrics endpoint."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def read(self) -> dict[str, float]:
        """Every sample by its name and labels, as the text has them."""
        with urllib.request.urlopen(self._uri, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}


def quantile(samples: dict[str, float], histogram: str, q: float, before: dict[str, float] | None = None) -> float:
    """A quantile of what came into a histogram since `before`, within its bucket by a straight line."""
    counts: list[tuple[float, float]] = []
    for name, count in samples.items():
        if (match := re.fullmatch(rf'{histogram}_bucket{{le="([^"]+)"}}', name)) is not None:
            counts.append((float(match[1]), count - (before or {}).get(name, 0.0)))
    wanted, below, low = q * counts[-1][1], 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / max(count - below, 1)
        below, low = count, bound
    raise AssertionError(f"{histogram} has no sample")
