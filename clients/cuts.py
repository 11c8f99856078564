"""Cuts as clients see them: the text that comes with a result, and what `at=` may be."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pyarrow as pa
from pyarrow import flight

#: An instant of the past: the cut of an earlier result, an Iceberg snapshot's id, or a time (without a zone: in UTC).
Instant = str | int | datetime


def cut_of_metadata(metadata: bytes | None) -> str | None:
    """The cut in the app_metadata of a FlightInfo or of a batch; None where there is none."""
    try:
        found = json.loads(metadata or b"null")
        return str(found["cut"]) if isinstance(found, dict) and "cut" in found else None
    except ValueError:
        return None


def cut_of_partition(partition: bytes) -> str | None:
    """The cut of a result that ADBC announced in partitions, each of which is a FlightInfo."""
    try:
        return cut_of_metadata(flight.FlightInfo.deserialize(partition).app_metadata)
    except pa.ArrowException:
        return None


def as_of_text(at: Instant) -> str:
    """What the server's option k2.as_of takes."""
    if isinstance(at, datetime):
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).isoformat()
    return str(at)
