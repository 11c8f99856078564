"""What a market function is, and what all of them take. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import InvalidStatement
from flight_server.engine.market.arguments import Call, Symbols, Taken, Text, Time, instant_sql
from flight_server.engine.market.grids import ALL_TIME, Grid
from flight_server.engine.market.widths import Width
from flight_server.storage.read_view import literal

SYMBOL = Taken("symbol", Symbols(), "a symbol, or a list of them", also=("symbols",))
FROM = Taken("from_time", Time(), "inclusive; NULL: from the first on", None, also=("from", "start"))
TO = Taken("to_time", Time(), "exclusive; NULL: to the last", None, also=("to", "stop"))
EXCHANGE = Taken("exchange", Text(), "of this exchange only", None)
AS_OF = Taken("as_of", Text(), "what AT (VERSION => ...) takes: a cut, a snapshot's id, or a time in ISO 8601", None)


@dataclass(frozen=True)
class MarketFunction:
    """A function of FROM. `select` gives the SELECT that a call stands for, and raises ValueError with a sentence that
    goes on from the function's name; its result's columns do not depend on the values of arguments. `returns` are the
    columns as SQL, `reads` the tables of market whose symbols its symbols are.
    """

    name: str
    takes: tuple[Taken, ...]
    returns: str
    help: str
    example: str
    select: Callable[[Call], str]
    reads: tuple[str, ...] = ("trades",)

    @property
    def signature(self) -> str:
        """How it is called."""
        shown = [
            taken.name if taken.is_required else f"{taken.name} := {_shown(taken.default)}" for taken in self.takes
        ]
        return f"{self.name}({', '.join(shown)})"

    def taken(self, name: str) -> Taken | None:
        """The argument of this name."""
        folded = name.casefold()
        return next((taken for taken in self.takes if folded in (taken.name, *taken.also)), None)


def of_market(*takes: Taken) -> tuple[Taken, ...]:
    """The arguments of a function of a symbol and a range of time: `takes` in between, and what all of them take."""
    return (SYMBOL, FROM, TO, *takes, EXCHANGE, AS_OF)


def check_range(call: Call, zone: str = "UTC") -> tuple[int | None, int | None]:
    """The range of a call in microseconds. Raises ValueError when it ends before it begins."""
    low, high = call.instant_us("from_time", zone), call.instant_us("to_time", zone)
    if low is not None and high is not None and low > high:
        raise ValueError("is from a time to an earlier one; write the earlier time first")
    return low, high


def asked(call: Call, time: str, grid: Grid = ALL_TIME) -> str:
    """The condition of a call's symbols, exchange, range and sessions on a relation whose column of times is `time`."""
    low, high = check_range(call, grid.calendar.zone)
    symbols = ", ".join(map(literal, call["symbol"]))
    terms = [f"symbol = {symbols}" if len(call["symbol"]) == 1 else f"symbol IN ({symbols})"]
    if call["exchange"] is not None:
        terms.append(f"exchange = {literal(call['exchange'])}")
    if low is not None:
        terms.append(f"{time} >= {instant_sql(low)}")
    if high is not None:
        terms.append(f"{time} < {instant_sql(high)}")
    if grid.calendar.has_sessions:
        terms.append(grid.is_open(time))
    return " AND ".join(terms)


def trades_of(call: Call, columns: str, grid: Grid = ALL_TIME) -> str:
    """The SELECT of the trades that a call asks for."""
    return f"SELECT {columns} FROM {call.relation('trades')} WHERE {asked(call, 'event_time', grid)}"


def quotes_of(call: Call, columns: str, grid: Grid = ALL_TIME) -> str:
    """The SELECT of the quotes that a call asks for, with their time as `quote_time`: that of the venue, or where it
    gives none that of their receipt. In two parts, whose comparisons choose files by the statistics of either column.
    """
    return " UNION ALL ".join(
        f"SELECT {columns}, {time} AS quote_time FROM {call.relation('quotes')} "
        f"WHERE {asked(call, time, grid)} AND event_time IS {rest}NULL"
        for time, rest in (("event_time", "NOT "), ("receive_time", ""))
    )


def unknown_argument(function: MarketFunction, name: str) -> InvalidStatement:
    """What is said to an argument that the function does not take, or takes once."""
    return InvalidStatement(f"{function.name} takes no further {name or 'argument'}; it is {function.signature}")


def _shown(default: object) -> str:
    if default is None:
        return "NULL"
    if isinstance(default, tuple):
        return f"[{', '.join(map(_shown, default))}]"
    return repr(str(default)) if isinstance(default, (str, Width)) else str(default)
