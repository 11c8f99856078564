"""A statement with the SELECT of each market function in the place of its call.

Guarantee: it is done before anything is planned, so that what comes after sees plain reads of K2's tables, with plain
comparisons: the cut, time travel, files that are left out and results that are kept are those of a query by hand. Times
that are computed, as `now()`, are computed each time that the statement is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import duckdb

from common.errors import InvalidStatement
from flight_server.engine.errors import translated
from flight_server.engine.market.arguments import Call, Constant, Taken
from flight_server.engine.market.functions import MarketFunction, unknown_argument
from flight_server.engine.market.registry import FUNCTIONS
from flight_server.engine.planner import Values
from flight_server.engine.rewrite import Argument, FunctionRef, TableRef, Tree, rewritten
from flight_server.engine.tokens import tokens_of

#: Lends a cursor that has no data.
Parser = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
_LONG = 60


def is_called(words: frozenset[str]) -> bool:
    """Whether a statement of these words may call a market function."""
    return not words.isdisjoint(FUNCTIONS)


def calls_of(
    tree: Tree, refs: Sequence[FunctionRef], tables: frozenset[str], parser: Parser, values: Values | None
) -> dict[FunctionRef, tuple[MarketFunction, Call]]:
    """Each call of a market function with the values of its arguments. `values` are the statement's parameters; None
    where they are not known yet. Raises InvalidStatement."""
    found = {}
    with parser() as cursor:
        for ref in refs:
            function = FUNCTIONS.get(ref.name)
            if function is not None and ref not in found:
                call = _call(function, ref, tables, cursor, values)
                found[ref] = function, replace(call, named=_named(tree, ref))
    return found


def expanded(tree: Tree, calls: Mapping[FunctionRef, tuple[MarketFunction, Call]]) -> str:
    """The query with the SELECTs in their places. Parameters keep number and order. Raises InvalidStatement."""

    def instead(ref: TableRef | FunctionRef) -> str | None:
        if not isinstance(ref, FunctionRef) or ref not in calls:
            return None
        function, call = calls[ref]
        try:
            select = function.select(call)
        except ValueError as error:
            raise InvalidStatement(f"{function.name} {error}") from None
        return _with_parameters(select, ref, function)

    return rewritten(tree, instead)


def has_parameters(calls: Mapping[FunctionRef, object]) -> bool:
    """Whether the SELECT of a call depends on a parameter of the statement."""
    return any(argument.has_parameter for ref in calls for argument in ref.arguments)


def _call(
    function: MarketFunction,
    ref: FunctionRef,
    tables: frozenset[str],
    cursor: duckdb.DuckDBPyConnection,
    values: Values | None,
) -> Call:
    given: dict[str, Argument] = {}
    for position, argument in enumerate(ref.arguments):
        taken = _taken(function, position, argument)
        if taken is None or taken.name in given:
            raise unknown_argument(function, argument.name or argument.text[:_LONG])
        given[taken.name] = argument
    read: dict[str, Any] = {}
    for taken in function.takes:
        found = given.get(taken.name)
        if found is None and taken.is_required:
            raise InvalidStatement(f"{function.name} needs {taken.name}, {taken.help}; it is {function.signature}")
        if found is not None and found.has_parameter and values is None:
            read[taken.name] = taken.kind.stand_in
            continue
        constant = None if found is None else _constant(found, f"{taken.name} of {function.name}", cursor, values)
        if constant is None and found is not None and (taken.is_required or taken.default is not None):
            raise InvalidStatement(f"{taken.name} of {function.name} is NULL; write {taken.help}")
        try:
            read[taken.name] = taken.default if constant is None else taken.kind.value(constant)
        except ValueError as error:
            raise InvalidStatement(f"{taken.name} of {function.name} {error}") from None
    return Call(read, tables)


def _named(tree: Tree, ref: FunctionRef) -> frozenset[str] | None:
    """The names among which are those of all columns that are asked for of a call; None: any may be. Its own name may
    stand for a row of it, with every column."""
    own = (ref.alias or ref.name).casefold()
    return None if tree.named is None or own in tree.rows else tree.named


def _taken(function: MarketFunction, position: int, argument: Argument) -> Taken | None:
    """Which of its arguments a function is given, by name or by place."""
    if argument.name is not None:
        return function.taken(argument.name)
    return function.takes[position] if position < len(function.takes) else None


def _constant(
    argument: Argument, what: str, cursor: duckdb.DuckDBPyConnection, values: Values | None
) -> Constant | None:
    """The value of an argument; None for NULL."""
    if argument.has_subquery:
        raise InvalidStatement(f"{what} is to be a constant, and no subquery; write its value into the statement")
    expression, bound = _bound(argument, values)
    try:
        kind = cursor.execute(f"SELECT typeof({expression})", bound or None).fetchone()
        is_list = kind is not None and str(kind[0]).endswith("]")
        items = "list_transform(CAST(v AS VARCHAR[]), lambda x: coalesce(x, ''))" if is_list else "NULL"
        row = cursor.execute(
            f"SELECT typeof(v), CAST(v AS VARCHAR), {items} FROM (SELECT ({expression}) AS v)", bound or None
        ).fetchone()
    except duckdb.Error as error:
        reason = str(translated(error)).splitlines()[0]
        raise InvalidStatement(f"{what}, {argument.text[:_LONG]!r}, is no constant: {reason}") from None
    if row is None or row[1] is None:
        return None
    return Constant(str(row[0]), str(row[1]), None if row[2] is None else tuple(row[2]))


def _bound(argument: Argument, values: Values | None) -> tuple[str, dict[str, object]]:
    """The expression with parameters of its own, and what they are bound to."""
    if not argument.parameters or values is None:
        return argument.text, {}
    data, numbers = argument.text.encode(), iter(argument.parameters)
    bound: dict[str, object] = {}
    edits = []
    for index, token in enumerate(tokens := tokens_of(argument.text)):
        if token.sign == "?":
            name, end = next(numbers), token.start + 1
        elif token.sign == "$" and token.raw != "$":
            name, end = token.raw[1:], token.end
        elif token.sign == "$" and index + 1 < len(tokens):
            end = tokens[index + 1].end
            name = data[token.start + 1 : end].decode()
        else:
            continue
        bound[f"k2_{len(bound)}"] = values[name] if isinstance(values, Mapping) else values[int(name) - 1]
        edits.append((token.start, end, f"$k2_{len(bound) - 1}"))
    for start, end, new in reversed(edits):
        data = data[:start] + new.encode() + data[end:]
    return data.decode(), bound


def _with_parameters(select: str, ref: FunctionRef, function: MarketFunction) -> str:
    """The SELECT with the call's parameters in it, so that those of the statement keep number, order and a type."""
    kept = []
    for position, argument in enumerate(ref.arguments):
        taken = _taken(function, position, argument)
        if argument.has_parameter and taken is not None:
            kept.append(f"TRY_CAST({argument.text} AS {taken.kind.sql_type}) IS NULL")
    return f"SELECT * FROM ({select}) WHERE true OR {' OR '.join(kept)}" if kept else select
