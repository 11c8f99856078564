"""What the main job must have left behind: .ci/run runs it twice on the captures, then this file with pytest.

$K2_MAIN_JOB is a folder with first.json and second.json (the summaries that `k2 demo --once --json` printed) and lake
(its data directory). The oracle reads the captures line by line with the standard library and knows nothing of K2.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from common.settings import LakeSettings

FOLDER = Path(os.environ["K2_MAIN_JOB"])
CAPTURES = sorted((Path(__file__).resolve().parent.parent.parent / "shared/data/binance").glob("*.gz"))
TRADES, QUOTES = 16_253, 69_211


@dataclass
class Tape:
    """One symbol's trades, in the order of their ids."""

    prices: dict[int, Decimal] = field(default_factory=dict)
    volume: Decimal = Decimal(0)
    notional: Decimal = Decimal(0)

    def add(self, trade_id: int, price: Decimal, quantity: Decimal) -> None:
        assert trade_id not in self.prices, f"trade {trade_id} twice"
        self.prices[trade_id] = price
        self.volume += quantity
        self.notional += price * quantity

    def figures(self) -> dict[str, object]:
        first, last = min(self.prices), max(self.prices)
        return {
            "trades": len(self.prices),
            "gapless": len(self.prices) == last - first + 1,
            "first": (first, self.prices[first]),
            "last": (last, self.prices[last]),
            "volume": self.volume,
            "notional": self.notional,
        }


def messages() -> Iterator[dict[str, Any]]:
    for capture in CAPTURES:
        with gzip.open(capture, "rt") as lines:
            for line in lines:
                yield json.loads(line.partition(" ")[2])


@pytest.fixture(scope="module")
def oracle() -> tuple[dict[str, Tape], int]:
    tapes: dict[str, Tape] = {}
    quotes = 0
    for message in messages():
        if "stream" not in message:  # a book snapshot that was taken over REST
            continue
        kind, data = message["stream"].partition("@")[2], message["data"]
        if kind == "trade":
            tapes.setdefault(data["s"], Tape()).add(data["t"], Decimal(data["p"]), Decimal(data["q"]))
        elif kind == "bookTicker":
            quotes += 1
    return tapes, quotes


@pytest.fixture(scope="module")
def catalog() -> SqlCatalog:
    lake = LakeSettings.load(data_dir=FOLDER / "lake")
    return SqlCatalog(lake.catalog_name, uri=lake.resolved_catalog_uri, warehouse=lake.resolved_warehouse)


def summary(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / name).read_text()))


def test_the_captures_hold_what_the_figures_say(oracle: tuple[dict[str, Tape], int]) -> None:
    tapes, quotes = oracle
    assert (sum(len(tape.prices) for tape in tapes.values()), quotes) == (TRADES, QUOTES)


@pytest.mark.parametrize("name", ["first.json", "second.json"])
def test_the_summary_counts_every_row_once(name: str) -> None:
    rows = summary(name)["rows"]
    assert (rows["market.trades"], rows["market.quotes"]) == (TRADES, QUOTES)


def test_the_second_run_dropped_what_the_first_had_taken() -> None:
    assert summary("first.json")["duplicates_dropped"] == 0
    dropped = summary("second.json")["duplicates_dropped_by_dataset"]
    assert (dropped["trades"], dropped["quotes"]) == (TRADES, QUOTES)


@pytest.mark.parametrize("name", ["first.json", "second.json"])
def test_flight_sql_answered_with_the_figures_of_the_captures(name: str, oracle: tuple[dict[str, Tape], int]) -> None:
    answered = {row["symbol"]: row for row in summary(name)["queries"][0]["rows"]}
    for symbol, tape in oracle[0].items():
        row, figures = answered.pop(symbol), tape.figures()
        assert (row["trades"], row["gapless"]) == (figures["trades"], True)
        assert (row["first_id"], Decimal(row["first_price"])) == figures["first"]
        assert (row["last_id"], Decimal(row["last_price"])) == figures["last"]
        assert (Decimal(row["volume"]), Decimal(row["notional"])) == (figures["volume"], figures["notional"])
    assert not answered


def test_the_table_holds_each_trade_of_the_captures_once(
    catalog: SqlCatalog, oracle: tuple[dict[str, Tape], int]
) -> None:
    columns = ("symbol", "trade_id", "price", "quantity")
    stored: dict[str, Tape] = {}
    for row in catalog.load_table("market.trades").scan(selected_fields=columns).to_arrow().to_pylist():
        stored.setdefault(row["symbol"], Tape()).add(row["trade_id"], row["price"], row["quantity"])
    tapes, _ = oracle
    assert {symbol: tape.figures() for symbol, tape in stored.items()} == {s: t.figures() for s, t in tapes.items()}
    assert all(tape.figures()["gapless"] for tape in stored.values())


def test_the_table_holds_each_quote_of_the_captures_once(catalog: SqlCatalog) -> None:
    assert catalog.load_table("market.quotes").scan(selected_fields=("quote_id",)).to_arrow().num_rows == QUOTES
