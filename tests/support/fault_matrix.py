"""The fault matrix: one run of the sink for each fault, struck behind each step, on each catalog.

A run takes in a log with bad records, holes and several partitions, through commits of a few rows, while the fault
strikes the first time that the step is passed. Then others go on as they would, and in the end the table is compared
with the log.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.datasets import TRADES
from common.errors import K2Error
from common.settings import LakeSettings
from sink.commit_policy import CommitPolicy
from sink.dead_letters import DeadLetter
from sink.maintenance.orphans import GRACE_S, remove_orphans
from sink.table import IcebergTable
from sink.worker import Passed, SinkWorker
from tests.support.fake_group import FakeGroup
from tests.support.fake_log import FakeLog
from tests.support.faults import FAULTS_PROPERTY, STORES, Ill, Service, commits_through
from tests.support.records import trade
from tests.support.sink_bench import ENCODER, TOPIC, SinkBench

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
#: What the last runs measured, by catalog; docs/reliability_page.py writes the page from it.
RESULTS = ROOT / "bench-results" / "reliability"
PARTITIONS = 4
TRADES_SENT = 16
BAD = b"\x00 no Avro"
CATALOGS = ("SQLite", "PostgreSQL", "REST")
_CHILD_S_MAX = 120


class Fault(Enum):
    """What strikes, in the words of docs/reliability.md."""

    DIES = "the process dies (SIGKILL)"
    SLEEPS = "the process sleeps, another sink takes its partitions and goes on, and it wakes"
    CATALOG_FAILS = "the catalog refuses a commit's request"
    CATALOG_SLOW = "the catalog is slow: the commit arrives after another sink has gone on"
    CATALOG_LATE = "the catalog commits, and its answer is lost"
    STORE_FAILS = "the object store refuses a file"
    STORE_SLOW = "the object store is slow: the file arrives after another sink has gone on"
    STORE_LATE = "the object store takes a file, and its answer is lost"


_ILL = {
    Fault.CATALOG_FAILS: Ill.FAILS,
    Fault.CATALOG_SLOW: Ill.SLOW,
    Fault.CATALOG_LATE: Ill.LATE,
    Fault.STORE_FAILS: Ill.FAILS,
    Fault.STORE_SLOW: Ill.SLOW,
    Fault.STORE_LATE: Ill.LATE,
}
CELLS = [(fault, step) for fault in Fault for step in Passed]


@dataclass(frozen=True)
class Outcome:
    """What a run left: trades of the log that the table has not, rows of it that the log has not (so often), and files
    that nothing refers to and that maintenance does not remove after the grace time.
    """

    lost: int
    doubled: int
    left: int


def the_log() -> FakeLog:
    """The same in every process."""
    log = FakeLog()
    log.create(TOPIC, partitions=PARTITIONS)
    log.append(TOPIC, BAD, 0)
    for trade_id in range(TRADES_SENT):
        log.append(TOPIC, ENCODER.encode(trade(trade_id)), trade_id % PARTITIONS)
        if trade_id % 7 == 3:
            log.hole(TOPIC, trade_id % PARTITIONS)
        if trade_id % 11 == 5:
            log.append(TOPIC, BAD, 1)
    return log


@dataclass
class Kept:
    """Dead letters in a file, which outlives the process as Kafka does."""

    path: Path

    def write(self, letters: Sequence[DeadLetter]) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.writelines(f"{letter.partition} {letter.offset}\n" for letter in letters)

    def close(self) -> None: ...

    def positions(self) -> set[tuple[int, int]]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return {(int(partition), int(offset)) for partition, offset in (line.split() for line in lines)}


@dataclass
class Run:
    """One cell's run on a lake of its own, which must be empty."""

    lake: LakeSettings
    folder: Path
    log: FakeLog = field(default_factory=the_log)

    def run(self, fault: Fault, step: Passed) -> Outcome:
        """Raises AssertionError when the fault did not strike, or when the sink does not come to its end."""
        if fault is Fault.DIES:
            self._killed(step)
        elif fault is Fault.SLEEPS:
            self._asleep(step)
        else:
            self._struck(fault, step)
        self._drain([self._bench().worker()])
        return self._outcome()

    def _killed(self, step: Passed) -> None:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([__name__])
        child = processes.Process(target=_sink_until_killed, args=(self.lake, self.folder, step))
        child.start()
        child.join(_CHILD_S_MAX)
        assert child.exitcode == -signal.SIGKILL, f"the sink ended with {child.exitcode}, not at '{step.value}'"

    def _asleep(self, step: Passed) -> None:
        """Two sinks in a group. The first stops in the middle of a step and does not know that it did."""
        group, slept = FakeGroup(self.log), list[Passed]()
        member = group.member()
        other = self._bench().worker(group.member())

        def sleep(passed: Passed) -> None:
            if passed is step and not slept:
                slept.append(passed)
                group.throw_out(member)
                self._drain([other])

        first = self._bench(hook=sleep).worker(member)
        for _ in range(60):
            _step(other)
            _step(first)
            if slept:
                break
        assert slept, f"'{step.value}' was never passed"
        self._drain([first, other])
        first.close()
        other.close()

    def _struck(self, fault: Fault, step: Passed) -> None:
        """Two sinks in a group. The first is struck; when the service is slow, the other takes over meanwhile."""
        ill, group = _ILL[fault], FakeGroup(self.log)
        catalog, store = Service(), Service()
        struck = catalog if fault.name.startswith("CATALOG") else store
        STORES["struck"], STORES["other"] = store, Service()
        member = group.member()
        other = self._bench("other").worker(group.member())

        def arm(passed: Passed) -> None:
            if passed is step and not armed:
                armed.append(passed)
                struck.arm(ill)

        armed: list[Passed] = []
        table = IcebergTable.open(_with_faults(self.lake, "struck"), TRADES)
        commits_through(table.iceberg_table.catalog, catalog)
        first = self._bench(table=lambda: table, hook=arm).worker(member)
        for _ in range(60):
            _step(other)
            if not struck.struck:
                _step(first)
            if struck.struck:
                break
        assert struck.struck == 1, f"the fault did not strike behind '{step.value}'"
        if ill is Ill.SLOW:
            group.throw_out(member)
            self._drain([other])
        else:
            _step(first)
        struck.deliver()
        self._drain([other, first])
        first.close()
        other.close()

    def _drain(self, workers: list[SinkWorker[Any]]) -> None:
        """Step them until the table has all that the log has. Each commits whatever it holds at once."""
        table = IcebergTable.open(self.lake, TRADES)
        for worker in workers:
            worker._policy = CommitPolicy(rows_max=1, bytes_max=1, age_ms_max=0)
        for _ in range(60):
            for worker in workers:
                _step(worker)
            if table.committed_offsets() == self.log.end_offsets():
                return
        raise AssertionError(f"the sink did not come to the end of the log: {[worker.stats for worker in workers]}")

    def _bench(
        self,
        faults: str | None = None,
        *,
        table: Callable[[], IcebergTable] | None = None,
        hook: Callable[[Passed], None] | None = None,
    ) -> SinkBench:
        lake = self.lake if faults is None else _with_faults(self.lake, faults)
        bench = SinkBench(
            self.log,
            table or (lambda: IcebergTable.open(lake, TRADES)),
            policy=CommitPolicy(rows_max=4, bytes_max=1 << 40, age_ms_max=0),
        )
        bench.dead_letters = Kept(self.folder / "letters")  # type: ignore[assignment]
        if hook is not None:
            bench.on_passed = hook
        return bench

    def _outcome(self) -> Outcome:
        """As of two grace times later, when maintenance has run: nothing that it deleted was needed."""
        table = IcebergTable.open(self.lake, TRADES)
        now_us, grace_us = SystemClock().now_us(), int(GRACE_S * 1_000_000)
        remove_orphans(table, now_us=now_us + grace_us)
        removed = remove_orphans(table, now_us=now_us + 2 * grace_us, delete=True)
        left = removed.files_young + removed.files - removed.files_deleted
        rows = Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())
        sent = Counter(range(TRADES_SENT))
        bad = {
            (partition.partition, offset)
            for partition, records in self.log._partitions.items()
            for offset, value in records.records.items()
            if value == BAD
        }
        assert Kept(self.folder / "letters").positions() == bad
        return Outcome((sent - rows).total(), (rows - sent).total(), left)


def measure(catalog: str, lake: LakeSettings, fault: Fault, step: Passed, folder: Path) -> None:
    """Run the cell on an empty lake, keep the outcome for `just docs`, and hold it against docs/reliability.md."""
    outcome = Run(lake, folder).run(fault, step)
    _record(catalog, fault, step, outcome)
    assert outcome == Outcome(lost=0, doubled=0, left=0)
    assert cells_of_the_page()[catalog, fault, step] == outcome, (
        "docs/reliability.md says something else; run `just docs`"
    )


def cells_of_the_page() -> dict[tuple[str, Fault, Passed], Outcome]:
    """What docs/reliability.md says, cell by cell."""
    faults = {fault.value: fault for fault in Fault}
    steps = {step.value: step for step in Passed}
    found: dict[tuple[str, Fault, Passed], Outcome] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        columns = [column.strip() for column in line.strip("|").split("|")]
        if len(columns) == 2 + len(CATALOGS) and columns[0] in faults and columns[1] in steps:
            for catalog, cell in zip(CATALOGS, columns[2:], strict=True):
                outcome = Outcome(*(int(figure) for figure in cell.split(" / ")))
                assert found.setdefault((catalog, faults[columns[0]], steps[columns[1]]), outcome) is outcome
    return found


def _record(catalog: str, fault: Fault, step: Passed, outcome: Outcome) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{catalog}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[f"{fault.name} {step.name}"] = asdict(outcome)
    path.write_text(json.dumps(known, indent=1), encoding="utf-8")


def _with_faults(lake: LakeSettings, whose: str) -> LakeSettings:
    faulty = {"py-io-impl": "tests.support.faults.FaultyFileIO", FAULTS_PROPERTY: whose}
    return lake.model_copy(update={"catalog_properties": lake.catalog_properties | faulty})


def _step(worker: SinkWorker[Any]) -> None:
    try:
        worker.step()
    except K2Error as error:
        assert error.retryable, error


def _sink_until_killed(lake: LakeSettings, folder: Path, step: Passed) -> None:
    """A process: a sink that is killed the second time that it has passed the step."""
    passed = Counter[Passed]()

    def die(at: Passed) -> None:
        passed[at] += 1
        if at is step and passed[at] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    run = Run(lake, folder)
    run._drain([run._bench(hook=die).worker()])
