"""Functions that are macros of DuckDB in the schema market, of the real database and of the planner's twin alike. Pure.

Macros take what stands in a query, row by row or as aggregates; what reads tables is in engine.market.
"""

from __future__ import annotations

from dataclasses import dataclass

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

#: All of them give the same for the same rows each time.
MACROS = (
    Macro("k2_digits", "number", digits("number"), "HUGEINT"),
    Macro("k2_quotient", "numerator, denominator", rounded_quotient("numerator", "denominator"), "DECIMAL(18,8)"),
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
