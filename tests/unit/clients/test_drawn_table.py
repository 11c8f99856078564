"""Tables as wide as a terminal: whole numbers, folded texts, and what has no room named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.drawn_table import Column, drawn, records, shown_count

TEXT, NUMBER, TIME = Column("text", False, True), Column("number", True, False), Column("time", False, False)
AT = "2026-11-28T09:00:00.000001Z"


def test_a_number_and_a_time_are_never_taken_apart() -> None:
    shown = drawn([TEXT, NUMBER, TIME], [["a text of many words", "65000.12345678", AT]], 63)
    assert "65000.12345678" in shown and AT in shown
    assert [line.rstrip() for line in shown.splitlines()[2:]] == [
        f"a text of many     65000.12345678   {AT}",
        "words",
    ]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(None, ""), (63, ""), (62, "... 1 more column: time\n"), (20, "... 2 more columns:\nnumber, time\n")],
)
def test_what_has_no_room_is_named(width: int | None, left_out: str) -> None:
    shown = drawn([TEXT, NUMBER, TIME], [["x" * 16, "65000.12345678", AT]], width)
    assert shown.endswith(left_out) and ("more" in shown) == bool(left_out)
    assert width is None or max(map(len, shown.splitlines())) <= width


def test_control_characters_are_shown_and_not_sent() -> None:
    for shown in (drawn([TEXT], [["\x1b[31mred\x07"]], None), records(["text"], [["\x1b[31mred\x07"]])):
        assert r"\x1b[31mred\x07" in shown and "\x1b" not in shown


def test_a_row_as_lines() -> None:
    assert records(["a", "long"], [["1", "2"], ["3", "NULL"]]) == "-- 1\na     1\nlong  2\n-- 2\na     3\nlong  NULL\n"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 200))
def test_as_many_columns_as_have_room(needed: list[int], width: int) -> None:
    count = shown_count(needed, width)
    assert count >= 1
    assert count == 1 or sum(needed[:count]) + 3 * (count - 1) <= width
    assert count == len(needed) or sum(needed[: count + 1]) + 3 * count > width


@given(
    st.lists(st.tuples(st.text("ab \n", max_size=60), st.integers(-(10**20), 10**20).map(str)), min_size=1, max_size=4),
    st.integers(4, 90),
)
def test_it_is_never_wider_than_the_terminal(rows: list[tuple[str, str]], width: int) -> None:
    shown = drawn([TEXT, NUMBER], rows, width)
    assert max(map(len, shown.splitlines())) <= max(width, 7)
