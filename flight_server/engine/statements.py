"""What kind of statement a text holds, decided by DuckDB's own parser before anything is planned or run.

Guarantee: `parse` returns exactly one reading statement, or raises InvalidStatement, Unsupported or PermissionDenied
in one sentence. Reading means SELECT and what DuckDB counts as SELECT (VALUES, FROM, DESCRIBE, SHOW, SUMMARIZE, PIVOT
with its values named), and EXPLAIN of one. Table functions are refused unless they only compute (`_TABLE_FUNCTIONS`):
readers of files would go round the cut, and some functions change the server for everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import Enum

import duckdb

from common.errors import InvalidStatement, PermissionDenied, Unsupported
from flight_server.engine.errors import translated


class StatementKind(Enum):
    """How a statement is run; later kinds: UPDATE, DDL."""

    QUERY = "query"
    EXPLAIN = "explain"


@dataclass(frozen=True)
class Statement:
    """One reading statement.

    `text` is what the engine runs; `query` is the part of it that can stand in a subquery (the explained one for
    EXPLAIN). `parameters` are the names in the order of binding: "1", "2" for `?` and `$1`. `reads_tables` is False
    only when the text cannot name a table at all.
    """

    text: str
    query: str
    kind: StatementKind
    parameters: tuple[str, ...]
    reads_tables: bool


#: Table functions that compute, or describe the catalog; every other one that the engine knows is refused.
_TABLE_FUNCTIONS = frozenset(
    """
    range generate_series unnest repeat repeat_row json_each json_tree histogram histogram_values summary
    icu_calendar_names pg_timezone_names test_all_types query_table
    duckdb_columns duckdb_constraints duckdb_databases duckdb_dependencies duckdb_functions duckdb_indexes
    duckdb_keywords duckdb_optimizers duckdb_schemas duckdb_sequences duckdb_tables duckdb_types duckdb_views
    pragma_collations pragma_database_size pragma_platform pragma_show pragma_table_info pragma_user_agent
    pragma_version
    """.split()  # noqa: SIM905  (reads better than forty quoted strings)
)
#: Scalar functions and views with an effect or a secret.
_REFUSED_NAMES = frozenset({"write_log", "duckdb_logs", "duckdb_secrets", "json_execute_serialized_sql"})

_VERBS = {
    duckdb.StatementType.INSERT: "INSERT",
    duckdb.StatementType.UPDATE: "UPDATE",
    duckdb.StatementType.DELETE: "DELETE",
    duckdb.StatementType.MERGE_INTO: "MERGE",
    duckdb.StatementType.CREATE: "CREATE",
    duckdb.StatementType.DROP: "DROP",
    duckdb.StatementType.ALTER: "ALTER",
    duckdb.StatementType.COPY: "COPY",
    duckdb.StatementType.ATTACH: "ATTACH",
    duckdb.StatementType.DETACH: "DETACH",
    duckdb.StatementType.EXPORT: "EXPORT",
    duckdb.StatementType.SET: "SET and USE",
    duckdb.StatementType.VARIABLE_SET: "SET VARIABLE",
    duckdb.StatementType.LOAD: "INSTALL and LOAD",
    duckdb.StatementType.PRAGMA: "PRAGMA",
    duckdb.StatementType.CALL: "CALL",
    duckdb.StatementType.VACUUM: "VACUUM and ANALYZE",
    duckdb.StatementType.PREPARE: "PREPARE",
    duckdb.StatementType.EXECUTE: "EXECUTE",
    duckdb.StatementType.TRANSACTION: "BEGIN, COMMIT and ROLLBACK",
}
_ADVICE = {
    duckdb.StatementType.PREPARE: "use the client's prepared statements",
    duckdb.StatementType.EXECUTE: "use the client's prepared statements",
    duckdb.StatementType.TRANSACTION: "each statement is a transaction of its own",
    duckdb.StatementType.SET: "settings are the server's",
}
_SPACE = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|[^\W\d]\w*')
_EXPLAIN = re.compile(r"explain\b", re.IGNORECASE)
_EXPLAIN_OPTION = re.compile(r"(?:analyze|analyse)\b|\([^()]*\)", re.IGNORECASE)
_NAMES_TABLE = re.compile(r"\b(?:from|join|table|pivot|unpivot|describe|desc|summarize|show|explain)\b", re.IGNORECASE)


def parse(sql: str, parser: duckdb.DuckDBPyConnection, table_functions: Set[str]) -> Statement:
    """The one statement in `sql`.

    `parser` must have no access to files: the parser itself opens those that IMPORT DATABASE names. `table_functions`:
    the lower-case names of all that the engine has.
    """
    try:
        found = list(parser.extract_statements(sql))
    except duckdb.Error as error:
        raise translated(error) from None
    if not found:
        raise InvalidStatement("the text holds no SQL statement")
    if any(not statement.query for statement in found):
        raise Unsupported(
            "PIVOT needs its values named, as in PIVOT t ON column IN ('a', 'b') USING sum(x): "
            "without them the columns of the result are not known before it is run"
        )
    if len(found) > 1:
        raise InvalidStatement(f"the text holds {len(found)} statements; send them one at a time")
    statement = found[0]
    # The parser rewrites some statements (PRAGMA version becomes SELECT * FROM pragma_version()): run what it means.
    text = sql if statement.query.strip() in sql else statement.query
    if statement.type == duckdb.StatementType.EXPLAIN:
        query = _explained(text)
        inner = parse(query, parser, table_functions)
        return Statement(text, inner.query, StatementKind.EXPLAIN, inner.parameters, inner.reads_tables)
    if statement.type != duckdb.StatementType.SELECT:
        raise _refusal(statement.type)
    _check_functions(text, table_functions)
    query = _without_end(text)
    return Statement(
        text=text,
        query=query,
        kind=StatementKind.QUERY,
        parameters=_in_order(statement.named_parameters, text),
        reads_tables=_NAMES_TABLE.search(query) is not None,
    )


def _refusal(kind: duckdb.StatementType) -> Exception:
    verb = _VERBS.get(kind, str(kind).rpartition(".")[2])
    if kind in (duckdb.StatementType.PREPARE, duckdb.StatementType.EXECUTE, duckdb.StatementType.TRANSACTION):
        return Unsupported(f"K2 does not offer {verb} in SQL; {_ADVICE[kind]}")
    advice = _ADVICE.get(kind, "only reading statements are allowed")
    return PermissionDenied(f"K2 does not allow {verb} over Flight SQL; {advice}")


def _explained(text: str) -> str:
    """The statement after EXPLAIN [ANALYZE] [(options)]."""
    position = _skip(text, 0)
    verb = _EXPLAIN.match(text, position)
    if verb is None:
        raise InvalidStatement("EXPLAIN has to come first in its statement")
    position = _skip(text, verb.end())
    while (option := _EXPLAIN_OPTION.match(text, position)) and not _is_query(option.group()):
        position = _skip(text, option.end())
    return text[position:]


def _is_query(parenthesis: str) -> bool:
    """True for `(SELECT ...)` and its like, which EXPLAIN takes where its options may stand."""
    return re.match(r"\(\s*(?:select|from|values|with|table|describe|show|pivot)\b", parenthesis, re.I) is not None


def _skip(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _without_end(text: str) -> str:
    """The statement without the semicolon and the comments after it, so that it can stand in a subquery."""
    tokens = duckdb.tokenize(text)
    while tokens and text.encode()[tokens[-1][0] : tokens[-1][0] + 1] == b";":
        text = text.encode()[: tokens.pop()[0]].decode()
    return text


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Each name of the text, lower case and unquoted, with the character that follows it; strings left out."""
    data = text.encode()
    tokens = duckdb.tokenize(text)
    for index, (start, kind) in enumerate(tokens):
        end = tokens[index + 1][0] if index + 1 < len(tokens) else len(data)
        if kind != duckdb.token_type.string_const or data[start : start + 1] == b'"':
            word = _WORD.match(data[start:end].decode(errors="replace"))
            following = data[end : end + 1].decode(errors="replace")
            if word is not None:
                yield (word["quoted"] or word.group()).replace('""', '"').lower(), following


def _check_functions(text: str, table_functions: Set[str]) -> None:
    for word, following in _words(text):
        refused = word in table_functions and word not in _TABLE_FUNCTIONS and following == "("
        if refused or word in _REFUSED_NAMES:
            raise PermissionDenied(f"the function {word} is not allowed; K2's SQL reads its own tables only")


def _in_order(names: Set[str], text: str) -> tuple[str, ...]:
    """Numbers by value, names by where they first stand in the text."""
    if all(name.isdigit() for name in names):
        return tuple(sorted(names, key=int))
    lowered = text.lower()
    return tuple(sorted(names, key=lambda name: lowered.find(f"${name.lower()}")))
