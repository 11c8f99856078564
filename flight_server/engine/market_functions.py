"""Market functions at work: calls are found, arguments computed, symbols looked up, and the SELECTs put in."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

import duckdb

from common.errors import InvalidStatement, Unsupported
from flight_server.engine.cursors import CursorPool
from flight_server.engine.dialect import VARYING_WORDS
from flight_server.engine.errors import translated
from flight_server.engine.market.arguments import Call
from flight_server.engine.market.expansion import calls_of, expanded, has_parameters, is_called
from flight_server.engine.market.functions import MarketFunction
from flight_server.engine.planner import Planner, Values
from flight_server.engine.rewrite import FunctionRef, functions_of
from flight_server.engine.seam import Lake
from flight_server.engine.session_options import CATALOG, MARKET
from flight_server.engine.sources import Sources
from flight_server.engine.statements import Statement
from flight_server.engine.tokens import tokens_of
from flight_server.storage.read_view import literal

#: Statements whose expansion is remembered.
_KEPT_MAX = 256
#: Symbols that are named to whoever asks for one that is not there.
_NAMED_MAX = 20


class MarketFunctions:
    """Thread-safe."""

    def __init__(self, lake: Lake, cursors: CursorPool, sources: Sources) -> None:
        self._lake = lake
        self._cursors = cursors
        self._sources = sources
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, frozenset[str]], Statement] = OrderedDict()
        #: (table, symbol) that were seen.
        self._known: set[tuple[str, str]] = set()

    def expanded(
        self,
        statement: Statement,
        planner: Planner,
        values: Values | None,
        *,
        runs: int = 1,
        is_view: bool = False,
    ) -> Statement:
        """The statement that is run for this one: itself, when it calls no market function.

        `values` are its parameters; None where they are not known yet, and then it is there to be planned only; `runs`
        how many sets of them there are. With `is_view` it is what a view keeps, whose calls are put in once and for
        all. Raises InvalidStatement, Unsupported.
        """
        if not is_called(statement.words):
            return statement
        tables = frozenset(table.name for table in self._lake.tables() if table.schema == MARKET)
        with self._lock:
            kept = self._kept.get((statement.text, tables))
        if kept is not None and not is_view:
            return kept
        tree = self._sources.tree(statement.query, planner.parser)
        if isinstance(tree, InvalidStatement):
            raise tree
        calls = calls_of(tree, functions_of(tree), tables, planner.parser, values)
        if not calls:
            return statement
        if is_view:
            for ref, (_, call) in calls.items():
                _check_lasting(ref, call)
        bound = has_parameters(calls)
        if bound and runs > 1:
            name = next(iter(calls)).name
            raise Unsupported(f"{name} takes one set of parameters at a time; run the statement once for each")
        if statement.text.count(statement.query) != 1:
            raise InvalidStatement("EXPLAIN of a market function is to be written plainly: EXPLAIN SELECT")
        text = statement.text.replace(statement.query, expanded(tree, calls), 1)
        for function, call in calls.values():
            self._check_symbols(function, call)
        found = planner.parse(text)
        varying = statement.words & VARYING_WORDS
        # What varies is computed by now: such a text is another one next time, and not worth keeping.
        found = replace(found, sent=statement.text, words=found.words | varying)
        if not bound and not varying:
            with self._lock:
                self._kept[statement.text, tables] = found
                if len(self._kept) > _KEPT_MAX:
                    self._kept.popitem(last=False)
        return found

    def _check_symbols(self, function: MarketFunction, call: Call) -> None:
        """Raises InvalidStatement for a symbol that a table of the function does not have at all."""
        for table in function.reads:
            for symbol in call["symbol"]:
                if symbol and (table, symbol) not in self._known:
                    self._look_up(function.name, table, symbol)
                    self._known.add((table, symbol))

    def _look_up(self, function: str, table: str, symbol: str) -> None:
        relation = f"{CATALOG}.{MARKET}.{table}"
        try:
            with self._cursors.lent() as cursor:
                asked = f"SELECT 1 FROM {relation} WHERE symbol = {literal(symbol)} LIMIT 1"
                if cursor.execute(asked).fetchone() is not None:
                    return
                listed = (
                    f"SELECT symbol FROM {relation} GROUP BY 1 ORDER BY jaro_winkler_similarity(symbol, $1) DESC, 1"
                )
                found = [
                    name for (name,) in cursor.execute(f"{listed} LIMIT {_NAMED_MAX + 1}", [symbol.upper()]).fetchall()
                ]
        except duckdb.Error as error:
            raise translated(error) from None
        there = ", ".join(found[:_NAMED_MAX]) + (", ..." if len(found) > _NAMED_MAX else "")
        raise InvalidStatement(
            f"{function}: {MARKET}.{table} has no symbol {symbol[:40]!r}; "
            + (f"there are {there}" if found else "it has no rows yet")
        )


def _check_lasting(ref: FunctionRef, call: Call) -> None:
    """Raises Unsupported for a call that would not mean the same each time that a view of it is read."""
    for argument in ref.arguments:
        varying = {str(token.name) for token in tokens_of(argument.text)} & VARYING_WORDS
        if varying:
            raise Unsupported(
                f"a view keeps {ref.name} as it is when the view is made, and {min(varying)} would stay what it was "
                f"then; leave the bound out and put it behind, as in SELECT * FROM {ref.name}(...) WHERE ..., or send "
                "the query itself each time"
            )
        if argument.has_parameter:
            raise Unsupported(f"a view takes no parameters; write the value into {ref.name}")
    if call.values.get("as_of"):
        raise Unsupported(
            f"a view is read at the cut of the query that reads it, and {ref.name} has one of its own in as_of; leave "
            "it out, or make a table of the rows: CREATE TABLE name AS SELECT ..."
        )
