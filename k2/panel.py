"""What `k2 demo` shows: the stages, the latest answers, and the lines to paste into other programs. Draws only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

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
        parts: list[RenderableType] = [Box(self._stages(shown), title="K2", border_style="cyan")]
        parts += [_answer(answer) for answer in self.answers]
        parts.append(Box(self._paste(), title="connect", border_style="green"))
        return Group(*parts)

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
        lines.add_row(
            "Python", Text(f'import clients; clients.connect("{self._uri}").polars("FROM market.trades LIMIT 5")')
        )
        adbc = f'db.connect("{self._uri}", autocommit=True)'
        lines.add_row("ADBC", Text(f"import adbc_driver_flightsql.dbapi as db; connection = {adbc}"))
        lines.add_row("polars", Text(f'pl.read_database("FROM market.quotes LIMIT 5", {adbc})'))
        lines.add_row("DBeaver", Text(f"jdbc:arrow-flight-sql://{host}:{port}/?useEncryption=false"))
        lines.add_row("shell", Text(f'k2 query --uri {self._uri} "SELECT count(*) FROM market.trades"'))
        lines.add_row("", Text("Ctrl-C ends it all", style="dim"))
        return lines


def _answer(answer: Answer) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for name in answer.table.column_names:
        table.add_column(name, justify="right", overflow="fold")
    for row in answer.table.slice(0, _ROWS_SHOWN).to_pylist():
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    more = answer.table.num_rows - _ROWS_SHOWN
    return Group(
        Text(f"{answer.name}  ({answer.ms:.1f} ms)", style="bold"),
        table,
        Text(f"and {more} more" if more > 0 else "", style="dim"),
    )
