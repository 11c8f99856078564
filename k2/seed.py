"""What the tables hold, as ingest's ledger: how a run on a new, empty broker knows what was taken before (rule 10)."""

from __future__ import annotations

from common.settings import LakeSettings
from ingest.ledger import Ledger
from sink.taken import read_taken


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
