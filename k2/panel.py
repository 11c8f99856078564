"""What `k2 demo` shows: the stages, the lines to paste into other programs, and the latest answers. Draws only.

In this order, for a terminal that is too low shows the beginning: what is needed comes first. No line that is to be
pasted is longer than 80 characters, or has a border in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from clients.formats import drawn_rows

if TYPE_CHECKING:
    from k2.demo import Answer

_ROWS_SHOWN = 6


@dataclass(frozen=True)
class Shown:
    """The figures of one moment; counters since start, rates over the last second, None = nothing measured yet."""

    frames: int
    acknowledged: int
    duplicates: int
    dead_letters: int
    gaps: int
    reconnects: int
    rows_committed: int
    commits: int
    tail_rows: int
    frames_per_s: float
    acknowledged_per_s: float
    committed_per_s: float
    freshness_from: str
    freshness_ms_p50: float | None
    freshness_ms_p99: float | None


class Panel:
    """The demo's screen. `answers` may be replaced at any time; `render` draws what is known."""

    def __init__(self, uri: str, broker: str, live: bool) -> None:
        self._uri = uri
        self._broker = broker
        self._market = "Binance" if live else "simulator"
        self.answers: list[Answer] = []

    def render(self, shown: Shown) -> RenderableType:
        stages = Box(self._stages(shown), title="K2", border_style="cyan")
        return Group(stages, self._paste(), *map(_Drawn, self.answers))

    def _stages(self, shown: Shown) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for heading, justify in (("stage", "left"), ("rows", "right"), ("rows/s", "right"), ("", "left")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        table.add_row(
            f"{self._market} -> ingest",
            f"{shown.frames:,}",
            f"{shown.frames_per_s:,.0f}",
            f"{shown.duplicates:,} duplicates dropped, {shown.gaps} gaps, {shown.dead_letters} dead letters, "
            f"{shown.reconnects} reconnects",
        )
        table.add_row(
            "ingest -> Kafka",
            f"{shown.acknowledged:,}",
            f"{shown.acknowledged_per_s:,.0f}",
            f"acknowledged, {self._broker}",
        )
        table.add_row(
            "Kafka -> Iceberg",
            f"{shown.rows_committed:,}",
            f"{shown.committed_per_s:,.0f}",
            f"in {shown.commits:,} commits",
        )
        fresh = (
            "no rows yet"
            if shown.freshness_ms_p50 is None
            else f"fresh: {shown.freshness_from} to queryable p50 {shown.freshness_ms_p50:,.1f} ms, "
            f"p99 {shown.freshness_ms_p99:,.1f} ms"
        )
        table.add_row("Kafka -> tail", f"{shown.tail_rows:,}", "", fresh)
        return table

    def _paste(self) -> RenderableType:
        host, _, port = self._uri.rpartition("://")[2].rpartition(":")
        lines = Table(box=None, show_header=False, pad_edge=False)
        for name, text in (
            ("shell", f"uv run k2 shell --uri {self._uri}"),
            ("Python", f'import clients; k2 = clients.K2("{self._uri}")'),
            ("", 'k2.trades("BTCUSDT").polars()'),
            ("ADBC", "from adbc_driver_flightsql import dbapi"),
            ("", f'connection = dbapi.connect("{self._uri}", autocommit=True)'),
            ("polars", 'pl.read_database("FROM market.trades LIMIT 5", connection)'),
            ("DBeaver", f"jdbc:arrow-flight-sql://{host}:{port}/?useEncryption=false"),
            ("", "Ctrl-C ends it all"),
        ):
            lines.add_row(Text(name, style="green"), Text(text, overflow="fold"))
        return lines


class _Drawn:
    """An answer, as wide as there is room."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._answer.table
        yield Text(f"\n{self._answer.name}  ({self._answer.ms:.1f} ms)", style="bold")
        yield Text(drawn_rows(table.slice(0, _ROWS_SHOWN), options.max_width).rstrip("\n"))
        if table.num_rows > _ROWS_SHOWN:
            yield Text(f"and {table.num_rows - _ROWS_SHOWN} more", style="dim")
