"""The datasets that K2 carries, and the names that follow from them: topic, table, schema, order of rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The Iceberg namespaces, and the SQL schemas, of the market's tables and of what K2 records about its own work.
MARKET = "market"
OPS = "ops"


@dataclass(frozen=True)
class Dataset:
    """One kind of record: one Avro schema, one Iceberg table, one topic per asset class and exchange.

    `id_column` is the venue's own identity of the record within (exchange, symbol), or K2's where there is none;
    `sort_columns` is the order of rows inside a data file; `day_column` is the time by whose day the table is
    partitioned, None for a small table. `name` is unique over all namespaces. One that is `optional` has a topic once a
    venue's stream of it was asked for, and a table once it has a topic.
    """

    name: str
    schema_name: str
    id_column: str
    sort_columns: tuple[str, ...]
    day_column: str | None
    namespace: str = MARKET
    optional: bool = False

    @property
    def table(self) -> str:
        """The table's identifier, `market.trades`."""
        return f"{self.namespace}.{self.name}"

    @property
    def topic_pattern(self) -> str:
        """A regular expression that matches exactly this dataset's topics."""
        return rf"^{self.namespace}\.[a-z]+\.{self.name}\.[a-z0-9_-]+$"

    def topic(self, *, asset_class: str, exchange: str) -> str:
        """The topic's name, `market.crypto.trades.binance`."""
        return f"{self.namespace}.{asset_class}.{self.name}.{exchange}"

    def matches(self, topic: str) -> bool:
        return re.match(self.topic_pattern, topic) is not None


TRADES = Dataset("trades", "trade", "trade_id", ("symbol", "event_time", "trade_id"), "event_time")
QUOTES = Dataset("quotes", "quote", "quote_id", ("symbol", "receive_time", "quote_id"), "receive_time")
INSTRUMENTS = Dataset("instruments", "instrument", "message_id", ("symbol", "updated_time"), None)
GAP_EVENTS = Dataset("gap_events", "gap", "message_id", ("symbol", "first_id", "updated_time"), None, OPS)

AGG_TRADES = Dataset(
    "agg_trades", "agg_trade", "agg_trade_id", ("symbol", "event_time", "agg_trade_id"), "event_time", optional=True
)
BLOCK_TRADES = Dataset("block_trades", "block_trade", "trade_id", ("symbol", "event_time"), "event_time", optional=True)
DEPTH = Dataset("depth", "depth", "update_id", ("symbol", "receive_time", "update_id"), "receive_time", optional=True)
BOOK_SNAPSHOTS = Dataset(
    "book_snapshots", "book_snapshot", "update_id", ("symbol", "receive_time"), "receive_time", optional=True
)

#: What ingest did not take under load; there once something was shed.
SHED = Dataset("shed", "shed", "message_id", ("symbol", "first_time"), None, OPS, optional=True)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (TRADES, QUOTES, INSTRUMENTS, GAP_EVENTS, AGG_TRADES, BLOCK_TRADES, DEPTH, BOOK_SNAPSHOTS, SHED)
}
#: Those that are always there, and those that are there when they are used.
CORE_DATASETS: tuple[Dataset, ...] = tuple(dataset for dataset in DATASETS.values() if not dataset.optional)
OPTIONAL_DATASETS: tuple[Dataset, ...] = tuple(dataset for dataset in DATASETS.values() if dataset.optional)


@dataclass(frozen=True, kw_only=True)
class Bars(Dataset):
    """A table of bars, which is computed from the trades: no topic has its rows. A bar is `width_us` long and begins at
    a multiple of that since 1970, UTC.
    """

    width_us: int


def _bars(name: str, width_s: int, day_column: str | None = None) -> Bars:
    return Bars(name, "bar", "first_trade_id", ("symbol", "bar_start"), day_column, width_us=width_s * 1_000_000)


#: The tables of bars, the finest first; each width is a multiple of those before it.
BARS: dict[str, Bars] = {
    bars.name: bars
    for bars in (
        _bars("bars_1s", 1, "bar_start"),
        _bars("bars_1m", 60),
        _bars("bars_1h", 3_600),
        _bars("bars_1d", 86_400),
    )
}


def log_table(table: str) -> str:
    """The table that has the log's rows behind this one: the trades for bars, else the table itself."""
    return TRADES.table if any(table == bars.table for bars in BARS.values()) else table


def dataset_of_topic(topic: str) -> Dataset | None:
    """The dataset whose topic this is, None when it is none of ours."""
    return next((dataset for dataset in DATASETS.values() if dataset.matches(topic)), None)


def dead_letter_topic(topic: str) -> str:
    """Where messages of `topic` go that cannot be used."""
    return f"dead-letter.{topic}"
