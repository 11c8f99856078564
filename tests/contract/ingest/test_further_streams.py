"""The streams beside trades and best quotes: asked for, they go the whole way to SQL; else they are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from clients import connect
from common.datasets import AGG_TRADES, BLOCK_TRADES, BOOK_SNAPSHOTS, DEPTH
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from ingest.service import IngestService
from k2.stack import Server
from sink.service import SinkService
from tests.contract.ingest.ingest_support import eventually, handled, ids, line, made_up, quick, rows

Start = Callable[..., Any]
STREAMS = ("trade", "bookTicker", "aggTrade", "depth", "depth20", "blockTrade")
BIDS, ASKS = [["10.10", "1"], ["10.00000001", "0.00000000"]], [["10.20", "1000000000000.5"]]


def further(path: Path, count: int) -> Path:
    """A capture of the further streams of BTCUSDT with dense ids; each fifth frame comes twice."""
    lines = []
    for n in range(1, count + 1):
        time_ms, maker = 1_700_000_000_000 + n, n % 2 == 0
        trade = {"E": time_ms, "s": "BTCUSDT", "p": f"{n}.5", "q": "2", "T": time_ms, "m": maker}
        frames = [
            ("aggTrade", {"e": "aggTrade", "a": n, "f": 10 * n, "l": 10 * n + 9, **trade}),
            ("blockTrade", {"e": "blockTrade", "t": n, **trade}),
            ("depth@100ms", {"e": "depthUpdate", "E": 1_700_000_000_000 + n, "s": "BTCUSDT", "U": 3 * n, "u": 3 * n + 2,
                             "b": BIDS, "a": ASKS}),
            ("depth20@100ms", {"lastUpdateId": 7 * n, "bids": BIDS, "asks": []}),
        ]  # fmt: skip
        for kind, data in frames:
            lines += [line(n * 1_000, f"btcusdt@{kind}", data)] * (2 if n % 5 == 0 else 1)
    path.write_bytes(b"".join(lines))
    return path


def test_a_row_of_each_is_what_the_frame_said_and_there_once(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    source = simulator([further(tmp_path / "c", 10)])
    service: IngestService = ingest(source.url, symbols=["BTCUSDT"], streams=STREAMS, state_dir=tmp_path / "s")
    handled(service, 48)
    assert ids(kafka, AGG_TRADES) == ids(kafka, BLOCK_TRADES) == {"BTCUSDT": list(range(1, 11))}
    assert ids(kafka, DEPTH) == {"BTCUSDT": [3 * n + 2 for n in range(1, 11)]}
    assert ids(kafka, BOOK_SNAPSHOTS) == {"BTCUSDT": [7 * n for n in range(1, 11)]}
    dropped = service.stats().duplicates_dropped
    assert [dropped[d.name] for d in (AGG_TRADES, BLOCK_TRADES, DEPTH, BOOK_SNAPSHOTS)] == [2, 2, 2, 2]
    one = rows(kafka, AGG_TRADES)[1]
    assert (one["price"], one["quantity"], one["side"], one["currency"]) == (Decimal("2.5"), Decimal(2), "SELL", "USDT")
    assert (one["first_trade_id"], one["last_trade_id"], one["message_id"]) == (20, 29, "binance:BTCUSDT:2")
    depth = rows(kafka, DEPTH)[0]
    assert (depth["first_update_id"], depth["update_id"]) == (3, 5)
    assert depth["bid_prices"] == [Decimal("10.10"), Decimal("10.00000001")]
    assert depth["bid_quantities"] == [1, 0]
    assert depth["ask_quantities"] == [Decimal("1000000000000.5")]
    assert rows(kafka, BOOK_SNAPSHOTS)[0]["ask_prices"] == []
    assert service.stats().dead_letters == 0


def test_what_was_taken_is_known_after_a_restart_with_a_checkpoint_and_without(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    source = simulator([further(tmp_path / "c", 10)])
    options: dict[str, Any] = {"symbols": ["BTCUSDT"], "streams": STREAMS}
    first = ingest(source.url, state_dir=tmp_path / "s", **options)
    handled(first, 48)
    first.stop()
    for state in ("s", "anew"):
        again = ingest(source.url, state_dir=tmp_path / state, **options)
        handled(again, 48)
        assert sum(again.stats().records.values()) == 0
        again.stop()


def test_a_broken_frame_is_a_dead_letter_of_its_own_stream(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    (tmp_path / "c").write_bytes(
        line(0, "btcusdt@depth@100ms", {"e": "depthUpdate", "s": "BTCUSDT", "E": 1, "U": 9, "u": 3, "b": [], "a": []})
        + line(1, "btcusdt@depth20@100ms", {"lastUpdateId": 1, "bids": [["1"]], "asks": []})
        + line(2, "btcusdt@aggTrade", {"e": "newEvent", "s": "BTCUSDT"})
    )
    source = simulator([tmp_path / "c"])
    service = ingest(source.url, symbols=["BTCUSDT"], streams=("depth", "depth20", "aggTrade"))
    handled(service, 3)
    assert (service.stats().dead_letters, service.stats().ignored) == (2, 1)


def test_tables_appear_when_a_stream_is_used_and_answer_in_sql(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    lake = LakeSettings(data_dir=tmp_path / "lake")
    lake.prepare()
    plain = made_up(tmp_path / "plain", trades=20)
    service = ingest(simulator([plain.path]).url)
    handled(service, plain.frames)
    service.stop()
    sink = SinkService(kafka, lake, SinkSettings(commit_age_ms_max=50, bars=False))
    sink.start()
    flight = FlightSettings(port=0, topic_refresh_ms=50, snapshot_refresh_ms=50)
    server = Server(kafka, lake, flight, CollectorRegistry())
    server.start()
    try:
        with connect(server.flight.uri) as connection:
            tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'market'"

            def names() -> set[str]:
                return set(connection.arrow(tables).column(0).to_pylist())

            assert names() & {"agg_trades", "depth", "book_snapshots", "block_trades"} == set()
            assert "depth" not in sink.stats()
            source = simulator([further(tmp_path / "c", 30)])
            handled(ingest(source.url, symbols=["BTCUSDT"], streams=("trade", "aggTrade", "depth")), 72)
            eventually(lambda: {"agg_trades", "depth"} <= names(), lambda: f"the tables: {names()}")
            assert names() & {"book_snapshots", "block_trades"} == set()
            count = "SELECT count(*), sum(price), sum(last_trade_id - first_trade_id) FROM market.agg_trades"
            eventually(lambda: connection.arrow(count).to_pylist()[0]["count_star()"] == 30, "the rows")
            eventually(
                lambda: "depth" in sink.stats() and sink.stats()["depth"].rows_committed == 30,
                lambda: json.dumps(sorted(sink.stats())),
            )
            best = "SELECT bid_prices[1] AS bid, ask_quantities[1] AS size, len(bid_prices) AS levels FROM market.depth"
            # Committed is not yet published: the server comes to the rows a little later than the sink.
            eventually(lambda: connection.arrow(best).num_rows == 30, "the depth's rows")
            found = connection.arrow(best).to_pylist()
            assert found[0] == {"bid": Decimal("10.1"), "size": Decimal("1000000000000.5"), "levels": 2}
    finally:
        server.stop()
        sink.stop()


def test_the_depth_of_the_real_captures_is_whole(
    captures: dict[str, Path], kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    paths = [path for name, path in sorted(captures.items()) if "usdt" in name]
    service = ingest(
        simulator(paths).url, symbols=["BTCUSDT", "ETHUSDT"], streams=("depth",), settings=quick(linger_ms=20)
    )
    handled(service, 3_044 + 3_434)
    stats = service.stats()
    assert (stats.dead_letters, stats.records["depth"]) == (0, 3_044 + 3_434)
