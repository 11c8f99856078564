"""What ingest does not take under load, and the account of it. Pure.

Guarantee: what is shed is counted by symbol and dataset, and each count is given out once, for a record of `ops.shed`.
A trade is shed only where it can be asked for again: the ledger does not have it, so that it is a gap like any other.

    SOFT             depth, book snapshots and aggregate trades of symbols without priority; the optional field
                     `vendor_data` of what is taken of these and of quotes
    GRACEFUL         these of all symbols; quotes of symbols without priority
    AGGRESSIVE       quotes of all symbols
    CIRCUIT_BREAK    trades too, once the queue has no room, where a backfill can bring them back; else the socket waits
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from common.datasets import AGG_TRADES, BOOK_SNAPSHOTS, DEPTH, QUOTES, TRADES, Dataset
from common.degradation import Degradation, Level, Triggers
from common.errors import SettingsError
from common.settings import IngestSettings
from ingest.venues.events import AggTradeEvent, BookSnapshotEvent, BookTickerEvent, DepthEvent, Event, TradeEvent

#: The dataset of an event that may be shed, and from which level on it is, without and with priority.
_SHED: Final[dict[type, tuple[Dataset, Level, Level]]] = {
    DepthEvent: (DEPTH, Level.SOFT, Level.GRACEFUL),
    BookSnapshotEvent: (BOOK_SNAPSHOTS, Level.SOFT, Level.GRACEFUL),
    AggTradeEvent: (AGG_TRADES, Level.SOFT, Level.GRACEFUL),
    BookTickerEvent: (QUOTES, Level.GRACEFUL, Level.AGGRESSIVE),
}
#: What loses its optional fields from SOFT on: what may be shed.
THINNED: Final = frozenset(dataset.name for dataset, _, _ in _SHED.values())
#: While shedding goes on it is told of so often.
_TOLD_EVERY_S: Final = 10.0


def shed_triggers(settings: IngestSettings) -> Triggers:
    """The settings' levels. Raises SettingsError when one begins before the one below it."""
    for name in ("shed_queue_percent", "shed_memory_percent"):
        percents = list(getattr(settings, name))
        if percents != sorted(percents) or percents[0] <= 0:
            raise SettingsError(
                f"K2_INGEST_{name.upper()} is {percents}; give four percentages above 0, none below the one before it"
            )
    return Triggers(
        settings.shed_queue_percent,
        settings.shed_memory_percent,
        rise_after_s=settings.shed_after_s,
        recover_after_s=settings.shed_recover_after_s,
    )


@dataclass
class Count:
    """What was shed of one symbol and dataset since it was last told."""

    level: Level
    records: int
    first_id: int
    last_id: int
    first_time_us: int
    last_time_us: int


class Shedding:
    """The load of one ingest and what it sheds for it. One thread at a time.

    `observe` from time to time; `sheds` for each event while `level` is not NORMAL.
    """

    def __init__(self, exchange: str, triggers: Triggers, priority_symbols: Collection[str]) -> None:
        self._exchange = exchange
        self._priority = frozenset(symbol.upper() for symbol in priority_symbols)
        self._state = Degradation(triggers)
        self._counts: dict[tuple[str, str], Count] = {}
        self._told_s = 0.0
        #: How many were ever shed, and how many taken without their optional fields, by dataset; how often the level
        #: changed.
        self.records: dict[str, int] = {}
        self.thinned: dict[str, int] = {}
        self.changes = 0

    @property
    def level(self) -> Level:
        return self._state.level

    def observe(self, queue_percent: float, memory_percent: float, now_s: float) -> bool:
        """Take in the load; True when the level changed."""
        changed = self._state.observe(queue_percent, memory_percent, now_s)
        self.changes += changed
        return changed

    def sheds(self, event: Event) -> bool:
        """Whether the event is not to be taken at this level; it is counted then. Never a trade."""
        found = _SHED.get(type(event))
        if found is None:
            return False
        dataset, without_priority, with_priority = found
        shed: Any = event  # of all events those of _SHED have a symbol, an id behind it and a time of receipt
        if self.level < (with_priority if shed.symbol in self._priority else without_priority):
            return False
        self._count(dataset, shed.symbol, shed[1], shed.receive_time_us)
        return True

    def shed_trade(self, event: TradeEvent) -> None:
        """Count a trade for which there is no room at CIRCUIT_BREAK."""
        self._count(TRADES, event.symbol, event.trade_id, event.receive_time_us)

    def thin(self, dataset: str) -> None:
        """Count a record that was taken without its optional fields."""
        self.thinned[dataset] = self.thinned.get(dataset, 0) + 1

    def due(self, now_s: float) -> bool:
        """Whether there is something to be told now: shedding has ended, or was not told of for some time."""
        return bool(self._counts) and (self.level is Level.NORMAL or now_s - self._told_s >= _TOLD_EVERY_S)

    def tell(self, now_s: float) -> list[dict[str, Any]]:
        """What was shed since this was last called, as records of shed.avsc, a record for each symbol and dataset."""
        told, self._counts, self._told_s = self._counts, {}, now_s
        return [self._record(*key, count) for key, count in sorted(told.items())]

    def _count(self, dataset: Dataset, symbol: str, an_id: int, time_us: int) -> None:
        self.records[dataset.name] = self.records.get(dataset.name, 0) + 1
        count = self._counts.get((symbol, dataset.name))
        if count is None:
            self._counts[symbol, dataset.name] = Count(self.level, 1, an_id, an_id, time_us, time_us)
            return
        count.level = max(count.level, self.level)
        count.records += 1
        count.first_id, count.last_id = min(count.first_id, an_id), max(count.last_id, an_id)
        count.first_time_us, count.last_time_us = min(count.first_time_us, time_us), max(count.last_time_us, time_us)

    def _record(self, symbol: str, dataset: str, count: Count) -> dict[str, Any]:
        return {
            "message_id": f"{self._exchange}:{symbol}:{dataset}:{count.first_time_us}",
            "exchange": self._exchange,
            "symbol": symbol,
            "dataset": dataset,
            "level": count.level.name.lower(),
            "records": count.records,
            "first_id": count.first_id,
            "last_id": count.last_id,
            "first_time": count.first_time_us,
            "last_time": count.last_time_us,
        }
