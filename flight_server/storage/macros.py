"""Functions that are macros of DuckDB in the schema market, of the real database and of the planner's twin alike. Pure.

Macros take what stands in a query, row by row or as aggregates; what reads tables is in engine.market.
"""

from __future__ import annotations

from dataclasses import dataclass

from flight_server.storage.asx_days import CLOSED
from flight_server.storage.exact import digits, rounded_quotient


@dataclass(frozen=True)
class Macro:
    """`takes` and `body` are SQL; one without `help` is K2's own, and not listed."""

    name: str
    takes: str
    body: str
    returns: str
    help: str = ""
    example: str = ""

    @property
    def signature(self) -> str:
        """How it is called."""
        return f"{self.name}({self.takes})"

    def create(self, catalog: str) -> str:
        """The statement that makes it."""
        return f"CREATE MACRO {catalog}.market.{self.signature} AS {self.body}"


_NOTIONAL = "sum(CAST(price AS DECIMAL(18,8)) * CAST(quantity AS DECIMAL(28,8)))"
_VOLUME = "sum(CASE WHEN price IS NOT NULL THEN CAST(quantity AS DECIMAL(28,8)) END)"

_DECIMAL = "CAST(CAST(digits AS DECIMAL(28,0)) * CAST(0.00000001 AS DECIMAL(9,8)) AS DECIMAL(28,8))"

#: As a list of dates in SQL: those on which ASX is closed.
_ASX_CLOSED = ", ".join(
    f"DATE '{year}-{day}'"
    for year, _, days in (line.partition(": ") for line in CLOSED.split("\n") if line)
    for day in days.split()
)

#: All of them give the same for the same rows each time.
MACROS = (
    Macro("k2_digits", "number", digits("number"), "HUGEINT"),
    # The digits of a price or a quantity, without a text in between.
    Macro(
        "k2_units",
        "number",
        "CAST(CAST(number AS DECIMAL(28,8)) * CAST(100000000 AS DECIMAL(10,0)) AS HUGEINT)",
        "HUGEINT",
    ),
    Macro("k2_quotient", "numerator, denominator", rounded_quotient("numerator", "denominator"), "DECIMAL(18,8)"),
    Macro("k2_decimal", "digits", _DECIMAL, "DECIMAL(28,8)"),
    # Of a local time: is it on one of those days?
    Macro("k2_asx_closed", "moment", f"CAST(moment AS DATE) IN ({_ASX_CLOSED})", "BOOLEAN"),
    Macro(
        "mid",
        "bid_price, ask_price",
        "CAST((CAST(bid_price AS DECIMAL(18,8)) + CAST(ask_price AS DECIMAL(18,8))) * 0.5 AS DECIMAL(19,9))",
        "DECIMAL(19,9)",
        "Half of the sum of bid and ask, with every digit; NULL where either is missing.",
        "SELECT symbol, quote_id, mid(bid_price, ask_price) AS mid FROM market.quotes",
    ),
    Macro(
        "vwap",
        "price, quantity",
        rounded_quotient(digits(_NOTIONAL), digits(_VOLUME)),
        "DECIMAL(18,8)",
        "The volume-weighted average price, sum(price * quantity) / sum(quantity), of exact sums, rounded half to "
        "even; NULL without volume.",
        "SELECT symbol, vwap(price, quantity) AS vwap FROM market.trades GROUP BY symbol",
    ),
)
