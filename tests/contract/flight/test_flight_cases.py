"""SQL as files: cases/NAME.sql, and in NAME.json what it returns. Decimals and instants are written as text."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pytest

CASES = sorted((Path(__file__).parent / "cases").glob("*.sql"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case(connection: dbapi.Connection, path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with connection.cursor() as cursor:
        cursor.execute(path.read_text(encoding="utf-8"))
        names = [column[0] for column in cursor.description]
        rows = [[_as_json(value) for value in row] for row in cursor.fetchall()]
    # Rows are lists where names repeat.
    assert [
        row if expected and isinstance(expected[0], list) else dict(zip(names, row, strict=True)) for row in rows
    ] == expected


def test_every_case_has_its_answer() -> None:
    assert CASES and {path.stem for path in CASES} == {
        path.stem for path in (Path(__file__).parent / "cases").glob("*.json")
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, (Decimal, datetime)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return value
