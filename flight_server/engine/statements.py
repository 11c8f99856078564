"""What kind of statement a text holds, decided by DuckDB's own parser before anything is planned or run.

Guarantee: `parse` returns exactly one statement that K2 offers, or raises InvalidStatement, Unsupported or
PermissionDenied in one sentence. Queries are SELECT and what DuckDB counts as SELECT (VALUES, FROM, DESCRIBE, SHOW,
SUMMARIZE, PIVOT with its values named), and EXPLAIN of one. Table functions are refused in every statement unless they
only compute (`_TABLE_FUNCTIONS`): readers of files would go round the cut, and some functions change the server for
everybody.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum

import duckdb

from common.errors import InvalidStatement, PermissionDenied, Unsupported
from flight_server.engine.changes import Change, change_of
from flight_server.engine.control import (
    Kill,
    SetOptions,
    Subscribe,
    TransactionVerb,
    kill_of,
    options_of,
    subscribe_of,
    transaction_of,
)
from flight_server.engine.errors import translated
from flight_server.engine.file_names import refuse_files
from flight_server.engine.tokens import Token, outermost, tokens_of

#: The function that says which cut the statement is of, so that it has one even when it reads no table.
CUT = "k2_cut"


class StatementKind(Enum):
    """How a statement is run."""

    QUERY = "query"
    EXPLAIN = "explain"
    CHANGE = "change"
    SET = "set"
    TRANSACTION = "transaction"
    KILL = "kill"
    SUBSCRIBE = "subscribe"


@dataclass(frozen=True)
class Statement:
    """One statement.

    `text` is what the engine runs; `query` is the part of it that can stand in a subquery (the explained one for
    EXPLAIN). `parameters` are the names in the order of binding: "1", "2" for `?` and `$1`. `reads_tables` is False
    only when the text cannot name a table at all. `words` are all names in it, lower case, `calls` those before a
    parenthesis; `is_ordered` tells of an ORDER BY over the whole result. `detail` is what a statement that is no query
    is about; `subscribed` is the query of a SUBSCRIBE; `sent` is what was sent where market functions stood in it.
    """

    text: str
    query: str
    kind: StatementKind
    parameters: tuple[str, ...]
    reads_tables: bool
    words: frozenset[str] = frozenset()
    calls: frozenset[str] = frozenset()
    is_ordered: bool = False
    detail: Change | SetOptions | TransactionVerb | Kill | Subscribe | None = None
    subscribed: Statement | None = None
    sent: str | None = None

    @property
    def is_query(self) -> bool:
        """True for what returns rows and changes nothing."""
        return self.kind in (StatementKind.QUERY, StatementKind.EXPLAIN, StatementKind.SUBSCRIBE)


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
_REFUSED_NAMES = frozenset(
    """
    write_log duckdb_logs duckdb_secrets json_execute_serialized_sql current_setting pg_settings sqlite_master
    sqlite_schema sqlite_temp_master sqlite_temp_schema
    """.split()  # noqa: SIM905
)

#: Kinds of DuckDB's that may change a session's own tables.
_CHANGES = frozenset(
    {
        duckdb.StatementType.INSERT,
        duckdb.StatementType.UPDATE,
        duckdb.StatementType.DELETE,
        duckdb.StatementType.MERGE_INTO,
        duckdb.StatementType.CREATE,
        duckdb.StatementType.DROP,
        duckdb.StatementType.ALTER,
    }
)
_VERBS = {
    duckdb.StatementType.COPY: "COPY",
    duckdb.StatementType.ATTACH: "ATTACH",
    duckdb.StatementType.DETACH: "DETACH",
    duckdb.StatementType.EXPORT: "EXPORT",
    duckdb.StatementType.VARIABLE_SET: "SET VARIABLE",
    duckdb.StatementType.LOAD: "INSTALL and LOAD",
    duckdb.StatementType.PRAGMA: "PRAGMA",
    duckdb.StatementType.CALL: "CALL",
    duckdb.StatementType.VACUUM: "VACUUM and ANALYZE",
    duckdb.StatementType.PREPARE: "PREPARE",
    duckdb.StatementType.EXECUTE: "EXECUTE",
}
_ADVICE = {
    duckdb.StatementType.PREPARE: "use the client's prepared statements",
    duckdb.StatementType.EXECUTE: "use the client's prepared statements",
}
_ZONE_ASKED = re.compile(r"\bcurrent_setting\s*\(\s*'timezone'\s*\)", re.IGNORECASE)
_SPACE = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_EXPLAIN = re.compile(r"explain\b", re.IGNORECASE)
_EXPLAIN_OPTION = re.compile(r"(?:analyze|analyse)\b|\([^()]*\)", re.IGNORECASE)
_NAMES_TABLE = re.compile(r"\b(?:from|join|table|pivot|unpivot|describe|desc|summarize|show|explain)\b", re.IGNORECASE)


def parse(sql: str, parser: duckdb.DuckDBPyConnection, table_functions: Set[str]) -> Statement:
    """The one statement in `sql`.

    `parser` must have no access to files: the parser itself opens those that IMPORT DATABASE names. `table_functions`:
    the lower-case names of all that the engine has.
    """
    kill = kill_of(sql)
    if kill is not None:
        return Statement(sql, sql, StatementKind.KILL, (), False, detail=kill)
    subscribe = subscribe_of(sql)
    if subscribe is not None:
        inner = parse(subscribe.query, parser, table_functions)
        if inner.kind is not StatementKind.QUERY:
            raise InvalidStatement("SUBSCRIBE takes a SELECT; what stands in its parentheses is none")
        return replace(inner, text=sql, kind=StatementKind.SUBSCRIBE, detail=subscribe, subscribed=inner)
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
        inner = parse(_explained(text), parser, table_functions)
        if inner.kind is not StatementKind.QUERY:
            raise Unsupported("K2 explains queries only; EXPLAIN ANALYZE of a change would make it")
        return Statement(text, inner.query, StatementKind.EXPLAIN, inner.parameters, inner.reads_tables, inner.words)
    if statement.type == duckdb.StatementType.SET:
        return Statement(text, text, StatementKind.SET, (), False, detail=options_of(text))
    if statement.type == duckdb.StatementType.TRANSACTION:
        return Statement(text, text, StatementKind.TRANSACTION, (), False, detail=transaction_of(text))
    if statement.type != duckdb.StatementType.SELECT and statement.type not in _CHANGES:
        raise _refusal(statement.type)
    tokens: Sequence[Token] = tokens_of(text)
    words = _checked_words(text, tokens, table_functions)
    refuse_files(tokens, is_change=statement.type in _CHANGES)
    parameters = _in_order(statement.named_parameters, text)
    if statement.type in _CHANGES:
        change = change_of(text, statement.type)
        return Statement(change.scratch_text, text, StatementKind.CHANGE, parameters, True, words, detail=change)
    query, tokens = _without_end(text, tokens)
    return Statement(
        text=text,
        query=query,
        kind=StatementKind.QUERY,
        parameters=parameters,
        reads_tables=_NAMES_TABLE.search(query) is not None or CUT in words,
        words=words,
        calls=frozenset(word for word, is_called in _words(tokens) if is_called),
        is_ordered=any(token.says("order") for token in outermost(tokens)),
    )


def _refusal(kind: duckdb.StatementType) -> Exception:
    verb = _VERBS.get(kind, str(kind).rpartition(".")[2])
    if kind in (duckdb.StatementType.PREPARE, duckdb.StatementType.EXECUTE):
        return Unsupported(f"K2 does not offer {verb} in SQL; {_ADVICE[kind]}")
    return PermissionDenied(f"K2 does not allow {verb} over Flight SQL; it would reach beyond K2's own tables")


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


def _without_end(text: str, tokens: Sequence[Token]) -> tuple[str, Sequence[Token]]:
    """The statement without the semicolon and the comments after it, so that it can stand in a subquery; its tokens."""
    count = len(tokens)
    while count and tokens[count - 1].sign == ";":
        count -= 1
    if count == len(tokens):
        return text, tokens
    return text.encode()[: tokens[count].start].decode(), tokens[:count]


def _words(tokens: Sequence[Token]) -> Iterator[tuple[str, bool]]:
    """Each name, lower case and unquoted, and whether a parenthesis follows it; strings are none."""
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        if token.name is not None:
            yield token.name.lower(), following is not None and following.sign == "("


def _checked_words(text: str, tokens: Sequence[Token], table_functions: Set[str]) -> frozenset[str]:
    """Every name in the text, none of which is a function that is not allowed."""
    # The one setting that is no secret; with it out of the text any other mention of the function is refused.
    rest, asked = _ZONE_ASKED.subn("'timezone'", text)
    words = {"current_setting"} if asked else set()
    for word, is_called in _words(tokens_of(rest) if asked else tokens):
        words.add(word)
        refused = is_called and word in table_functions and word not in _TABLE_FUNCTIONS
        if refused or word in _REFUSED_NAMES:
            raise PermissionDenied(f"the function {word} is not allowed; K2's SQL reads its own tables only")
    return frozenset(words)


def _in_order(names: Set[str], text: str) -> tuple[str, ...]:
    """Numbers by value, names by where they first stand in the text."""
    if all(name.isdigit() for name in names):
        return tuple(sorted(names, key=int))
    lowered = text.lower()
    return tuple(sorted(names, key=lambda name: lowered.find(f"${name.lower()}")))
