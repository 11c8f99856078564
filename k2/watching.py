"""How the command shows a job at work: bars on a terminal, silence elsewhere; Ctrl-C ends it between two steps."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from common.errors import Interrupted
from k2.runner import stop_on_signals
from sink.maintenance.jobs import Progress as JobProgress


@contextlib.contextmanager
def watched(*, quiet: bool = False, about: str = "", stop: threading.Event | None = None) -> Iterator[JobProgress]:
    """A progress to hand to a job. Bars go to standard error, when that is a terminal and `quiet` is not asked for;
    `about` stands before each.

    SIGINT and SIGTERM end the job with Interrupted at its next step or part of one; with `stop`, its being set does.
    """
    console = Console(file=sys.stderr)
    with (
        contextlib.nullcontext(stop) if stop is not None else stop_on_signals() as stopping,
        _bars(console, shown=console.is_terminal and not quiet) as bars,
    ):
        yield _Watched(bars, stopping, about)


def _bars(console: Console, *, shown: bool) -> Progress:
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=not shown, transient=True)


class _Watched:
    """A bar for the step that is at work, in the place of the one before."""

    def __init__(self, bars: Progress, stop: threading.Event, about: str) -> None:
        self._bars, self._stop, self._about = bars, stop, about
        self._bar: TaskID | None = None

    def step(self, doing: str, total: int | None = None) -> None:
        self._end_if_asked(doing)
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._bar = self._bars.add_task(f"{self._about} {doing}".lstrip(), total=total)

    def advance(self, units: int = 1) -> None:
        if self._bar is not None:
            self._bars.advance(self._bar, units)
        self._end_if_asked("the rest of this step")

    def _end_if_asked(self, doing: str) -> None:
        if self._stop.is_set():
            raise Interrupted(f"stopped before the next step ({doing}); nothing is half done, run it again to go on")
