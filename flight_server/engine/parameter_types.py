"""Which SQL types the parameters of a change have, told by the columns that they meet.

DuckDB keeps the types of a change's parameters to itself, and JDBC binds nothing to a parameter whose type it is not
told. Two shapes cover what drivers and ORMs send: a parameter as one value of INSERT's VALUES, and a parameter compared
with, or assigned to, a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flight_server.engine.changes import Change, Verb
from flight_server.engine.tokens import Token, tokens_of


def parameter_types(text: str, change: Change, columns: Mapping[str, str]) -> dict[str, str]:
    """Parameter name -> SQL type, for those that can be told; `columns` are the table's, in order."""
    tokens = tokens_of(text)
    lower = {name.lower(): kind for name, kind in columns.items()}
    places = {index: name for name, index in _parameters(tokens)}
    types: dict[str, str] = {}
    order = list(change.columns or columns) if change.verb is Verb.INSERT else []
    position, depth = 0, 0
    for index, token in enumerate(tokens):
        if token.sign == "(":
            depth += 1
            position = 0
        elif token.sign == ")":
            depth -= 1
        elif token.sign == "," and depth == 1:
            position += 1
        name = places.get(index)
        if name is None:
            continue
        width = 2 if token.raw == "$" else 1
        alone = _sign(tokens, index - 1) in ("(", ",") and _sign(tokens, index + width) in (")", ",")
        if change.verb is Verb.INSERT and depth == 1 and alone and position < len(order):
            kind = lower.get(order[position].lower())
        else:
            kind = lower.get(_compared_column(tokens, index))
        if kind is not None:
            types.setdefault(name, kind)
    return types


def _parameters(tokens: Sequence[Token]) -> list[tuple[str, int]]:
    """(name, index of its sign) of each parameter in the text's order: `?` counts up, `$1` and `$name` say theirs."""
    found, count = [], 0
    for index, token in enumerate(tokens):
        if token.sign == "?":
            count += 1
            found.append((str(count), index))
        elif token.raw[1:].isdigit() and token.sign == "$":
            found.append((token.raw[1:], index))
        elif token.sign == "$" and index + 1 < len(tokens) and tokens[index + 1].name is not None:
            found.append((str(tokens[index + 1].name), index))
    return found


def _sign(tokens: Sequence[Token], index: int) -> str:
    return tokens[index].sign if 0 <= index < len(tokens) else ""


def _compared_column(tokens: Sequence[Token], index: int) -> str:
    """The lower-case name before the comparison or assignment that stands before the parameter; "" without one."""
    if index < 2 or tokens[index - 1].sign not in ("=", "<", ">", "!"):
        return ""
    return (tokens[index - 2].name or "").lower()
