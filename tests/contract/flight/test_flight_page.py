"""docs/flight-sql.md is run: each block of Python and of JavaScript, and the JDBC URL, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROWS, Served

from tests.support import jdbc
from tests.support.missing import MissingTool, skip_or_fail
from tests.support.npm_clients import modules

PAGE = (Path(__file__).resolve().parents[3] / "docs/flight-sql.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:50051"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def at(served: Served, text: str) -> str:
    assert ADDRESS in text
    return text.replace(ADDRESS, served.uri.rpartition("/")[2])


@pytest.mark.filterwarnings("ignore:Cannot disable autocommit")
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_block_of_python(served: Served, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(at(served, blocks("python")[number]), f"block {number}", "exec"), {})
    assert capsys.readouterr().out


def test_the_block_of_javascript(served: Served) -> None:
    (block,) = blocks("js")
    try:
        folder = modules()
    except MissingTool as why:
        skip_or_fail(why)
    port = served.uri.rpartition(":")[2]
    script = f"(async () => {{ {block.replace('50051', port)} }})()"
    environment = {**os.environ, "NODE_PATH": str(folder / "node_modules")}
    done = subprocess.run(["node", "-e", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "BTCUSDT" in done.stdout, done.stderr


def test_the_url_of_jdbc(served: Served) -> None:
    (url,) = re.findall(r"^    (jdbc:\S+)$", PAGE, re.MULTILINE)
    try:
        jdbc.start_jvm()
    except MissingTool as why:
        skip_or_fail(why)
    assert at(served, url) == jdbc.url_of(served.uri)
    with jdbc.connected(served.uri) as connection:
        assert jdbc.query(connection, "select count(*) from market.trades")[1] == [[ROWS]]
