"""The warehouse on a store that speaks S3 over HTTP: sink and server as they are, answers exact, and nothing that never
changes is fetched twice. Without an environment for the store these skip and say why; with K2_REQUIRE_S3=1 they fail.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from confluent_kafka import Producer

import clients
from clients.errors import QueryError
from common.codec import Encoder
from common.datasets import QUOTES, TRADES, Dataset
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from k2.broker import EmbeddedBroker
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.service import SinkService
from sink.table import IcebergTable
from tests.integration.s3_server import Request, S3Server, StoreUnavailable
from tests.support.kafka import eventually
from tests.support.records import quote, trade

SINK, SERVER = "sink", "server"
BUCKET, FOREIGN = "lake", "other"
MADE = {TRADES: trade, QUOTES: quote}
KEY = {TRADES: "trade_id", QUOTES: "quote_id"}
POINT = "select price from market.trades where trade_id = 7"
SCAN = "select count(*) as n, sum(quantity) as volume from market.trades"


class Store:
    """A store, a broker, a sink and a server. Nothing is answered from memory that is in files."""

    def __init__(self, folder: Path, s3: S3Server) -> None:
        self.s3, self._folder = s3, folder
        self._broker = EmbeddedBroker()
        kafka = KafkaSettings.load(bootstrap_servers=self._broker.__enter__().bootstrap_servers)
        topics = {dataset: dataset.topic(asset_class="crypto", exchange="binance") for dataset in MADE}
        KafkaLog(kafka).ensure_topics(list(topics.values()))
        registry = EmbeddedRegistry()
        self._encoders = {dataset: Encoder(dataset, registry, topic=topic) for dataset, topic in topics.items()}
        self._topics = topics
        self._sink = SinkService(
            kafka, self.settings(SINK), SinkSettings.load(commit_age_ms_max=50), datasets=tuple(MADE)
        )
        self._sink.start()
        flight = FlightSettings.load(
            port=0, snapshot_refresh_ms=20, topic_refresh_ms=50, hot_window_bytes=0, result_cache_bytes_max=0
        )
        self.lake = Lake(kafka, self.settings(SERVER), flight, datasets=tuple(MADE))
        self.lake.start()
        self._service = FlightService(self.lake, flight)
        self._service.start()
        self._producer = Producer(kafka.client_config() | {"linger.ms": 1})
        self.made = dict.fromkeys(MADE, 0)
        self.client = clients.connect(self._service.uri)

    def settings(self, who: str) -> LakeSettings:
        settings = LakeSettings.load(
            data_dir=self._folder / who,
            catalog_uri=f"sqlite:///{self._folder / 'catalog.db'}",
            warehouse=f"s3://{BUCKET}/warehouse",
            catalog_properties=self.s3.properties(who),
        )
        settings.prepare()
        return settings

    def connect(self) -> clients.Connection:
        return clients.connect(self._service.uri)

    def grow(self, dataset: Dataset, count: int) -> None:
        """More records; returns once they are committed and the server shows them from files alone."""
        first = self.made[dataset]
        for number in range(first, first + count):
            record = self._encoders[dataset].encode(MADE[dataset](number))
            self._producer.produce(self._topics[dataset], record, partition=number % 4)
        self._producer.flush()
        self.made[dataset] += count
        wanted = self.made[dataset]
        eventually(lambda: self.count(dataset) == wanted and not sum(self.lake.stats().tail_rows.values()))

    def count(self, dataset: Dataset) -> int:
        return int(self.client.arrow(f"select count(*) as n from {dataset.table}")["n"][0].as_py())

    def snapshot_id(self) -> int | None:
        return self.lake.stats().snapshot_ids["trades"]

    def asked(self, since: int) -> list[Request]:
        """What the server has asked the store for since then."""
        return self.s3.requests(of=SERVER, since=since)

    def stop(self) -> None:
        self.client.close()
        self._service.stop()
        self.lake.stop()
        self._sink.stop()
        self._broker.__exit__(None, None, None)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
    except StoreUnavailable as why:
        if os.environ.get("K2_REQUIRE_S3") == "1":
            pytest.fail(f"K2_REQUIRE_S3 is set and there is no S3 server: {why}")
        pytest.skip(f"no S3 server: {why}")
    server.make_bucket(BUCKET)
    server.make_bucket(FOREIGN)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def store(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("lake"), s3)
    yield store
    store.stop()


def without_bars(requests: list[Request]) -> list[Request]:
    """What was not asked for bars: their snapshots come, and are taken up, in their own time."""
    return [request for request in requests if not request.path.startswith(f"/{BUCKET}/warehouse/market/bars_")]


def is_metadata(request: Request) -> bool:
    return request.path.endswith((".metadata.json", ".avro"))


def test_rows_in_are_rows_out_while_commits_go_on(store: Store) -> None:
    seen: list[int] = []
    ending = threading.Event()

    def ask() -> None:
        with store.connect() as own:
            while not ending.is_set():
                seen.append(int(own.arrow("select count(*) as n from market.trades")["n"][0].as_py()))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for count in (300, 50, 7):
            store.grow(TRADES, count)
            store.grow(QUOTES, count)
    finally:
        ending.set()
        asking.join()
    assert seen == sorted(seen)
    for dataset, made in MADE.items():
        expected = [made(number) for number in range(store.made[dataset])]
        columns = ", ".join(expected[0])
        found = store.client.arrow(f"select {columns} from {dataset.table} order by {KEY[dataset]}").to_pylist()
        assert found == expected


def test_nothing_that_never_changes_is_fetched_twice(store: Store) -> None:
    before = store.s3.count()
    for _ in range(4):
        store.grow(TRADES, 20)
        for _ in range(3):
            store.client.arrow(POINT)
            store.client.arrow(SCAN)
    asked = store.asked(before)
    of_metadata = Counter((request.method, request.path) for request in asked if is_metadata(request))
    assert of_metadata, "the snapshots came over HTTP"
    assert {pair: count for pair, count in of_metadata.items() if count > 1} == {}
    lists = [path for method, path in of_metadata if method == "GET" and "/snap-" in path]
    assert len(lists) >= 4, "each snapshot was read"
    of_files = Counter((request.method, request.path, request.range) for request in asked if not is_metadata(request))
    assert {key: count for key, count in of_files.items() if count > 1} == {}
    assert all(path.endswith(".parquet") for _, path, _ in of_files), "no listing of buckets"

    quiet = store.s3.count()
    for _ in range(5):
        store.client.arrow(POINT)
        store.client.arrow(SCAN)
    assert without_bars(store.asked(quiet)) == []


def test_the_metadata_of_a_snapshot_is_there_for_questions_about_the_past(store: Store) -> None:
    snapshot_id, then = store.snapshot_id(), store.made[TRADES]
    store.grow(TRADES, 10)
    before = store.s3.count()
    at = f"select count(*) as n from market.trades at (version => {snapshot_id})"
    for _ in range(2):
        assert store.client.arrow(at)["n"][0].as_py() == then
    assert [request for request in without_bars(store.asked(before)) if is_metadata(request)] == []


def test_an_instant_outlives_the_expiry_of_its_snapshot(store: Store) -> None:
    snapshot_id, then = store.snapshot_id(), store.made[TRADES]
    store.grow(TRADES, 10)
    table = IcebergTable.open(store.settings(SINK), TRADES)
    assert expire_snapshots(table, ExpiryPolicy(1, age_us_min=0), time.time_ns() // 1_000) > 0
    store.grow(TRADES, 10)
    at = f"select count(*) as n from market.trades at (version => {snapshot_id})"
    assert store.client.arrow(at)["n"][0].as_py() == then
    assert store.count(TRADES) == store.made[TRADES]


def test_a_research_table_is_written_and_read(store: Store) -> None:
    store.client.arrow("create table research.picked as select trade_id, price from market.trades where trade_id < 50")
    store.client.arrow("insert into research.picked select trade_id, price from market.trades where trade_id = 50")
    picked = "select trade_id, price from research.picked order by trade_id"
    expected = [{name: trade(number)[name] for name in ("trade_id", "price")} for number in range(51)]
    assert store.client.arrow(picked).to_pylist() == expected
    before = store.s3.count()
    assert store.client.arrow(picked).to_pylist() == expected
    assert without_bars(store.asked(before)) == []
    store.client.arrow("drop table research.picked")


def test_no_other_file_is_read_and_no_credential_seen(store: Store) -> None:
    address = f"{store.s3.endpoint}/{FOREIGN}/secret.txt"
    store.s3.put(f"/{FOREIGN}/secret.txt", b"what nobody may read")
    store.s3.put("/lake/warehouse-of-others/secret.txt", b"what nobody may read")
    before = store.s3.count()
    files = (f"s3://{FOREIGN}/secret.txt", f"s3://{BUCKET}/warehouse-of-others/secret.txt", address)
    statements = [
        *(f"select content from read_text('{file}')" for file in files),
        *(f"from '{file.replace('.txt', '.csv')}'" for file in files),
        f"copy (select 1) to 's3://{BUCKET}/warehouse/mine.csv'",
        "from duckdb_secrets()",
        "from which_secret('s3://lake/warehouse', 's3')",
        "select current_setting('s3_secret_access_key')",
        "from duckdb_settings()",
    ]
    for statement in statements:
        try:
            said = str(store.client.arrow(statement).to_pylist())
        except QueryError as error:
            said = str(error)
        assert "nobody may read" not in said
        assert f"secret-of-{SERVER}" not in said
    for file in files:
        cursor = store.lake.cursor()
        with pytest.raises(duckdb.PermissionException):  # below everything that reads SQL first
            cursor.execute(f"from read_text('{file}')")
        cursor.close()
    assert without_bars(store.asked(before)) == [], "nothing of it reached the store"


def test_a_file_that_is_gone_is_said_without_a_credential(store: Store) -> None:
    cursor: Any = store.lake.cursor()
    with pytest.raises(duckdb.Error) as caught:
        cursor.execute(f"from read_parquet('s3://{BUCKET}/warehouse/gone.parquet?s3_endpoint=127.0.0.1:1')")
    cursor.close()
    assert "secret" not in str(caught.value)
    paths = [request.path for request in store.s3.requests(of=SERVER)]
    assert any("gone.parquet" in path for path in paths), "an address names a file and never another endpoint"
