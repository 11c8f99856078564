"""Files that stand where a table may stand: DuckDB reads `FROM 'x.parquet'` and `FROM "x.parquet"` as the file.

The engine itself refuses files outside of the warehouse; those inside it must be readable, for the lake's own tables
are made of them. Queries are planned on the twin, which has no files at all; statements that change scratch are not,
and a view of a file would read it round the cut. No setting turns this off (DuckDB 1.5), so the words are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.errors import PermissionDenied
from flight_server.engine.tokens import Token

#: What a table's name may follow. INTO and UPDATE are not among them: only tables that are there can be changed.
_BEFORE_TABLE = (
    "from",
    "join",
    "using",
    "lateral",
    "table",
    "describe",
    "desc",
    "show",
    "summarize",
    "pivot",
    "pivot_wider",
    "unpivot",
    "pivot_longer",
)
#: What begins the part of a statement that a comma stands in, when that part lists tables, and when it does not.
_LISTS_TABLES = ("from", "using", "join")
_LISTS_OTHERS = ("select", "distinct", "by", "set", "values", "limit", "window", "in", "into")
#: Functions with a FROM of their own.
_TAKE_FROM = ("trim", "extract", "substring", "overlay")
_PATH = re.compile(
    r"[/\\*?:]|\.(?:parquet|csv|tsv|json|jsonl|ndjson|avro|txt|arrow|ipc|xlsx|db|duckdb)\b", re.IGNORECASE
)
_PLAIN = re.compile(r"'[\w. \"]*'")
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")


def refuse_files(tokens: Sequence[Token], *, is_change: bool) -> None:
    """Raise PermissionDenied when a path stands where a table may stand.

    Strings there must be plain names; quoted identifiers must hold nothing that makes a file of them. In a change
    `query_table` takes plain names only: what it would be given is not known before it runs.
    """
    for index, token in enumerate(tokens):
        if _suspicious(token) and _names_table(tokens, index):
            raise _refusal(token)
        if is_change and token.name == "query_table":
            _check_query_table(tokens, index + 1)


def _suspicious(token: Token) -> bool:
    if token.name is not None:
        return token.quoted and _PATH.search(token.name) is not None
    text = token.raw
    is_string = "'" in text[:3] or text.startswith("$")
    return is_string and (_PLAIN.fullmatch(text) is None or _PATH.search(text) is not None)


def _names_table(tokens: Sequence[Token], at: int) -> bool:
    """True when a table's name may stand at index `at`."""
    if at <= 0:
        return False
    before = tokens[at - 1]
    if before.says("from") and _is_argument(tokens, at - 1):
        return False
    if before.says(*_BEFORE_TABLE):
        return True
    if before.sign == ",":
        return _lists_tables(tokens, at - 1)
    if before.sign == ":" and before.raw == ":":  # FROM alias: 'file'
        return _names_table(tokens, at - 2)
    if before.sign in ("(", "["):
        return _opens_tables(tokens, at - 1)
    return False


def _is_argument(tokens: Sequence[Token], at: int) -> bool:
    """True when the FROM at `at` is one of a function's arguments, as in `trim(BOTH '/' FROM '/a/')`."""
    depth = 0
    for index in range(at - 1, 0, -1):
        token = tokens[index]
        if token.sign in _CLOSING:
            depth += 1
        elif token.sign in _OPENING and depth:
            depth -= 1
        elif token.sign in _OPENING:
            return tokens[index - 1].says(*_TAKE_FROM)
        elif depth == 0 and token.says("select"):
            return False
    return False


def _opens_tables(tokens: Sequence[Token], at: int) -> bool:
    """True when what is inside the parenthesis at `at` may be a table."""
    if at == 0:
        return False
    before = tokens[at - 1]
    if before.name == "query_table":
        return True
    if before.name is not None:
        return before.says("from", "join")
    return _names_table(tokens, at)


def _lists_tables(tokens: Sequence[Token], at: int) -> bool:
    """True when the comma at `at` stands between tables: the clause that it is in says so."""
    depth = 0
    for index in range(at - 1, -1, -1):
        token = tokens[index]
        if token.sign in _CLOSING:
            depth += 1
        elif token.sign in _OPENING:
            if depth == 0:
                return token.sign != "{" and _opens_tables(tokens, index)
            depth -= 1
        elif depth == 0 and token.says(*_LISTS_TABLES):
            return True
        elif depth == 0 and token.says(*_LISTS_OTHERS):
            return False
    return False


def _check_query_table(tokens: Sequence[Token], at: int) -> None:
    """The arguments behind `query_table`: plain names in quotes, lists of them, true and false; nothing computed."""
    depth = 0
    for token in tokens[at:]:
        if token.sign in _OPENING:
            depth += 1
        elif token.sign in _CLOSING:
            depth -= 1
            if depth == 0:
                return
        elif not (
            token.sign == "," or token.says("true", "false") or (_PLAIN.fullmatch(token.raw) and not _suspicious(token))
        ):
            raise _refusal(token)
        if depth == 0:
            return


def _refusal(token: Token) -> PermissionDenied:
    name = token.name or token.raw
    return PermissionDenied(
        f"{name[:100]} stands where a table stands and may be a file; K2's SQL reads its tables only"
    )
