"""A query over as few rows as its own comparisons allow: tables are replaced by the files and the memory that matter.

Guarantee: the result is the same as that of the query as it was written, in the same transaction. It is only an offer:
where nothing is gained, or the comparisons are not understood, the query runs as it is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from flight_server.engine.planner import Values
from flight_server.engine.predicates import NOW, Comparison, Operand
from flight_server.engine.rewrite import TableRef, Tree, rewritten
from flight_server.engine.seam import Condition, Lake, Seen
from flight_server.engine.statements import Statement

#: A column as its bounds are compared: SQL that makes an operand's value of it, and the operand's types that are taken.
_TIME = ("epoch_us(CAST({} AS TIMESTAMPTZ))", frozenset({"TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "DATE"}))
_NUMBER = ("CAST({} AS BIGINT)", frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT"}))
_TEXT = ("{}", frozenset({"VARCHAR"}))
#: Texts whose operands' values are remembered.
_KNOWN_MAX = 1_024

Computed = Mapping[Operand, "int | str"]


class Operands:
    """Conditions whose operands are the same each time, by where they stand. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[object, list[Condition]] = OrderedDict()

    def find(self, key: object) -> list[Condition] | None:
        with self._lock:
            return self._known.get(key)

    def keep(self, key: object, conditions: list[Condition]) -> None:
        with self._lock:
            self._known[key] = conditions
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)


@dataclass(frozen=True)
class Asking:
    """What the references of one query to tables ask of their rows, computed. `text` is the query's, `parameters` those
    that are the same in all of its runs."""

    text: str
    parameters: Mapping[str, object]
    operands: Operands
    #: Lends a cursor that has no data, on which operands are computed: what fails there harms no transaction.
    parser: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]

    def conditions(self, ref: TableRef, schema: pa.Schema, cursor: duckdb.DuckDBPyConnection) -> list[Condition]:
        """What the rows must meet, of a table of this schema, in the cursor's open transaction."""
        operands = [operand for comparison in ref.asked for operand in comparison.operands]
        is_constant = not any(one.varies or one.parameter is not None for one in operands)
        key = (self.text, ref)
        known = self.operands.find(key) if is_constant else None
        if known is None:
            now_us = None
            if any(one.varies for one in operands):
                ((now_us,),) = cursor.execute("SELECT epoch_us(now())").fetchall()
            with self.parser() as parser:
                known = conditions_of(ref.asked, schema, self.parameters, parser, now_us)
            if is_constant:
                self.operands.keep(key, known)
        return known


@dataclass(frozen=True)
class Chosen:
    """How a query is run. `tables` are the full names and schemas of the tables that it reads as they are now."""

    tree: Tree
    schema: str
    tables: Mapping[TableRef, tuple[str, pa.Schema]]
    asking: Asking
    cut: str | None = None
    ops: frozenset[str] = field(default=frozenset())

    def text(self, statement: Statement, lake: Lake, cursor: duckdb.DuckDBPyConnection, seen: Seen) -> str:
        """The text to be run in the cursor's open transaction, which sees this."""
        selects: dict[TableRef, str] = {}
        for ref, (table, schema) in self.tables.items():
            select = lake.select_where(seen, table, self.asking.conditions(ref, schema, cursor))
            if select is not None:
                selects[ref] = select
        if not selects:
            return statement.text
        query = rewritten(
            self.tree, lambda ref: selects.get(ref) if isinstance(ref, TableRef) else None, schema=self.schema
        )
        return statement.text.replace(statement.query, query, 1)


def conditions_of(
    asked: Sequence[Comparison],
    schema: pa.Schema,
    parameters: Mapping[str, object],
    cursor: duckdb.DuckDBPyConnection,
    now_us: int | None = None,
) -> list[Condition]:
    """The comparisons as conditions on a table of this schema, their operands computed on the cursor, in UTC.

    `now_us` is the instant of the transaction that they are for, where one of them varies by it.

    Left out is what has an operand that is not of the column's own kind, is NULL, or cannot be computed.
    """
    wanted: list[tuple[Comparison, str, frozenset[str]]] = []
    columns: list[str] = []
    values: list[object] = []
    for comparison in asked:
        kind = _kind(schema, comparison.column)
        unknown = [one.parameter for one in comparison.operands if one.parameter and one.parameter not in parameters]
        if kind is None or unknown:
            continue
        wanted.append((comparison, *kind))
        for operand in comparison.operands:
            if _is_written(operand, kind):
                continue
            for form in ("typeof({})", kind[0]):
                if operand.parameter is None:
                    columns.append(form.format(operand.sql.replace(NOW, f"make_timestamptz({now_us})")))
                else:
                    values.append(parameters[operand.parameter])
                    columns.append(form.format("?"))
    row: Sequence[Any] = ()
    if columns:
        try:
            row = cursor.execute(f"SELECT {', '.join(columns)}", values).fetchone() or ()
        except duckdb.Error:
            return []  # whatever is wrong with it, the query itself will say it
    computed = iter(row)
    conditions = []
    for comparison, form, types in wanted:
        pairs = [
            ("VARCHAR", operand.sql[1:-1].replace("''", "'"))
            if _is_written(operand, (form, types))
            else (next(computed), next(computed))
            for operand in comparison.operands
        ]
        fits = [
            value is not None and (found in types or (operand.is_literal and found == "VARCHAR"))
            for operand, (found, value) in zip(comparison.operands, pairs, strict=True)
        ]
        if all(fits):
            intervals = tuple(_interval(comparison.sign, value) for _, value in pairs)
            conditions.append(Condition(_name(schema, comparison.column), intervals))
    return conditions


def _is_written(operand: Operand, kind: tuple[str, frozenset[str]]) -> bool:
    """Whether it is a string for a column of strings, as in `symbol = 'BTCUSDT'`: nothing is to be computed."""
    return operand.is_literal and kind == _TEXT


def named(statement: Statement, values: Values) -> Mapping[str, object]:
    """A parameter set by the names of the parameters."""
    return values if isinstance(values, Mapping) else dict(zip(statement.parameters, values, strict=True))


def _interval(sign: str, value: int | str) -> tuple[int | str | None, int | str | None]:
    if sign == "=":
        return value, value
    return (None, value) if sign in ("<", "<=") else (value, None)


def _name(schema: pa.Schema, column: str) -> str:
    return str(next(name for name in schema.names if name.casefold() == column.casefold()))


def _kind(schema: pa.Schema, column: str) -> tuple[str, frozenset[str]] | None:
    for field_ in schema:
        if field_.name.casefold() == column.casefold():
            if pa.types.is_timestamp(field_.type) and field_.type.unit == "us" and field_.type.tz:
                return _TIME
            if pa.types.is_int32(field_.type) or pa.types.is_int64(field_.type):
                return _NUMBER
            if pa.types.is_string(field_.type):
                return _TEXT
    return None
