"""One measured figure, and how percentiles are taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Figure:
    """`beside` says what stood next to it in the same run, in words."""

    benchmark: str
    name: str
    value: float
    unit: str
    beside: str = ""


def times_ms(call: Callable[[], object], count: int, *, warm_up: int = 3) -> np.ndarray:
    """How long each of `count` calls took, after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        call()
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1000)
    return np.array(taken)
