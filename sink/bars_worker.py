"""The trades' table in, the bars' tables out, each trade in each table once.

What a table of bars has taken in is in its own snapshots, as offsets of the trades. A step reads what the trades have
beyond, makes bars of it, and lands them and the new offsets in one snapshot, on top of the offsets that it read from:
stopped anywhere, it is done again from there; and of two workers the second to land finds the fence, and starts over.
Bars are only ever added to, so it does not matter when a trade comes: a late one, or one of a backfill, corrects its
bar, and trades that leave their table by retention stay in theirs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import pyarrow as pa

from common.clock import Clock
from common.errors import CatalogError, CommitConflict, CommitStateUnknown
from common.offsets import PartitionOffsets, offsets_between, slice_end
from common.schemas.arrow import table_schema
from common.telemetry import get_logger
from sink.bars import TRADE_COLUMNS, bars_of, merged
from sink.bars_table import BarsTable

_log = get_logger("sink")

#: Trades that one snapshot of bars takes in at most. Their columns take 100 MB, their bars no more.
_TRADES_MAX = 1_000_000
#: Trades that are made into bars at a time while they are read.
_TRADES_AT_ONCE = 250_000
#: Expiry is a commit too; every 20th keeps its share below a twentieth.
_COMMITS_PER_EXPIRY = 20
_TRADES = pa.schema([table_schema("trade").field(name).remove_metadata() for name in TRADE_COLUMNS])


class BarsPassed(Enum):
    """The points between two steps: what was just done when the hook is called."""

    READ = "trades read and made into bars"
    FILES_WRITTEN = "data files of one table written"
    COMMITTED = "snapshot of one table committed"


class Trades(Protocol):
    """What a worker needs of the trades; `sink.table.IcebergTable` is the real one."""

    def committed_offsets(self) -> PartitionOffsets: ...
    def rows_between(
        self, low: PartitionOffsets, high: PartitionOffsets, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True)
class BarsStats:
    """One table's counters since the worker was made. `behind` is how many offsets the trades were ahead, as of the
    last step; `covered` what the table had taken in then."""

    table: str
    bars_written: int = 0
    commits: int = 0
    conflicts: int = 0
    behind: int = 0
    covered: PartitionOffsets = field(default_factory=PartitionOffsets)


class BarsWorker:
    """Keeps the tables of bars up with the trades. One thread at a time; `stats` may be read from any.

    `hook` is called between any two steps: a test raises there to script a crash.
    """

    def __init__(
        self,
        trades: Trades,
        tables: Sequence[BarsTable],
        clock: Clock,
        *,
        trades_max: int = _TRADES_MAX,
        hook: Callable[[BarsPassed], None] = lambda passed: None,
        new_commit_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._trades = trades
        self._tables = tuple(tables)
        self._clock = clock
        self._trades_max = trades_max
        self._hook = hook
        self._new_commit_id = new_commit_id
        self._told_ahead: set[str] = set()
        self.stats = {table.name: BarsStats(table.name) for table in tables}

    def step(self) -> bool:
        """Take in what the trades have beyond, up to `trades_max` of them; True when a table may have more to take in.

        Raises CatalogError, and K2Error where a volume does not fit; the next step starts from what the tables say.
        """
        stands = self._trades.committed_offsets()
        groups: list[tuple[PartitionOffsets, PartitionOffsets, list[BarsTable]]] = []
        for table in self._tables:
            base = table.committed_offsets()
            self._note(table, covered=base, behind=offsets_between(base, stands))
            if self._is_ahead(table, base, stands):
                continue
            to = slice_end(base, stands, self._trades_max)
            if to == base:
                continue
            group = next((group for start, end, group in groups if (start, end) == (base, to)), None)
            if group is None:
                groups.append((base, to, [table]))
            else:
                group.append(table)
        left = False
        for base, to, tables in groups:
            left = self._take_in(tables, base, to) or to != stands or left
        return left

    # -- inside

    def _take_in(self, tables: Sequence[BarsTable], base: PartitionOffsets, to: PartitionOffsets) -> bool:
        """True when one of the tables did not come to `to`."""
        finest_us = min(table.width_us for table in tables)
        finest = self._bars(base, to, finest_us)
        self._hook(BarsPassed.READ)
        landed = True
        for table in tables:
            more = finest if table.width_us == finest_us else merged([finest], table.width_us)
            landed = self._commit(table, more, base, to) and landed
        return not landed

    def _bars(self, base: PartitionOffsets, to: PartitionOffsets, width_us: int) -> pa.Table:
        """The bars of the trades between both."""
        found: list[pa.Table] = []
        batches: list[pa.RecordBatch] = []
        for batch in self._trades.rows_between(base, to, TRADE_COLUMNS):
            batches.append(batch)
            if sum(each.num_rows for each in batches) >= _TRADES_AT_ONCE:
                found.append(bars_of(_together(batches), width_us))
                batches = []
        return merged([*found, bars_of(_together(batches), width_us)], width_us)

    def _commit(self, table: BarsTable, more: pa.Table, base: PartitionOffsets, to: PartitionOffsets) -> bool:
        """True when the table has come to `to`; False when nothing landed, and the next step starts over."""
        change = table.prepare(more, base, to)
        self._hook(BarsPassed.FILES_WRITTEN)
        commit_id = self._new_commit_id()
        try:
            table.land(change, commit_id)
        except CommitConflict as conflict:
            # Whoever was first has taken in these trades, or has written anew the files that this was made of.
            _log.info("another commit to the bars was first; starting over", reason=conflict.message)
            table.discard(change.files)
            self._note(table, conflicts=self.stats[table.name].conflicts + 1)
            return False
        except CommitStateUnknown as unknown:
            _log.warning("commit outcome unknown; asking the table", reason=unknown.message)
            if not table.landed(commit_id):
                return False
        self._hook(BarsPassed.COMMITTED)
        stats = self.stats[table.name]
        self._note(
            table,
            bars_written=stats.bars_written + more.num_rows,
            commits=stats.commits + 1,
            covered=to,
            behind=max(0, stats.behind - offsets_between(base, to)),
        )
        self._expire(table)
        return True

    def _expire(self, table: BarsTable) -> None:
        if self.stats[table.name].commits % _COMMITS_PER_EXPIRY:
            return
        try:
            table.expire(self._clock.now_us())
        except CatalogError as error:  # the next round will do; the bars are committed all the same
            _log.warning("old snapshots stay for now", table=table.name, reason=error.message)

    def _is_ahead(self, table: BarsTable, base: PartitionOffsets, stands: PartitionOffsets) -> bool:
        """Whether the bars have trades that their table does not have: it was rolled back. Then they wait for it."""
        if stands.covers(base):
            self._told_ahead.discard(table.name)
            return False
        if table.name not in self._told_ahead:
            self._told_ahead.add(table.name)
            _log.warning(
                "the trades were rolled back below what the bars have taken in; the bars wait until the trades are as "
                "far again; should other trades come instead, make the bars anew with `k2 bars rebuild`",
                table=table.name,
                bars=base.to_text(),
                trades=stands.to_text(),
            )
        return True

    def _note(self, table: BarsTable, **changes: object) -> None:
        self.stats = self.stats | {table.name: replace(self.stats[table.name], **changes)}  # type: ignore[arg-type]


def _together(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    if not batches:
        return _TRADES.empty_table()
    return pa.Table.from_batches(batches).select(list(TRADE_COLUMNS)).cast(_TRADES)
