"""Every bar of the recorded Binance feeds, of each width, is what plain Python makes of their trades."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from common.datasets import BARS
from common.schemas.arrow import table_schema
from sink.bars import TRADE_COLUMNS, bars_of, merged
from tests.support.bars_oracle import EPOCH, in_order, oracle


def test_every_bar_of_the_real_captures(captures: dict[str, Path]) -> None:
    """Minutes, hours and days out of the seconds, as the sink makes them, and out of the trades."""
    trades = []
    for path in captures.values():
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            event = json.loads(line.partition(" ")[2]).get("data", {})
            if event.get("e") == "trade":
                time = EPOCH + timedelta(milliseconds=event["E"])
                row = ("binance", event["s"], event["t"], time, Decimal(event["p"]), Decimal(event["q"]))
                trades.append(dict(zip(TRADE_COLUMNS, row, strict=True)))
    schema = pa.schema([table_schema("trade").field(name) for name in TRADE_COLUMNS])
    table = pa.Table.from_pylist(trades, schema=schema)
    parts = [bars_of(table.slice(first, 1_000), 1_000_000) for first in range(0, table.num_rows, 1_000)]
    assert len(trades) > 10_000
    for bars in BARS.values():
        wanted = oracle(trades, bars.width_us)
        assert in_order(merged(parts, bars.width_us)) == wanted
        assert in_order(bars_of(table, bars.width_us)) == wanted
