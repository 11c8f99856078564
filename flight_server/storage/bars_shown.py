"""Which snapshot of each table of bars is shown, and the views of `market.bars_*` in each publication.

A snapshot of bars is shown while the trades that are seen cover its offsets; otherwise all bars are computed from the
trades (see bars_view). Not thread-safe but for `select_where`: the publisher's thread calls everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.datasets import TRADES, Bars
from common.offsets import PartitionOffsets
from common.schemas.arrow import table_schema
from common.telemetry import get_logger
from flight_server.storage.bars_view import (
    bars_sql,
    chosen_bars_sql,
    conditions_on_trades,
    from_trades_sql,
    trades_beyond,
)
from flight_server.storage.database import CATALOG, TAIL, Database
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import Snapshot, Tail, quoted


class BarsShown:
    """The tables of bars, as the publisher shows them."""

    def __init__(self, database: Database, bars: Sequence[Bars], trade_columns: Mapping[str, str]) -> None:
        self._database = database
        self._log = get_logger("flight_server.storage")
        self._bars = {each.name: each for each in bars}
        self._columns = database.column_types(table_schema("bar")) if bars else {}
        self._trade_columns = trade_columns
        self._newest: dict[str, Snapshot] = {}
        self._shown: dict[str, Snapshot] = {}
        #: Snapshots that could not be read, by table; until there is a newer one, bars are computed.
        self._unreadable: dict[str, int | None] = {}
        #: By generation, what each table of bars is shown with.
        self._generations: dict[int, dict[str, Snapshot]] = {}

    def learn(self, snapshots: Mapping[str, Snapshot]) -> None:
        """These are the newest snapshots, as far as they are of bars."""
        self._newest |= {name: snapshot for name, snapshot in snapshots.items() if name in self._bars}

    def has_news(self, ends: PartitionOffsets) -> bool:
        """Whether a publication at which the trades end there would show other snapshots than the latest one does."""
        return any(self._usable(name, ends).snapshot_id != self._shown_id(name) for name in self._bars)

    def replace_views(self, generation: int, trades: Snapshot, memory: Tail, ends: PartitionOffsets) -> None:
        """Within a publication: what is shown over these trades, which end there. `memory` is as `remembered`.

        A table's own view is made of two smaller ones, its bars and the trades beyond them, for only these change from
        one publication to the next: to bind it takes 4 ms of the publisher's thread, to bind one of them 0.5.
        """
        now = {name: self._usable(name, ends) for name in self._bars}
        for name, bars in self._bars.items():
            shown = now[name]
            held, beyond = f"{TAIL}.{name}_held", f"{TAIL}.{name}_beyond"
            was = self._shown.get(name)
            if shown.snapshot_id is not None:
                if was is None or (was.snapshot_id, was.relation) != (shown.snapshot_id, shown.relation):
                    listed = ", ".join(quoted(column) for column in self._columns)
                    self._database.replace_view(held, f"SELECT {listed} FROM {shown.relation}")
                select = trades_beyond(shown.offsets, trades, memory, self._trade_columns)
                self._database.replace_view(beyond, select)
            if was is not None and (was.snapshot_id is None) == (shown.snapshot_id is None):
                continue
            if shown.snapshot_id is None:
                select = from_trades_sql(bars.width_us, self._columns, f"FROM {CATALOG}.{TRADES.table}")
            else:
                select = bars_sql(bars.width_us, self._columns, f"{CATALOG}.{held}", f"{CATALOG}.{beyond}")
            self._database.replace_view(bars.table, select)
        self._generations[generation] = now

    def published(self, generation: int) -> None:
        """The publication was made."""
        self._shown = self._generations[generation]

    def carry(self, generation: int) -> None:
        """The views stay as they are in this publication."""
        self._generations[generation] = self._shown

    def give_up(self) -> bool:
        """A publication failed: do without each newest snapshot that cannot be read, until there is a newer one.

        True when there is such a one, so that another try makes sense.
        """
        found = {
            name: snapshot.snapshot_id
            for name, snapshot in self._newest.items()
            if snapshot.relation is not None
            and self._unreadable.get(name, -1) != snapshot.snapshot_id
            and not self._database.can_read(snapshot.relation)
        }
        self._unreadable |= found
        if found:
            self._log.warning("newer bars cannot be read; they are left out", tables=sorted(found))
        return bool(found)

    def forget(self, generation: int) -> None:
        self._generations.pop(generation, None)

    def select_where(
        self,
        generation: int,
        name: str,
        trades: Snapshot,
        memory: Tail,
        conditions: Sequence[Condition],
        *,
        files_max: int,
    ) -> str | None:
        """All bars that meet the conditions, and others, in a transaction that sees this publication; None when the
        view is as good."""
        shown = self._generations.get(generation)
        if shown is None:
            return None
        return chosen_bars_sql(
            self._bars[name].width_us,
            self._columns,
            shown[name],
            trades,
            memory,
            self._trade_columns,
            conditions,
            files_max=files_max,
        )

    def computed(self, name: str, trades: str) -> str:
        """The bars that the trades of a SELECT make."""
        return from_trades_sql(self._bars[name].width_us, self._columns, trades)

    def on_trades(self, name: str, conditions: Sequence[Condition]) -> Sequence[Condition]:
        """What the trades of bars meet that meet the conditions."""
        return conditions_on_trades(conditions, self._bars[name].width_us)

    def _usable(self, name: str, ends: PartitionOffsets) -> Snapshot:
        newest, shown = self._newest.get(name, Snapshot()), self._shown.get(name, Snapshot())
        for snapshot in (newest, shown):
            is_readable = self._unreadable.get(name, -1) != snapshot.snapshot_id
            if snapshot.snapshot_id is not None and is_readable and ends.covers(snapshot.offsets):
                return snapshot
        return Snapshot()

    def _shown_id(self, name: str) -> int | None:
        return self._shown.get(name, Snapshot()).snapshot_id
