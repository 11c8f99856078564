"""The join's property under seeded schedules of produce, commit, crash, restart, compaction, rollback and query.

K2_SIMULATION_SCHEDULES sets how many schedules run (200 here, 10,000 in the long run), K2_SIMULATION_SEED where they
begin. A failure names its seed and prints the shortened schedule.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from flight_server.storage.as_of import condition_at
from tests.simulation.world import WEIGHTS, Schedule, World, run, schedule_of, shortened

SCHEDULES = int(os.environ.get("K2_SIMULATION_SCHEDULES", "200"))
FIRST_SEED = int(os.environ.get("K2_SIMULATION_SEED", "1"))
LENGTH = 60
_PER_TEST = 10


def _fails(schedule: Schedule) -> bool:
    try:
        run(schedule)
    except Exception:  # noqa: BLE001  (any failure counts while a schedule is being shortened)
        return True
    return False


@pytest.mark.parametrize("first_seed", range(FIRST_SEED, FIRST_SEED + SCHEDULES, _PER_TEST))
def test_each_answer_is_the_log_below_its_cut(first_seed: int) -> None:
    answered = read_again = 0
    for seed in range(first_seed, min(first_seed + _PER_TEST, FIRST_SEED + SCHEDULES)):
        schedule = schedule_of(seed, LENGTH)
        try:
            world = run(schedule)
            answered, read_again = answered + world.answered, read_again + world.read_again
        except Exception as error:  # noqa: BLE001  (whatever it is, the seed must be told)
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\nshortened: {shortened(schedule, _fails)}")
    assert answered > _PER_TEST, "the schedules asked next to nothing"
    assert read_again > _PER_TEST, "the schedules read next to no cut again"


def test_every_action_exists() -> None:
    assert all(callable(getattr(World, name)) for name in WEIGHTS)


def test_a_lost_row_is_noticed() -> None:
    """The property can fail: a row that vanishes from a committed file is found."""
    world = World()
    try:
        for _ in range(3):
            world.produce(3)
        world.clock.advance(0.1)
        world.sink.step()
        world.clock.advance(10.0)
        world.sink.step()
        number = world.store.snapshots[-1].files[-1]
        world.store.files[number] = world.store.files[number].slice(1)
        with pytest.raises(AssertionError, match="missing"):
            world.settle()
    finally:
        world.close()


def test_a_failing_schedule_is_shortened() -> None:
    schedule = [("a", n) for n in range(40)]
    assert shortened(schedule, lambda part: ("a", 7) in part and ("a", 31) in part) == [("a", 7), ("a", 31)]


def test_a_cut_that_lets_in_one_row_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property can fail for old cuts too: one offset too many in the condition is found."""
    monkeypatch.setattr("tests.simulation.world.condition_at", one_more)
    world = World()
    try:
        world.produce(2)
        world.tail_poll(0)
        world.query(0)
        world.produce(2)
        world.tail_poll(0)
        with pytest.raises(AssertionError):
            world.read_again_at(0)
    finally:
        world.close()


def one_more(*args: Any) -> str:
    return condition_at(*args).replace("_kafka_offset <", "_kafka_offset <=")
