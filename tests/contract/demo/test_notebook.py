"""The README, the notebook and the pages, run against a demo as a reader runs them."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from nbclient import NotebookClient

import clients
from k2.cli import cli
from k2.shell.statements import parse
from tests.support.kafka import eventually
from tests.support.processes import started

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "docs/notebooks/market-day.ipynb"
RECIPES = sorted((ROOT / "docs/recipes").glob("*.md"))
README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SQL = re.compile(r"^```sql\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^uv run k2 (?!demo|shell)(.+?)(?:\s+#.*)?$", re.MULTILINE)
#: Where the pages say that the server is.
SAID = "grpc://127.0.0.1:50051"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"grpc://127.0.0.1:{port}"
    folder = tmp_path_factory.mktemp("lake")
    arguments = ("demo", "--flight-port", str(port), "--rate", "500", "--data-dir", str(folder))
    with started(*arguments, env={}) as demo:
        eventually(lambda: _has_rows(uri), timeout_s=300.0, what="the demo shows trades and quotes")
        yield uri
        demo.stop(120.0)


def _has_rows(uri: str) -> bool:
    """Enough for a candle and for markouts."""
    sql = (
        "SELECT (SELECT max(event_time) - min(event_time) > INTERVAL 4 SECONDS FROM market.trades "
        "WHERE symbol = 'BTCUSDT') AND (SELECT count(*) > 10 FROM market.quotes WHERE symbol = 'BTCUSDT') AS enough"
    )
    try:
        with clients.connect(uri) as k2:
            return bool(k2.arrow(sql)["enough"][0].as_py())
    except clients.ClientError:
        return False  # it is starting


def test_the_notebook_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_URI", uri)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "it is committed without its outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert any("trades, equal" in str(output.get("data", {}).get("text/plain")) for output in outputs)


def test_there_are_recipes() -> None:
    assert {"pandas.md", "polars.md", "duckdb.md"} <= {page.name for page in RECIPES if BLOCK.search(page.read_text())}


@pytest.mark.parametrize(
    "page", [page for page in RECIPES if BLOCK.search(page.read_text())], ids=lambda page: page.name
)
def test_the_python_of_a_recipe_runs(page: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block.replace(SAID, uri), str(page), "exec"), names)


def test_the_python_of_the_readme_runs(uri: str) -> None:
    (block,) = BLOCK.findall(README.read_text())
    names: dict[str, Any] = {}
    exec(compile(block.replace(SAID, uri), str(README), "exec"), names)
    assert len(names["bars"]) and len(names["day"])


@pytest.mark.parametrize("page", [README, ROOT / "docs/sql.md"], ids=lambda page: page.name)
def test_the_sql_of_a_page_runs(page: Path, uri: str) -> None:
    """In order, on one session, as it is pasted into a prompt."""
    statements = [one for block in SQL.findall(page.read_text()) for one in parse(block).statements]
    assert len(statements) > 4
    with clients.connect(uri) as k2:
        k2.arrow("SELECT count(*) FROM market.trades")
        assert k2.cut is not None
        for cut in ("a cut", "a later cut"):
            statements = [one.replace(f"<{cut}>", k2.cut.replace("'", "''")) for one in statements]
        for statement in statements:
            with k2.stream(statement) as result:
                next(iter(result), None)


def test_the_commands_of_the_readme_run(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("K2_URI", uri)
    section = README.read_text().partition("## Ask it something")[2].partition("## ")[0]
    commands = [shlex.split(line) for line in COMMAND.findall(section)]
    assert {arguments[0] for arguments in commands} == {"query", "tail", "bars", "export"}
    for arguments in commands:
        ended = ["--count", "2"] if arguments[0] == "tail" else []
        done = CliRunner().invoke(cli, [*arguments, *ended], prog_name="k2")
        assert done.exit_code == 0, (arguments, done.output, done.exception)
    assert (tmp_path / "trades.parquet").stat().st_size and (tmp_path / "trades/_k2_export.json").exists()
