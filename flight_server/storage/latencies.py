"""How long rows took until every new query sees them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

#: The columns that latencies are measured from.
_TIMES = ("receive_time", "event_time")
#: Publications kept for the percentiles shown by `stats`, and rows of each.
_LATENCIES_KEPT = 200
_LATENCIES_PER_PUBLICATION = 32


@dataclass(frozen=True)
class Ages:
    """How old rows of one publication were, since their `receive_time`: the slowest when they were visible; on the
    mean when they had been read of the log, and when they were visible."""

    slowest_us: int
    read_us: float
    visible_us: float


class Latencies:
    """Of the latest publications. One thread notes, any thread asks."""

    def __init__(self) -> None:
        self._us: dict[str, deque[Any]] = {name: deque(maxlen=_LATENCIES_KEPT) for name in _TIMES}
        #: Those of the latest publication that had rows with a `receive_time`.
        self.ages: Ages | None = None

    def note(self, published: Iterable[pa.Table], *, read_us: int, now_us: int) -> None:
        """These rows, which had been read at `read_us`, are visible now."""
        received = []
        for rows in published:
            names = rows.column_names
            for name in _TIMES:
                if name in names:
                    times = _us_of(rows.column(name))
                    self._us[name].append(now_us - times[:: 1 + len(times) // _LATENCIES_PER_PUBLICATION])
                    if name == "receive_time" and len(times):
                        received.append(times)
        if received:
            mean_us = sum(float(times.mean()) for times in received) / len(received)
            slowest_us = now_us - min(int(times.min()) for times in received)
            self.ages = Ages(slowest_us, read_us - mean_us, now_us - mean_us)

    def us(self, since: str) -> Any:
        """For rows published lately: from `receive_time` or `event_time` to being visible to every new query."""
        recent = list(self._us[since])
        return np.concatenate(recent) if recent else np.empty(0, np.int64)


def _us_of(times: pa.ChunkedArray) -> Any:
    """Microseconds, of those that are there. By way of numpy, which costs a third of Arrow's cast for a few rows."""
    there = times.drop_null() if times.null_count else times
    return there.to_numpy().astype("datetime64[us]", copy=False).view(np.int64)
