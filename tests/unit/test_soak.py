"""What the soak says of its queries, from the times it kept."""

from __future__ import annotations

from tests.soak.asking import Answers, Quarter


def test_each_answer_is_in_its_quarter() -> None:
    answers = Answers(taken=[(0.0, 1.0), (9.9, 3.0), (10.0, 5.0), (39.9, 7.0), (41.0, 9.0)])
    first, second, third, fourth = answers.quarters(40.0)
    assert first == Quarter(2, 2.0, 2.98, 3.0)
    assert (second.answers, second.p99_ms) == (1, 5.0)
    assert third == Quarter(0, 0.0, 0.0, 0.0)
    assert (fourth.answers, fourth.max_ms) == (2, 9.0)
