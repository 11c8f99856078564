"""Write the tables of docs/flight-sql.md: `just docs`. A test holds them current.

They are made of three things that cannot drift apart unnoticed: the declarations below, which a test compares with the
names in the protocol's descriptors; the `flight_sql` marks of the contract tests, each of which fails when its client
did not send what it names; and what the SQL cases say of clients that show something differently.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "flight-sql.md"
TESTS = ROOT / "tests" / "contract" / "flight"
_BEGIN = "<!-- {name}: written by `just docs` -->"
_END = "<!-- end of {name} -->"


class Row(NamedTuple):
    """One name of the protocol, whether K2 answers it, and what is to be said of that."""

    name: str
    answered: bool
    note: str


METHODS = (
    Row("Handshake", True, "Basic credentials in, a bearer token out; see [access](access.md)"),
    Row("GetFlightInfo", True, "the exact schema; endpoints that expire, several for a large scan; the cut; `ordered`"),
    Row("GetSchema", True, "to the letter what GetFlightInfo and DoGet say"),
    Row("DoGet", True, "record batches below 4 MiB each; the cut again beside the first"),
    Row("DoPut", True, "updates, ingest, and the parameters of prepared statements"),
    Row("DoAction", True, "the actions below"),
    Row("ListActions", True, "exactly those that are answered"),
    Row("PollFlightInfo", False, "pyarrow's server has no place for it; GetFlightInfo returns before the work begins"),
    Row("ListFlights", False, "there is nothing to list; tables are found with CommandGetTables"),
    Row("DoExchange", False, "Flight SQL has no use for it"),
)
COMMANDS = (
    Row("CommandStatementQuery", True, "planned, and run when it is read; a text that changes something runs at once"),
    Row("TicketStatementQuery", True, "sealed, bound to who asked, good until it expires, readable more than once"),
    Row("CommandPreparedStatementQuery", True, "any number of parameter sets; bound again as often as wanted"),
    Row("CommandStatementUpdate", True, "a session's own tables and the Iceberg namespace `research`"),
    Row("CommandPreparedStatementUpdate", True, "once per row of parameters, all of them one change"),
    Row("CommandStatementIngest", True, "create, append, replace, fail; temporary or in `research`; in a transaction"),
    Row("CommandStatementSubstraitPlan", False, "DuckDB runs no Substrait plans; send SQL"),
    Row("CommandGetCatalogs", True, ""),
    Row("CommandGetDbSchemas", True, ""),
    Row("CommandGetTables", True, "with schemas too: SQL type, precision, scale, remarks and true nullability"),
    Row("CommandGetTableTypes", True, ""),
    Row("CommandGetPrimaryKeys", True, "no rows: Iceberg tables declare no keys"),
    Row("CommandGetExportedKeys", True, "no rows"),
    Row("CommandGetImportedKeys", True, "no rows"),
    Row("CommandGetCrossReference", True, "no rows"),
    Row("CommandGetXdbcTypeInfo", True, ""),
    Row("CommandGetSqlInfo", True, "every number that has a true answer; the version begins with `duckdb `"),
)
ACTIONS = (
    Row("CreatePreparedStatement", True, "the result's schema and the parameters' types, known without running"),
    Row("ClosePreparedStatement", True, ""),
    Row("CreatePreparedSubstraitPlan", False, "DuckDB runs no Substrait plans; send SQL"),
    Row("BeginTransaction", True, "one per session at a time; all of its queries see one cut"),
    Row("EndTransaction", True, ""),
    Row("BeginSavepoint", False, "DuckDB has no savepoints"),
    Row("EndSavepoint", False, "DuckDB has no savepoints"),
    Row("CancelFlightInfo", True, "stops the work, or takes the tickets back before it began"),
    Row("CancelQuery", True, "the older form of CancelFlightInfo"),
    Row("RenewFlightEndpoint", True, "the same endpoint, good for longer"),
    Row("SetSessionOptions", True, "`catalog`, `schema`, `k2.as_of`, `statement_timeout`, `timezone`"),
    Row("GetSessionOptions", True, ""),
    Row("CloseSession", True, "ends its tables, its transaction and its prepared statements"),
)
#: Clients in the order in which they are shown.
CLIENTS = ("pyarrow", "adbc", "jdbc", "polars", "pandas", "sqlalchemy", "npm", "grpc")


class Proof(NamedTuple):
    """A test that is marked with the name of a message, and the client that sent it there."""

    name: str
    client: str
    file: str
    test: str


def proofs() -> Iterator[Proof]:
    """Every `flight_sql` mark of the contract tests, read without running them."""
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.flight_sql":
                    (client,) = (ast.literal_eval(keyword.value) for keyword in mark.keywords)
                    for argument in mark.args:
                        yield Proof(ast.literal_eval(argument), client, path.name, node.name)


def differences() -> Iterator[tuple[str, str, str]]:
    """(client, case, why) for every SQL case that a client answers in its own way."""
    for path in sorted((TESTS / "cases").glob("*.json")):
        for client, but in json.loads(path.read_text(encoding="utf-8")).get("but", {}).items():
            yield client, path.stem, but["why"]


def tables() -> dict[str, str]:
    """Name of a place in the page -> what is to stand there."""
    found = defaultdict(dict)
    for proof in proofs():
        found[proof.name].setdefault(proof.client, proof)
    return {
        "methods": _table("method", METHODS, found),
        "commands": _table("command", COMMANDS, found),
        "actions": _table("action", ACTIONS, found),
        "differences": _differences(),
    }


def page(text: str) -> str:
    """The page with its tables made anew. Raises ValueError when it has not one place for each."""
    for name, table in tables().items():
        begin, end = _BEGIN.format(name=name), _END.format(name=name)
        head, found, rest = text.partition(f"{begin}\n")
        _, closed, tail = rest.partition(end)
        if not found or not closed or begin in tail:
            raise ValueError(f"{PAGE.name} needs exactly one '{begin}' with its '{end}' behind it")
        text = f"{head}{begin}\n{table}{end}{tail}"
    return text


def _table(what: str, rows: tuple[Row, ...], found: dict[str, dict[str, Proof]]) -> str:
    lines = [f"| {what} | answered | | proved by |", "|---|---|---|---|"]
    for row in rows:
        links = [
            f"{client}: [{proof.test.removeprefix('test_').replace('_', ' ')}](../tests/contract/flight/{proof.file})"
            for client in CLIENTS
            if (proof := found.get(row.name, {}).get(client)) is not None
        ]
        lines.append(f"| `{row.name}` | {'yes' if row.answered else 'no'} | {row.note} | {'<br>'.join(links)} |")
    return "\n".join(lines) + "\n"


def _differences() -> str:
    lines = ["| client | case | why |", "|---|---|---|"]
    lines += [
        f"| {client} | [{case}](../tests/contract/flight/cases/{case}.sql) | {why} |"
        for client, case, why in sorted(differences())
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stderr.write(f"wrote {PAGE.name}\n")
