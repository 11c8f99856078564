"""What the engine says of its own SQL, for SqlInfo: read from the engine's catalog, not from a list that ages."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

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


#: Words whose values differ from time to time, from session to session, or by chance, whatever the engine says of them.
VARYING_WORDS = frozenset(
    """
    current_timestamp current_time current_date localtime localtimestamp today now age ago user session_user
    current_user current_role current_setting getvariable sample tablesample
    """.split()  # noqa: SIM905  (reads better than twenty quoted strings)
)


@dataclass(frozen=True)
class Consistent:
    """Names before a parenthesis, lower case, that give the same for the same arguments each time.

    `scalars` make one value out of one row; `functions` are these and the aggregates. Both have what stands before a
    parenthesis and calls nothing: AS, IN, OVER, types.
    """

    scalars: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()

    def with_functions(self, more: Set[str]) -> Consistent:
        """With further functions of groups of rows."""
        return replace(self, functions=self.functions | more)


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


def consistent_of(cursor: duckdb.DuckDBPyConnection) -> Consistent:
    """The consistent functions of the database that the cursor is on. Raises duckdb.Error."""

    def names(query: str) -> frozenset[str]:
        return frozenset(name for (name,) in cursor.execute(query).fetchall())

    words = names(
        "SELECT lower(keyword_name) FROM duckdb_keywords() UNION SELECT lower(type_name) FROM duckdb_types() "
        "EXCEPT SELECT lower(function_name) FROM duckdb_functions()"
    )
    words |= {"try"}  # in neither list; the same as what it is tried on
    scalars = names(
        "SELECT lower(function_name) FROM duckdb_functions() GROUP BY 1 "
        "HAVING bool_and(function_type = 'scalar' AND stability = 'CONSISTENT')"
    )
    functions = names(
        "SELECT lower(function_name) FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate') GROUP BY 1 "
        "HAVING bool_and(stability IS NULL AND function_type = 'aggregate' OR stability = 'CONSISTENT')"
    )
    return Consistent(words | scalars, words | functions | {"range", "generate_series", "unnest"})
