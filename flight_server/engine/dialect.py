"""What the engine says of its own SQL, for SqlInfo: read from the engine's catalog, not from a list that ages."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb


@dataclass(frozen=True)
class Dialect:
    """`version` begins with the dialect's name, which tools look for before they trust it: `duckdb v1.5.5`."""

    version: str
    keywords: list[str]
    numeric_functions: list[str]
    string_functions: list[str]
    datetime_functions: list[str]
    system_functions: list[str]


_SYSTEM_FUNCTIONS = ["current_catalog", "current_database", "current_schema", "current_schemas", "typeof", "version"]


def dialect_of(cursor: duckdb.DuckDBPyConnection) -> Dialect:
    """The dialect of the database that the cursor is on."""
    keywords = cursor.execute(
        "SELECT DISTINCT upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category <> 'unreserved' ORDER BY 1"
    ).fetchall()
    functions = cursor.execute(
        """
        SELECT DISTINCT function_name, coalesce(parameter_types[1], '') AS takes
        FROM duckdb_functions()
        WHERE function_type = 'scalar' AND regexp_full_match(function_name, '[a-z][a-z0-9_]*')
        ORDER BY 1
        """
    ).fetchall()

    def taking(*types: str) -> list[str]:
        return sorted({name for name, takes in functions if takes.startswith(types)})

    return Dialect(
        version=f"duckdb v{duckdb.__version__}",
        keywords=[keyword for (keyword,) in keywords],
        numeric_functions=taking("TINYINT", "BIGINT", "DOUBLE", "DECIMAL"),
        string_functions=taking("VARCHAR"),
        datetime_functions=taking("DATE", "TIME", "INTERVAL"),
        system_functions=_SYSTEM_FUNCTIONS,
    )
