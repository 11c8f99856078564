"""What a SELECT asks of the columns of its tables: comparisons with constants, read off DuckDB's tree. Pure.

Guarantee: a row of a table that does not meet every comparison found for it takes no part in the result, so that it
makes no difference whether it is read. What is not understood is left out, which only means that more is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Operand:
    """What a column is compared with: `sql` that names no column, or the `parameter` of that name.

    `is_literal` for a bare string, which takes the type of what it is compared with; `varies` when it is another value
    each time, by the instant of its transaction, which is to stand in `sql` in the place of NOW.
    """

    sql: str = ""
    parameter: str | None = None
    is_literal: bool = False
    varies: bool = False


@dataclass(frozen=True)
class Comparison:
    """`column` stands in the relation `sign` (one of = < <= > >=) to one of the operands. A NULL does not."""

    column: str
    sign: str
    operands: tuple[Operand, ...]


#: In the place of the transaction's instant: a character that is in no text.
NOW = "\ue000"
_SIGNS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_TURNED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
#: Joins of which WHERE sees the rows one by one. An ASOF join chooses among rows, so it must see all of them.
_JOINS = ({"REGULAR", "CROSS", "NATURAL"}, {"INNER", "LEFT", "RIGHT", "FULL", "OUTER"})
_TYPES = frozenset(
    {"TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "DATE", "INTERVAL", "BIGINT", "INTEGER", "SMALLINT", "VARCHAR", "DOUBLE"}
)
_NUMBERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT"})
_FUNCTIONS = frozenset(
    """
    date_trunc to_microseconds to_milliseconds to_seconds to_minutes to_hours to_days to_weeks to_months to_years
    to_timestamp make_timestamp make_timestamptz make_date epoch_ms trunc timezone date_add
    """.split()  # noqa: SIM905  (reads better than fifteen quoted strings)
)
_TODAY = f"CAST({NOW} AS DATE)"
_VARYING = {"now": NOW, "get_current_timestamp": NOW, "transaction_timestamp": NOW, "today": _TODAY}
_VARYING_WORDS = {"current_timestamp": NOW, "current_date": _TODAY}


def comparisons_of(select: Json) -> dict[int, tuple[Comparison, ...]]:
    """By `id` of each table's node in the FROM of a SELECT_NODE: what its WHERE asks of that table."""
    where = select.get("where_clause")
    tables: list[Json] = []
    if where is None or "sample" in select or not _gather(select.get("from_table", {}), tables):
        return {}
    found: dict[int, list[Comparison]] = {}
    for term in _terms(where):
        for names, comparison in _comparisons(term):
            for table in _owners(names, tables):
                found.setdefault(id(table), []).append(comparison)
    return {table: tuple(comparisons) for table, comparisons in found.items()}


def _gather(node: Json, tables: list[Json]) -> bool:
    """Put what FROM reads into `tables`; False when its rows are not simply those of its tables, joined."""
    if node.get("type") == "JOIN":
        kinds, types = _JOINS
        if node.get("ref_type", "REGULAR") not in kinds or node.get("join_type", "INNER") not in types:
            return False
        return _gather(node["left"], tables) and _gather(node["right"], tables)
    tables.append(node)
    return "sample" not in node


def _owners(names: list[str], tables: list[Json]) -> Iterator[Json]:
    """The table whose column is meant, if that is certain."""
    folded = [name.casefold() for name in names]
    for table in tables:
        if table.get("type") != "BASE_TABLE" or "column_name_alias" in table:
            continue
        name = table["table_name"]
        if len(folded) == 1:
            if len(tables) == 1:
                yield table
        elif len(folded) == 2:
            if folded[0] == table.get("alias", name).casefold():
                yield table
        elif "alias" not in table and folded[-3:-1] == [table.get("schema_name", "").casefold(), name.casefold()]:
            yield table


def _terms(node: Json) -> Iterator[Json]:
    if node.get("type") == "CONJUNCTION_AND":
        for child in node.get("children", ()):
            yield from _terms(child)
    else:
        yield node


def _comparisons(term: Json) -> Iterator[tuple[list[str], Comparison]]:
    kind = term.get("type", "")
    if kind in _SIGNS:
        left, right = term["left"], term["right"]
        for column, other, sign in ((left, right, _SIGNS[kind]), (right, left, _TURNED[_SIGNS[kind]])):
            if _is_column(column) and (operand := _operand(other)) is not None:
                yield column["column_names"], Comparison(column["column_names"][-1], sign, (operand,))
    elif kind == "COMPARE_BETWEEN" and _is_column(term["input"]):
        names = term["input"]["column_names"]
        for sign, end in ((">=", term["lower"]), ("<=", term["upper"])):
            if (operand := _operand(end)) is not None:
                yield names, Comparison(names[-1], sign, (operand,))
    elif kind == "COMPARE_IN" and term.get("children") and _is_column(term["children"][0]):
        names = term["children"][0]["column_names"]
        operands = [_operand(child) for child in term["children"][1:]]
        known = tuple(operand for operand in operands if operand is not None)
        if known and len(known) == len(operands):
            yield names, Comparison(names[-1], "=", known)


def _is_column(node: Json) -> bool:
    return node.get("type") == "COLUMN_REF" and node["column_names"][-1].casefold() not in _VARYING_WORDS


def _operand(node: Json) -> Operand | None:
    if node.get("type") == "VALUE_PARAMETER":
        return Operand(parameter=node["identifier"])
    sql = _sql(node)
    if sql is None:
        return None
    is_literal = node.get("type") == "VALUE_CONSTANT" and node["value"]["type"]["id"] == "VARCHAR"
    return Operand(sql, is_literal=is_literal, varies=NOW in sql)


def _sql(node: Json) -> str | None:
    """An expression of constants as SQL again; None when it is anything else."""
    kind = node.get("type")
    if kind == "VALUE_CONSTANT":
        return _constant(node["value"])
    if kind == "COLUMN_REF":
        return _VARYING_WORDS.get(node["column_names"][-1].casefold()) if len(node["column_names"]) == 1 else None
    if kind == "OPERATOR_CAST":
        into, inner = node["cast_type"], _sql(node["child"])
        plain = into["id"] in _TYPES and "type_info" not in into and not node.get("try_cast", False)
        return f"CAST({inner} AS {into['id']})" if plain and inner is not None else None
    if kind != "FUNCTION" or node.get("filter") or node.get("distinct") or node.get("schema"):
        return None
    name = node["function_name"].casefold()
    operands = [_sql(child) for child in node.get("children", ())]
    if any(operand is None for operand in operands):
        return None
    written = [str(operand) for operand in operands]
    if node.get("is_operator") and name in ("+", "-", "*") and written:
        return f"({written[0]} {name} {written[1]})" if len(written) == 2 else f"({name} {written[0]})"
    if name in _VARYING and not written:
        return _VARYING[name]
    return f"{name}({', '.join(written)})" if name in _FUNCTIONS else None


def _constant(value: Json) -> str | None:
    if value.get("is_null"):
        return None
    kind = value["type"]["id"]
    if kind == "VARCHAR" and NOW not in str(value["value"]):
        return "'" + str(value["value"]).replace("'", "''") + "'"
    if kind in _NUMBERS and isinstance(value["value"], int):
        return f"({value['value']})"
    return None
