"""Pure: which statements may be run again after a lost connection, and the SELECTs behind `K2.trades` and its like.

There is no SQL grammar here: a statement is known by its words. What is not known to only read is taken for a change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from clients.errors import ClientError
from clients.moments import Moment, instant_text, timestamp

Kind = Literal["read", "change", "session"]
Symbols = str | Sequence[str]

_NOISE = re.compile(r"\s+|--[^\n]*\n?|/\*.*?\*/|[(;]", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]+")
#: Statements of which the server keeps something for this session that is gone with a lost connection, silently.
_SESSION = frozenset(
    ("set", "reset", "use", "begin", "start", "commit", "end", "rollback", "abort", "prepare", "execute", "deallocate")
)
_READING = frozenset(
    (
        "select",
        "from",
        "with",
        "values",
        "table",
        "describe",
        "desc",
        "show",
        "summarize",
        "explain",
        "pivot",
        "unpivot",
    )
)
_WRITING = re.compile(r"\b(?:insert|update|delete|merge|copy|create|drop|alter|truncate|call|nextval)\b", re.IGNORECASE)


def kind_of(sql: str) -> Kind:
    """What a statement does: it only reads, it changes tables, or it changes the session.

    A SELECT is a reading whatever it says; behind WITH and EXPLAIN the word of a change makes it one, even where it
    only names a column.
    """
    position = 0
    while noise := _NOISE.match(sql, position):
        position = noise.end()
    word = _WORD.match(sql, position)
    first = word.group().lower() if word else ""
    if first in _SESSION:
        return "session"
    if first not in _READING or (first in {"with", "explain"} and _WRITING.search(sql, position)):
        return "change"
    return "read"


@dataclass(frozen=True)
class Query:
    """A SELECT and what fills its `?`, in order."""

    sql: str
    parameters: tuple[object, ...] = ()


def rows_of(
    table: str,
    time_column: str,
    id_column: str,
    symbol: Symbols,
    start: Moment | None,
    end: Moment | None,
    *,
    columns: Sequence[str] | None = None,
    exchange: str | None = None,
) -> Query:
    """The rows of some symbols with start <= time < end, in the order of time and then of the venue's own number.

    Raises ClientError: a time without a zone, start behind end, no symbol, no column.
    """
    if columns is not None and (isinstance(columns, str) or not columns):
        raise _refused(f"columns is a list of names, such as ['symbol', '{time_column}'], and not {columns!r}")
    listed = "*" if columns is None else ", ".join(map(quoted, columns))
    where, parameters = conditions(time_column, symbol, start, end, exchange=exchange)
    order = f"{time_column}, exchange, symbol, {id_column}"
    return Query(f"SELECT {listed} FROM market.{table} WHERE {where} ORDER BY {order}", parameters)


def call_of(
    function: str,
    symbol: Symbols,
    start: Moment | None,
    end: Moment | None,
    **options: str | Sequence[str] | None,
) -> Query:
    """A call of one of the server's functions of a symbol and a span, with those options that are not None.

    Raises ClientError; what an option may be, the server says.
    """
    span(start, end)
    names = f"[{', '.join(map(literal, symbols_of(symbol)))}]"
    bounds = [
        "NULL" if moment is None else literal(instant_text(moment, what))
        for moment, what in ((start, "start"), (end, "end"))
    ]
    named = [f"{name} := {_option(value)}" for name, value in options.items() if value is not None]
    return Query(f"SELECT * FROM {function}({', '.join([names, *bounds, *named])})")


def _option(value: str | Sequence[str]) -> str:
    return literal(value) if isinstance(value, str) else f"[{', '.join(map(literal, value))}]"


def conditions(
    time_column: str, symbol: Symbols, start: Moment | None, end: Moment | None, *, exchange: str | None = None
) -> tuple[str, tuple[object, ...]]:
    """The rows of some symbols in [start, end); None is without a bound. Raises ClientError."""
    symbols = symbols_of(symbol)
    terms = [f"symbol IN ({', '.join('?' for _ in symbols)})" if len(symbols) > 1 else "symbol = ?"]
    parameters: list[object] = [*symbols]
    if exchange is not None:
        terms.append("exchange = ?")
        parameters.append(exchange)
    for moment, sign in zip(span(start, end), (">=", "<"), strict=True):
        if moment is not None:
            terms.append(f"{time_column} {sign} ?")
            parameters.append(moment)
    return " AND ".join(terms), tuple(parameters)


def symbols_of(symbol: Symbols) -> list[str]:
    """One symbol or several as a list. Raises ClientError where there is none."""
    symbols = [symbol] if isinstance(symbol, str) else list(symbol)
    if not symbols or not all(isinstance(name, str) and name for name in symbols):
        raise _refused(f"symbol is a name such as 'BTCUSDT', or a list of names, and not {symbol!r}")
    return symbols


def span(start: Moment | None, end: Moment | None) -> tuple[pa.Scalar | None, pa.Scalar | None]:
    """Both ends as parameters. Raises ClientError where the start lies behind the end."""
    first, last = (
        None if moment is None else timestamp(moment, what) for moment, what in ((start, "start"), (end, "end"))
    )
    if first is not None and last is not None and first.value > last.value:
        raise _refused(f"start, {start}, lies behind end, {end}; give the earlier one first")
    return first, last


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refused(sentence: str) -> ClientError:
    return ClientError(sentence, code="INVALID_ARGUMENT")
