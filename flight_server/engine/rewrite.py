"""Which tables a SELECT reads, and the same SELECT with other relations in their place.

What is a table reference, what is the name of a CTE and what an alias is decided on DuckDB's own tree of the statement
(json_serialize_sql). The change is made in the text, at the places that the tree gives: everything else stays to the
letter, parameters and the names of unnamed columns included, but for columns that are named after the tables that they
read: an unnamed scalar subquery, or a star in a function. (Turned back into text by json_deserialize_sql, one in
twenty statements of tests/unit/flight_server/engine/rewrite_corpus.sql has other column names: `lambda x: ...` becomes
`x -> ...`.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import duckdb

from common.errors import InvalidStatement, Unsupported
from flight_server.engine.errors import translated
from flight_server.engine.predicates import Comparison, comparisons_of
from flight_server.engine.tokens import Token, qualified_name, tokens_of

#: How the names of K2's own table functions begin.
_OWN = "k2_"
#: Where the functions beside those in k2_ may be said to be.
_SCHEMAS = (("market",), ("k2", "market"))
#: Table functions that read a table which their argument names.
_READ_BY_NAME = frozenset({"query_table", "query"})
#: The name of an argument, as in `to_cut => ...`.
_NAMED = re.compile(r"""^\s*(?:\w+|"(?:[^"]|"")*")\s*(?:=>|:=|=)\s*""")
_STRING = re.compile(r"'(?:[^']|'')*'")
Json = Mapping[str, Any]
#: What means columns that it does not name.
_NAMING_ALL = ("STAR", "POSITIONAL_REFERENCE", "PIVOT", "SHOW_REF")
_JOINING_ALL = ("NATURAL", "POSITIONAL")


@dataclass(frozen=True)
class AtClause:
    """AT (VERSION => expression) or AT (TIMESTAMP => expression); the expression as SQL, see `as_of_text`."""

    unit: str
    expression: str


@dataclass(frozen=True)
class TableRef:
    """A table as a FROM names it, its parts "" where they are not written."""

    catalog: str
    schema: str
    name: str
    alias: str | None = None
    at: AtClause | None = None
    #: What the rows that are read must meet.
    asked: tuple[Comparison, ...] = ()


@dataclass(frozen=True)
class Argument:
    """One argument of a table function as it stands in the text; `parameter` where it is one, by name or number.

    `has_subquery` when it would read something; `parameters` are those that stand in it, numbers in order.
    """

    text: str
    name: str | None = None
    parameter: str | None = None
    has_parameter: bool = False
    has_subquery: bool = False
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class FunctionRef:
    """One of K2's own table functions as a FROM calls it."""

    name: str
    arguments: tuple[Argument, ...]
    alias: str | None = None


@dataclass(frozen=True)
class _Place:
    """Where a reference stands in the text, in bytes: its name, its AT clause; `instead` goes before a subquery."""

    ref: TableRef | FunctionRef
    start: int
    end: int
    at: tuple[int, int] | None
    instead: str


@dataclass(frozen=True)
class Tree:
    """A SELECT, read. Kept for as long as its text is: nothing in it depends on data, settings or time."""

    text: str
    places: tuple[_Place, ...]
    #: (start in bytes, lengths of the parts of the name) of each column that is named with three parts or more.
    columns: tuple[tuple[int, tuple[str, ...]], ...]
    reads_by_name: bool
    #: Every part of a column's name that stands anywhere in it, lower case; None where columns are meant that are not
    #: named: by a star, by their number, by a natural join, by names that are given to them in their order.
    named: frozenset[str] | None = None
    #: The last part of each such name: where it is that of a relation, it stands for a whole row.
    rows: frozenset[str] = frozenset()


def tree_of(text: str, cursor: duckdb.DuckDBPyConnection, functions: Set[str] = frozenset()) -> Tree:
    """Read one SELECT, or what counts as one (FROM, VALUES, TABLE, PIVOT, DESCRIBE, SHOW, SUMMARIZE).

    `cursor` only parses; `functions` are the names, lower case, of K2's own table functions beside those in k2_. Raises
    InvalidStatement when the text is no such statement, or nested too deeply to be read.
    """
    try:
        row = cursor.execute(
            "SELECT json_serialize_sql($1::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)",
            [text],
        ).fetchone()
        serialised: Any = json.loads(row[0]) if row else {"error": True}
        if serialised["error"]:
            raise InvalidStatement(str(serialised.get("error_message", "this is no SELECT")).splitlines()[0])
        if len(serialised["statements"]) != 1:
            raise InvalidStatement("the text is not one SELECT")
        reader = _Reader(text, functions)
        reader.read(serialised["statements"])
    except duckdb.Error as error:
        raise translated(error) from None
    except RecursionError:
        raise InvalidStatement("the statement is nested too deeply for AT and k2.as_of; take it apart") from None
    named = None if reader.names_all else frozenset(reader.named)
    return Tree(text, tuple(reader.places), tuple(reader.columns), reader.reads_by_name, named, frozenset(reader.last))


def tables_of(tree: Tree) -> list[TableRef]:
    """The tables that the statement reads, in no order, each as often as it stands there; names of CTEs left out."""
    return [place.ref for place in tree.places if isinstance(place.ref, TableRef)]


def functions_of(tree: Tree) -> list[FunctionRef]:
    """K2's own table functions that the statement calls, in no order, each as often as it stands there."""
    return [place.ref for place in tree.places if isinstance(place.ref, FunctionRef)]


def rewritten(tree: Tree, replace: Callable[[TableRef | FunctionRef], str | None], *, schema: str = "") -> str:
    """The statement with a subquery in the place of each table, and each of K2's own table functions, for which
    `replace` gives one; AT clauses go with it.

    The subquery has the alias that the table had, or else the table's name, so that `trades.price` still means what it
    meant; so does `market.trades.price`, also where FROM says `trades` and `schema` is market. Parameters keep number
    and order. Raises Unsupported for functions that read tables by name: they would go round the replacement.
    """
    edits: list[tuple[int, int, str]] = []
    renamed: list[TableRef] = []
    for place in tree.places:
        subquery = replace(place.ref)
        if subquery is None:
            continue
        name = "" if place.ref.alias is not None else f" AS {_quoted(place.ref.name)}"
        edits.append((place.start, place.end, f"{place.instead}({subquery}){name}"))
        if place.at is not None:
            edits.append((*place.at, ""))
        if place.ref.alias is None and isinstance(place.ref, TableRef):
            renamed.append(place.ref)
    if edits and tree.reads_by_name:
        raise Unsupported("query and query_table read tables of now only; name the table in FROM instead")
    for start, names in tree.columns:
        length = max((_qualifiers(names, ref, schema) for ref in renamed), default=0)
        if length:
            edits.append((start, _start_of_part(tree.text, start, length), ""))
    data = tree.text.encode()
    for start, end, new in sorted(edits, reverse=True):
        data = data[:start] + new.encode() + data[end:]
    return data.decode()


def as_of_text(at: AtClause, cursor: duckdb.DuckDBPyConnection) -> str:
    """What an AT clause says, as the text that storage.as_of reads: a number, a cut, or a time in ISO 8601.

    The expression is computed on `cursor`, which must have no data, with its time zone: `now() - INTERVAL 1 HOUR` is
    another time each time. Raises InvalidStatement.
    """
    wanted = at.expression
    if at.unit == "TIMESTAMP":
        wanted = f"strftime(CAST(({wanted}) AS TIMESTAMPTZ) AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
    try:
        row = cursor.execute(f"SELECT CAST(({wanted}) AS VARCHAR)").fetchone()
    except duckdb.Error as error:
        reason = str(translated(error)).splitlines()[0]
        raise InvalidStatement(f"AT ({at.unit} => {at.expression}) cannot be understood: {reason}") from None
    if row is None or row[0] is None:
        raise InvalidStatement(f"AT ({at.unit} => {at.expression}) is NULL; give a snapshot's id, a cut or a time")
    return str(row[0])


def constant_text(
    expression: str, what: str, cursor: duckdb.DuckDBPyConnection, values: Sequence[object] = ()
) -> str | None:
    """The value of an expression that reads nothing, as text, times in UTC; None for NULL. `cursor` as in `as_of_text`.

    `values` are its parameters, `what` names it in the error. Raises InvalidStatement.
    """
    wanted = (
        "CASE WHEN typeof(v) LIKE 'TIMESTAMP%' THEN strftime(TRY_CAST(v AS TIMESTAMPTZ) AT TIME ZONE 'UTC', "
        "'%Y-%m-%dT%H:%M:%S.%fZ') ELSE CAST(v AS VARCHAR) END"
    )
    try:
        row = cursor.execute(f"SELECT {wanted} FROM (SELECT ({expression}) AS v)", list(values) or None).fetchone()
    except duckdb.Error as error:
        reason = str(translated(error)).splitlines()[0]
        raise InvalidStatement(f"{what} is no constant: {reason}") from None
    return None if row is None or row[0] is None else str(row[0])


class _Reader:
    """Walks the tree with a stack of its own, so that depth costs no recursion."""

    def __init__(self, text: str, functions: Set[str]) -> None:
        self._functions = functions
        self.places: list[_Place] = []
        self.columns: list[tuple[int, tuple[str, ...]]] = []
        self.reads_by_name = False
        self.named: set[str] = set()
        self.last: set[str] = set()
        self.names_all = False
        self._data = text.encode()
        self._tokens = tokens_of(text)
        self._index_at = {token.start: index for index, token in enumerate(self._tokens)}
        self._todo: list[tuple[Any, frozenset[str], bool]] = []
        #: By id of a table's node, which lives as long as the tree is read.
        self._asked: dict[int, tuple[Comparison, ...]] = {}

    def read(self, statements: Any) -> None:
        self._todo.append((statements, frozenset(), False))
        while self._todo:
            node, ctes, bare = self._todo.pop()
            if isinstance(node, list):
                self._todo += [(child, ctes, bare) for child in node]
            elif isinstance(node, dict):
                self._read_node(node, ctes, bare)

    def _read_node(self, node: Json, ctes: frozenset[str], bare: bool) -> None:
        kind = node.get("type")
        self._read_names(node, kind)
        if kind == "BASE_TABLE":
            unqualified = not node.get("schema_name") and not node.get("catalog_name")
            if not (unqualified and node["table_name"].casefold() in ctes):
                self.places.append(self._place(node, bare))
            return
        if kind == "COLUMN_REF" and len(node["column_names"]) > 2 and "query_location" in node:
            self.columns.append((node["query_location"], tuple(node["column_names"])))
        if kind == "TABLE_FUNCTION":
            called = node["function"].get("function_name", "").casefold()
            if called in _READ_BY_NAME:
                self.reads_by_name = True
            elif called.startswith(_OWN) or called in self._functions:
                self.places.append(self._function_place(node, called))
                return
        if kind == "SHOW_REF" and "query" in node:
            # DESCRIBE t is DESCRIBE (SELECT * FROM t) with a star that stands nowhere in the text.
            stars = node["query"].get("select_list", [])
            written = len(stars) != 1 or "query_location" in stars[0]
            self._todo.append((node["query"], ctes, not written))
            return
        for entry in node.get("cte_map", {}).get("map", ()):
            # A CTE sees those before it, and itself only when it is recursive.
            name = entry["key"].casefold()
            query = entry["value"].get("query", {})
            recursive = query.get("node", {}).get("type") in ("RECURSIVE_CTE_NODE", "CTE_NODE")
            self._todo.append((entry["value"], ctes | {name} if recursive else ctes, False))
            ctes = ctes | {name}
        if kind == "SELECT_NODE":
            self._asked |= comparisons_of(node)
        in_from = kind == "SELECT_NODE" and bare
        for key, child in node.items():
            if key != "cte_map" and isinstance(child, (dict, list)):
                self._todo.append((child, ctes, in_from and key == "from_table"))

    def _read_names(self, node: Json, kind: object) -> None:
        """Which columns a node names, those of its children left out."""
        names = [name.casefold() for name in node.get("column_names", ())]
        self.named.update(names, (name.casefold() for name in node.get("using_columns", ())))
        self.last.update(names[-1:])
        self.names_all |= kind in _NAMING_ALL or node.get("ref_type") in _JOINING_ALL or "column_name_alias" in node

    def _place(self, node: Json, bare: bool) -> _Place:
        index = self._index_at.get(node.get("query_location", -1))
        parts = [part for part in (node.get("catalog_name"), node.get("schema_name"), node["table_name"]) if part]
        if index is None:
            raise InvalidStatement(f"the table {'.'.join(parts)} cannot be found in the text; write its name plainly")
        start = self._tokens[index].start
        last = index + 2 * (len(parts) - 1)
        end = self._end(self._tokens[last])
        instead = ""
        if index and self._tokens[index - 1].says("table"):
            start, instead = self._tokens[index - 1].start, "FROM "
        elif bare:
            instead = "FROM "
        at, span = None, None
        alias = node.get("alias")
        if "at_clause" in node:
            prefixed = index > 0 and self._tokens[index - 1].sign == ":"
            behind = self._behind_alias(last + 1, None if prefixed else alias, "column_name_alias" in node)
            at, span = self._at(behind, node["at_clause"])
        ref = TableRef(
            node.get("catalog_name", ""),
            node.get("schema_name", ""),
            node["table_name"],
            alias=alias,
            at=at,
            asked=self._asked.get(id(node), ()),
        )
        return _Place(ref, start, end, span, instead)

    def _function_place(self, node: Json, name: str) -> _Place:
        begin = self._index_at.get(node.get("query_location", -1), -1)
        names, behind = qualified_name(self._tokens, begin) if begin >= 0 else ((), 0)
        schema, index = tuple(part.casefold() for part in names[:-1]), behind - 1
        known = not schema or (name in self._functions and schema in _SCHEMAS)
        if not names or not known or self._tokens[index + 1].sign != "(":
            raise InvalidStatement(f"the function {name} cannot be found in the text; write its name plainly")
        closing = self._closing(index + 1)
        children = node["function"].get("children", [])
        texts = self._arguments(index + 1, closing)
        if len(texts) != len(children):
            raise InvalidStatement(f"the arguments of {name} cannot be told apart; write each one plainly")
        arguments = tuple(_argument(text, child) for text, child in zip(texts, children, strict=True))
        ref = FunctionRef(name, arguments, node.get("alias"))
        return _Place(ref, self._tokens[begin].start, self._tokens[closing].start + 1, None, "")

    def _arguments(self, opening: int, closing: int) -> list[str]:
        """What stands between the parentheses, taken apart at the commas that are in no others."""
        starts, depth = [self._tokens[opening].start + 1], 0
        for token in self._tokens[opening + 1 : closing]:
            depth += (token.sign in ("(", "[", "{")) - (token.sign in (")", "]", "}"))
            if token.sign == "," and depth == 0:
                starts.append(token.start + 1)
        ends = [*(start - 1 for start in starts[1:]), self._tokens[closing].start]
        texts = [self._data[start:end].decode().strip() for start, end in zip(starts, ends, strict=True)]
        return [] if texts == [""] else texts

    def _behind_alias(self, index: int, alias: str | None, has_columns: bool) -> int:
        """The index behind `[AS] alias [(columns)]`."""
        if alias is None:
            return index
        if self._tokens[index].says("as"):
            index += 1
        index += 1
        return self._closing(index) + 1 if has_columns else index

    def _at(self, index: int, clause: Json) -> tuple[AtClause, tuple[int, int]]:
        """The clause AT (unit => expression) whose AT stands at `index`, and its place in bytes."""
        closing = self._closing(index + 1)
        first = index + 3
        while self._tokens[first].sign in ("=", ">"):
            first += 1
        if '"VALUE_PARAMETER"' in json.dumps(clause):
            raise Unsupported("AT takes a constant, not a parameter; write the version or the time into the statement")
        end = self._tokens[closing].start
        expression = self._data[self._tokens[first].start : end].decode().strip()
        return AtClause(clause["unit"].upper(), expression), (self._tokens[index].start, end + 1)

    def _closing(self, index: int) -> int:
        """The index of the parenthesis that closes the one at `index`."""
        depth = 0
        for found in range(index, len(self._tokens)):
            sign = self._tokens[found].sign
            depth += (sign == "(") - (sign == ")")
            if depth == 0:
                return found
        raise InvalidStatement("a parenthesis is not closed")

    def _end(self, token: Token) -> int:
        """Where a name ends, also one that is written as a string."""
        if token.name is not None:
            return token.end
        written = _STRING.match(self._data[token.start :].decode(errors="replace"))
        return token.start + len(written.group().encode()) if written else token.end


def _argument(text: str, child: Json) -> Argument:
    said = json.dumps(child)
    return Argument(
        _NAMED.sub("", text) if child.get("alias") else text,
        child.get("alias"),
        child.get("identifier") if child.get("type") == "VALUE_PARAMETER" else None,
        '"VALUE_PARAMETER"' in said,
        '"SUBQUERY"' in said,
        tuple(sorted(_parameters(child), key=lambda name: int(name) if name.isdigit() else 0)),
    )


def _parameters(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for child in node for name in _parameters(child)]
    if not isinstance(node, dict):
        return []
    own = [node["identifier"]] if node.get("type") == "VALUE_PARAMETER" else []
    return own + [name for child in node.values() for name in _parameters(child)]


def _qualifiers(names: Sequence[str], ref: TableRef, schema: str) -> int:
    """How many parts of a column's name say no more than where `ref` is; 0 when they do not mean it."""
    folded = [name.casefold() for name in names]
    table = [(ref.schema or schema).casefold(), ref.name.casefold()]
    if folded[:2] == table:
        return 1
    if len(folded) > 3 and folded[1:3] == table and (not ref.catalog or folded[0] == ref.catalog.casefold()):
        return 2
    return 0


def _start_of_part(text: str, start: int, part: int) -> int:
    """Where the name behind the first `part` names begins, for a dotted name that begins at byte `start`."""
    tokens = tokens_of(text)
    index = next(index for index, token in enumerate(tokens) if token.start == start)
    return tokens[index + 2 * part].start


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
