"""A statement as it is asked for, and as it will be run: pure data.

Guarantee: a set of parameters is bound whole, in the order or under the names that the statement gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from common.errors import InvalidStatement
from flight_server.engine.control import Subscribe
from flight_server.engine.parameters import Row, count_mismatch, rows_of
from flight_server.engine.planner import Values
from flight_server.engine.sessions import Session
from flight_server.engine.sources import Source
from flight_server.engine.statements import Statement, StatementKind

#: What a change is answered with where it was sent as a query, as DuckDB itself does.
COUNT_SCHEMA = pa.schema([pa.field("Count", pa.int64())])


@dataclass(frozen=True)
class StatementInfo:
    """What is known of a statement before it runs. Parameters without a known type have Arrow's null type."""

    statement: Statement
    result_schema: pa.Schema
    parameter_schema: pa.Schema

    @property
    def kind(self) -> StatementKind:
        return self.statement.kind


@dataclass(frozen=True)
class Request:
    """A statement to be run: the text, its parameters, and what was announced of it."""

    sql: str
    parameters: pa.RecordBatch | None = None
    id: bytes = b""
    cut: str | None = None
    transaction_id: bytes | None = None
    is_part: bool = False


@dataclass(frozen=True)
class Plan:
    """How a caller would run a statement now."""

    statement: Statement
    rows: Sequence[Row]
    schema: pa.Schema
    session: Session | None
    on_home: bool = False
    source: Source | None = None
    subscribe: Subscribe | None = None


def bound_rows(statement: Statement, parameters: pa.RecordBatch | None) -> list[Row]:
    """The parameter sets: one empty set for a statement without parameters."""
    if parameters is None or (parameters.num_columns == 0 and not statement.parameters):
        if statement.parameters:
            raise InvalidStatement(count_mismatch(len(statement.parameters), 0))
        return [()]
    return rows_of(parameters, statement.parameters)


def values_of(statement: Statement, row: Row) -> Values:
    """A parameter set in the form that the engine binds: by position, or by name."""
    if all(name.isdigit() for name in statement.parameters):
        return list(row)
    return dict(zip(statement.parameters, row, strict=True))
