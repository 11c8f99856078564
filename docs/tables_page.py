"""Write the table of options in docs/tables.md from the command itself: `just docs`. A test holds the page current."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from k2.tables import tables

PAGE = Path(__file__).with_name("tables.md")
BEGIN, END = "<!-- options: written by docs/tables_page.py -->", "<!-- end of options -->"

#: What the page says once for all of them.
_ALL_HAVE = ("as_json", "data_dir")


def page() -> str:
    """The page with the options as they are now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = "\n".join(_rows())
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{after}"


def _rows() -> Iterator[str]:
    yield "| command | option | meaning |"
    yield "|---|---|---|"
    for name, command in sorted(tables.commands.items()):
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in _ALL_HAVE:
                kind = "" if option.is_flag else f" {option.make_metavar(click.Context(command))}"
                default = f" (default {option.default})" if option.show_default else ""
                yield f"| `{name}` | `{option.opts[0]}{kind}` | {option.help}{default} |"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stderr.write(f"{PAGE}\n")
