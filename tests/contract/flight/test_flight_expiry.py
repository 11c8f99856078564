"""Another tool rewrites the table and deletes what it replaced while statements read: refused, then fine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import flight
from test_flight_as_of import COUNT, Live, cut_of
from test_flight_sessions import Client

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.offsets import SUMMARY_KEY
from common.settings import LakeSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def live(folder: Path) -> Iterator[Live]:
    # Without rows in memory beside their files: with them nothing that is gone would be missed.
    live = Live(folder, pin_s_max=600, threads=1, hot_window_bytes=0)
    yield live
    live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")


def compacted(folder: Path) -> list[Path]:
    """All rows in one new file, by a tool that knows nothing of offsets; returns the files that were replaced."""
    table = open_catalog(LakeSettings.load(data_dir=folder)).load_table(TRADES.table)
    before = set((folder / "warehouse").rglob("*.parquet"))
    table.overwrite(table.scan().to_arrow())
    summary = table.current_snapshot().summary  # type: ignore[union-attr]
    assert summary is not None and SUMMARY_KEY not in summary.additional_properties
    return sorted(before)


def taken_up(live: Live, folder: Path) -> None:
    """Wait until the server shows the newest snapshot."""
    newest = open_catalog(LakeSettings.load(data_dir=folder)).load_table(TRADES.table).current_snapshot()
    assert newest is not None
    while live.snapshot_id != newest.snapshot_id:
        threading.Event().wait(0.01)


def test_a_statement_whose_files_are_gone_is_refused_and_the_next_one_is_whole(
    live: Live, folder: Path, client: Client
) -> None:
    live.grow(40)
    live.settle()
    live.grow(20)
    live.settle()
    before = client.rows(COUNT)
    announced = client.info(f"{COUNT} where price > 0")
    cut = cut_of(announced)
    replaced = compacted(folder)
    taken_up(live, folder)
    for path in replaced:
        path.unlink()
    with pytest.raises(pa.ArrowKeyError, match=r"is gone .* send the statement again"):
        client.flight.do_get(announced.endpoints[0].ticket).read_all()
    assert client.rows(COUNT) == before, "the newer snapshot has the rows"
    quoted = cut.replace("'", "''")
    again = f"select count(*) as n, max(trade_id) as last from market.trades at (version => '{quoted}')"
    assert client.rows(again) == before, "and so has the cut that was refused"
    assert live.grow(10)["n"] == before[0]["n"] + 10
    live.settle()
    assert client.rows(again) == before


def test_a_stream_whose_next_file_is_gone_ends_with_the_reason_and_never_as_if_it_were_whole(
    live: Live, folder: Path, client: Client
) -> None:
    for _ in range(3):
        live.grow(3_000)
        live.settle()
    reader = client.flight.do_get(client.info("select * from market.trades").endpoints[0].ticket)
    rows = reader.read_chunk().data.num_rows
    replaced = compacted(folder)
    taken_up(live, folder)
    for path in replaced:
        path.unlink()
    try:
        while True:
            rows += reader.read_chunk().data.num_rows
    except StopIteration:
        assert rows == 9_000, "a part was given as the whole"
    except (pa.ArrowException, flight.FlightError) as error:
        assert "is gone" in str(error) and "incident" not in str(error)
    assert client.rows("select count(*) as n from market.trades") == [{"n": 9_000}]


def test_a_predicate_that_prunes_every_file_does_not_move_the_cut(live: Live, client: Client) -> None:
    live.grow(40)
    live.settle()
    live.grow(10)
    every = client.info("select count(*) as n from market.trades")
    none = client.info("select count(*) as n from market.trades where trade_id < 0")
    assert cut_of(every) == cut_of(none)
    assert client.flight.do_get(none.endpoints[0].ticket).read_all().to_pylist() == [{"n": 0}]
    tail_only = client.rows("select count(*) as n, min(trade_id) as first from market.trades where trade_id >= 40")
    assert tail_only == [{"n": 10, "first": 40}]
