"""`k2 sink`: one worker thread per dataset, the discovery of topics, and the counters of all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from common.clock import Clock, SystemClock
from common.codec import Decoder
from common.consumer_group import KafkaGroupMember
from common.datasets import CORE_DATASETS, DATASETS, OPTIONAL_DATASETS, TRADES, Dataset
from common.degradation import Level
from common.errors import BrokerError, CatalogError, K2Error, LogTruncated
from common.log import KafkaLog, KafkaLogReader, TopicInfo
from common.memory import resident_bytes
from common.offsets import PartitionOffsets
from common.registry import open_registry
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from common.telemetry import get_logger
from sink.bars_service import BarsService
from sink.commit_policy import CommitPolicy
from sink.consumer import Sources
from sink.dead_letters import KafkaDeadLetters
from sink.load_watch import LoadWatch
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.pool import give_back
from sink.stats import SinkStats, StatsCollector
from sink.table import IcebergTable, WrittenFiles
from sink.worker import SinkWorker

_log = get_logger("sink")

#: A topic that is made while the sink runs is read from within this time.
_DISCOVERY_INTERVAL_S = 2.0
#: How soon it is seen that memory runs short.
_LOAD_INTERVAL_S = 0.5
#: Expiry is a commit of its own (20 to 40 ms); every 20th keeps its share of the time below a twentieth.
_COMMITS_PER_EXPIRY = 20
_BACKOFF_S_FIRST, _BACKOFF_S_MAX = 0.25, 10.0
_TRUNCATED_ATTEMPTS_MAX = 6
#: The topics of all datasets, and others of their namespaces.
_TOPICS = "^(" + "|".join(sorted({dataset.namespace for dataset in DATASETS.values()})) + r")\."

Worker = SinkWorker[WrittenFiles]


#: A commit waits for its age anyway, so the broker may hold a fetch until it has something to say: three readers that
#: ask 100 times a second took most of a core from the embedded broker, and ingest ends as many transactions a second.
_FETCH_WAIT_MS, _FETCH_BYTES_MIN = 100, 256 * 1024


class SinkService:
    """Takes every topic of the datasets into its table, each record once, until stopped. One instance runs once.

    A broker or catalog that goes away later is waited for; what was read and not committed is then read again.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        lake: LakeSettings,
        settings: SinkSettings,
        *,
        datasets: Iterable[Dataset] = CORE_DATASETS,
        optional: Iterable[Dataset] = OPTIONAL_DATASETS,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        rss_bytes: Callable[[], int | None] = resident_bytes,
    ) -> None:
        """Raises SettingsError for levels of load that do not rise."""
        self._kafka = kafka
        self._lake = lake
        self._settings = settings
        self._datasets = tuple(datasets)
        self._dormant = tuple(optional)
        self._clock = clock or SystemClock()
        self._finder: _SourceFinder | None = None
        self._workers: dict[str, Worker] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._load = LoadWatch(settings, lambda: (self.stats(), self._ends()), self._clock, rss_bytes=rss_bytes)
        has_bars = settings.bars and TRADES in self._datasets
        self.bars = (
            BarsService(lake, self._clock, interval_ms=settings.bars_interval_ms, is_ours=self._keeps_bars)
            if has_bars
            else None
        )
        if registry is not None:
            registry.register(StatsCollector(lambda: self.stats().values(), lambda: self._failure is None))
            registry.register(self._load)
            if self.bars is not None:
                registry.register(self.bars)

    def start(self) -> None:
        """Open the tables (made when missing), find the topics, and return with the workers running.

        Raises BrokerError when Kafka cannot be reached, CatalogError when the catalog cannot, SettingsError.
        """
        self._finder = _SourceFinder(KafkaLog(self._kafka), (*self._datasets, *self._dormant))
        self._finder.look()
        schemas = open_registry(self._kafka)
        try:
            for dataset in self._datasets:
                self._workers[dataset.name] = self._worker(dataset, Decoder(dataset, schemas), self._finder)
        except K2Error:
            self._close_workers()
            raise
        self._spawn("k2-sink-topics", self._watch_sources)
        self._spawn("k2-sink-load", self._watch_load)
        for dataset in self._datasets:
            self._spawn(f"k2-sink-{dataset.name}", lambda worker=self._workers[dataset.name]: self._run(worker))
        self._wake_dormant()
        if self.bars is not None:
            self.bars.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Commit what is held and end. Idempotent; what could not be committed is read again by the next sink."""
        self._stopping.set()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive()]
        if self.bars is not None and not self.bars.stop(max(0.0, deadline_s - time.monotonic())):
            late.append("k2-sink-bars")
        if late:
            _log.error("the sink did not stop in time", timeout_s=timeout_s, threads=late)
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    @property
    def failure(self) -> BaseException | None:
        """Why the service ended by itself; None while it runs and after `stop`."""
        return self._failure

    def stats(self) -> dict[str, SinkStats]:
        """The counters by dataset; each dataset's are of one moment."""
        return {name: worker.stats for name, worker in self._workers.items()}

    @property
    def load_level(self) -> Level:
        """How much waits because of load."""
        return self._load.level

    def drained(self, end_offsets: PartitionOffsets) -> bool:
        """True when every record below `end_offsets` is in a committed snapshot or in a dead-letter topic."""
        stats = self.stats().values()
        done = PartitionOffsets()
        for one in stats:
            done = done.advanced(one.read).advanced(one.committed)
        return bool(stats) and not any(one.holding for one in stats) and done.covers(end_offsets)

    def _keeps_bars(self) -> bool:
        """Of the sinks of a group, the one that reads the first partition of the trades; under load the bars wait."""
        worker = self._workers.get(TRADES.name)
        return worker is not None and worker.has_first_partition and self._load.level is Level.NORMAL

    def _worker(self, dataset: Dataset, decoder: Decoder, finder: _SourceFinder) -> Worker:
        table = IcebergTable.open(self._lake, dataset)
        expiry = ExpiryPolicy(self._settings.snapshots_kept_min)
        client_id = f"k2-sink-{dataset.name}"
        reader = KafkaLogReader(
            self._kafka, client_id=client_id, fetch_wait_ms_max=_FETCH_WAIT_MS, fetch_bytes_min=_FETCH_BYTES_MIN
        )
        member = self._join(dataset, client_id)
        return SinkWorker(
            dataset=dataset,
            sources=lambda: finder.sources(dataset),
            confirm=finder.confirm,
            reader=reader,
            member=member,
            note_offsets=reader.note if member is None else member.note,
            decoder=decoder,
            table=table,
            dead_letters=KafkaDeadLetters(self._kafka),
            policy=CommitPolicy.from_settings(self._settings),
            clock=self._clock,
            wait=self._stopping.wait,
            poll_messages_max=self._settings.poll_messages_max,
            after_commit=_Upkeep(table, expiry, self._clock).after_commit,
            aside=ThreadPoolExecutor(1, f"{client_id}-files"),
            allowed=lambda: self._load.allowance(dataset.name),
        )

    def _join(self, dataset: Dataset, client_id: str) -> KafkaGroupMember | None:
        if self._settings.group is None:
            return None
        group = f"{self._settings.group}-{dataset.name}"
        return KafkaGroupMember(
            self._kafka, group, client_id=client_id, session_ms_max=self._settings.group_session_ms_max
        )

    def _run(self, worker: Worker) -> None:
        """A worker's thread: step until told to stop, then commit what is held."""
        try:
            self._step_until_stopped(worker)
            worker.flush()
        except K2Error as error:
            self._fail(worker, error)
        except BaseException as error:  # noqa: BLE001 - a thread's last frame: the owner sees it as `failure`
            _log.exception("the sink's worker broke", dataset=worker.stats.dataset)
            self._fail(worker, error)
        finally:
            worker.close()

    def _step_until_stopped(self, worker: Worker) -> None:
        dataset, failures = worker.stats.dataset, 0
        while not self._stopping.is_set():
            try:
                worker.step()
                if failures:
                    _log.info("the sink goes on", dataset=dataset, failures=failures)
                failures = 0
            except LogTruncated as error:
                failures += 1
                if failures > _TRUNCATED_ATTEMPTS_MAX or self._is_truncated(worker):
                    raise
                _log.warning("a position is not in the log; looking again", dataset=dataset, reason=error.message)
                self._stopping.wait(_backoff_s(failures))
            except K2Error as error:
                if not error.retryable:
                    raise
                failures += 1
                wait_s = _backoff_s(failures)
                _log.warning("the sink waits and tries again", dataset=dataset, reason=error.message, wait_s=wait_s)
                self._stopping.wait(wait_s)

    def _is_truncated(self, worker: Worker) -> bool:
        """Are records gone from the log that the table has not? If not, the topic is new, or was made anew just now."""
        try:
            assert self._finder is not None
            self._finder.look(afresh=True)
        except BrokerError:
            return False
        committed = worker.stats.committed
        return any(n > committed[p] for p, n in self._finder.log_starts().items() if p in committed)

    def _watch_sources(self) -> None:
        """The discovery's thread. A broker that does not answer is asked again; it is told once."""
        told = False
        while self._finder is not None and not self._stopping.wait(_DISCOVERY_INTERVAL_S):
            try:
                self._finder.look()
                self._wake_dormant()
                self._finder.look_at_ends()
                told = False
            except K2Error as error:
                if not told:
                    _log.warning("topics cannot be listed", reason=error.message)
                told = True

    def _watch_load(self) -> None:
        """The load's thread."""
        while not self._stopping.wait(_LOAD_INTERVAL_S):
            self._load.look()

    def _ends(self) -> PartitionOffsets:
        return self._finder.ends if self._finder is not None else PartitionOffsets()

    def _wake_dormant(self) -> None:
        """Open the table, and start the worker, of each optional dataset that has a topic by now. Raises K2Error."""
        finder = self._finder
        assert finder is not None
        for dataset in [dataset for dataset in self._dormant if finder.sources(dataset).topics]:
            schemas = open_registry(self._kafka)
            worker = self._worker(dataset, Decoder(dataset, schemas), finder)
            self._workers = {**self._workers, dataset.name: worker}
            self._dormant = tuple(other for other in self._dormant if other is not dataset)
            self._spawn(f"k2-sink-{dataset.name}", lambda worker=worker: self._run(worker))

    def _fail(self, worker: Worker, error: BaseException) -> None:
        if self._stopping.is_set() and isinstance(error, K2Error):
            _log.error("not all could be committed at the end", dataset=worker.stats.dataset, reason=error.message)
            return
        self._failure = self._failure or error
        _log.error("the sink ends", dataset=worker.stats.dataset, reason=str(error))
        self._stopping.set()

    def _spawn(self, name: str, target: object) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _close_workers(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers = {}


def _backoff_s(failures: int) -> float:
    """How long to wait after so many failures in a row, the first being 1."""
    return float(min(_BACKOFF_S_FIRST * 2 ** (failures - 1), _BACKOFF_S_MAX))


class _SourceFinder:
    """What there is to read, as last seen. Thread-safe."""

    def __init__(self, log: KafkaLog, datasets: Sequence[Dataset]) -> None:
        self._log = log
        self._datasets = datasets
        self._lock = threading.Lock()
        self._sources = {dataset.name: Sources() for dataset in datasets}
        #: Where the log ended when it was last looked at, or a little before.
        self.ends = PartitionOffsets()

    def sources(self, dataset: Dataset) -> Sources:
        """The dataset's sources: the same object until they change. Never blocks."""
        return self._sources[dataset.name]

    def confirm(self, sources: Sources) -> bool:
        """Are these topics still the incarnations that were found? If not, what is there now is looked up.

        Raises BrokerError.
        """
        ids = {name: info.topic_id for name, info in sources.topics.items()}
        if self._log.topic_ids(ids) == ids:
            return True
        self.look()
        return False

    def log_starts(self) -> PartitionOffsets:
        """Where every partition began when its topic was last looked at."""
        starts = PartitionOffsets()
        for sources in self._sources.values():
            starts = starts.advanced(sources.log_starts)
        return starts

    def look(self, *, afresh: bool = False) -> None:
        """Ask the broker what there is; where the logs begin is asked of changed topics only, or `afresh` of all.

        Raises BrokerError.
        """
        with self._lock:
            cluster_id = self._log.cluster_id()
            topics = self._log.topics(_TOPICS)
            for dataset in self._datasets:
                ours = {name: info for name, info in topics.items() if dataset.matches(name)}
                known = self._sources[dataset.name]
                if afresh or (known.cluster_id, known.topics) != (cluster_id, ours):
                    self._sources[dataset.name] = Sources(cluster_id, ours, self._starts(ours))

    def look_at_ends(self) -> None:
        """Ask the broker where the topics end now. Raises BrokerError."""
        topics = [info for sources in self._sources.values() for info in sources.topics.values()]
        self.ends = self._log.ends_at_least(topics)

    def _starts(self, topics: dict[str, TopicInfo]) -> PartitionOffsets:
        return self._log.start_offsets(topics.values()) if topics else PartitionOffsets()


class _Upkeep:
    """Behind a commit: Arrow's memory goes back, and now and then old snapshots of the table expire."""

    def __init__(self, table: IcebergTable, policy: ExpiryPolicy, clock: Clock) -> None:
        self._table = table
        self._policy = policy
        self._clock = clock
        self._commits = 0

    def after_commit(self) -> None:
        give_back()
        self._commits += 1
        if self._commits % _COMMITS_PER_EXPIRY:
            return
        try:
            expired = expire_snapshots(self._table, self._policy, self._clock.now_us())
        except CatalogError as error:  # the next round will do; the rows are committed all the same
            _log.warning("old snapshots stay for now", table=self._table.name, reason=error.message)
            return
        if expired:
            _log.debug("old snapshots expired", table=self._table.name, snapshots=expired)
