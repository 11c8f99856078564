"""A result that is read ahead: every batch once and in order; the C library is told of its beginning and its end."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from flight_server.engine import read_ahead
from flight_server.engine.read_ahead import ROWS_OF_MANY, ReadAhead
from flight_server.engine.results import ReadyResult


class Told:
    """Stands for common.heap: how many large results there are now, and how many there have been."""

    def __init__(self) -> None:
        self.open = self.begun = 0

    def begin_large_result(self) -> None:
        self.open += 1
        self.begun += 1

    def end_large_result(self) -> None:
        self.open -= 1
        assert self.open >= 0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    told = Told()
    monkeypatch.setattr(read_ahead, "heap", told)
    yield told
    assert told.open == 0


def batches(*counts: int) -> list[pa.RecordBatch]:
    return [pa.record_batch({"n": pa.array([number] * count)}) for number, count in enumerate(counts)]


def result(made: list[pa.RecordBatch]) -> ReadyResult:
    return ReadyResult(made[0].schema, made, None)


def test_a_small_result_is_none_of_the_c_librarys_business(told: Told) -> None:
    made = batches(3, 2)
    assert list(ReadAhead(result(made))) == made
    assert told.begun == 0


def test_a_large_one_is_read_to_its_end(told: Told) -> None:
    made = batches(*[ROWS_OF_MANY] * 9, 1)
    ahead = ReadAhead(result(made))
    assert list(ahead) == made
    ahead.close()
    assert told.begun == 1


def test_one_that_is_given_up_has_ended_too(told: Told) -> None:
    ahead = ReadAhead(result(batches(*[ROWS_OF_MANY] * 9)))
    iterator = iter(ahead)
    next(iterator)
    assert told.open == 1
    ahead.close()
    ahead.close()
    assert told.open == 0


def test_one_that_fails_has_ended_too(told: Told) -> None:
    class Failing(ReadyResult):
        def read(self) -> pa.RecordBatch | None:
            batch = super().read()
            if batch is None:
                raise ValueError("no more")
            return batch

    made = batches(ROWS_OF_MANY, ROWS_OF_MANY)
    with pytest.raises(ValueError, match="no more"):
        list(ReadAhead(Failing(made[0].schema, made, None)))
    assert told.begun == 1
