"""Two sinks in a group on real services, some of which die in the middle of a replay: every trade once."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.codec import Encoder
from common.datasets import TRADES
from common.errors import BrokerError
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings, LakeSettings
from sink.table import IcebergTable
from tests.integration.kafka_server import KafkaCluster, KafkaServer
from tests.integration.postgres_server import PostgresServer
from tests.integration.s3_server import S3Server, StoreUnavailable
from tests.support.guarded import Guarded
from tests.support.kafka import eventually, produce
from tests.support.missing import MissingTool, skip_or_fail
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)
PARTITIONS = 6
KILLS = 5

SINK = """
import sys, threading
from common.datasets import TRADES
from common.settings import KafkaSettings, LakeSettings, SinkSettings, TelemetrySettings
from common.telemetry import configure_logging
from sink.service import SinkService
configure_logging(TelemetrySettings.load(log_level="debug", log_format="json"), service="sink")
sink = SinkService(KafkaSettings.load(), LakeSettings.load(), SinkSettings.load(bars=False), datasets=(TRADES,))
sink.start()
while sink.failure is None:
    threading.Event().wait(0.2)
sys.exit(str(sink.failure))
"""


class Sinks:
    """Two processes of one group; one that is killed is started again."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self._env = dict(env) | {
            "K2_SINK_GROUP": "services",
            "K2_SINK_GROUP_SESSION_MS_MAX": "2000",
            "K2_SINK_COMMIT_AGE_MS_MAX": "100",
            "K2_SINK_POLL_MESSAGES_MAX": "200",
        }
        self._folder = folder
        self._started = 0
        self.running = [self._start(), self._start()]

    def kill(self, number: int) -> None:
        """SIGKILL, once it has committed something, and another in its place."""
        victim = self.running[number]
        eventually(
            lambda: not victim.running or '"committed"' in victim.said.read_text(),
            timeout_s=120,
            what=f"the sink that is to die commits; {victim.last_words()}",
        )
        assert victim.running, victim.last_words()
        victim.end(signal.SIGKILL)
        self.running[number] = self._start()

    def end(self) -> None:
        for sink in self.running:
            sink.end(signal.SIGKILL)

    def _start(self) -> Guarded:
        self._started += 1
        sink = Guarded([sys.executable, "-c", SINK], self._folder / f"sink-{self._started}.log", env=self._env)
        sink.start()
        return sink


class Replay(threading.Thread):
    """Produces trades with rising ids until it is ended; `sent` of them are acknowledged by then."""

    def __init__(self, kafka: KafkaSettings) -> None:
        super().__init__(name="replay")
        self._kafka = kafka
        self._ended = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._ended.wait(0.05):
            values = [ENCODER.encode(trade(i)) for i in range(self.sent, self.sent + 200)]
            self.sent += produce(self._kafka, TOPIC, values, partitions=PARTITIONS)

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def replayed(kafka: KafkaSettings, sinks: Sinks) -> Iterator[Replay]:
    replay = Replay(kafka)
    replay.start()
    try:
        yield replay
    finally:
        replay.end()


def answers(log: KafkaLog) -> bool:
    try:
        return bool(log.cluster_id())
    except BrokerError:
        return False


def assert_every_trade_once(kafka: KafkaSettings, lake: LakeSettings, sent: int) -> None:
    log = KafkaLog(kafka)
    end = log.end_offsets(log.topics(f"^{TOPIC}$").values())
    table = IcebergTable.open(lake, TRADES)
    eventually(lambda: table.committed_offsets().covers(end), timeout_s=120, what="the table has the whole log")
    rows = Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())
    assert rows == Counter(range(sent))


def test_a_broker_of_three_and_a_sink_die_in_a_replay_and_every_trade_is_there_once(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    """`kafka_server` for its skip alone: three nodes are started here."""
    (tmp_path / "kafka").mkdir()
    cluster = KafkaCluster(tmp_path / "kafka")
    lake = LakeSettings.load(data_dir=tmp_path / "lake")
    try:
        cluster.start()
        kafka = KafkaSettings.load(
            bootstrap_servers=cluster.bootstrap_servers, topic_partitions=PARTITIONS, topic_replication=3
        )
        KafkaLog(kafka).ensure_topics([TOPIC])
        env = {"K2_KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers, "K2_LAKE_DATA_DIR": str(lake.data_dir)}
        sinks = Sinks(env, tmp_path)
        try:
            with replayed(kafka, sinks) as replay:
                sinks.kill(0)
                # Clients that each took one of the nodes for the controller.
                logs = [KafkaLog(kafka) for _ in range(8)]
                assert len({log.cluster_id() for log in logs}) == 1
                cluster.nodes[1].kill()
                sent = replay.sent
                eventually(lambda: replay.sent > sent + 1000, timeout_s=60, what="two brokers go on")
                for log in logs:
                    eventually(lambda log=log: answers(log), timeout_s=60, what="a log finds who is left")
                sinks.kill(1)
            assert_every_trade_once(kafka, lake, replay.sent)
        finally:
            sinks.end()
    finally:
        cluster.stop()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[tuple[PostgresServer, S3Server]]:
    try:
        postgres = PostgresServer()
    except MissingTool as why:
        skip_or_fail(why, "K2_REQUIRE_CATALOGS")
    store = S3Server(tmp_path)
    try:
        postgres.start()
        store.start()
        yield postgres, store
    except StoreUnavailable as why:
        skip_or_fail(MissingTool(str(why)), "K2_REQUIRE_S3")
    finally:
        store.stop()
        postgres.stop()


def test_sinks_that_are_killed_over_postgresql_and_s3_leave_every_trade_once(
    kafka: KafkaSettings, services: tuple[PostgresServer, S3Server], tmp_path: Path
) -> None:
    postgres, store = services
    store.make_bucket("lake")
    properties = store.properties("sink")
    env = {
        "K2_KAFKA_BOOTSTRAP_SERVERS": str(kafka.bootstrap_servers),
        "K2_LAKE_DATA_DIR": str(tmp_path / "lake"),
        "K2_LAKE_CATALOG_URI": postgres.uri,
        "K2_LAKE_WAREHOUSE": "s3://lake",
        "K2_LAKE_CATALOG_PROPERTIES": json.dumps(properties),
    }
    lake = LakeSettings.load(
        data_dir=tmp_path / "lake", catalog_uri=postgres.uri, warehouse="s3://lake", catalog_properties=properties
    )
    kafka = kafka.model_copy(update={"topic_partitions": PARTITIONS})
    KafkaLog(kafka).ensure_topics([TOPIC])
    sinks = Sinks(env, tmp_path)
    victims = random.Random(20261128)
    try:
        with replayed(kafka, sinks) as replay:
            for _ in range(KILLS):
                sinks.kill(victims.randrange(2))
        assert_every_trade_once(kafka, lake, replay.sent)
    finally:
        sinks.end()
