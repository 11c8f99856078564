"""A lake for tests of the engine and the service: the real sealed database, rows by hand, one publication per call.

Its research tables are real ones, in a folder of their own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.datasets import CORE_DATASETS
from common.errors import K2Error, SnapshotNotFound
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import table_schema
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.as_of import AsOf, AsOfCut, table_cut
from flight_server.storage.between_cuts import Choose
from flight_server.storage.commit_rows import COMMITS
from flight_server.storage.database import Database
from flight_server.storage.dead_letter_rows import DEAD_LETTERS
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import Seen, TableCut
from flight_server.storage.research import ResearchTables
from flight_server.storage.research_views import ResearchViews

#: Where all made-up rows come from.
PARTITION = KafkaPartition("fake-cluster", "abcdefgh", 0)
BASE_US = 1_723_100_000_000_000


@dataclass(frozen=True)
class FakeTable:
    catalog: str
    schema: str
    name: str
    kind: str
    arrow_schema: pa.Schema


def trades(numbers: Sequence[int], *, symbol: str = "BTCUSDT") -> pa.Table:
    """Trades with these ids, one millisecond apart, price 100 + id/100."""
    rows = [
        {
            "message_id": f"binance:{symbol}:{number}",
            "exchange": "binance",
            "symbol": symbol,
            "trade_id": number,
            "asset_class": "crypto",
            "event_time": BASE_US + number * 1_000,
            "transaction_time": None if number % 3 else BASE_US + number * 1_000,
            "receive_time": BASE_US + number * 1_000 + 7,
            "price": Decimal(100) + Decimal(number) / 100,
            "quantity": Decimal("0.00000001") * (number + 1),
            "currency": "USDT",
            "side": "BUY" if number % 2 else "SELL",
            "trade_conditions": [],
            "source": "stream",
            "source_sequence": None,
            "vendor_data": {"k": "v"} if number % 5 == 0 else None,
            "_kafka_topic": "abcdefgh",
            "_kafka_partition": 0,
            "_kafka_offset": number,
        }
        for number in numbers
    ]
    schema = table_schema("trade")
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


class FakeLake:
    """Keeps flight_server.engine.seam.Lake's contract; `gap` makes it refuse answers.

    With `research`, research tables can be read too: 150 ms more, for DuckDB's extensions.
    """

    def __init__(self, rows: int = 0, settings: FlightSettings | None = None, *, research: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix="k2-lake-")
        warehouse = LakeSettings.load(data_dir=Path(self._folder))
        self._database = Database(settings or FlightSettings(), warehouse if research else None)
        self.research = ResearchTables(warehouse)
        self._research_views = ResearchViews(self._database, self.research)
        self._relations: dict[str, str] = {}
        self.generation = 0
        self.gap: K2Error | None = None
        self._listeners: list[Callable[[], None]] = []
        with self._database.publication():
            for dataset in CORE_DATASETS:
                columns = self._database.column_types(table_schema(dataset.schema_name))
                relation = self._database.create_segment(dataset.name, columns)
                self._database.replace_view(dataset.table, f"SELECT * FROM {relation}")
                self._relations[dataset.name] = relation
        if rows:
            self.publish(trades(range(rows)))

    def publish(self, rows: pa.Table, dataset: str = "trades") -> None:
        """Add rows, of trades if nothing else is said, and move the cut, in one transaction."""
        self.generation += 1
        with self._database.publication():
            self._database.insert(self._relations[dataset], rows)
            self._database.set_positions(self.generation, [], [])
        for wake in list(self._listeners):
            wake()

    # -- the seam

    def cursor(self) -> Any:
        return self._database.cursor()

    @property
    def version(self) -> int:
        return self._database.version

    def begin(self, cursor: Any) -> Seen:
        generation, _ = self._database.begin(cursor)
        return Seen(generation, f"generation {generation}")

    def check_ready(self) -> None:
        if self.gap is not None:
            raise self.gap

    def tables(self) -> list[FakeTable]:
        return [
            FakeTable("k2", dataset.namespace, dataset.name, "TABLE", table_schema(dataset.schema_name))
            for dataset in CORE_DATASETS
        ] + [
            FakeTable("k2", "research", name, "TABLE", schema)
            for name, schema in self._research_views.schemas().items()
        ]

    def changes(self, cursor: Any, table: str, low: TableCut | None, high: TableCut | None) -> str:
        if low is not None or high is not None:
            raise SnapshotNotFound(f"{table} has no earlier state: its rows are made up")
        return f"FROM {self._relations[table.partition('.')[2]]}"

    def stretch(self, cursor: Any, table: str, choose: Choose) -> tuple[TableCut, PartitionOffsets, str]:
        """All rows are those of one partition; the highest offset tells where it ends."""
        self.check_ready()
        relation = self._relations[table.partition(".")[2]]
        (end,) = cursor.execute(f"SELECT coalesce(max(_kafka_offset) + 1, 0) FROM {relation}").fetchone()
        now = TableCut(None, PartitionOffsets({PARTITION: end}))
        low, high = choose(now)
        first, last = low.next_offset(PARTITION), high.next_offset(PARTITION)
        return now, high, f"FROM {relation} WHERE _kafka_offset >= {first} AND _kafka_offset < {last}"

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._listeners.append(wake)
        return lambda: self._listeners.remove(wake)

    def select_where(self, seen: Seen, table: str, conditions: Sequence[Condition]) -> str | None:
        """Its tables are small and in no files."""
        return None

    def parts(self, cursor: Any, table: str, count: int, *, rows_min: int) -> list[str]:
        """Its tables are small and in no files."""
        return []

    def table_cut(self, table: str, as_of: AsOf) -> TableCut:
        """The market has no earlier states here; research has its own."""
        schema, _, name = table.partition(".")
        if schema != "research":
            raise SnapshotNotFound(f"{table} has no earlier state: its rows are made up")
        if isinstance(as_of, AsOfCut):
            return table_cut(table, as_of)
        return TableCut(self.research.snapshot_at(name, as_of), PartitionOffsets())

    def columns_at(self, table: str, cut: TableCut) -> None:
        """Nothing here ever had other columns."""

    def tell_cut(self, cursor: Any, cut: str | None) -> None:
        self._database.tell_cut(cursor, cut)

    def commits(self, *, with_cuts: bool) -> pa.Table:
        """No row of the market was ever committed."""
        return COMMITS.empty_table()

    def dead_letters(self) -> pa.Table:
        """Everything could be used."""
        return DEAD_LETTERS.empty_table()

    def select_at(self, cursor: Any, table: str, wanted: TableCut, conditions: Sequence[Condition] = ()) -> str:
        name = table.partition(".")[2]
        if wanted.snapshot_id is None:
            raise SnapshotNotFound(f"{table} has no earlier state")
        return self.research.select_at(name, wanted.snapshot_id)

    @property
    def research_version(self) -> int:
        return self._research_views.version

    def publish_research(self) -> None:
        self._research_views.publish()

    def close(self) -> None:
        self._database.close()
        shutil.rmtree(self._folder, ignore_errors=True)
