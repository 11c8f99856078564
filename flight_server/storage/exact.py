"""Exact division in SQL, pure: DuckDB divides decimals as doubles."""

from __future__ import annotations


def digits(decimal: str) -> str:
    """A decimal's digits as an integer, with its sign."""
    return f"CAST(replace(CAST({decimal} AS VARCHAR), '.', '') AS HUGEINT)"


def rounded_quotient(numerator: str, denominator: str) -> str:
    """The quotient of two integers as so many steps of 10^-8, a DECIMAL(18,8), half to the even step; NULL unless the
    denominator is above 0. Of digits with 16 and 8 decimals, or 8 and none, it is the quotient of the decimals."""
    quotient, rest = (f"(abs({numerator}) {sign} {denominator})" for sign in ("//", "%"))
    other = f"({denominator} - {rest})"
    up = f"CASE WHEN {rest} > {other} OR ({rest} = {other} AND {quotient} % 2 = 1) THEN 1 ELSE 0 END"
    steps = f"CAST(({quotient} + {up}) * sign({numerator}) AS DECIMAL(18,0))"
    return f"CASE WHEN {denominator} > 0 THEN CAST({steps} * CAST(0.00000001 AS DECIMAL(9,8)) AS DECIMAL(18,8)) END"
