"""`k2 shell` and `k2 tail` at a pseudo-terminal, against a server that is a process of its own and may die."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from tests.support.kafka import eventually
from tests.support.served import ServedProcess
from tests.support.terminal import CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal, terminal

#: Minutes of work, so that what ends it is Ctrl-C.
LONG = "SELECT count(*) FROM range(10_000_000) a, range(10_000_000) b WHERE a.range + b.range = 7"


#: The shell waits for a key again, below whatever was shown.
ANY, PROMPT = ".*", r"\nk2>\s*\Z"


@pytest.fixture(scope="module")
def served() -> Iterator[ServedProcess]:
    served = ServedProcess(rows=1_000)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def shell(served: ServedProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    state = tmp_path_factory.mktemp("state")
    with terminal("shell", "--uri", served.uri, env={"XDG_STATE_HOME": str(state)}) as shell:
        shell.sees(PROMPT)
        yield shell


def runs(served: ServedProcess, count: int) -> None:
    """Waits until so many of LONG run on the server."""
    sql = "SELECT count(*) AS n FROM ops.statements WHERE text LIKE '%.range = 7'"
    with clients.connect(served.uri) as k2:
        eventually(lambda: k2.arrow(sql)["n"][0].as_py() == count, timeout_s=90, what=f"{count} run")


def test_a_statement_of_two_lines_is_answered(shell: Terminal) -> None:
    shell.type("SELECT 41 + 1" + ENTER + "AS answer;" + ENTER)
    assert "42" in shell.sees(r"answer[\s─]+42\s+1 row\s+[\d.,]+ ms" + PROMPT)


def test_tab_completes_tables_and_functions(shell: Terminal) -> None:
    shell.sees(PROMPT)
    shell.type("SELECT count(*) AS n FROM market.tra" + TAB)
    shell.sees("des")  # only what is new is drawn; that it is market.trades, the answer tells
    shell.type(";" + ENTER)
    assert "1000" in shell.sees(r"(?s)n\s[\s─]+1000\s+1 row" + ANY + PROMPT)
    shell.type("SELECT count(*) AS n FROM ohl" + TAB)
    shell.sees(r"cv\(")
    shell.type("'BTCUSDT', every := '1d');" + ENTER)
    shell.sees(r"(?s)1 row" + ANY + PROMPT)


def test_ctrl_c_lets_a_line_go_and_ends_a_statement(shell: Terminal, served: ServedProcess) -> None:
    shell.type("SELECT nonsense" + CTRL_C)
    shell.sees(PROMPT)
    shell.type("SELECT 'still ' || 'here' AS said;" + ENTER)
    shell.sees("(?s)still here" + ANY + PROMPT)
    shell.type(LONG + ";" + ENTER)
    runs(served, 1)
    shell.type(CTRL_C)
    shell.sees("cancelled" + PROMPT)
    runs(served, 0)


def test_watch_goes_on_until_ctrl_c(shell: Terminal) -> None:
    shell.type("SELECT 'tick' AS watched;" + ENTER)
    shell.sees("(?s)1 row" + ANY + PROMPT)
    shell.type("\\watch 0.1" + ENTER)
    shell.sees(r"(?s)1 row.*1 row.*1 row")
    shell.type(CTRL_C)
    shell.sees(PROMPT)


def test_a_mistake_is_a_sentence_and_wide_rows_have_a_way(shell: Terminal) -> None:
    shell.type("SELECT * FROM ohlvc('BTCUSDT');" + ENTER)
    assert "Traceback" not in shell.sees(r'(?s)Did you mean "ohlcv"\?.*\^' + ANY + PROMPT)
    shell.type("SELECT * FROM market.trades LIMIT 1;" + ENTER)
    shell.sees(r"(?s)more columns: .*1 row" + ANY + PROMPT)
    shell.type("\\format lines" + ENTER)
    shell.sees(PROMPT)
    shell.type("SELECT * FROM market.trades LIMIT 1;" + ENTER)
    shell.sees(r"(?s)_kafka_offset +\d+\s+1 row" + ANY + PROMPT)


def test_what_was_typed_is_there_the_next_time(shell: Terminal, served: ServedProcess, tmp_path: Path) -> None:
    again = {"XDG_STATE_HOME": str(tmp_path)}
    with terminal("shell", "--uri", served.uri, env=again) as first:
        first.sees(PROMPT)
        first.type("SELECT 'remem' || 'bered' AS x;" + ENTER)
        first.sees("(?s)remembered" + ANY + PROMPT)
        first.type("exit" + ENTER)
        assert first.ends() == 0
    with terminal("shell", "--uri", served.uri, env=again) as second:
        second.sees(PROMPT)
        second.type(UP + UP + ENTER)
        second.sees("(?s)remembered" + ANY + PROMPT)
        second.type(CTRL_D)
        assert second.ends() == 0


def test_rows_are_followed_until_ctrl_c(shell: Terminal, served: ServedProcess) -> None:
    shell.type("SUBSCRIBE (SELECT symbol, side FROM market.trades WHERE trade_id < 2);" + ENTER)
    shell.sees(r"BTCUSDT +(BUY|SELL)\s+BTCUSDT")
    shell.type(CTRL_C)
    shell.sees("cancelled" + PROMPT)
    with terminal("tail", "BTCUSDT", "--uri", served.uri) as tail:
        tail.sees("following BTCUSDT; Ctrl-C ends it")
        tail.type(CTRL_C)
        assert tail.ends() == 0
        assert "Traceback" not in tail.text


def test_a_server_that_dies_is_said_and_the_shell_stays(shell: Terminal, served: ServedProcess) -> None:
    """The last one: the server is gone behind it."""
    shell.type(LONG + ";" + ENTER)
    runs(served, 1)
    served.kill()
    shell.sees(r"(?s)the connection is lost.*connects\s+again" + ANY + PROMPT)
    shell.type("SELECT 1;" + ENTER)
    shell.sees(r"(?s)no server could be reached" + ANY + PROMPT)
    shell.type(CTRL_D)
    assert shell.ends() == 0
    assert "Traceback" not in shell.text
