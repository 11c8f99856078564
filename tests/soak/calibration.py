"""Which rate this machine holds, from the exchange's socket to the table."""

from __future__ import annotations

import time
from pathlib import Path

from common.datasets import TRADES
from sink.maintenance.stats import stats
from sink.maintenance.tables import open_tables
from tests.soak.parts import Parts, broker
from tests.soak.reports import say

#: Trades are counted over this long, after half as long for it to settle.
_CALIBRATION_S = 20.0
_TOO_FAST = 1_000_000.0


def held_rate(folder: Path, kind: str, *, symbols: int, sinks: int) -> float:
    """How many trades a second get into the table when the exchange sends as fast as it can."""
    with broker(kind, folder / "broker") as servers:
        parts = Parts(servers, folder, rate=_TOO_FAST, symbols=symbols, sinks=sinks)
        try:
            parts.start_all(maintain=False)
            time.sleep(_CALIBRATION_S / 2)
            [table] = open_tables(parts.lake, (TRADES.table,))
            begin_rows, begin_s = stats(table).rows, time.monotonic()
            time.sleep(_CALIBRATION_S)
            rate = (stats(table).rows - begin_rows) / (time.monotonic() - begin_s)
        finally:
            parts.kill_all()
    say(f"the machine holds {rate:,.0f} trades a second")
    return rate
