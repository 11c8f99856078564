"""Statements that change something: what they change, read off their words.

Guarantee: nothing here is what keeps `market` from being changed. That is the engine's read-only transaction, in which
only a connection's own temporary objects can be written. The words are read to send a statement to the right place
(the session's scratch or the Iceberg namespace `research`) and to refuse what has none in one clear sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import duckdb

from common.errors import InvalidStatement, PermissionDenied, Unsupported
from flight_server.engine.tokens import Token, outermost, outermost_indexes, qualified_name, skip_words, tokens_of


class Verb(Enum):
    """The statements that may change a table or view."""

    CREATE_TABLE = "CREATE TABLE"
    CREATE_VIEW = "CREATE VIEW"
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    MERGE = "MERGE"
    ALTER = "ALTER"
    DROP_TABLE = "DROP TABLE"
    DROP_VIEW = "DROP VIEW"
    TRUNCATE = "TRUNCATE"


#: Verbs that change which tables there are, or their columns.
DEFINING = frozenset({Verb.CREATE_TABLE, Verb.CREATE_VIEW, Verb.ALTER, Verb.DROP_TABLE, Verb.DROP_VIEW})


@dataclass(frozen=True)
class Change:
    """One statement that changes `target`, its name as written in parts.

    `scratch_text` is what runs when the target is the session's own. `body` is what gives the rows: the query of CREATE
    TABLE AS (None without one), of CREATE VIEW and of INSERT; `columns` is the list behind INSERT's target, or the text
    of CREATE TABLE's column definitions in `definition`.
    """

    verb: Verb
    target: tuple[str, ...]
    scratch_text: str
    temporary: bool = False
    replace: bool = False
    if_exists: bool = False
    columns: tuple[str, ...] | None = None
    body: str | None = None
    definition: str | None = None


def change_of(text: str, kind: duckdb.StatementType) -> Change:
    """The change that `text`, one statement of DuckDB's kind `kind`, makes.

    Raises Unsupported, PermissionDenied or InvalidStatement for what may not be changed over Flight SQL.
    """
    tokens = tokens_of(text)
    while tokens and tokens[-1].sign == ";":
        text = text.encode()[: tokens.pop().start].decode()
    if any(token.says("returning") for token in outermost(tokens)):
        raise Unsupported("K2 does not offer RETURNING; send the change, then select what it made")
    if kind == duckdb.StatementType.CREATE:
        return _create(text, tokens)
    if kind == duckdb.StatementType.DROP:
        return _drop(text, tokens)
    if kind == duckdb.StatementType.ALTER:
        return _alter(text, tokens)
    return _modify(text, tokens)


def _create(text: str, tokens: Sequence[Token]) -> Change:
    at = 1
    replace, at = skip_words(tokens, at, "or", "replace")
    insert_at = at
    temporary = at < len(tokens) and tokens[at].says("temp", "temporary")
    at += temporary
    is_table, at = skip_words(tokens, at, "table")
    is_view = False
    if not is_table:
        is_view, at = skip_words(tokens, at, "view")
    if not is_table and not is_view:
        what = (tokens[at].name or "that").upper() if at < len(tokens) else "that"
        raise PermissionDenied(f"K2 does not allow CREATE {what}; a session may create tables and views of its own")
    quiet, at = skip_words(tokens, at, "if", "not", "exists")
    target, at = qualified_name(tokens, at)
    data = text.encode()
    here = tokens[insert_at].start
    temp = data if temporary else data[:here] + b"TEMP " + data[here:]
    body, definition = None, None
    as_at = next((i for i in outermost_indexes(tokens, at) if tokens[i].says("as")), None)
    if as_at is not None:
        body = data[tokens[as_at].end :].decode()
    if is_table and as_at is None:
        definition = data[tokens[at].start :].decode() if at < len(tokens) else ""
    elif is_table and as_at is not None and as_at != at:
        definition = data[tokens[at].start : tokens[as_at].start].decode()
    return Change(
        Verb.CREATE_TABLE if is_table else Verb.CREATE_VIEW,
        target,
        temp.decode(),
        temporary=temporary,
        replace=replace,
        if_exists=quiet,
        body=body,
        definition=definition,
    )


def _drop(text: str, tokens: Sequence[Token]) -> Change:
    is_table, at = skip_words(tokens, 1, "table")
    is_view = False
    if not is_table:
        is_view, at = skip_words(tokens, 1, "view")
    if not is_table and not is_view:
        what = (tokens[1].name or "that").upper() if len(tokens) > 1 else "that"
        raise PermissionDenied(f"K2 does not allow DROP {what}; a session may drop tables and views of its own")
    quiet, at = skip_words(tokens, at, "if", "exists")
    target, at = qualified_name(tokens, at)
    if any(token.sign == "," for token in tokens[at:]):
        raise Unsupported("K2 drops one table at a time; send a DROP for each")
    return Change(Verb.DROP_TABLE if is_table else Verb.DROP_VIEW, target, text, if_exists=quiet)


def _alter(text: str, tokens: Sequence[Token]) -> Change:
    if not tokens[0].says("alter") or len(tokens) < 2 or not tokens[1].says("table", "view"):
        raise PermissionDenied("K2 allows ALTER TABLE and ALTER VIEW on a session's own tables, and no other ALTER")
    quiet, at = skip_words(tokens, 2, "if", "exists")
    target, _ = qualified_name(tokens, at)
    return Change(Verb.ALTER, target, text, if_exists=quiet)


def _modify(text: str, tokens: Sequence[Token]) -> Change:
    """INSERT, UPDATE, DELETE, TRUNCATE and MERGE, with or without WITH before them."""
    starts = ("insert", "update", "delete", "truncate", "merge")
    begin = next((i for i in outermost_indexes(tokens, 0) if tokens[i].says(*starts)), None)
    if begin is None:
        raise InvalidStatement("the statement changes nothing that K2 can find; send INSERT, UPDATE, DELETE or MERGE")
    verb = Verb[str(tokens[begin].name).upper()]
    at = begin + 1
    if verb is Verb.INSERT:
        clause, at = skip_words(tokens, at, "or")
        at += clause
    for word in ("into", "from", "table"):
        _, at = skip_words(tokens, at, word)
    replace = verb is Verb.INSERT and at != begin + 1 and tokens[begin + 1].says("or")
    target, at = qualified_name(tokens, at)
    if verb is not Verb.INSERT:
        return Change(verb, target, text)
    columns = None
    if at < len(tokens) and tokens[at].sign == "(" and not _opens_query(tokens, at):
        columns, at = _names(tokens, at)
    data = text.encode()
    body = data[: tokens[begin].start] + (data[tokens[at].start :] if at < len(tokens) else b"")
    return Change(verb, target, text, replace=replace, columns=columns, body=body.decode())


def _names(tokens: Sequence[Token], at: int) -> tuple[tuple[str, ...], int]:
    names = []
    at += 1
    while at < len(tokens) and tokens[at].sign != ")":
        if (name := tokens[at].name) is not None:
            names.append(name)
        at += 1
    return tuple(names), at + 1


def _opens_query(tokens: Sequence[Token], at: int) -> bool:
    return at + 1 < len(tokens) and (
        tokens[at + 1].sign == "(" or tokens[at + 1].says("select", "with", "from", "values", "table")
    )
