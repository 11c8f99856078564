"""Write the table of functions in docs/sql.md from the server's own list, for `just docs`; a test holds it current."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb

from flight_server.engine.market.arguments import Call
from flight_server.engine.market.registry import listing

PAGE = Path(__file__).with_name("sql.md")
BEGIN, END = "<!-- functions: written by docs/sql_page.py -->", "<!-- end of functions -->"


def page() -> str:
    """The page with the functions as they are now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = "\n".join(_rows())
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{after}"


def _rows() -> Iterator[str]:
    yield "| function | what it gives | example |"
    yield "|---|---|---|"
    for _name, kind, arguments, returns, help_, example in duckdb.sql(listing(Call({}))).fetchall():
        columns = returns if kind == "macro" else f"columns: {returns}"
        yield f"| {kind}<br>`{arguments}` | {help_}<br>{columns} | `{example}` |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stderr.write(f"{PAGE}\n")
