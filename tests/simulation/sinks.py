"""The sinks of a world, their zombies, and the workers of its bars; and who takes over from those that crash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.codec import Decoder
from common.datasets import GAP_EVENTS, QUOTES, SHED, TRADES, Dataset
from common.errors import BrokerError, K2Error, LogTruncated
from common.offsets import PartitionOffsets
from sink.bars_worker import BarsPassed, BarsWorker
from sink.commit_policy import CommitPolicy
from sink.consumer import Sources
from sink.worker import Passed, SinkWorker
from tests.simulation.parts import BARS_KEPT, DATASETS, Crash, Letters
from tests.simulation.producers import PARTITIONS, REGISTRY, TOPICS
from tests.support.fake_bars import FakeBars, FakeTrades
from tests.support.fake_table import FakeTable

if TYPE_CHECKING:
    from tests.simulation.world import World

_ROUNDS_MAX = 200
#: How often the worker of each dataset takes a step by itself.
_DRAWN = (TRADES, QUOTES, TRADES, GAP_EVENTS, QUOTES, TRADES, SHED, QUOTES)


class Sinks:
    """`number` picks among what there is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.letters = Letters()
        self.sources = {dataset.name: Sources() for dataset in DATASETS}
        self.crash_at: Passed | None = None
        self.bars_crash_at: BarsPassed | None = None
        self._race = False
        self.workers: dict[str, SinkWorker[int]] = {}
        self.zombies: list[SinkWorker[int]] = []
        self.discover(0)
        #: Two that keep the same bars, as of two sinks.
        self.bars = [self._new_bars_worker() for _ in range(2)]

    # -- actions

    def discover(self, _number: int) -> None:
        """The sinks learn which topics there are; what is optional gets its sink with its topic."""
        log = self._world.log
        for dataset in DATASETS:
            topics = {name: info for name, info in log.topics.items() if TOPICS[name] is dataset}
            if self.sources[dataset.name].topics != topics or not self.sources[dataset.name].cluster_id:
                self.sources[dataset.name] = Sources(log.cluster_id, topics)
            if dataset.name not in self.workers and (topics or dataset is not SHED):
                self.workers[dataset.name] = self._new_worker(dataset)

    def sink_step(self, number: int) -> None:
        """One of them, or all; now and then so late that a commit is due by age."""
        self._world.clock.advance(0.3 * (number % 8))
        for dataset in DATASETS if number % 3 == 0 else [self._dataset(number)]:
            if dataset.name in self.workers:
                self.step(self.workers[dataset.name])

    def zombie_step(self, number: int) -> None:
        """A worker that was thought dead goes on; there may be three."""
        if len(self.zombies) < 1 + number % 3:
            self.zombies.append(self._new_worker(self._dataset(number)))
        self._world.clock.advance(0.2 * (number % 8))
        self.step(self.zombies[number % len(self.zombies)])

    def crash_sink(self, number: int) -> None:
        """At one of the points between two steps, the next time a sink passes it; a new process takes over."""
        self.crash_at = list(Passed)[number % len(Passed)]

    def bars_step(self, number: int) -> None:
        """One worker of the bars takes in what the trades have beyond; every fourth time the other one is faster."""
        self._race = number % 4 == 0
        self.step_bars(number % 2)
        self._race = False

    def crash_bars(self, number: int) -> None:
        self.bars_crash_at = list(BarsPassed)[number % len(BarsPassed)]

    def rebuild_bars(self, number: int) -> None:
        """An operator empties a table of bars; the next rounds make it anew."""
        self._world.tables.empty(BARS_KEPT[number % len(BARS_KEPT)])

    def go_on(self) -> None:
        """All of them commit what there is, and the bars take it in."""
        self.sink_step(21)
        self.step_bars(0)

    # -- the end

    def settle(self) -> None:
        """No more faults: everything is committed."""
        self.crash_at, self.bars_crash_at = None, None
        world = self._world
        for _turn in range(_ROUNDS_MAX):
            world.tables.say_offsets()
            self._give_up_what_is_lost()
            world.clock.advance(10.0)
            self.discover(0)
            for worker in list(self.workers.values()):
                self.step(worker)
            world.server.refresh(1)
            world.server.tail_poll(0)
            ends = world.log.end_offsets()
            drained = all(
                self.workers[dataset.name].stats.drained(self.of(dataset, ends))
                for dataset in DATASETS
                if dataset.name in self.workers
            )
            if drained and world.server.publisher.gap is None:
                break
        else:
            raise AssertionError("the sinks or the tail do not come to the end of the log")
        self._settle_bars()

    def check_letters(self) -> None:
        """Each message that is no record and lies below its table's offsets has its letter, and nothing else has."""
        broken = self._world.truth.broken
        known = {(topic, p.partition, offset, value) for (topic, p, offset), value in broken.items()}
        written = {(letter.topic, letter.partition, letter.offset, letter.value) for letter in self.letters.written}
        assert written <= known, f"letters about records that are none: {written - known}"
        for (topic, partition, offset), value in broken.items():
            if offset < self._world.tables.holds(TOPICS[topic]).next_offset(partition):
                assert (topic, partition.partition, offset, value) in written, f"no letter of {partition} {offset}"
                self._world.counts.letters += 1

    # -- inside

    def step(self, worker: SinkWorker[int]) -> None:
        try:
            worker.step()
        except Crash:
            self._crashed(worker)
        except LogTruncated:
            assert self._something_is_lost(), "the sink misses records that the log has"
        except K2Error:
            pass

    def step_bars(self, index: int) -> bool:
        """True when there may be more to take in."""
        try:
            return self.bars[index].step()
        except Crash:
            self._world.counts.crashes += 1
            self.bars[index] = self._new_bars_worker()
        except K2Error:
            pass
        return True

    def _crashed(self, worker: SinkWorker[int]) -> None:
        self._world.counts.crashes += 1
        if worker in self.zombies:
            self.zombies.remove(worker)
        for name, other in self.workers.items():
            if other is worker:
                self.workers[name] = self._new_worker(next(d for d in DATASETS if d.name == name))

    def _settle_bars(self) -> None:
        """They have taken in all trades; where they had others, which are gone, they are made anew."""
        for turn in range(_ROUNDS_MAX):
            more = self.step_bars(turn % 2)
            stands = self._world.tables.holds(TRADES)
            behind = [bars for bars in BARS_KEPT if self._world.tables.holds(bars) != stands]
            if not more and not behind:
                return
            for bars in behind:
                if not stands.covers(self._world.tables.holds(bars)):
                    self._world.tables.empty(bars)
        raise AssertionError("the bars do not come to the end of the trades")

    def _something_is_lost(self) -> bool:
        """Some topic was cut off, made anew or is gone: then there may be positions that the log does not have."""
        log = self._world.log
        known = {info for sources in self.sources.values() for info in sources.topics.values()}
        return any(log.start_offsets().values()) or known != set(log.topics.values())

    def _give_up_what_is_lost(self) -> None:
        """A topic whose records are gone before the table had them stops the sink; an operator makes it anew."""
        log = self._world.log
        starts = log.start_offsets()
        for topic, info in log.topics.items():
            held = self._world.tables.holds(TOPICS[topic])
            if any(p.topic_id == info.topic_id and held.next_offset(p) < start for p, start in starts.items()):
                log.create(topic, PARTITIONS)

    def of(self, dataset: Dataset, offsets: PartitionOffsets) -> PartitionOffsets:
        """Those of one dataset's topics that there are."""
        topics = {info.topic_id: topic for topic, info in self._world.log.topics.items()}
        return PartitionOffsets({p: n for p, n in offsets.items() if TOPICS[topics[p.topic_id]] is dataset})

    @staticmethod
    def _dataset(number: int) -> Dataset:
        return _DRAWN[number % len(_DRAWN)]

    def _new_worker(self, dataset: Dataset) -> SinkWorker[int]:
        world = self._world

        def hook(passed: Passed) -> None:
            if self.crash_at is passed:
                self.crash_at = None
                raise Crash

        return SinkWorker(
            dataset=dataset,
            sources=lambda: self.sources[dataset.name],
            confirm=self._confirm,
            reader=world.log.reader(),
            decoder=Decoder(dataset, REGISTRY),
            table=FakeTable(world.tables.stores[dataset.name]),
            dead_letters=self.letters,
            policy=CommitPolicy(rows_max=10, bytes_max=1_000_000, age_ms_max=1_000),
            clock=world.clock,
            wait=world.clock.advance,
            poll_messages_max=16,
            hook=hook,
        )

    def _confirm(self, sources: Sources) -> bool:
        if self._world.log.down:
            raise BrokerError("the fake broker is down")
        return self._world.log.confirm(sources)

    def _new_bars_worker(self) -> BarsWorker:
        stores = self._world.tables.stores
        tables: list[Any] = [FakeBars(stores[bars.name], bars) for bars in BARS_KEPT]
        return BarsWorker(
            FakeTrades(stores[TRADES.name]), tables, self._world.clock, trades_max=25, hook=self._bars_passed
        )

    def _bars_passed(self, passed: BarsPassed) -> None:
        if self._race and passed is BarsPassed.READ:
            self._race = False
            self.step_bars(0)
        if self.bars_crash_at is passed:
            self.bars_crash_at = None
            raise Crash
