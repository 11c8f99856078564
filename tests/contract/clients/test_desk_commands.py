"""`k2 query`, `k2 bars --plot` and `k2 shell` against a real K2."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import clients
from common.clock import ManualClock
from common.errors import K2Error
from k2.cli import cli
from k2.server_options import Server
from k2.shell.shell import Leave, Shell
from tests.support.kafka import eventually
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.records import trade

COUNT = 120


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("lake"), threads=2, memory_bytes_max=512 * 1024**2)
    at = datetime.now(UTC) - timedelta(minutes=COUNT)
    live.produce([trade(n, event_time=at + timedelta(minutes=n)) for n in range(COUNT)])
    with clients.connect(live.service.uri) as k2:
        while k2.arrow("SELECT count(*) AS n FROM market.trades")["n"][0].as_py() < COUNT:
            pass
    yield live
    live.stop()


def k2(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(cli, arguments, input=stdin, prog_name="k2")


class Typed:
    """A shell whose output is text."""

    def __init__(self, live: Live) -> None:
        self.out = io.StringIO()
        self.waited: list[float] = []
        console = Console(file=self.out, width=100, height=30, highlight=False, soft_wrap=True)
        self.shell = Shell(Server(live.service.uri), console, ManualClock(), self._pause)

    def _pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        if len(self.waited) == 2:
            raise KeyboardInterrupt

    def run(self, text: str) -> str:
        self.out.seek(0)
        self.out.truncate()
        self.shell.run(text)
        return self.out.getvalue()


@pytest.fixture
def typed(live: Live) -> Iterator[Typed]:
    typed = Typed(live)
    yield typed
    typed.shell.close()


def test_a_query_from_standard_input_and_at_a_cut(live: Live) -> None:
    counted = "SELECT count(*) AS n FROM market.trades WHERE trade_id < 1000"
    first = k2("query", "--uri", live.service.uri, "--format", "csv", "--cut", stdin=counted)
    assert first.stdout == f"n\n{COUNT}\n"
    cut = first.stderr.strip()
    assert "market.trades" in cut
    live.produce([trade(COUNT)])
    then = k2("query", "--uri", live.service.uri, "--format", "csv", "--at", cut, counted)
    assert then.stdout == f"n\n{COUNT}\n"


def test_a_tail_ends_after_its_count_and_goes_on_from_a_cut(live: Live) -> None:
    with clients.connect(live.service.uri) as connection:
        connection.arrow("SELECT count(*) FROM market.trades")
        cut = connection.cut
    assert cut is not None
    live.produce([trade(n, symbol="TAIL") for n in range(5_000, 5_003)])
    done = k2("tail", "tail", "--uri", live.service.uri, "--from-cut", cut, "--count", "3")
    assert done.exit_code == 0, done.output
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["TAIL"] * 3
    wrong = k2("tail", "TAIL", "--sql", "SELECT 1", "--uri", live.service.uri)
    assert "exclude each other" in str(wrong.exception)


def test_a_tail_that_is_stopped_says_where_to_go_on(live: Live) -> None:
    """Nothing comes when the signal does: the command waits for the wire, and ends all the same."""
    tail = Process("tail", "STOP", "--uri", live.service.uri, env={})
    try:
        with clients.connect(live.service.uri) as connection:
            running = "SELECT count(*) AS n FROM ops.statements WHERE text LIKE 'SUBSCRIBE%STOP%'"
            eventually(lambda: connection.arrow(running)["n"][0].as_py() == 1, timeout_s=90, what="it follows")
        assert tail.stop(60) == 0, tail.lines
    finally:
        tail.kill()
    assert not [line for line in tail.lines if "Traceback" in line]


def test_bars_are_drawn_as_candles(live: Live) -> None:
    done = k2("bars", "--plot", "BTCUSDT", "--interval", "5m", "--last", "90m", "--uri", live.service.uri)
    assert done.exit_code == 0, done.output
    assert "BTCUSDT  5m" in done.output and "█" in done.output and "bars, volume" in done.output
    nothing = k2("bars", "--plot", "NONE", "--uri", live.service.uri)
    assert isinstance(nothing.exception, K2Error) and "NONE" in str(nothing.exception)
    assert "--plot stands alone" in str(k2("bars", "--plot", "X", "status").exception)


def test_statements_and_their_timings(typed: Typed) -> None:
    shown = typed.run(
        "SELECT 1 AS one; SELECT symbol, count(*) AS n FROM market.trades WHERE trade_id < 10 GROUP BY ALL;"
    )
    assert "one" in shown and "BTCUSDT" in shown and shown.count("1 row") == 2 and shown.count(" ms") == 2
    assert "timing is off" in typed.run("\\timing") and " ms" not in typed.run("SELECT 1;")
    typed.run("\\format csv")
    assert typed.run("SELECT 1 AS a, NULL AS b;") == "a,b\n1,\n"


def test_an_error_is_a_sentence_with_its_place(typed: Typed) -> None:
    shown = typed.run("SELECT nope FROM market.trades;")
    assert "nope" in shown and "LINE 1:" in shown and "^" in shown and "Traceback" not in shown
    assert typed.shell.failed is not None
    assert "there is no command \\nope" in typed.run("\\nope")
    assert "no result to plot" in typed.run("\\plot")


def test_the_past_and_the_cut(typed: Typed, live: Live) -> None:
    counted = "SELECT count(*) AS n FROM market.trades;"
    typed.run("\\format csv")
    typed.run("\\timing off")
    before = typed.run(counted)
    cut = typed.run("\\cut").strip()
    live.produce([trade(6_000)])
    assert "not" not in typed.run(f"\\as_of {cut}")
    assert typed.run(counted) == before and typed.shell.prompt() == "k2 (then)> "
    assert "no instant of the past" in typed.run("\\as_of yesterday")
    typed.run("\\as_of now")
    assert typed.shell.prompt() == "k2> "


def test_what_there_is(typed: Typed) -> None:
    assert "trades" in typed.run("\\d") and "event_time" in typed.run("\\d market.trades")
    assert "ohlcv" in typed.run("\\df") and "bar_start" in typed.run("\\df ohlcv")
    assert "\\watch" in typed.run("\\?")
    typed.shell.learn()
    assert "price" in typed.shell.catalog.columns["market.trades"] and "ohlcv" in typed.shell.catalog.table_functions
    with pytest.raises(Leave):
        typed.run("\\q")


def test_a_plot_and_a_watch_that_ctrl_c_ends(typed: Typed) -> None:
    typed.run("SELECT event_time, price FROM market.trades ORDER BY event_time LIMIT 50;")
    assert "price" in typed.run("\\plot") and "no column 'x'" in typed.run("\\plot x")
    watched = typed.run("\\watch 7")
    assert typed.waited == [7.0, 7.0] and watched.count("50 rows") == 2 and "cancelled" in watched


def test_statements_from_standard_input_end_at_the_first_that_fails(live: Live) -> None:
    done = k2(
        "shell", "--uri", live.service.uri, stdin="\\timing off\nSELECT 41 + 1 AS a;\nSELECT\n nope;\nSELECT 5;\n"
    )
    assert "42" in done.output and "nope" in done.output and "5\n" not in done.output
    assert done.exit_code == 4
