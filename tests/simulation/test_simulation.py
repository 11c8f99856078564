"""The join's property under seeded schedules of everything that may happen to log, tables, sinks, server and readers.

K2_SIMULATION_SCHEDULES sets how many schedules run (100 here; the long run is `python -m tests.simulation`),
K2_SIMULATION_SEED where they begin. A failure names its seed and prints the shortened schedule.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from common.datasets import TRADES
from flight_server.storage.as_of import condition_at
from tests.simulation import queries
from tests.simulation.parts import Counts
from tests.simulation.runs import told
from tests.simulation.schedules import WEIGHTS, Schedule, run, schedule_of, shortened
from tests.simulation.sinks import Sinks
from tests.simulation.world import ROOMS, World, has_action

SCHEDULES = int(os.environ.get("K2_SIMULATION_SCHEDULES", "100"))
FIRST_SEED = int(os.environ.get("K2_SIMULATION_SEED", "1"))
_PER_TEST = 10


@pytest.mark.parametrize("first_seed", range(FIRST_SEED, FIRST_SEED + SCHEDULES, _PER_TEST))
def test_each_answer_is_the_log_below_its_cut(first_seed: int) -> None:
    total = Counts()
    for seed in range(first_seed, min(first_seed + _PER_TEST, FIRST_SEED + SCHEDULES)):
        schedule = schedule_of(seed)
        try:
            total.add(run(schedule))
        except Exception as error:  # noqa: BLE001  (whatever it is, the seed must be told)
            pytest.fail(told(seed, schedule, error))
    assert min(total.answered, total.read_again) > _PER_TEST, f"next to nothing was asked: {total}"
    happened = {name for name, value in vars(total).items() if value}
    assert happened >= {"subscribed", "crashes", "bars", "transactions", "letters", "failed"}, f"hardly any: {total}"


@pytest.mark.parametrize(
    "schedule",
    [
        # Bars that the server hears of before the trades in them counted those twice that memory had.
        [("produce", 824), ("sink_step", 993), ("tail_poll", 935), ("refresh", 830), ("query", 33)],
    ],
)
def test_a_schedule_that_failed_once(schedule: Schedule) -> None:
    assert run(schedule).bars


def test_every_action_exists() -> None:
    """In one room."""
    assert {name: sum(has_action(room, name) for room in ROOMS) for name in WEIGHTS} == dict.fromkeys(WEIGHTS, 1)


def test_the_same_seed_is_the_same_schedule_with_the_same_end() -> None:
    assert run(schedule_of(7)) == run(schedule_of(7))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def commit(world: World) -> None:
    """All trades that there are become part of the table, and the server shows it."""
    for _ in range(2):
        world.clock.advance(10.0)
        world.sinks.step(world.sinks.workers[TRADES.name])
    world.server.refresh(1)
    world.server.tail_poll(0)


def test_a_lost_row_is_noticed(world: World) -> None:
    """The property can fail: a row that vanishes from a committed file is found."""
    world.act("produce", 10)
    commit(world)
    store = world.tables.stores[TRADES.name]
    assert store.current is not None
    number = store.current.files[-1]
    store.files[number] = store.files[number].slice(1)
    with pytest.raises(AssertionError, match="missing"):
        world.settle()


def test_a_statement_whose_files_are_deleted_is_refused_and_no_other_failure_is_taken_for_that(world: World) -> None:
    world.act("produce", 10)
    commit(world)
    world.act("open_query", 0)
    world.act("open_query", 0)
    world.act("rewrite", 2)
    world.act("finish_query", 0)
    assert (world.counts.answered, world.counts.expired) == (0, 1)
    world.tables.gone.clear()
    with pytest.raises(AssertionError, match="the engine failed"):
        world.act("finish_query", 0)
    world.act("refresh", 1)
    world.act("query", 0)
    assert world.counts.answered == 1


def test_a_cut_that_lets_in_one_row_more_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property can fail for old cuts too: one offset too many in the condition is found."""

    def one_more(*args: Any) -> str:
        return condition_at(*args).replace("_kafka_offset <", "_kafka_offset <=")

    monkeypatch.setattr(queries, "condition_at", one_more)
    world.act("produce", 10)
    world.act("tail_poll", 0)
    world.act("query", 0)
    world.act("produce", 10)
    world.act("tail_poll", 0)
    with pytest.raises(AssertionError, match="not in the log"):
        world.act("read_again_at", 0)


def test_a_failing_schedule_is_shortened() -> None:
    schedule: Schedule = [("a", n) for n in range(40)]
    assert shortened(schedule, lambda part: ("a", 7) in part and ("a", 31) in part) == [("a", 7), ("a", 31)]


def test_a_failure_is_told_with_its_seed_and_a_schedule_that_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sinks, "crash_sink", lambda *_: 1 / 0)
    seed = next(seed for seed in range(1, 100) if "crash_sink" in dict(schedule_of(seed)))
    number = dict(schedule_of(seed))["crash_sink"]
    text = told(seed, schedule_of(seed), ZeroDivisionError())
    assert text.startswith(f"seed {seed}: ZeroDivisionError")
    assert "shortened: [('crash_sink', " in text and text.count("(") == 1, f"not shortened: {text}, {number}"


def test_the_command_says_what_it_did() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--schedules", "4", "--workers", "2", "--length", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 schedules of 20 actions from seed 1, 0 failed" in done.stdout and "answered" in done.stdout
