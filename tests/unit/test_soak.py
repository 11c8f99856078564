"""What the soaks say of what they saw: of their queries, of counts, of what processes hold."""

from __future__ import annotations

from typing import Any

import pytest

from tests.soak.asking import Answers, Stretch
from tests.soak.exchange import RoundMarket
from tests.soak.feed import more_held, wrong_counts
from tests.soak.resources import Held, Reading, memory_of, slope_per_hour
from tests.soak.sampling import Sample, grown

OPENED, CLOSED = {"A": 3, "B": 1}, {"A": 9, "B": 4}


def counts(**changes: Any) -> list[dict[str, Any]]:
    """The table's counts of A, and of B with changes."""
    return [
        {"symbol": "A", "trades": 10, "ids": 10, "first_id": 1, "last_id": 10},
        {"symbol": "B", "trades": 4, "ids": 4, "first_id": 1, "last_id": 4} | changes,
    ]


def test_each_answer_is_in_its_stretch() -> None:
    answers = Answers(taken=[(0.0, 1.0), (9.9, 3.0), (10.0, 5.0), (39.9, 7.0), (41.0, 9.0)])
    first, second, third, fourth = answers.stretches(40.0, 4)
    assert first == Stretch(2, 2.0, 2.98, 3.0)
    assert (second.answers, second.p99_ms) == (1, 5.0)
    assert third == Stretch(0, 0.0, 0.0, 0.0)
    assert (fourth.answers, fourth.max_ms) == (2, 9.0)


def sample(at_s: float, files: int, data_files: int = 10) -> Sample:
    return Sample(at_s, 0, data_files, files, snapshots=5, manifests=3, metadata_nbytes=9_000, rss_mb={})


def test_files_that_grow_with_time_are_told() -> None:
    [said] = grown([sample(at_s, 100 + 5 * at_s) for at_s in range(120)])
    assert said == "files grew from 398 to 598, the medians of the second and the last third"


def test_what_grows_at_first_or_for_a_moment_is_not() -> None:
    assert grown([sample(at_s, min(200, 5 * at_s), 200 if at_s == 110 else 10) for at_s in range(120)]) == []
    assert grown([sample(at_s, 100 * at_s) for at_s in range(20)]) == []  # too short to tell


def test_counts_of_everything_that_was_sent_are_right() -> None:
    assert wrong_counts(counts(), OPENED, CLOSED) == []


@pytest.mark.parametrize(
    "changes",
    [{"ids": 3}, {"trades": 5}, {"first_id": 2, "trades": 3, "ids": 3}, {"last_id": 3, "trades": 3, "ids": 3}],
)
def test_a_trade_too_few_or_too_many_is_found(changes: dict[str, int]) -> None:
    assert [fault for fault in wrong_counts(counts(**changes), OPENED, CLOSED) if fault.startswith("B has ")]


def test_a_symbol_that_is_not_there_is_found() -> None:
    assert wrong_counts(counts()[:1], OPENED, CLOSED) == ["B is missing"]


def test_a_process_that_holds_more_than_a_pool_of_threads_more_is_found() -> None:
    before = Held(files=20, threads=10, sockets=5)
    assert more_held(before, Held(files=26, threads=18, sockets=8)) == []
    assert more_held(before, Held(files=27, threads=10, sockets=9)) == [
        "has 27 files, 20 when it was warm",
        "has 9 sockets, 5 when it was warm",
    ]


def test_the_slope_is_of_the_line_behind_the_warm_up() -> None:
    readings = [Reading(at_s, {"ingest": int(1e8 + max(0, at_s - 30) * 1e6)}, {}) for at_s in range(0, 91, 10)]
    kept = memory_of("ingest", readings)
    assert [at_s for at_s, _ in kept] == [30, 40, 50, 60, 70, 80, 90]
    assert slope_per_hour(kept) == pytest.approx(3600)
    assert memory_of("sink", readings) == []
    assert slope_per_hour([]) == 0.0


def test_a_round_is_one_trade_of_every_symbol() -> None:
    market = RoundMarket(("A", "B", "C"), seed=1)
    before = [market.step(1) for _ in range(10)]
    ids = dict(market.last_ids)
    market.ask_for_round()
    assert not market.round_is_made
    streams = [market.step(1)[0].stream for _ in range(3)]
    assert streams == ["a@trade", "b@trade", "c@trade"]
    assert market.round_is_made
    assert market.last_ids == {symbol: ids.get(symbol, 0) + 1 for symbol in ("A", "B", "C")}
    assert len(before) == sum(ids.values())
