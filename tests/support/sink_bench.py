"""A sink worker on fakes, or on a real table, that a test drives step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from common.clock import ManualClock
from common.codec import Decoder, Encoder
from common.datasets import TRADES
from common.log import Share
from common.offsets import PartitionOffsets
from common.registry import EmbeddedRegistry
from sink.commit_policy import CommitPolicy
from sink.consumer import Sources
from sink.dead_letters import DeadLetter
from sink.load import FULL, Allowance
from sink.worker import Passed, SinkWorker
from tests.support.fake_group import FakeMember
from tests.support.fake_log import FakeLog

REGISTRY = EmbeddedRegistry()
TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, REGISTRY, topic=TOPIC)

SMALL_COMMITS = CommitPolicy(rows_max=10, bytes_max=1 << 40, age_ms_max=1000)


class Crash(Exception):
    """The process died here."""


@dataclass
class FakeDeadLetters:
    """The dead-letter topic, outliving every worker; `failures` many writes fail first."""

    letters: list[DeadLetter] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        if self.failures and letters:
            raise self.failures.pop()
        self.letters += letters

    def close(self) -> None: ...


class _Writing(Future[Any]):
    """Work that is done after having been asked so many times whether it is, and not before."""

    def __init__(self, turns: int, work: Callable[[], Any]) -> None:
        super().__init__()
        self._turns, self._work = turns, work

    def done(self) -> bool:
        self._turns -= 1
        return self._turns < 0

    def result(self, timeout: float | None = None) -> Any:
        return self._work()


@dataclass
class Aside(Executor):
    """Writes files while the worker reads on for so many turns, in one thread and always in the same order."""

    turns: int

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return _Writing(self.turns, lambda: fn(*args, **kwargs))


@dataclass
class SinkBench:
    """Everything around a worker. `worker()` makes one as a process start would; its crash is `crash_at`."""

    log: FakeLog
    open_table: Callable[[], Any]
    policy: CommitPolicy = SMALL_COMMITS
    poll_messages_max: int = 4
    clock: ManualClock = field(default_factory=ManualClock)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    crash_at: dict[Passed, int] = field(default_factory=dict)
    after_commit: Callable[[], None] = lambda: None
    on_passed: Callable[[Passed], None] = lambda passed: None
    discovery_lags: bool = False
    #: Reads while files are written; 0: the worker waits for them.
    reads_on: int = 0
    #: What a worker may do now.
    allowance: Allowance = FULL
    noted: dict[Share, int] = field(default_factory=dict)
    _sources: Sources | None = None

    def worker(self, member: FakeMember | None = None) -> SinkWorker[Any]:
        """`member`: it shares the partitions with others; without, it takes all."""
        return SinkWorker(
            dataset=TRADES,
            member=member,
            note_offsets=self.noted.update if member is None else member.note,
            sources=self.sources,
            confirm=self._confirm,
            reader=self.log.reader(),
            decoder=Decoder(TRADES, REGISTRY),
            table=self.open_table(),
            dead_letters=self.dead_letters,
            policy=self.policy,
            clock=self.clock,
            wait=self.clock.advance,
            poll_messages_max=self.poll_messages_max,
            hook=self._hook,
            after_commit=self.after_commit,
            aside=Aside(self.reads_on) if self.reads_on else None,
            allowed=lambda: self.allowance,
        )

    def sources(self) -> Sources:
        """What the service's discovery would have found by now; the same object while nothing changed."""
        if self.discovery_lags and self._sources is not None:
            return self._sources
        now = Sources(self.log.cluster_id, self.log.topics, self.log.start_offsets())
        before = self._sources
        if before is None or (before.cluster_id, before.topics) != (now.cluster_id, now.topics):
            self._sources = now
        assert self._sources is not None
        return self._sources

    def _confirm(self, sources: Sources) -> bool:
        if self.log.confirm(sources):
            return True
        self._sources = None
        return False

    def run(self, worker: SinkWorker[Any], *, steps_max: int = 500) -> None:
        """Step until everything in the log is committed; time passes when nothing comes."""
        for _ in range(steps_max):
            if worker.stats.drained(self.log.end_offsets()):
                return
            if not worker.step():
                self.clock.advance(0.5)
        raise AssertionError(f"not drained after {steps_max} steps: {worker.stats}")

    def run_with_crashes(self) -> int:
        """Run to the end, with a new worker after each crash; returns how many crashed."""
        crashes = 0
        while True:
            try:
                self.run(self.worker())
                return crashes
            except Crash:
                crashes += 1

    def committed(self) -> PartitionOffsets:
        offsets = self.open_table().committed_offsets()
        assert isinstance(offsets, PartitionOffsets)
        return offsets

    def _hook(self, passed: Passed) -> None:
        self.on_passed(passed)
        left = self.crash_at.get(passed)
        if left is not None:
            self.crash_at[passed] = left - 1
            if left == 1:
                raise Crash(passed.value)
