"""Pure: rows as a table of characters, as wide as a terminal.

Guarantee: a number, a time or any other value that is no text stands whole on one line. Columns that have no room are
left out from the right and named below the table; texts may go on over several lines. Control characters are shown, and
never sent to a terminal.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: A text is not folded to less than this, for the sake of who has to read it.
_TEXT_WIDTH_MIN = 16
#: Between two columns.
_GAP = 3
#: Wider than any result.
_UNLIMITED = 100_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Column:
    """One column: its heading, and whether its values are numbers, which stand to the right, or texts, which fold."""

    name: str
    is_number: bool
    is_text: bool


def drawn(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """The table, each line with its end; at most `width` characters wide, None = as wide as it is.

    Only the first column is folded whatever it holds, where not even that has room.
    """
    cells = [[_plain(value) for value in row] for row in rows]
    names = [_plain(column.name) for column in columns]
    needed = [
        _needed(column, [name, *(row[index] for row in cells)])
        for index, (column, name) in enumerate(zip(columns, names, strict=True))
    ]
    count = len(columns) if width is None else shown_count(needed, width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, name, least in zip(columns[:count], names, needed, strict=False):
        is_whole = not column.is_text and (width is None or least <= width)
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=is_whole)
    for row in cells:
        table.add_row(*map(Text, row[:count]))
    lines = io.StringIO()
    console = Console(
        file=lines, width=width or _UNLIMITED, force_terminal=False, color_system=None, legacy_windows=False
    )
    if count:
        console.print(table)
    text = "".join(f"{line.rstrip()}\n" for line in lines.getvalue().splitlines())
    left_out = names[count:]
    return text + (_left_out(left_out, width or _UNLIMITED) if left_out else "")


def shown_count(needed: Sequence[int], width: int) -> int:
    """How many of the first columns, that need so much, have room; at least one where there is one."""
    used = -_GAP
    for index, least in enumerate(needed):
        used += _GAP + least
        if used > width:
            return max(1, index)
    return len(needed)


def records(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Each row as lines of a name and a value."""
    headings = [_plain(name) for name in names]
    width = max(map(cell_len, headings), default=0)
    text = ""
    for number, row in enumerate(rows, 1):
        text += f"-- {number}\n"
        for name, value in zip(headings, row, strict=True):
            text += f"{name}{' ' * (width - cell_len(name))}  {_plain(value)}\n"
    return text


def _needed(column: Column, texts: Sequence[str]) -> int:
    widest = max((cell_len(line) for text in texts for line in text.split("\n")), default=0)
    return max(cell_len(texts[0]), min(widest, _TEXT_WIDTH_MIN)) if column.is_text else widest


def _left_out(names: Sequence[str], width: int) -> str:
    said = f"... {len(names)} more {'column' if len(names) == 1 else 'columns'}: {', '.join(names)}"
    return textwrap.fill(said, width) + "\n"


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
