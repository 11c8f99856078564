"""The questions of a trade-and-quote benchmark on the recorded feeds: K2, DuckDB and polars answer the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from common.datasets import QUOTES, TRADES
from tests.performance.k2_server import K2Server
from tests.performance.taq_peers import Ask, check_same, fill, in_duckdb, in_polars, k2
from tests.performance.taq_queries import Market, Query, queries
from tests.support.captured import recorded
from tests.support.records import table_rows

#: Of each feed, about two minutes; K2's clock was more than a second behind the venue's in them.
LINES = 24_000
MIDNIGHT = datetime(2024, 8, 9, tzinfo=UTC)
MARKET = Market(
    symbols=("BTCUSDT", "ETHUSDT"),
    quiet="ETHUSDT",
    busy="BTCUSDT",
    stretch=(MIDNIGHT - timedelta(minutes=5), MIDNIGHT - timedelta(minutes=4)),
    last_trade=MIDNIGHT + timedelta(seconds=50),
)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory, captures: dict[str, Path]) -> Iterator[Mapping[str, Ask]]:
    """Each feed is a commit of K2's tables, whose files the others read."""
    folder = tmp_path_factory.mktemp("lake")
    feeds = [recorded(path, lines=LINES) for path in captures.values()]
    files = {
        dataset.name: fill(folder, dataset, _tables(dataset.schema_name, [feed[place] for feed in feeds]))
        for place, dataset in enumerate((TRADES, QUOTES))
    }
    with ExitStack() as stack:
        server = stack.enter_context(K2Server(folder))
        yield {"K2": k2(server.uri, stack), "DuckDB": in_duckdb(files, stack), "polars": in_polars(files)}


@pytest.mark.parametrize("query", queries(MARKET), ids=lambda query: query.name)
def test_all_three_answer_the_same(peers: Mapping[str, Ask], query: Query) -> None:
    answers = {name: ask(query) for name, ask in peers.items()}
    assert answers["K2"].height
    check_same(query, answers)


def test_an_answer_that_differs_is_told() -> None:
    query = queries(MARKET)[0]
    answers = {name: pl.DataFrame({"symbol": ["A"], "n": [n]}) for n, name in enumerate(("K2", "polars"))}
    with pytest.raises(RuntimeError, match="last trade of each symbol: polars did not answer as K2 did"):
        check_same(query, answers)


def _tables(schema_name: str, feeds: list[list[dict[str, Any]]]) -> Iterator[pa.Table]:
    done = 0
    for rows in feeds:
        yield table_rows(schema_name, rows, topic_id=f"{schema_name}s-topic-id", first_offset=done)
        done += len(rows)
