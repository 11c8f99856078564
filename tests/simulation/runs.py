"""Many schedules one after the other, in whatever process."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import structlog

from tests.simulation.parts import Counts
from tests.simulation.schedules import Schedule, run, schedule_of, shortened


@dataclass
class Outcome:
    """Of some schedules: what they came to, the processor's seconds, and those that failed."""

    schedules: int = 0
    counts: Counts = field(default_factory=Counts)
    cpu_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def play(first_seed: int, count: int, length: int) -> Outcome:
    """The schedules of `count` seeds; ends early at a failure, which it shortens."""
    outcome = Outcome()
    began_s = time.process_time()
    for seed in range(first_seed, first_seed + count):
        schedule = schedule_of(seed, length)
        outcome.schedules += 1
        try:
            outcome.counts.add(run(schedule))
        except Exception as error:  # noqa: BLE001  (whatever it is, the seed must be told)
            outcome.failures.append(told(seed, schedule, error))
            break
    outcome.cpu_s = time.process_time() - began_s
    return outcome


def told(seed: int, schedule: Schedule, error: Exception) -> str:
    """A failure for whoever has to find it."""
    return f"seed {seed}: {type(error).__name__}: {error}\nshortened: {shortened(schedule)}"


def quiet() -> None:
    """What the parts log about the faults that are done to them is not looked at."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
