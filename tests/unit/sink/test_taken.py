"""What the tables hold already, as ranges and highest ids."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from common.datasets import CORE_DATASETS
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import LakeSettings
from sink.table import IcebergTable
from sink.taken import Taken, read_taken, taken_instruments, taken_quotes, taken_trades
from tests.support.records import instrument, quote, table_rows, trade

KEYS = [("binance", "BTCUSDT"), ("binance", "ETHUSDT"), ("asx", "BTCUSDT")]
Rows = list[tuple[tuple[str, str], int]]
rows_of_batches = st.lists(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 60)), min_size=1), max_size=80)


def batch(rows: Rows, column: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "exchange": [exchange for (exchange, _symbol), _id in rows],
            "symbol": [symbol for (_exchange, symbol), _id in rows],
            column: pa.array([an_id for _key, an_id in rows], pa.int64()),
        }
    )


@given(rows_of_batches)
def test_the_ranges_are_the_ids_and_no_more_than_needed(batches: list[Rows]) -> None:
    found = taken_trades(batch(rows, "trade_id") for rows in batches)
    wanted: dict[tuple[str, str], set[int]] = {}
    for rows in batches:
        for key, an_id in rows:
            wanted.setdefault(key, set()).add(an_id)
    assert {key: {i for a, b in ranges for i in range(a, b + 1)} for key, ranges in found.items()} == wanted
    for ranges in found.values():
        assert all(last + 1 < first for (_a, last), (first, _b) in itertools.pairwise(ranges))


@given(rows_of_batches)
def test_the_highest_quote_id_of_each_key(batches: list[Rows]) -> None:
    wanted: dict[tuple[str, str], int] = {}
    for rows in batches:
        for key, an_id in rows:
            wanted[key] = max(wanted.get(key, 0), an_id)
    assert taken_quotes(batch(rows, "quote_id") for rows in batches) == wanted


def test_the_newest_instrument_counts_whatever_the_order() -> None:
    rows = [instrument("BTCUSDT", "b", minute=5), instrument("BTCUSDT", "a", minute=9), instrument("ETHUSDT", "c")]
    for order in (rows, rows[::-1]):
        batches = table_rows("instrument", order).to_batches(max_chunksize=1)
        assert taken_instruments(batches) == {
            ("binance", "BTCUSDT"): "binance:BTCUSDT:a",
            ("binance", "ETHUSDT"): "binance:ETHUSDT:c",
        }


def test_it_is_read_from_the_tables(tmp_path: Path) -> None:
    lake = LakeSettings.load(data_dir=tmp_path)
    assert read_taken(lake) == Taken()
    rows = {
        "trade": [trade(i) for i in (5, 3, 4, 9)] + [trade(1, symbol="ETHUSDT")],
        "quote": [quote(i) for i in (7, 8, 2)],
        "instrument": [instrument("BTCUSDT", "x")],
        "gap": [],
    }
    for dataset in CORE_DATASETS:
        offsets = PartitionOffsets({KafkaPartition("c", "t", 0): 9})
        IcebergTable.open(lake, dataset).append(
            table_rows(dataset.schema_name, rows[dataset.schema_name]), PartitionOffsets(), offsets, "one"
        )
    assert read_taken(lake) == Taken(
        {("binance", "BTCUSDT"): [(3, 5), (9, 9)], ("binance", "ETHUSDT"): [(1, 1)]},
        {("binance", "BTCUSDT"): 8},
        {("binance", "BTCUSDT"): "binance:BTCUSDT:x"},
    )
