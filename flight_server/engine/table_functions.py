"""Pure, but for constants computed on a cursor without data: how K2's own table functions are called.

K2 has `k2_changes(table, from_cut, to_cut)`, the rows of a table of market between two cuts, and `k2_snapshots(table)`,
the rows of `ops.commits` of one table.
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from common.errors import InvalidStatement, Unsupported
from flight_server.engine.dialect import VARYING_WORDS
from flight_server.engine.planner import Values
from flight_server.engine.rewrite import Argument, FunctionRef, constant_text
from flight_server.engine.tokens import tokens_of

#: The function that gives the rows between two cuts, and its arguments.
CHANGES = "k2_changes"
#: The function that gives the commits of a table.
SNAPSHOTS = "k2_snapshots"
_ARGUMENTS = {CHANGES: ("table", "from_cut", "to_cut"), SNAPSHOTS: ("table",)}
_HINTS = {CHANGES: "; from_cut NULL is the beginning, to_cut NULL or left out is now"}


def by_name(ref: FunctionRef) -> dict[str, Argument]:
    """The arguments of a call by their names. Raises InvalidStatement for what it does not take."""
    taken = _ARGUMENTS.get(ref.name)
    if taken is None:
        own = ", ".join(f"{name}({', '.join(arguments)})" for name, arguments in _ARGUMENTS.items())
        raise InvalidStatement(
            f"there is no function {ref.name}; of K2's own there are {own}, and those that k2_functions() lists"
        )
    found: dict[str, Argument] = {}
    for position, argument in enumerate(ref.arguments):
        name = argument.name or (taken[position] if position < len(taken) else "")
        if name not in taken or name in found:
            raise InvalidStatement(f"{ref.name} takes {', '.join(taken)}{_HINTS.get(ref.name, '')}")
        found[name] = argument
    return found


def text_of(
    argument: Argument, ref: FunctionRef, cursor: duckdb.DuckDBPyConnection, values: Values | None
) -> str | None:
    """What an argument says; None for NULL, and for a parameter whose value is not known yet."""
    if argument.parameter is None:
        if argument.has_parameter:
            raise InvalidStatement(
                f"a parameter of {ref.name} is to stand by itself, and not inside of {argument.text[:60]!r}"
            )
        if argument.has_subquery:
            raise InvalidStatement(f"{ref.name} takes constants, and no subquery; write the cut into the statement")
        varying = {token.name for token in tokens_of(argument.text)} & VARYING_WORDS
        if varying:
            raise Unsupported(f"{ref.name} takes cuts that stay the same, and not {min(map(str, varying))}; write one")
        return constant_text(argument.text, f"{argument.text[:60]!r} in {ref.name}", cursor)
    if values is None:
        return None
    where = argument.parameter
    value = values[where] if isinstance(values, Mapping) else values[int(where) - 1]
    return constant_text("$1", f"the parameter {where} in {ref.name}", cursor, [value])


def with_parameters(select: str, ref: FunctionRef) -> str:
    """The SELECT with the call's parameters in it, so that those of the statement keep number and order."""
    kept = [f"CAST({argument.text} AS VARCHAR) IS NULL" for argument in ref.arguments if argument.has_parameter]
    return f"SELECT * FROM ({select}) WHERE true OR {' OR '.join(kept)}" if kept else select
