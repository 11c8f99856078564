"""Research tables in tests: made, filled and read in one line."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from common.settings import LakeSettings
from flight_server.storage.research import ResearchTables, WriteMode

CREATE, APPEND, REPLACE, CREATE_APPEND = WriteMode
SIMPLE = pa.schema([("id", pa.int64()), ("name", pa.string())])


def simple(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "name": [f"n{number}" for number in ids]}, schema=SIMPLE)


def put(research: ResearchTables, name: str, rows: pa.Table, mode: WriteMode = CREATE, **more: Any) -> int:
    write = research.begin_write(name, rows.schema, mode, **more)
    for batch in rows.to_batches():
        write.write(batch)
    return write.commit()


def rows_of(engine: Any, research: ResearchTables, name: str, what: str = "*") -> list[tuple[Any, ...]]:
    """As the flight server reads it."""
    table = research.table(name)
    assert table is not None
    if table.relation is None:
        return []
    return list(engine.execute(f"SELECT {what} FROM {table.relation} ORDER BY 1").fetchall())


def files_under(settings: LakeSettings) -> set[str]:
    folder = settings.data_dir / "warehouse" / "research"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
