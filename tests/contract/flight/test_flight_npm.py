"""K2 through the Flight SQL clients of npm, beyond the SQL cases: what they ask, and what of Flight SQL they know.

`@firetiger-oss/flight-sql-client` (1.1.1) wraps queries and GetTables as Flight SQL asks, and sends its other commands
bare, which no server can answer. `@lancedb/arrow-flight-sql-client` (0.3.0) runs queries and always logs in.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import ROWS, Served

from tests.support.missing import MissingTool, skip_or_fail
from tests.support.npm_clients import NpmClients, NpmError

INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 3, 5, 7


@pytest.fixture(scope="module")
def node(served: Served) -> Iterator[NpmClients]:
    try:
        node = NpmClients(served.uri)
    except MissingTool as why:
        skip_or_fail(why)
    yield node
    node.close()


@pytest.mark.flight_sql("CommandStatementQuery", "TicketStatementQuery", client="npm")
@pytest.mark.parametrize("client", ["firetiger", "lancedb"])
def test_a_table_is_read(node: NpmClients, client: str) -> None:
    assert node.ask(client, "count", sql="select * from market.trades") == ROWS


@pytest.mark.flight_sql("Handshake", client="npm")
def test_a_client_that_always_logs_in_is_let_in(node: NpmClients) -> None:
    assert node.ask("lancedb", "query", sql="select 1 as a")["rows"] == [[1]]


@pytest.mark.flight_sql("CommandGetTables", client="npm")
def test_the_tables_are_listed(node: NpmClients) -> None:
    tables = {(row["schema"], row["tableName"]): row["tableType"] for row in node.ask("firetiger", "tables")}
    assert tables["market", "trades"] == "TABLE"


@pytest.mark.flight_sql("ListActions", client="npm")
def test_the_actions_are_listed(node: NpmClients) -> None:
    assert {"CreatePreparedStatement", "BeginTransaction"} <= set(node.ask("firetiger", "actions"))


@pytest.mark.parametrize("client", ["firetiger", "lancedb"])
def test_messages_stay_below_the_limit_of_grpc_js(node: NpmClients, client: str) -> None:
    """40 MB in rows of 1 kB and in rows of 1 MB; grpc-js refuses messages of more than 4 MiB."""
    assert node.ask(client, "count", sql="select repeat('x', 1000) || range as v from range(20000)") == 20_000
    assert node.ask(client, "count", sql="select repeat('x', 1000000) as v from range(20)") == 20


@pytest.mark.parametrize("client", ["firetiger", "lancedb"])
@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("selec 1", INVALID_ARGUMENT),
        ("select * from market.nope", NOT_FOUND),
        ("drop table market.trades", PERMISSION_DENIED),
    ],
)
def test_errors_have_their_status(node: NpmClients, client: str, sql: str, code: int) -> None:
    with pytest.raises(NpmError) as caught:
        node.ask(client, "query", sql=sql)
    assert caught.value.code == code
    assert "Traceback" not in str(caught.value)
