"""Files of bars stay apart in time, and of bounded size, whatever trades come in which order."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sink.bars_layout import Rewrite, Span, pieces, rewrites

PERIOD_US = 100
ROWS_MAX = 6


def rows(starts: list[int]) -> pa.Table:
    return pa.table({"bar_start": pa.array(starts, pa.timestamp("us", tz="UTC"))})


def starts_of(table: pa.Table) -> list[int]:
    return [int(start) for start in table.column("bar_start").cast(pa.int64()).to_pylist()]


def span(starts: list[int]) -> Span:
    return Span(min(starts), max(starts), len(starts))


def committed(files: list[list[int]], more: list[int], period_us: int | None) -> tuple[list[list[int]], list[Rewrite]]:
    """The files, as the starts of their bars, with further bars in them; a bar that is there is not doubled."""
    planned = rewrites([span(file) for file in files], np.array(more), period_us=period_us, rows_max=ROWS_MAX)
    after = [file for index, file in enumerate(files) if all(index not in one.files for one in planned)]
    for one in planned:
        held = {start for index in one.files for start in files[index]}
        together = sorted(held | {more[index] for index in one.bars})
        after += [starts_of(piece) for piece in pieces(rows(together), period_us=period_us, rows_max=ROWS_MAX)]
    return after, planned


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(-250, 400), min_size=1, max_size=20, unique=True), max_size=12),
    st.sampled_from([None, PERIOD_US]),
)
def test_every_bar_has_one_place_and_files_stay_apart(commits: list[list[int]], period_us: int | None) -> None:
    files: list[list[int]] = []
    taken: set[int] = set()
    for more in commits:
        files, planned = committed(files, more, period_us)
        taken |= set(more)
        assert sorted(index for one in planned for index in one.bars) == list(range(len(more)))
        assert sorted(start for file in files for start in file) == sorted(taken)
        spans = sorted((span(file) for file in files), key=lambda one: one.first_us)
        assert all(one.last_us < after.first_us for one, after in itertools.pairwise(spans))
        assert all(one.rows <= ROWS_MAX * 3 // 2 for one in spans)
        if period_us:
            assert all(one.first_us // period_us == one.last_us // period_us for one in spans)


def test_many_small_commits_of_new_bars_make_full_files() -> None:
    """Not one each: the newest is written anew until it is full, and none of the others is touched."""
    files: list[list[int]] = []
    for start in range(600):
        files, planned = committed(files, [start], None)
        assert sum(len(one.files) for one in planned) <= 1
    assert len(files) <= 600 // (ROWS_MAX // 2)


def test_a_late_bar_touches_the_file_of_its_time_alone() -> None:
    files = [list(range(first, first + ROWS_MAX)) for first in range(0, 60, 10)]
    (one,) = rewrites([span(file) for file in files], np.array([23]), period_us=None, rows_max=ROWS_MAX)
    assert one.files == (2,)


def test_files_that_overlap_are_written_anew_together() -> None:
    """As another tool's compaction may leave them: the bar may be in any of them."""
    spans = [Span(0, 50, 3), Span(40, 90, 3), Span(200, 250, 3)]
    (one,) = rewrites(spans, np.array([10]), period_us=None, rows_max=ROWS_MAX)
    assert set(one.files) == {0, 1}


@pytest.mark.parametrize("count", [0, 1, 9, 10, 25])
def test_bars_of_one_start_stay_together(count: int) -> None:
    found = pieces(rows([7] * count), period_us=None, rows_max=ROWS_MAX)
    assert [piece.num_rows for piece in found] == ([count] if count else [])
