"""ASX history from files to the table, over the wire: every line once, whatever ended the run before."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from ingest_support import eventually, rows

import clients
from common.datasets import INSTRUMENTS, QUOTES, TRADES, dead_letter_topic
from common.dead_letters import Letter, read_letters
from common.errors import Interrupted
from common.settings import FlightSettings, IngestSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from ingest.history import FileOutcome, HistoryIngest, KnownRows, asx_files
from k2.broker import EmbeddedBroker
from k2.seed import history_of_tables
from sink.service import SinkService

SYDNEY = ZoneInfo("Australia/Sydney")
DATASETS = (TRADES, QUOTES, INSTRUMENTS)
_ASX = Path(__file__).resolve().parents[4] / "shared" / "data" / "asx"
COMPANIES = {"3153": "MWR", "7181": "DVN", "1": "ONE", "2": "TWO", "3": "THREE", "4": "FOUR"}


class Unwatched:
    def step(self, doing: str, total: int | None = None) -> None:
        pass

    def advance(self, units: int = 1) -> None:
        pass


class StoppedAfter(Unwatched):
    """Ends the run at its n-th look at the clock within a file."""

    def __init__(self, looks: int) -> None:
        self._left = looks
        self._at_lines = False

    def step(self, doing: str, total: int | None = None) -> None:
        self._at_lines = total is not None

    def advance(self, units: int = 1) -> None:
        self._left -= self._at_lines
        if not self._left:
            raise Interrupted("stopped")


@dataclass
class Stack:
    """Broker, sink, lake and server."""

    kafka: KafkaSettings
    lake: LakeSettings
    connection: clients.Connection

    def ingest(self, path: Path, progress: Unwatched | None = None, **changes: Any) -> list[FileOutcome]:
        settings = IngestSettings(delivery_timeout_ms=60_000, **changes)
        of_tables = partial(history_of_tables, self.lake)
        history = HistoryIngest(asx_files(path, COMPANIES), kafka=self.kafka, settings=settings, of_tables=of_tables)
        return history.run(progress or Unwatched())

    def until(self, sql: str, wanted: list[dict[str, Any]]) -> None:
        eventually(lambda: self.connection.arrow(sql).to_pylist() == wanted, lambda: str(self.connection.arrow(sql)))

    def ids(self, symbol: str) -> list[int]:
        """The trade ids in the log's order."""
        return [row["trade_id"] for row in rows(self.kafka, TRADES) if row["symbol"] == symbol]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2)
        lake_settings = LakeSettings(data_dir=tmp_path_factory.mktemp("lake"))
        lake_settings.prepare()
        sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=250, bars=False), datasets=DATASETS)
        sink.start()
        settings = FlightSettings(port=0, snapshot_refresh_ms=200)
        lake = Lake(kafka, lake_settings, settings, datasets=DATASETS)
        lake.start()
        service = FlightService(lake, settings)
        service.start()
        connection = clients.connect(service.uri)
        yield Stack(kafka, lake_settings, connection)
        connection.close()
        service.stop()
        lake.stop()
        sink.stop()
        os.kill(broker.pid, signal.SIGKILL)  # it holds nothing worth a clean end, which takes it 2 s


def written(folder: Path, kind: str, company: str, lines: list[str], *, end: str = "\r\n") -> Path:
    """A folder with one file of history in it."""
    (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / kind / f"{company}.csv").write_bytes("".join(line + end for line in lines).encode())
    return folder


def trade_lines(count: int, *, first: int = 0) -> list[str]:
    """Lines a second apart; every tenth says what the one before it says, as two fills of one order do."""
    lines = []
    for number in range(first, first + count):
        of = number - 1 if number % 10 == 9 else number
        at = datetime(2014, 3, 10, 10) + timedelta(seconds=of)
        lines.append(f"{at:%m/%d/%Y,%H:%M:%S}.000,{1 + of % 7}.5,{100 + of},0,,")
    return lines


SUMS = (
    "SELECT CAST(timezone('Australia/Sydney', event_time) AS DATE) AS day, count(*) AS n, sum(quantity) AS volume "
    "FROM market.trades WHERE exchange = 'asx' AND symbol = '{}' GROUP BY day ORDER BY day"
)


def test_both_folders_are_in_the_table_as_they_are_in_the_files(stack: Stack) -> None:
    if not _ASX.exists():
        pytest.skip("the files of ASX are not on this machine (../shared/data/asx beside the checkout)")
    outcomes = {one.name: one for one in stack.ingest(_ASX)}
    assert {name: (one.lines, one.taken) for name, one in outcomes.items()} == {
        "trades/3153.csv": (11, 11),
        "trades/7181.csv": (232, 232),
        "quotes/3153.csv": (60, 60),
        "quotes/7181.csv": (549, 549),
    }
    for company, symbol in (("3153", "MWR"), ("7181", "DVN")):
        lines = list(csv.reader((_ASX / "trades" / f"{company}.csv").read_text().splitlines()))
        volumes: Counter[str] = Counter()
        for line in lines:
            volumes[line[0]] += int(line[3])
        days = Counter(line[0] for line in lines)
        wanted = [
            {"day": datetime.strptime(day, "%m/%d/%Y").date(), "n": days[day], "volume": Decimal(volume)}
            for day, volume in sorted(volumes.items())
        ]
        stack.until(SUMS.format(symbol), wanted)
        times = f"SELECT event_time AS at FROM market.trades WHERE symbol = '{symbol}' ORDER BY trade_id"
        assert [row["at"] for row in stack.connection.arrow(times).to_pylist()] == [
            datetime.strptime(f"{line[0]} {line[1]}", "%m/%d/%Y %H:%M:%S.%f").replace(tzinfo=SYDNEY) for line in lines
        ]
        quotes = len((_ASX / "quotes" / f"{company}.csv").read_text().splitlines())
        stack.until(f"SELECT count(*) AS n FROM market.quotes WHERE symbol = '{symbol}'", [{"n": quotes}])
    stack.until(
        "SELECT symbol, company_id, quote_currency AS currency FROM market.instruments "
        "WHERE company_id IN ('3153', '7181') ORDER BY symbol",
        [
            {"symbol": "DVN", "company_id": "7181", "currency": "AUD"},
            {"symbol": "MWR", "company_id": "3153", "currency": "AUD"},
        ],
    )
    again = stack.ingest(_ASX)
    assert all(one.known == one.lines and not one.taken for one in again)
    assert stack.ids("DVN") == list(range(1, 233))


def test_a_file_that_grew_adds_what_it_grew_by_and_bad_lines_are_told_once(stack: Stack, tmp_path: Path) -> None:
    lines = trade_lines(30)
    lines[4] = "03/10/2014,10:00:04.000,0,100,0,,"  # no price
    first = written(tmp_path / "a", "trades", "1", lines)
    (one,) = stack.ingest(first)
    assert (one.lines, one.taken, one.dead_letters) == (30, 29, 1)
    mended = trade_lines(5)[4]
    grown = written(tmp_path / "b", "trades", "1", [*lines, *trade_lines(12, first=30), mended], end="\n")
    (two,) = stack.ingest(grown)
    assert (two.lines, two.known, two.taken) == (43, 29, 13)
    assert (two.dead_letters, two.known_dead_letters) == (0, 1)
    assert stack.ids("ONE") == list(range(1, 43))
    # Days that came before, after others: more ids, none of them again.
    earlier = written(tmp_path / "c", "trades", "1", ["03/07/2014,15:00:00.000,1,5,0,,", *trade_lines(3)])
    (three,) = stack.ingest(earlier)
    assert (three.known, three.taken) == (3, 1)
    volumes = [
        {"day": datetime(2014, 3, 7).date(), "n": 1, "volume": Decimal(5)},
        {"day": datetime(2014, 3, 10).date(), "n": 42, "volume": _volume(trade_lines(42))},
    ]
    stack.until(SUMS.format("ONE"), volumes)

    topic = dead_letter_topic(TRADES.topic(asset_class="equities", exchange="asx"))
    (letter,) = list[Letter](read_letters(stack.kafka, [topic]))
    assert letter.value == lines[4].encode()
    assert "price of a trade is zero" in letter.reason
    assert (letter.headers["k2-file"], letter.headers["k2-line"], letter.exchange) == ("trades/1.csv", "5", "asx")
    assert letter.source_topic == "market.equities.trades.asx"


def _volume(lines: list[str]) -> Decimal:
    return sum((Decimal(line.split(",")[3]) for line in lines), Decimal(0))


def test_times_in_the_table_are_right_across_a_change_of_daylight_saving(stack: Stack, tmp_path: Path) -> None:
    instants = [datetime(2014, 4, 5, 14, 30, tzinfo=UTC) + timedelta(minutes=15 * step) for step in range(12)]
    lines = [f"{at.astimezone(SYDNEY):%m/%d/%Y,%H:%M:%S}.000,1.5,1.6,1,2" for at in instants]
    lines.insert(6, "10/05/2014,02:15:00.000,1.5,1.6,1,2")  # never was
    (one,) = stack.ingest(written(tmp_path, "quotes", "2", lines))
    assert (one.taken, one.dead_letters) == (12, 1)
    times = "SELECT event_time AS at FROM market.quotes WHERE symbol = 'TWO' ORDER BY quote_id"
    stack.until(times, [{"at": at} for at in instants])


#: Arguments: the broker, the folder, after how many looks within a file. It imports no more than the run needs.
_KILLED = """
import os, signal, sys
from pathlib import Path
from common.settings import IngestSettings, KafkaSettings
from ingest.history import HistoryIngest, asx_files

class Killed:
    left = int(sys.argv[3])
    def step(self, doing, total=None):
        self.at_lines = total is not None
    def advance(self, units=1):
        self.left -= self.at_lines
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

kafka = KafkaSettings(bootstrap_servers=sys.argv[1], topic_partitions=2)
files = asx_files(Path(sys.argv[2]), {"3": "THREE"})
HistoryIngest(files, kafka=kafka, settings=IngestSettings(transaction_ms=5, linger_ms=0)).run(Killed())
"""


def test_a_run_that_was_killed_is_gone_on_with(stack: Stack, tmp_path: Path) -> None:
    count = 3_000
    folder = written(tmp_path, "trades", "3", trade_lines(count))
    assert stack.kafka.bootstrap_servers is not None
    command = [sys.executable, "-c", _KILLED, stack.kafka.bootstrap_servers, str(folder), "6"]
    done = subprocess.run(command, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(Interrupted):
        stack.ingest(folder, StoppedAfter(9), transaction_ms=5, linger_ms=0)
    (last,) = stack.ingest(folder)
    assert last.known + last.taken == last.lines == count
    assert last.taken > 0
    assert stack.ids("THREE") == list(range(1, count + 1))
    lines = [
        (row["price"], row["quantity"], row["event_time"])
        for row in rows(stack.kafka, TRADES)
        if row["symbol"] == "THREE"
    ]
    wanted = []
    for line in trade_lines(count):
        day, time, price, volume, *_ = line.split(",")
        at = datetime.strptime(f"{day} {time}", "%m/%d/%Y %H:%M:%S.%f").replace(tzinfo=SYDNEY)
        wanted.append((Decimal(price), Decimal(volume), at))
    assert lines == wanted
    stack.until(
        "SELECT count(*) AS n, count(DISTINCT trade_id) AS ids FROM market.trades WHERE symbol = 'THREE'",
        [{"n": count, "ids": count}],
    )


def test_what_the_log_forgot_the_table_knows(stack: Stack, tmp_path: Path) -> None:
    folder = written(tmp_path, "trades", "4", trade_lines(25))
    (first,) = stack.ingest(folder)
    assert first.taken == 25

    def committed() -> int:
        known = KnownRows()
        history_of_tables(stack.lake, known)
        return known.ids(TRADES, "FOUR").id_count()

    eventually(lambda: committed() == 25, "the sink has committed them")
    with EmbeddedBroker() as broker:
        other = Stack(
            KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2), stack.lake, stack.connection
        )
        (again,) = other.ingest(folder)
        assert (again.known, again.taken) == (25, 0)
        os.kill(broker.pid, signal.SIGKILL)
