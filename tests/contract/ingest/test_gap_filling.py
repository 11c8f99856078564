"""Missing trades are seen and come back: real client, real broker, the simulator's streams and its REST interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.datasets import DATASETS, GAP_EVENTS, TRADES
from common.log import KafkaLog
from common.settings import IngestSettings, KafkaSettings, LakeSettings, SinkSettings
from ingest.capture import read_capture
from ingest.service import IngestService
from sink.maintenance.tables import open_tables
from sink.service import SinkService
from tests.contract.ingest.ingest_support import eventually, ids, made_up, quick, rows
from tests.support.lossy import LossySimulator

Start = Callable[..., Any]
CAPTURES = Path(os.environ.get("K2_CAPTURES", Path(__file__).parents[4] / "shared/data/binance"))


def swift(**changes: Any) -> IngestSettings:
    return quick(gap_grace_s=0.05, **changes)


@pytest.fixture
def lossy() -> Iterator[Start]:
    running: list[LossySimulator] = []

    def start(captures: list[Path], copies: Callable[[int], int] | None = None, **options: Any) -> LossySimulator:
        one = LossySimulator.replay(captures, **options)
        if copies is not None:
            one.copies = copies  # type: ignore[method-assign]
        one.start()
        running.append(one)
        return one

    yield start
    for one in running:
        one.stop()


def filled(service: IngestService, trades: int) -> None:
    """Wait until so many trades were taken and no gap is open, and the broker has all that came of it."""

    def is_filled() -> bool:
        stats = service.stats()
        return service.failure is not None or (stats.trades >= trades and not stats.gaps and not stats.gaps_open)

    eventually(is_filled, lambda: f"{trades} trades and no gap: {service.stats()}")
    assert service.failure is None
    assert service.flush()


def newest(kafka: KafkaSettings) -> dict[tuple[str, int], dict[str, Any]]:
    """The last record of each gap."""
    return {(row["symbol"], row["first_id"]): row for row in rows(kafka, GAP_EVENTS)}


def in_table(kafka: KafkaSettings, lake: LakeSettings) -> pa.Table:
    """The trades' ids and sources as a sink leaves them in the table."""
    lake.prepare()
    log = KafkaLog(kafka)
    ends = log.end_offsets([t for d in DATASETS.values() for t in log.topics(d.topic_pattern).values()])
    sink = SinkService(kafka, lake, SinkSettings(commit_age_ms_max=100))
    sink.start()
    try:
        eventually(lambda: sink.drained(ends), lambda: f"all is committed: {sink.stats()}")
    finally:
        sink.stop()
    [table] = open_tables(lake, (TRADES.table,))
    return table.iceberg_table.scan(selected_fields=("trade_id", "source")).to_arrow()


def test_lost_trades_come_back_once_and_in_order_within_their_gap(
    tmp_path: Path, kafka: KafkaSettings, lossy: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=710)
    service = ingest(lossy([capture.path]).url, settings=swift())
    filled(service, 1_420)
    found = rows(kafka, TRADES)
    of = {symbol: [row for row in found if row["symbol"] == symbol] for symbol in capture.trades}
    for symbol, wanted in capture.trades.items():
        assert sorted(row["trade_id"] for row in of[symbol]) == wanted
        backfilled = [row["trade_id"] for row in of[symbol] if row["source"] == "backfill"]
        assert sorted(backfilled) == wanted[49::50]
        assert {row["source"] for row in of[symbol]} == {"stream", "backfill"}
    gaps = newest(kafka)
    assert len(gaps) == 28
    assert {gap["state"] for gap in gaps.values()} == {"filled"}
    assert {gap["closed_by"] for gap in gaps.values()} == {"backfill"}
    assert service.stats().backfilled == 28
    assert service.stats().duplicates_dropped["trades"] == 2 * 8


def test_a_long_gap_stops_the_complete_mark_and_comes_back_in_pages_and_in_order(
    tmp_path: Path, kafka: KafkaSettings, lossy: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=3_000)
    service = ingest(lossy([capture.path], lambda number: 0 if 300 <= number < 2_800 else 1).url, settings=swift())
    filled(service, 6_000)
    for symbol, wanted in capture.trades.items():
        backfilled = [r["trade_id"] for r in rows(kafka, TRADES) if r["symbol"] == symbol and r["source"] == "backfill"]
        assert backfilled == wanted[300:2_800]
        (gap,) = [gap for (of, _), gap in newest(kafka).items() if of == symbol]
        assert (gap["severity"], gap["state"], gap["backfilled_ids"]) == ("stop", "filled", 2_500)


def test_the_gap_over_a_restart_is_seen_with_the_first_trade_and_filled(
    tmp_path: Path, kafka: KafkaSettings, lossy: Start, simulator: Start, ingest: Start
) -> None:
    early, whole = made_up(tmp_path / "a", trades=30), made_up(tmp_path / "b", trades=100)
    first = ingest(simulator([early.path]).url, settings=swift(), state_dir=tmp_path / "state")
    filled(first, 60)
    first.stop()
    second = ingest(
        lossy([whole.path], lambda number: int(number >= 80)).url, settings=swift(), state_dir=tmp_path / "state"
    )
    filled(second, 140)
    assert {symbol: sorted(found) for symbol, found in ids(kafka, TRADES).items()} == whole.trades
    assert {(gap["first_id"] % 1_000_000, gap["last_id"] % 1_000_000) for gap in newest(kafka).values()} == {(31, 80)}


def test_a_gap_that_is_open_when_ingest_ends_is_open_in_the_next_one_and_filled_by_it(
    tmp_path: Path, kafka: KafkaSettings, lossy: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=40)
    source = lossy([capture.path], lambda number: int(not 10 <= number < 25))
    first = ingest(source.url, settings=swift(backfill=False), state_dir=tmp_path / "state")
    eventually(lambda: first.stats().gaps_open == 2, "both gaps are open")
    first.stop()
    opened = newest(kafka)
    assert {gap["state"] for gap in opened.values()} == {"open"}
    # Without the checkpoint the log alone tells; with it, it tells the same.
    for index, state_dir in enumerate((tmp_path / "fresh", tmp_path / "state")):
        last = index == 1
        service = ingest(source.url, settings=swift(backfill=last), state_dir=state_dir)
        if last:
            filled(service, 30)
        else:
            eventually(lambda: service.stats().gaps_open == 2, "the gaps are open again")  # noqa: B023
        service.stop()
    closed = newest(kafka)
    assert closed.keys() == opened.keys()
    assert {gap["state"] for gap in closed.values()} == {"filled"}
    assert all(closed[key]["opened_time"] == opened[key]["opened_time"] for key in opened)
    states = [row["state"] for row in rows(kafka, GAP_EVENTS)]
    assert sorted(states) == ["filled"] * 2 + ["open"] * 2


def test_what_the_exchange_no_longer_has_is_lost_and_said_so(
    tmp_path: Path, kafka: KafkaSettings, lossy: Start, simulator: Start, ingest: Start
) -> None:
    early, late = made_up(tmp_path / "a", trades=5), made_up(tmp_path / "b", trades=20, first=50)
    first = ingest(simulator([early.path]).url, settings=swift(), state_dir=tmp_path / "state")
    filled(first, 10)
    first.stop()
    second = ingest(
        lossy([late.path], lambda number: 1).url,
        settings=swift(backfill_attempts_max=1),
        state_dir=tmp_path / "state",
    )
    eventually(lambda: second.stats().lost_ids == 2 * 44, lambda: f"lost: {second.stats()}")
    assert second.flush()
    second.stop()
    assert {(gap["state"], gap["missing_ids"], gap["closed_by"]) for gap in newest(kafka).values()} == {
        ("lost", 44, "lost")
    }
    # It is not asked for, or told of, again.
    third = ingest(lossy([late.path], lambda number: 1).url, settings=swift(), state_dir=tmp_path / "state")
    eventually(lambda: third.stats().frames >= late.frames, "all is read again")
    assert third.flush()
    third.stop()
    assert len(rows(kafka, GAP_EVENTS)) == 4


@pytest.mark.parametrize("name", ["btcusdt_20240809", "ethusdt_20240808"])
def test_the_captures_are_complete_and_single_in_the_table_although_every_50th_trade_is_lost(
    name: str, tmp_path: Path, kafka: KafkaSettings, lossy: Start, ingest: Start
) -> None:
    path = CAPTURES / f"{name}.gz"
    if not path.exists():
        pytest.skip(f"there is no {path}; K2_CAPTURES names the folder of the captures")
    symbol = name.partition("_")[0].upper()
    wanted = [
        int(frame.frame.partition(b'"t":')[2].partition(b",")[0])
        for frame in read_capture(path)
        if frame.stream == f"{symbol.lower()}@trade"
    ]
    assert all(b == a + 1 for a, b in pairwise(wanted))
    # The last one is sent: that nothing followed it would be no gap to anybody.
    last = len(wanted) - 1
    source = lossy([path], lambda n: 1 if n == last else 0 if n % 50 == 49 else 2 if n % 70 == 69 else 1)
    service = ingest(source.url, symbols=[symbol], settings=swift())
    filled(service, len(wanted))
    assert sorted(ids(kafka, TRADES)[symbol]) == wanted
    lost = [one for n, one in enumerate(wanted) if n % 50 == 49 and n != last]
    gaps = newest(kafka)
    assert sorted(gap["first_id"] for gap in gaps.values()) == lost
    assert {gap["state"] for gap in gaps.values()} == {"filled"}
    assert service.stats().backfilled == len(lost)
    table = in_table(kafka, LakeSettings.load(data_dir=tmp_path / "lake"))
    assert table.column_names == ["trade_id", "source"]
    assert sorted(table["trade_id"].to_pylist()) == wanted
    assert sorted(row["trade_id"] for row in table.to_pylist() if row["source"] == "backfill") == lost
