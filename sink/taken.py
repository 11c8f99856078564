"""Which business identities the tables hold already: what seeds a ledger when the log that had it is gone.

The embedded broker forgets with its process, the tables do not. An ingest on a new broker that knew nothing of the
tables would take every trade a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.datasets import INSTRUMENTS, QUOTES, TRADES, Dataset
from common.schemas.arrow import record_schema
from common.settings import LakeSettings
from sink.table import IcebergTable

#: (exchange, symbol)
Key = tuple[str, str]
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Taken:
    """Per (exchange, symbol): trade ids as sorted, disjoint, non-adjacent inclusive ranges; the highest quote id; the
    message id of the newest instrument.
    """

    trades: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    quotes: dict[Key, int] = field(default_factory=dict)
    instruments: dict[Key, str] = field(default_factory=dict)


def read_taken(lake: LakeSettings) -> Taken:
    """What the newest snapshots of the three tables hold. Reads the identity columns only, a batch at a time; missing
    tables are made. Raises SettingsError, CatalogError.
    """
    return Taken(
        taken_trades(IcebergTable.open(lake, TRADES).scan(("exchange", "symbol", "trade_id"))),
        taken_quotes(IcebergTable.open(lake, QUOTES).scan(("exchange", "symbol", "quote_id"))),
        taken_instruments(
            IcebergTable.open(lake, INSTRUMENTS).scan(("exchange", "symbol", "message_id", "updated_time"))
        ),
    )


def rows_of_exchange(lake: LakeSettings, dataset: Dataset, exchange: str) -> Iterator[pa.RecordBatch]:
    """What the newest snapshot of a table holds of one exchange, a batch at a time; a missing table is made.

    Raises SettingsError, CatalogError.
    """
    columns = tuple(record_schema(dataset.schema_name).names)
    yield from IcebergTable.open(lake, dataset).scan(columns, exchange=exchange)


def taken_trades(batches: Iterable[pa.RecordBatch]) -> dict[Key, list[tuple[int, int]]]:
    """The id ranges in batches with the columns exchange, symbol, trade_id. Memory grows with ranges, not with rows."""
    found: dict[Key, list[tuple[_Ids, _Ids]]] = {}
    for batch in batches:
        for key, ids in _by_key(batch):
            pieces = found.setdefault(key, [])
            pieces.append(_joined(ids, ids))
            if len(pieces) >= 64:
                pieces[:] = [_together(pieces)]
    return {key: list(zip(*(side.tolist() for side in _together(p)), strict=True)) for key, p in sorted(found.items())}


def taken_quotes(batches: Iterable[pa.RecordBatch]) -> dict[Key, int]:
    """The highest quote id of each key, from batches with the columns exchange, symbol, quote_id."""
    found: dict[Key, int] = {}
    for batch in batches:
        highest = pa.table(batch).group_by(["exchange", "symbol"]).aggregate([("quote_id", "max")])
        for row in highest.to_pylist():
            key = (row["exchange"], row["symbol"])
            found[key] = max(found.get(key, row["quote_id_max"]), row["quote_id_max"])
    return found


def taken_instruments(batches: Iterable[pa.RecordBatch]) -> dict[Key, str]:
    """The message id with the latest updated_time of each key, from batches with these four columns."""
    newest: dict[Key, tuple[object, str]] = {}
    for batch in batches:
        for row in batch.to_pylist():
            key = (row["exchange"], row["symbol"])
            candidate = (row["updated_time"], row["message_id"])
            if key not in newest or candidate > newest[key]:
                newest[key] = candidate
    return {key: message_id for key, (_updated_time, message_id) in newest.items()}


def _by_key(batch: pa.RecordBatch) -> Iterator[tuple[Key, _Ids]]:
    """Each key's trade ids, sorted."""
    rows = pa.table(batch).sort_by([("exchange", "ascending"), ("symbol", "ascending"), ("trade_id", "ascending")])
    ids = rows.column("trade_id").to_numpy()
    keys = rows.group_by(["exchange", "symbol"], use_threads=False).aggregate([("trade_id", "count")])  # in row order
    start = 0
    for key in keys.to_pylist():
        end = start + key["trade_id_count"]
        yield (key["exchange"], key["symbol"]), ids[start:end]
        start = end


def _joined(firsts: _Ids, lasts: _Ids) -> tuple[_Ids, _Ids]:
    """Ranges sorted by their first id, with those that overlap or touch made one."""
    reach = np.maximum.accumulate(lasts)
    begins = np.concatenate(([True], firsts[1:] > reach[:-1] + 1))
    ends = np.concatenate((begins[1:], [True]))
    return firsts[begins], reach[ends]


def _together(pieces: list[tuple[_Ids, _Ids]]) -> tuple[_Ids, _Ids]:
    firsts = np.concatenate([first for first, _last in pieces])
    lasts = np.concatenate([last for _first, last in pieces])
    order = np.argsort(firsts, kind="stable")
    return _joined(firsts[order], lasts[order])
