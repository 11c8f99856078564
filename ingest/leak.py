"""Does this process leak memory? A line through samples of its resident size, by least squares. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Samples that the line goes through: an hour of one every 10 s.
_SAMPLES_MAX: Final = 360
#: Fewer say nothing.
_SAMPLES_MIN: Final = 30
#: Growth at which a straight line counts as a leak without doubt: 100 MB in an hour.
_LEAK_BYTES_PER_S: Final = 100e6 / 3600


class LeakWatch:
    """The slope of the resident size, and how much it looks like a leak."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MAX)

    def sample(self, now_s: float, rss_bytes: int) -> None:
        self._samples.append((now_s, rss_bytes))

    @property
    def slope_bytes_per_s(self) -> float:
        """Of the line of least squares; 0.0 while there are too few samples."""
        return self._line()[0]

    @property
    def score(self) -> float:
        """0.0 (no growth, or no line) to 1.0 (a straight line that rises by 100 MB an hour or more).

        It is the growth, as a part of that, times the line's coefficient of determination: memory that goes up and down
        makes a poor line.
        """
        slope, determination = self._line()
        return max(0.0, min(1.0, slope / _LEAK_BYTES_PER_S)) * determination

    def _line(self) -> tuple[float, float]:
        """(slope, share of the variance that the line explains)."""
        count = len(self._samples)
        if count < _SAMPLES_MIN:
            return 0.0, 0.0
        mean_s = sum(at_s for at_s, _ in self._samples) / count
        mean = sum(size for _, size in self._samples) / count
        spread_s = sum((at_s - mean_s) ** 2 for at_s, _ in self._samples)
        spread = sum((size - mean) ** 2 for _, size in self._samples)
        both = sum((at_s - mean_s) * (size - mean) for at_s, size in self._samples)
        if spread_s == 0 or spread == 0:
            return 0.0, 0.0
        return both / spread_s, min(1.0, both * both / (spread_s * spread))
