"""What was typed, run: a statement at a time on one session, its result drawn, its errors said in a sentence.

Guarantee: Ctrl-C ends the statement and not the shell, and a lost connection is made again at the next statement.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TypeVar

import click
import pyarrow as pa
from rich.console import Console
from rich.text import Text

from clients import ClientError, Connection, QueryError
from clients.formats import Format, write
from common.clock import Clock
from common.errors import K2Error, SettingsError
from k2.server_options import Server
from k2.shell import statements
from k2.shell.completion import COLUMNS_SQL, COMMANDS, FUNCTIONS_SQL, Catalog
from k2.shell.interrupting import LeftBehind, close_beside, run_cancellable
from k2.shell.statements import Meta
from k2.tail import lines
from k2.terminal_plot import plot_text

#: What is read of a result; the rest is for `k2 export`.
ROWS_READ_MAX = 10_000
_FORMATS: dict[str, Format] = {"table": "table", "lines": "lines", "csv": "csv", "json": "json"}
#: A statement that begins so may change which tables there are.
_CHANGING = ("create", "drop", "alter")
_LOST = frozenset({"UNAVAILABLE"})
_ANEW = "this session's own tables are gone with it, and the next statement connects again"
_T = TypeVar("_T")


class Leave(Exception):
    """\\q was typed."""


class Shell:
    """One session. Used by one thread, that of the prompt; statements run on another one."""

    def __init__(
        self,
        server: Server,
        console: Console,
        clock: Clock,
        pause: Callable[[float], None] = time.sleep,
        notes: Console | None = None,
    ) -> None:
        """`pause` is what \\watch waits with; `notes` gets what is no result: errors, timings, what became of it."""
        self._server, self._console, self._clock, self._pause = server, console, clock, pause
        self._notes = notes or console
        self._connection: Connection | None = None
        self._as_of: str | None = None
        self._is_timing = True
        self._format: Format = "table"
        self._latest: tuple[str, pa.Table] | None = None
        self._cut: str | None = None
        self.catalog = Catalog()
        self.learned = threading.Event()
        """Set once the catalog was read, or could not be."""
        self.failed: K2Error | None = None
        """What the latest statement failed with."""
        self.is_interrupted = False
        """Whether Ctrl-C ended it."""

    # -- what the prompt asks

    def run(self, text: str) -> None:
        """Statements with their semicolons, or one command; the first that fails ends them. Raises Leave only."""
        self.failed, self.is_interrupted = None, False
        try:
            command = statements.meta(text)
            if command is not None:
                self._command(command)
                return
            parsed = statements.parse(text)
            for each in (*parsed.statements, *([parsed.rest] if parsed.rest else [])):
                self._statement(each)
        except K2Error as error:
            self.failed = error
            self.say_error(error)
        except KeyboardInterrupt:
            self.is_interrupted = True
            self._notes.print("cancelled", style="yellow")

    def prompt(self) -> str:
        return "k2> " if self._as_of is None else "k2 (then)> "

    def connect(self) -> None:
        """Raises ConnectError."""
        self._connection = self._server.connect()

    def learn(self) -> None:
        """Read the catalog, for completion; on a connection of its own. Raises ClientError."""
        with self._server.connect() as connection:
            columns = connection.arrow(COLUMNS_SQL).to_pylist()
            functions = connection.arrow(FUNCTIONS_SQL).to_pylist()
        self.catalog = Catalog.of([tuple(row.values()) for row in columns], [tuple(row.values()) for row in functions])

    def learn_beside(self) -> None:
        """As `learn`, on a thread of its own. Without a catalog less is completed, and nothing else is missing."""

        def learn() -> None:
            try:
                self.learn()
            except ClientError as error:
                self._notes.print(f"names cannot be completed: {error}", style="dim")
            finally:
                self.learned.set()

        threading.Thread(target=learn, name="k2-shell-catalog", daemon=True).start()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def say_error(self, error: K2Error) -> None:
        """The sentence, and where in the statement, when the server says that."""
        sentence, _, position = str(error).partition("\n\nLINE ")
        self._notes.print(Text(sentence, style="bold red"))
        if position:
            self._notes.print(Text(f"LINE {position}", style="red"), soft_wrap=True)  # the ^ stays under its word

    # -- statements

    def _statement(self, sql: str, form: Format | None = None) -> None:
        if sql.lower().startswith("subscribe"):
            self._cancellable(lambda connection: self._follow(connection, sql))
            return
        begin_s = self._clock.monotonic_s()
        table, is_all = self._cancellable(lambda connection: self._read(connection, sql))
        taken_ms = (self._clock.monotonic_s() - begin_s) * 1000
        self._latest = (sql, table)
        self._show(table, form, is_all=is_all)
        if self._is_timing:
            self._notes.print(f"{taken_ms:,.1f} ms", style="dim")
        if sql.lower().startswith(_CHANGING):
            self.learn_beside()

    def _read(self, connection: Connection, sql: str) -> tuple[pa.Table, bool]:
        """The first rows, and whether they are all."""
        with connection.stream(sql, at=self._as_of) as stream:
            self._cut = stream.cut or self._as_of
            batches, rows = [], 0
            for batch in stream:
                batches.append(batch)
                rows += batch.num_rows
                if rows > ROWS_READ_MAX:
                    break
            table = pa.Table.from_batches(batches, stream.schema)
        return table.slice(0, ROWS_READ_MAX), rows <= ROWS_READ_MAX

    def _follow(self, connection: Connection, sql: str) -> None:
        """Rows as they arrive, a line each, until Ctrl-C."""
        with connection.stream(sql) as stream:
            for batch in stream:
                for line, style in lines(batch):
                    self._console.print(Text(line, style=style or ""), soft_wrap=True)

    def _cancellable(self, work: Callable[[Connection], _T]) -> _T:
        """The work's result, or KeyboardInterrupt when Ctrl-C ended it. A lost connection is had back, but what was
        half done is not done again."""
        if self._connection is None:
            self.connect()
        connection = self._connection
        assert connection is not None
        try:
            return run_cancellable(connection, work)
        except LeftBehind:
            self._let_go()
            raise QueryError(
                f"the server does not end the statement, and its connection was left behind; {_ANEW}", code="CANCELLED"
            ) from None
        except QueryError as error:
            if error.code not in _LOST:
                raise
            self._let_go()
            raise QueryError(f"the connection is lost ({error}); {_ANEW}", code=error.code) from None

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            close_beside(connection)

    def _show(self, table: pa.Table, form: Format | None, *, is_all: bool) -> None:
        out = io.BytesIO()
        width = self._console.width if self._console.is_terminal else None
        write(table.schema, table.to_batches(), form or self._format, out, width=width)
        text = out.getvalue().decode()
        self._console.file.write(text)
        if not is_all:
            self._notes.print(
                f"only the first {ROWS_READ_MAX:,} rows were read; `k2 export` writes them all", style="yellow"
            )

    # -- the shell's own commands

    def _command(self, command: Meta) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "?": self._help,
            "d": self._describe,
            "df": self._functions,
            "as_of": self._read_as_of,
            "cut": self._say_cut,
            "format": self._choose_format,
            "plot": self._plot,
            "timing": self._switch_timing,
            "watch": self._watch,
            "q": self._leave,
        }
        found = commands.get(command.name)
        if found is None:
            raise SettingsError(f"there is no command \\{command.name}; \\? lists them")
        found(command.rest)

    def _help(self, _: str) -> None:
        for name, about in COMMANDS.items():
            self._console.print(Text.assemble((f"\\{name:<8}", "bold"), about))
        self._console.print("A statement ends with a semicolon and Enter. Ctrl-C cancels it. Tab completes.")

    def _describe(self, rest: str) -> None:
        if rest:
            self._statement(f"DESCRIBE {rest}")
        else:
            self._statement(
                "SELECT table_schema, table_name, count(*) AS columns FROM information_schema.columns "
                "WHERE table_schema IN ('market', 'ops', 'research') OR table_catalog = 'temp' "
                "GROUP BY ALL ORDER BY ALL"
            )

    def _functions(self, rest: str) -> None:
        if not rest:
            self._statement(
                "SELECT name, kind, regexp_extract(help, '^[^.;:]*') AS help FROM k2_functions() "
                "ORDER BY kind DESC, name"
            )
            return
        known = {**self.catalog.table_functions, **{n: a for n, a in self.catalog.functions.items() if a}}
        if known and rest not in known and "%" not in rest:
            near = get_close_matches(rest, known, n=1)
            meant = f"did you mean {near[0]}?" if near else "\\df lists them"
            raise SettingsError(f"K2 has no function {rest!r}; {meant}")
        wanted = rest.replace("'", "''")
        self._statement(
            "SELECT name, kind, arguments, returns, help, example FROM k2_functions() "
            f"WHERE name LIKE '{wanted}' ORDER BY kind DESC, name",
            "lines",
        )

    def _read_as_of(self, rest: str) -> None:
        if not rest:
            self._console.print("the newest" if self._as_of is None else self._as_of, soft_wrap=True)
            return
        before, self._as_of = self._as_of, None if rest == "now" else rest.strip("'")
        try:
            self._cancellable(lambda connection: self._read(connection, "SELECT 1"))
        except K2Error:
            self._as_of = before
            raise

    def _say_cut(self, _: str) -> None:
        if self._cut is None:
            raise SettingsError("no result has a cut yet: it comes with each that reads a table of market")
        self._console.file.write(f"{self._cut}\n")

    def _choose_format(self, rest: str) -> None:
        if rest not in _FORMATS:
            raise SettingsError(f"a result is shown as {', '.join(_FORMATS)}, not as {rest!r}")
        self._format = _FORMATS[rest]

    def _plot(self, rest: str) -> None:
        if self._latest is None:
            raise SettingsError("there is no result to plot yet; run a statement first")
        height = max(10, min(24, self._console.height - 2))
        columns = rest.replace(",", " ").split()
        plot = plot_text(self._latest[1], width=self._console.width, height=height, columns=columns)
        self._console.file.write((plot if self._console.color_system else click.unstyle(plot)) + "\n")

    def _switch_timing(self, rest: str) -> None:
        self._is_timing = statements.is_on(rest, self._is_timing)
        self._console.print(f"timing is {'on' if self._is_timing else 'off'}")

    def _watch(self, rest: str) -> None:
        wait_s = statements.seconds(rest)
        if self._latest is None:
            raise SettingsError("there is no statement to watch yet; run one first")
        sql = self._latest[0]
        while True:
            self._console.print(
                datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC).isoformat(" ", "seconds"), style="dim"
            )
            self._statement(sql)
            self._pause(wait_s)

    def _leave(self, _: str) -> None:
        raise Leave
