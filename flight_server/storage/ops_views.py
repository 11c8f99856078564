"""Views of `ops` over what the log holds about K2's own work, as SQL: `ops.gaps` and `ops.completeness`. Pure.

Each is a SELECT over tables of the lake, so that it is read at the cut that those are read at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from common.datasets import GAP_EVENTS, INSTRUMENTS
from common.schemas.arrow import record_schema

_TIME: Final = pa.timestamp("us", "UTC")
_GAP_COLUMNS: Final = [field for field in record_schema(GAP_EVENTS.schema_name) if field.name != "message_id"]


#: A table's full name and an alias, as they are written behind FROM; there AT stands behind the alias.
Relation = Callable[[str, str], str]


def _field(name: str, data_type: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, data_type, nullable=nullable, metadata={b"doc": doc.encode()})


@dataclass(frozen=True)
class OpsView:
    """A view: its columns, the tables that it reads by their full names, and its SELECT over whatever stands for them.

    `select` is given how a table is written behind FROM, under an alias.
    """

    name: str
    columns: pa.Schema
    tables: tuple[str, ...]
    select: Callable[[Relation], str]


def _gaps(relation: Relation) -> str:
    # Not by row_number(): over a table as of an earlier cut DuckDB 1.5 fails inside when it plans that (a window that
    # its optimizer turns into an aggregate, over a union under a condition on other columns).
    record = ", ".join(f"{field.name} := {field.name}" for field in _GAP_COLUMNS)
    columns = ", ".join(f"newest.{field.name} AS {field.name}" for field in _GAP_COLUMNS)
    return (
        f"SELECT {columns} FROM (SELECT max_by(struct_pack({record}), updated_time) AS newest "
        f"FROM {relation(GAP_EVENTS.table, 'e')} GROUP BY gap_id)"
    )


def _completeness(relation: Relation) -> str:
    is_open = "g.state IN ('open', 'partly_filled')"
    is_stop = f"{is_open} AND g.severity = 'stop'"
    return (
        "SELECT i.exchange, i.symbol, count(g.gap_id) AS gaps, "
        f"count(*) FILTER ({is_open}) AS open_gaps, "
        f"CAST(coalesce(sum(g.missing_ids) FILTER ({is_open}), 0) AS BIGINT) AS missing_ids, "
        "CAST(coalesce(sum(g.missing_ids) FILTER (g.state = 'lost'), 0) AS BIGINT) AS lost_ids, "
        f"NOT coalesce(bool_or({is_stop}), false) AS complete, "
        f"min(g.first_id) FILTER ({is_stop}) - 1 AS complete_through_id, "
        f"min(g.opened_time) FILTER ({is_open}) AS oldest_open_time "
        f"FROM (SELECT DISTINCT exchange, symbol FROM {relation(INSTRUMENTS.table, 'm')}) AS i "
        f"LEFT JOIN ({_gaps(relation)}) AS g ON g.exchange = i.exchange AND g.symbol = i.symbol "
        "GROUP BY i.exchange, i.symbol"
    )


VIEWS: Final[Mapping[str, OpsView]] = {
    view.name: view
    for view in (
        OpsView("gaps", pa.schema(_GAP_COLUMNS), (GAP_EVENTS.table,), _gaps),
        OpsView(
            "completeness",
            pa.schema(
                [
                    _field("exchange", pa.string(), "Venue, lower case."),
                    _field("symbol", pa.string(), "The venue's own symbol."),
                    _field("gaps", pa.int64(), "Gaps of its trades that were seen, whatever became of them."),
                    _field("open_gaps", pa.int64(), "Those that are not closed."),
                    _field("missing_ids", pa.int64(), "Trade ids missing in these."),
                    _field("lost_ids", pa.int64(), "Trade ids that the venue no longer had."),
                    _field("complete", pa.bool_(), "False while a gap of severity stop is not closed."),
                    _field(
                        "complete_through_id",
                        pa.int64(),
                        "The last trade id before the first such gap; null without one: through the newest.",
                        nullable=True,
                    ),
                    _field("oldest_open_time", _TIME, "When the oldest gap not closed was seen.", nullable=True),
                ]
            ),
            (INSTRUMENTS.table, GAP_EVENTS.table),
            _completeness,
        ),
    )
}
