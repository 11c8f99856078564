"""Each command of docs/runbook.md, on a lake to which it has just happened; then the services go on, each row once."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

import clients
from common.codec import Encoder
from common.datasets import TRADES
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from k2.broker import EmbeddedBroker
from k2.cli import cli
from sink.service import SinkService
from sink.table import IcebergTable
from tests.support.kafka import eventually
from tests.support.lakes import lake_at, loaded
from tests.support.records import trade

PAGE = (Path(__file__).parents[2] / "docs/runbook.md").read_text()
TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)


def commands(section: str) -> list[str]:
    """The commands of a section of the page, without their `k2`."""
    body = re.split(r"^## ", PAGE.partition(f"\n## {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^    \$ k2 (.+)$", body, re.MULTILINE)
    assert found, f"the page has no commands under {section}"
    return found


class Site:
    """A broker, a lake with 400 trades in four commits, and one backup of the first 200."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.lake = lake_at(folder / "lake")
        self.made = 0
        self._monkeypatch = monkeypatch
        self._broker: EmbeddedBroker | None = None
        self.begin_log()
        self.use(self.lake)
        self.produce(100)
        self.sink()
        self.produce(100)
        self.sink()
        for command in commands("Backups"):
            self.run(command)
        self.produce(200)
        self.sink()

    def begin_log(self) -> None:
        """A broker with an empty topic, in the place of the one before."""
        self.stop()
        self._broker = EmbeddedBroker()
        self._broker.start()
        self.kafka = KafkaSettings.load(bootstrap_servers=self._broker.bootstrap_servers)
        KafkaLog(self.kafka).ensure_topics([TOPIC])
        self._monkeypatch.setenv("K2_KAFKA_BOOTSTRAP_SERVERS", self._broker.bootstrap_servers)

    def use(self, lake: LakeSettings) -> None:
        self.lake = lake
        self._monkeypatch.setenv("K2_LAKE_DATA_DIR", str(lake.data_dir))

    def produce(self, count: int) -> None:
        producer = Producer(self.kafka.client_config())
        for trade_id in range(self.made, self.made + count):
            producer.produce(TOPIC, ENCODER.encode(trade(trade_id)), partition=trade_id % 4)
        assert producer.flush(30) == 0
        self.made += count

    def sink(self) -> None:
        """Run a sink until it has taken in the whole log."""
        service = SinkService(self.kafka, self.lake, SinkSettings.load(commit_age_ms_max=50), datasets=(TRADES,))
        service.start()
        try:
            log = KafkaLog(self.kafka)
            end = log.end_offsets(log.topics(r"^market\.").values())
            eventually(lambda: service.drained(end))
        finally:
            service.stop()

    def run(self, command: str, *, exit_code: int = 0, **words: object) -> Result:
        text = command.replace("/backups/k2", str(self.folder / "backups"))
        text = text.replace("/srv/k2-restored", str(self.folder / "restored"))
        for word, value in words.items():
            text = text.replace(word, str(value))
        done = CliRunner().invoke(cli, text.split())
        code = done.exit_code if done.exception is None or isinstance(done.exception, SystemExit) else 1
        assert code == exit_code, (text, done.output, done.exception)
        return done

    def ids(self) -> Counter[int]:
        table = IcebergTable.open(self.lake, TRADES)
        return Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())

    def query(self, sql: str, *, at: str | None = None) -> tuple[list[tuple[object, ...]], str | None]:
        """By a server of its own: the rows, and the cut that came with them."""
        flight = FlightSettings.load(port=0, snapshot_refresh_ms=20, topic_refresh_ms=50)
        lake = Lake(self.kafka, self.lake, flight, datasets=(TRADES,))
        lake.start()
        service = FlightService(lake, flight)
        service.start()
        try:
            with clients.connect(service.uri) as connection:
                result = connection.arrow(sql, at=at) if at else connection.arrow(sql)
                return [tuple(row.values()) for row in result.to_pylist()], connection.cut
        finally:
            service.stop()
            lake.stop()

    def stop(self) -> None:
        if self._broker is not None:
            self._broker.stop()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path, monkeypatch)
    yield made
    made.stop()


def once(count: int) -> Counter[int]:
    return Counter(range(count))


def test_the_catalog_is_lost(site: Site) -> None:
    before = loaded(site.lake).metadata_location
    for path in site.lake.data_dir.glob("catalog.db*"):
        path.unlink()
    for command in commands("The catalog is lost"):
        said = site.run(command).output
        assert "market.trades" in said
    assert loaded(site.lake).metadata_location == before
    site.produce(50)
    site.sink()
    assert site.ids() == once(450)


def test_the_warehouse_is_lost(site: Site) -> None:
    counted = "select count(*) as n, sum(trade_id) as total from market.trades"
    # A cut of the backup's time, as an analyst may have noted it down.
    oldest = min(loaded(site.lake).metadata.snapshots, key=lambda snapshot: snapshot.timestamp_ms)
    then, cut = site.query(f"{counted} AT (VERSION => {oldest.snapshot_id})")
    assert cut is not None
    shutil.rmtree(site.lake.data_dir)
    for command in commands("The warehouse is lost"):
        site.run(command)
    site.use(LakeSettings.load(data_dir=site.folder / "restored"))
    assert site.ids() == once(200)
    site.produce(50)
    site.sink()
    assert site.ids() == once(450)
    site.run("tables verify --deep")
    assert site.query(f"{counted} AT (VERSION => {oldest.snapshot_id})")[0] == then
    assert site.query(counted)[0] == [(450, sum(range(450)))]


def test_kafka_is_lost(site: Site) -> None:
    site.produce(30)  # which nobody commits
    site.begin_log()
    site.produce(70)
    site.sink()
    assert site.ids() == once(500) - Counter(range(400, 430))
    (command,) = commands("Kafka is lost")
    assert "lacks 30 trades (400 to 429)" in site.run(command).output


def test_a_table_is_damaged(site: Site) -> None:
    newest = max(loaded(site.lake).metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)
    added = loaded(site.lake).inspect.entries(newest.snapshot_id).to_pylist()
    gone = next(e["data_file"]["file_path"] for e in added if e["snapshot_id"] == newest.snapshot_id)
    Path(gone.removeprefix("file://")).unlink()
    verify, expire = commands("A table is damaged")
    said = site.run(verify, exit_code=1).output
    assert "WRONG" in said
    assert Path(gone).name in said
    site.run("backup /backups/k2", exit_code=1)
    site.run("backup verify /backups/k2")
    site.run(commands("Wrong rows were written")[1], SNAPSHOT=newest.parent_snapshot_id)
    site.sink()
    assert site.ids() == once(400)
    site.run("backup /backups/k2", exit_code=1)
    site.run(expire)
    site.run("backup /backups/k2")
    site.run(verify)


def test_wrong_rows_were_written(site: Site) -> None:
    snapshots = sorted(loaded(site.lake).metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)
    history, rollback = commands("Wrong rows were written")
    assert str(snapshots[1].snapshot_id) in site.run(history).output
    site.run(rollback, SNAPSHOT=snapshots[1].snapshot_id)
    assert sum(site.ids().values()) < 400
    site.sink()
    assert site.ids() == once(400)
    site.run("tables verify")


def test_the_disk_is_full(site: Site) -> None:
    for command in commands("The disk is full"):
        assert site.run(command).output
    assert len(loaded(site.lake).inspect.files()) == 1
    assert site.ids() == once(400)
    site.run("tables verify")


def test_every_command_of_the_page_is_run_here() -> None:
    titles_and_bodies = re.findall(r"^## (.+)$([^\x00]*?)(?=^## |\Z)", PAGE, re.MULTILINE)
    sections = {title for title, body in titles_and_bodies if "\n    $ " in body and title != "Figures"}
    source = Path(__file__).read_text()
    for section in sections:
        assert f'commands("{section}")' in source
    assert len(re.findall(r"^    \$ ", PAGE, re.MULTILINE)) == sum(len(commands(section)) for section in sections) > 5
