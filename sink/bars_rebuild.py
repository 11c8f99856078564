"""Bars from their beginning: refused where the trades have lost rows that bars still have."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from common.clock import Clock, SystemClock
from common.commit_files import losses_of
from common.commits import HISTORY_KEY, HistoryList
from common.datasets import BARS, TRADES, Bars
from common.errors import K2Error, Refused
from common.settings import LakeSettings
from sink.bars_service import open_worker
from sink.bars_table import BarsTable
from sink.bars_worker import BarsStats
from sink.table import IcebergTable

#: Told after each round: the counters by table.
Tell = Callable[[dict[str, BarsStats]], None]


def bars_named(names: Sequence[str]) -> list[Bars]:
    """The tables of bars of these names, with or without the schema; all of them for none. Raises K2Error."""
    found = []
    for name in names or tuple(BARS):
        bars = BARS.get(name.removeprefix("market."))
        if bars is None:
            raise K2Error(f"there is no table of bars {name!r}; there are {', '.join(BARS)}")
        found.append(bars)
    return found


def update(lake: LakeSettings, bars: Sequence[Bars], tell: Tell, clock: Clock | None = None) -> None:
    """Take in all trades that are committed by now. May be stopped anywhere, and run beside a sink.

    Raises CatalogError, SettingsError, and K2Error where a volume does not fit.
    """
    worker = open_worker(lake, clock or SystemClock(), bars)
    is_left = True
    while is_left:
        is_left = worker.step()
        tell(worker.stats)


def rebuild(lake: LakeSettings, bars: Sequence[Bars], tell: Tell, *, without_deleted: bool = False) -> None:
    """Empty the tables and make their bars anew from the trades; meanwhile queries compute what is missing.

    Stopped in between, any later round of a sink goes on where it was. Raises Refused, before anything is changed, when
    trades were deleted whose bars would be gone, unless `without_deleted` says that they shall be; and as `update`.
    """
    trades = IcebergTable.open(lake, TRADES)
    if not without_deleted:
        check_complete(trades)
    for each in bars:
        BarsTable.open(lake, each).empty(uuid.uuid4().hex)
    update(lake, bars, tell)


def check_complete(trades: IcebergTable) -> None:
    """Raises Refused unless the trades have every row that they ever took in."""
    metadata = trades.iceberg_table.metadata
    recorded = HistoryList.from_text(metadata.properties.get(HISTORY_KEY)).losses
    losses = losses_of(metadata, recorded, trades.snapshot_id)
    if losses:
        first = min(losses, key=lambda loss: loss.sequence_number)
        raise Refused(
            f"rows of {trades.name} were deleted by the snapshot {first.snapshot_id}, and bars that are made anew "
            "would be without them; keep the bars, or say --without-deleted"
        )
