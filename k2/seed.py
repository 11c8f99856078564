"""What the tables hold, as ingest sees it: how a run on a broker that has forgotten knows what was taken (rule 10)."""

from __future__ import annotations

from common.settings import LakeSettings
from ingest.asx import EXCHANGE
from ingest.history import HISTORY_DATASETS, KnownRows
from ingest.ledger import Ledger
from sink.taken import read_taken, rows_of_exchange


def ledger_of_tables(lake: LakeSettings) -> Ledger:
    """The ledger whose log is the tables' rows. Blocking; reads the identity columns. Raises CatalogError."""
    taken = read_taken(lake)
    ledger = Ledger()
    for (exchange, symbol), ranges in taken.trades.items():
        ledger.take_trades(exchange, symbol, ranges)
    for (exchange, symbol), quote_id in taken.quotes.items():
        ledger.take_quote(exchange, symbol, quote_id)
    for (exchange, symbol), message_id in taken.instruments.items():
        ledger.take_instrument(exchange, symbol, message_id)
    return ledger


def history_of_tables(lake: LakeSettings, known: KnownRows) -> None:
    """Add what the tables hold of ASX. Blocking. Raises CatalogError, SettingsError."""
    for dataset in HISTORY_DATASETS:
        for batch in rows_of_exchange(lake, dataset, EXCHANGE):
            known.add(dataset, batch)
