"""A session's own tables and views as catalogs show them."""

from __future__ import annotations

import pyarrow as pa

from flight_server.engine.places import Home
from flight_server.engine.seam import ListedTable
from flight_server.engine.shapes import without_dictionaries

#: The types under which a session's own tables are listed.
SCRATCH_TABLE = "LOCAL TEMPORARY"
SCRATCH_VIEW = "VIEW"


def scratch_tables(home: Home) -> list[ListedTable]:
    """All of them, with their columns; true nullability for tables."""
    cursor = home.take(None, lambda: False)
    try:
        named = cursor.execute(
            "SELECT table_name, false FROM duckdb_tables() WHERE temporary "
            "UNION ALL SELECT view_name, true FROM duckdb_views() WHERE temporary AND NOT internal ORDER BY 1"
        ).fetchall()
        found = []
        for name, is_view in named:
            relation = 'temp.main."' + name.replace('"', '""') + '"'
            nullable = {row[0]: row[2] == "YES" for row in cursor.execute(f"DESCRIBE {relation}").fetchall()}
            schema = without_dictionaries(cursor.execute(f"SELECT * FROM {relation} LIMIT 0").to_arrow_reader(1).schema)
            fields = [field.with_nullable(nullable.get(field.name, True)) for field in schema]
            kind = SCRATCH_VIEW if is_view else SCRATCH_TABLE
            found.append(ListedTable("temp", "main", name, kind, pa.schema(fields)))
        return found
    finally:
        home.give_back()
