"""Schedules: drawn from a seed, played, and shortened when they fail."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.parts import Counts
from tests.simulation.world import World

Schedule = list[tuple[str, int]]

#: Actions in a schedule.
LENGTH = 80
#: How often each action comes up.
WEIGHTS: dict[str, int] = {
    "produce": 26,
    "transact": 5,
    "end_transaction": 6,
    "later_release": 2,
    "hole": 2,
    "grow_topic": 1,
    "recreate_topic": 1,
    "delete_topic": 1,
    "retention": 3,
    "broker": 2,
    "discover": 6,
    "sink_step": 28,
    "zombie_step": 5,
    "crash_sink": 3,
    "bars_step": 8,
    "crash_bars": 2,
    "rebuild_bars": 1,
    "commit_fault": 4,
    "deliver_late": 3,
    "foreign_snapshot": 2,
    "compact": 4,
    "rewrite": 3,
    "expire": 3,
    "foreign_expiry": 1,
    "operator": 1,
    "rollback": 4,
    "ask_catalog": 5,
    "hear_catalog": 5,
    "ask_broker": 2,
    "hear_broker": 2,
    "refresh": 12,
    "tail_poll": 20,
    "publication_fault": 3,
    "restart_server": 1,
    "open_query": 7,
    "open_stream": 4,
    "finish_query": 8,
    "query": 9,
    "read_again_at": 5,
    "changes_between": 4,
    "subscribe": 4,
    "advance": 10,
    "reconnect": 2,
}


def schedule_of(seed: int, length: int = LENGTH) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)
    return [("hot_window", seed), *((name, rng.randrange(1_000)) for name in names)]


def run(schedule: Schedule) -> Counts:
    """Play a schedule to its end. Raises AssertionError where the property does not hold."""
    world = World()
    try:
        for name, number in schedule:
            world.act(name, number)
        world.settle()
    finally:
        world.close()
    return world.counts


def fails(schedule: Schedule) -> bool:
    try:
        run(schedule)
    except Exception:  # noqa: BLE001  (any failure counts while a schedule is being shortened)
        return True
    return False


def shortened(schedule: Schedule, still_fails: Callable[[Schedule], bool] = fails) -> Schedule:
    """A part of a failing schedule that fails too, from which nothing more can be left out."""
    size = max(1, len(schedule) // 2)
    while True:
        start = 0
        while start < len(schedule):
            part = schedule[:start] + schedule[start + size :]
            if still_fails(part):
                schedule = part
            else:
                start += size
        if size == 1:
            return schedule
        size = max(1, size // 2)
