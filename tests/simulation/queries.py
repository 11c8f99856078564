"""The readers of a world, and the property that each of their answers is checked against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb

from common.datasets import GAP_EVENTS, TRADES, Dataset
from common.errors import InvalidStatement, K2Error, SnapshotExpired, Unavailable
from common.offsets import PartitionOffsets
from common.schemas.arrow import table_schema
from flight_server.engine.errors import translated
from flight_server.storage.as_of import AsOfCut, condition_at, parse_as_of
from flight_server.storage.file_index import Condition
from flight_server.storage.ops_views import VIEWS
from flight_server.storage.read_view import Cut, TableCut
from tests.simulation.parts import (
    BARS_KEPT,
    DATASETS,
    NUMBER_COLUMNS,
    FilesGone,
    OpenQuery,
    Row,
    columns_of,
    select_of,
    tuples_of,
)
from tests.support.bars_oracle import EPOCH, in_order
from tests.support.versions import ADDED

if TYPE_CHECKING:
    from tests.simulation.world import World

QUERIES_MAX, CUTS_MAX = 5, 20
_GAPS = VIEWS["gaps"].select(lambda table, alias: f"{table} AS {alias}")


class Queries:
    """`number` picks among what there is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: list[OpenQuery] = []
        #: Cuts that results carried.
        self.cuts: list[Cut] = []

    # -- actions

    def open_query(self, number: int) -> None:
        """A transaction begins and its cut is read; the statement comes later, whatever happens between."""
        if len(self._open) >= QUERIES_MAX:
            return
        query = self._begin()
        if query is None:
            self._world.counts.refused += 1
        else:
            self._open.append(query)

    def open_stream(self, number: int) -> None:
        """The same, and the first rows of the result are read at once; the rest comes later."""
        query = self._begin()
        if query is None or len(self._open) >= QUERIES_MAX:
            self._close(query)
            return
        query.streamed = self._dataset(number, query)
        try:
            with self._reading(query.cut, query.streamed):
                query.stream = query.cursor.execute(select_of(query.streamed)).to_arrow_reader(1_000)
                batch = next(iter(query.stream), None)
                query.first = [] if batch is None else tuples_of(batch)
        except FilesGone:
            self._close(query)
        else:
            self._open.append(query)

    def finish_query(self, number: int) -> None:
        if self._open:
            self._check(self._open.pop(number % len(self._open)), number)

    def query(self, number: int) -> None:
        query = self._begin()
        if query is None:
            self._world.counts.refused += 1
        else:
            self._check(query, number)

    def read_again_at(self, number: int) -> None:
        """A cut that an earlier result carried is read again (rule 9): the same rows, or a justified refusal."""
        query = self._begin() if self.cuts else None
        if query is None:
            return
        as_of = parse_as_of(self.cuts[number % len(self.cuts)].to_text())
        assert isinstance(as_of, AsOfCut)
        dataset = self._dataset(number, query)
        wanted, now = as_of.cut.tables.get(dataset.table), query.cut.tables[dataset.table]
        if wanted is not None:  # a table that is newer than the cut has nothing at it
            try:
                condition = condition_at(dataset.table, wanted, now, self._world.server.publisher.followed())
            except (Unavailable, SnapshotExpired) as refusal:
                self._check_refusal(refusal, wanted, now)
            else:
                self._read_again(query, dataset, condition, wanted, number)
        self._close(query)

    def changes_between(self, number: int) -> None:
        """The rows between two cuts that earlier results carried."""
        query = self._begin() if self.cuts else None
        if query is None:
            return
        dataset = self._dataset(number, query)
        cuts = (self.cuts[n % len(self.cuts)].tables.get(dataset.table) for n in (number, number // 7))
        low, high = (cut or TableCut(None, PartitionOffsets()) for cut in cuts)
        now = query.cut.tables[dataset.table]
        try:
            select = self._world.server.publisher.published.changes(query.cursor, dataset.table, low, high)
        except InvalidStatement:
            assert not high.offsets.covers(low.offsets)
        except (Unavailable, SnapshotExpired):
            assert not (now.offsets.covers(low.offsets) and now.offsets.covers(high.offsets))
        else:
            try:
                with self._reading(query.cut, dataset):
                    rows = query.cursor.execute(f"{columns_of(dataset)} FROM ({select})").fetchall()
                self._compare(dataset, rows, high.offsets, query.cut, low=low.offsets)
                self._world.counts.changes += 1
            except FilesGone:
                pass
        self._close(query)

    # -- the end

    def finish_all(self) -> None:
        while self._open:
            self._check(self._open.pop(), 0)

    def settle(self) -> Cut:
        """The last answer is the whole log, and old cuts are readable. Returns its cut."""
        counts = self._world.counts
        for number in range(len(BARS_KEPT) * 2):
            before = counts.answered
            self.query(number)
            assert counts.answered == before + 1, f"the last query was refused: {self._world.server.publisher.gap}"
        for number in range(len(self.cuts)):
            self.read_again_at(number)
        return self.cuts[-1]

    def server_stops(self) -> None:
        for query in self._open:
            query.cursor.close()
        self._open = []

    # -- the property

    def _check(self, query: OpenQuery, number: int) -> None:
        """Each table's answer is, per partition, exactly the log's usable records below the cut, each once."""
        try:
            if query.streamed is not None:
                with self._reading(query.cut, query.streamed):
                    rows = [*(query.first or []), *(row for batch in query.stream for row in tuples_of(batch))]
                self._compare(query.streamed, rows, query.cut.tables[query.streamed.table].offsets, query.cut)
            else:
                for dataset in DATASETS:
                    if dataset.table in query.cut.tables:
                        with self._reading(query.cut, dataset):
                            self._ask(query, dataset, number)
                self._ask_more(query, number)
            assert self._world.server.publisher.published.cut(query.cursor) == query.cut, (
                "the transaction's cut has moved"
            )
        except FilesGone:
            self._world.counts.expired += 1
        else:
            self._world.counts.answered += 1
            self._keep(query.cut)
        self._close(query)

    def _ask(self, query: OpenQuery, dataset: Dataset, number: int) -> None:
        offsets = query.cut.tables[dataset.table].offsets
        select, column = select_of(dataset), NUMBER_COLUMNS[dataset.name]
        publisher, next_number = self._world.server.publisher, self._world.truth.next_number
        if number % 4 == 1:  # a predicate that leaves out every file
            assert query.cursor.execute(f"{select} WHERE {column} < 0").fetchall() == []
        if number % 4 == 2:  # one that leaves out some
            least = next_number // 2
            rows = query.cursor.execute(f"{select} WHERE {column} >= {least}").fetchall()
            self._compare(dataset, rows, offsets, query.cut, least=least)
        if number % 4 in (0, 3):  # files chosen by their bounds, and what was committed lately out of memory
            least = number * 7 % (next_number + 1)
            seen = publisher.published.seen(query.cursor)
            chosen = publisher.published.select_where(seen, dataset.table, [Condition(column, ((least, None),))])
            if chosen is not None:
                where = f"WHERE {column} >= {least}"
                rows = query.cursor.execute(f"{columns_of(dataset)} FROM ({chosen}) {where}").fetchall()
                self._compare(dataset, rows, offsets, query.cut, least=least)
                self._world.counts.chosen += 1
        parts = publisher.published.parts(query.cursor, dataset.table, 2, rows_min=0) if number % 4 == 3 else []
        rows = self._of_parts(query, dataset, parts) if parts else query.cursor.execute(select).fetchall()
        self._compare(dataset, rows, offsets, query.cut)

    def _of_parts(self, query: OpenQuery, dataset: Dataset, parts: list[str]) -> list[Row]:
        other = self._world.server.database.cursor()
        try:
            cursors = [*(other for _ in parts[:-1]), query.cursor]
            rows = [
                row
                for cursor, part in zip(cursors, parts, strict=True)
                for row in cursor.execute(f"{columns_of(dataset)} FROM ({part})").fetchall()
            ]
        finally:
            other.close()
        self._world.counts.in_parts += 1
        return rows

    def _ask_more(self, query: OpenQuery, number: int) -> None:
        """What is made of the tables: columns that a later release added, bars, the newest state of each gap."""
        if number % 2 == 0:
            self._ask_columns(query)
        elif number % 4 == 1:
            self._ask_bars(query, number // 4)
        else:
            with self._reading(query.cut, GAP_EVENTS):
                rows = query.cursor.execute(f"SELECT gap_id, first_id FROM ({_GAPS})").fetchall()
            newest = self._world.truth.gaps(query.cut.tables[GAP_EVENTS.table].offsets)
            assert sorted(rows) == sorted(newest.items()), "ops.gaps does not show the newest states"
            self._world.counts.gaps += bool(newest)

    def _ask_columns(self, query: OpenQuery) -> None:
        """The trades have the columns of the snapshot that they are shown with, and every value in them."""
        cut = query.cut.tables[TRADES.table]
        further = self._world.tables.further_of(TRADES, cut.snapshot_id)
        with self._reading(query.cut, TRADES):
            cursor = query.cursor.execute(f"FROM {TRADES.table}")
            assert [column[0] for column in cursor.description] == [*table_schema("trade").names, *further]
            if further:
                rows = cursor.execute(
                    f"SELECT trade_id, {ADDED} FROM {TRADES.table} WHERE {ADDED} IS NOT NULL"
                ).fetchall()
                assert dict(rows) == self._world.truth.further(cut.offsets), f"{ADDED} has other values"
                self._world.counts.added += 1

    def _ask_bars(self, query: OpenQuery, number: int) -> None:
        """The bars are those of the trades of the same cut, whatever of them is kept and what is computed."""
        bars = BARS_KEPT[number % len(BARS_KEPT)]
        expected = self._world.truth.bars(bars, query.cut.tables[TRADES.table].offsets)
        with self._reading(query.cut, TRADES, *BARS_KEPT):
            rows = in_order(query.cursor.execute(f"FROM {bars.table}").to_arrow_table())
            assert rows == expected, f"{bars.table} has other bars than the trades at {query.cut.to_text()}"
            self._world.counts.bars += 1
            if not expected:
                return
            start = expected[number % len(expected)]["bar_start"]
            since_us = round((start - EPOCH).total_seconds()) * 1_000_000
            publisher = self._world.server.publisher
            condition = Condition("bar_start", ((since_us, None),))
            chosen = publisher.published.select_where(publisher.published.seen(query.cursor), bars.table, [condition])
            if chosen is not None:
                where = f"WHERE bar_start >= make_timestamptz({since_us})"
                found = in_order(query.cursor.execute(f"FROM ({chosen}) {where}").to_arrow_table())
                assert found == [row for row in expected if row["bar_start"] >= start], f"{bars.table}, chosen"

    def _read_again(self, query: OpenQuery, dataset: Dataset, condition: str, wanted: TableCut, number: int) -> None:
        try:
            with self._reading(query.cut, dataset):
                rows = query.cursor.execute(f"{select_of(dataset)} WHERE {condition}").fetchall()
                self._compare(dataset, rows, wanted.offsets, Cut({dataset.table: wanted}))
                self._world.counts.read_again += 1
                if dataset is TRADES and number % 3 == 0:
                    self._read_bars_again(query, condition, wanted, number)
        except FilesGone:
            pass

    def _read_bars_again(self, query: OpenQuery, condition: str, wanted: TableCut, number: int) -> None:
        """At an earlier instant bars are computed from the trades of then."""
        bars, shown = BARS_KEPT[number % len(BARS_KEPT)], self._world.server.publisher.bars
        assert shown is not None
        select = shown.computed(bars.name, f"FROM {TRADES.table} WHERE {condition}")
        rows = in_order(query.cursor.execute(select).to_arrow_table())
        assert rows == self._world.truth.bars(bars, wanted.offsets), f"{bars.table} has other bars than then"
        self._world.counts.bars_again += 1

    def _compare(self, dataset: Dataset, rows: list[Row], until: PartitionOffsets, cut: Cut, **how: object) -> None:
        self._world.truth.compare(dataset, rows, until, cut, **how)  # type: ignore[arg-type]

    def _check_refusal(self, refusal: K2Error, wanted: TableCut, now: TableCut) -> None:
        lacking = [p for p, until in sorted(wanted.offsets.items()) if now.offsets.next_offset(p) < until]
        assert lacking, f"refused without need: {refusal}"
        followed = lacking[0].topic_id in self._world.server.publisher.followed()
        assert isinstance(refusal, Unavailable) == followed, str(refusal)

    # -- inside

    def _begin(self) -> OpenQuery | None:
        """A transaction and its cut; None when the server refuses. As flight_server.engine does it."""
        server = self._world.server
        if server.publisher.gap is not None:
            return None
        cursor = server.database.cursor()
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        return OpenQuery(cursor, server.publisher.published.cut(cursor))

    def _keep(self, cut: Cut) -> None:
        if len(self.cuts) < CUTS_MAX:
            self.cuts.append(cut)
        else:  # early ones stay as long as late ones do
            self.cuts[self._world.truth.next_number % CUTS_MAX] = self.cuts[-1]
            self.cuts[-1] = cut

    @staticmethod
    def _close(query: OpenQuery | None) -> None:
        if query is not None:
            query.cursor.close()

    @staticmethod
    def _dataset(number: int, query: OpenQuery) -> Dataset:
        shown = [dataset for dataset in DATASETS if dataset.table in query.cut.tables]
        return shown[number % len(shown)]

    def _reading(self, cut: Cut, dataset: Dataset, *others: Dataset) -> _Reading:
        names = [dataset.name, *(other.name for other in others)]
        return _Reading(self._world, names, cut.tables[dataset.table].snapshot_id)


class _Reading:
    """What the engine raises within becomes FilesGone if files of the snapshot were deleted. Nothing else may be."""

    def __init__(self, world: World, names: list[str], snapshot_id: int | None) -> None:
        self._world, self._names, self._snapshot_id = world, names, snapshot_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (duckdb.Error, OSError)):
            ours = translated(error)
            lost = self._world.tables.lost(self._names, self._snapshot_id)
            assert isinstance(ours, SnapshotExpired) and lost, f"the engine failed: {ours!r}"
            raise FilesGone from None
