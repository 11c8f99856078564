"""SQL as files, asked by every client: cases/NAME.sql, and in NAME.json the columns and rows of its answer.

Values are written as tests/support/canonical.py says. What one client shows differently stands under "but", with the
reason: other rows, or the words of its error. A client that begins to do better fails here, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Served

from tests.support import flight_clients
from tests.support.flight_clients import Ask
from tests.support.missing import MissingTool, skip_or_fail
from tests.support.npm_clients import NpmClients

CASES = sorted((Path(__file__).parent / "cases").glob("*.sql"))

#: The name of a client in the cases and in docs/flight-sql.md -> how it asks.
CLIENTS: dict[str, Callable[[str], Ask]] = {
    "pyarrow": flight_clients.by_pyarrow,
    "adbc": flight_clients.by_adbc,
    "dbapi": flight_clients.by_dbapi,
    "k2": flight_clients.by_k2,
    "pandas": flight_clients.by_pandas,
    "polars": flight_clients.by_polars,
    "polars-uri": flight_clients.by_polars_uri,
    "sqlalchemy": flight_clients.by_sqlalchemy,
    "jdbc": flight_clients.by_jdbc,
}
NPM_CLIENTS = {name: flight_clients.by_npm(name) for name in ("firetiger", "lancedb")}


@pytest.fixture(scope="module")
def node(served: Served) -> Iterator[NpmClients]:
    try:
        node = NpmClients(served.uri)
    except MissingTool as why:
        skip_or_fail(why)
    yield node
    node.close()


@pytest.fixture(scope="module", params=[*CLIENTS, *NPM_CLIENTS])
def client_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ask(client_name: str, served: Served, request: pytest.FixtureRequest) -> Ask:
    if client_name in NPM_CLIENTS:
        return NPM_CLIENTS[client_name](request.getfixturevalue("node"))
    try:
        return CLIENTS[client_name](served.uri)
    except MissingTool as why:
        skip_or_fail(why)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case(ask: Ask, client_name: str, path: Path) -> None:
    case = _case(path)
    but = case.get("but", {}).get(client_name, {})
    sql = path.read_text(encoding="utf-8")
    if "error" in but:
        with pytest.raises(Exception) as caught:
            ask(sql)
        assert but["error"] in str(caught.value)
        return
    answer = ask(sql)
    names, types = ([column[place] for column in case["columns"]] for place in (0, 1))
    assert answer.names == but.get("names", names)
    if answer.types is not None:
        assert answer.types == but.get("types", types)
    # As text: in Python 1, 1.0 and True are equal, and here they are not.
    assert json.dumps(answer.rows) == json.dumps(but.get("rows", case["rows"]))


def test_every_case_has_its_answer_and_a_reason_for_what_differs() -> None:
    assert CASES
    assert {path.stem for path in CASES} == {path.stem for path in (Path(__file__).parent / "cases").glob("*.json")}
    for path in CASES:
        for client, but in _case(path).get("but", {}).items():
            assert client in CLIENTS or client in NPM_CLIENTS, path
            assert but["why"] and set(but) - {"why"} <= {"names", "types", "rows", "error"}, path


@pytest.mark.parametrize("rows", [100_000])
def test_a_long_result_comes_whole(ask: Ask, client_name: str, rows: int) -> None:
    """Many batches, through every client: each row once, and in order."""
    answer = ask(f"select range as i from range({rows})")
    assert [row[0] for row in answer.rows] == list(range(rows))


@pytest.mark.parametrize("sql", ["selec 1", "select * from market.nope", "insert into market.trades values (1)"])
def test_an_error_keeps_the_servers_words(ask: Ask, client_name: str, sql: str) -> None:
    said = {
        "selec 1": 'syntax error at or near "selec"',
        "select * from market.nope": "Table with name nope does not exist",
        "insert into market.trades values (1)": "market.trades is read-only",
    }
    with pytest.raises(Exception) as caught:
        ask(sql)
    assert said[sql] in str(caught.value)
    assert "Traceback" not in str(caught.value)


def _case(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return case
