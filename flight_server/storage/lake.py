"""The lake as the engine sees it: cursors on `market.*`, the cut of an open transaction, and whether answers are exact.

A thin shell: one thread that drives the publisher, one that asks the catalog and the broker for news. No query waits
for either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry

from common.clock import Clock, SystemClock
from common.datasets import BARS, CORE_DATASETS, MARKET, OPS, OPTIONAL_DATASETS, TRADES, Bars, Dataset, log_table
from common.dead_letters import all_letters
from common.errors import K2Error, TableNotFound, Unavailable
from common.log import KafkaLog, KafkaLogReader, TopicInfo
from common.offsets import PartitionOffsets
from common.registry import open_registry
from common.schemas.arrow import table_schema
from common.settings import FlightSettings, KafkaSettings, LakeSettings
from common.telemetry import get_logger
from flight_server.storage.as_of import AsOf, AsOfCut, condition_at, table_cut
from flight_server.storage.between_cuts import Choose
from flight_server.storage.commit_rows import ops_rows
from flight_server.storage.database import CATALOG, RESEARCH, Database
from flight_server.storage.dead_letter_rows import letter_rows
from flight_server.storage.file_index import Condition
from flight_server.storage.histories import Histories
from flight_server.storage.manifests import ManifestReader
from flight_server.storage.ops_views import VIEWS, OpsView
from flight_server.storage.read_view import CutOff, Seen, Snapshot, TableCut, quoted
from flight_server.storage.research import ResearchTables
from flight_server.storage.research_views import ResearchViews
from flight_server.storage.snapshots import IcebergSnapshots, LoadedTables
from flight_server.storage.tail import Publisher
from flight_server.storage.tail_metrics import TailMetrics


@dataclass(frozen=True)
class TableInfo:
    """A table as catalogs show it: its names and its exact Arrow schema, column remarks in the metadata key `doc`."""

    catalog: str
    schema: str
    name: str
    kind: str
    arrow_schema: pa.Schema


@dataclass(frozen=True)
class LakeStats:
    """Counters at one moment. Freshness is (p50, p99) in ms over rows published lately, None without any: from the
    socket that read the record, or from the exchange's event, to its being visible to every new query.
    """

    ready: bool
    tail_rows: dict[str, int]
    records_refused: dict[str, int]
    snapshot_ids: dict[str, int | None]
    freshness_ms: tuple[float, float] | None
    event_freshness_ms: tuple[float, float] | None
    rows_published: int


class Lake:
    """Snapshot + tail of every dataset, kept current in the background.

    `start` returns when answers are exact: the snapshots are loaded and the tail has reached the log's end.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        lake: LakeSettings,
        settings: FlightSettings,
        *,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        datasets: Sequence[Dataset] = CORE_DATASETS,
        optional: Sequence[Dataset] = OPTIONAL_DATASETS,
    ) -> None:
        self._kafka = kafka
        self._settings = settings
        #: What is shown; the dormant ones are shown once they have a topic or a table. Replaced, never changed.
        self._datasets = tuple(datasets)
        self._dormant = tuple(optional)
        self._arrived: list[tuple[Dataset, Snapshot]] = []
        self._bars = tuple(BARS.values()) if TRADES in datasets else ()
        self._clock = clock or SystemClock()
        self._log = get_logger("flight_server.storage")
        loaded = LoadedTables()
        self._histories = Histories(lake, loaded)
        self._database = Database(settings, lake)
        self._snapshots = IcebergSnapshots(lake, ManifestReader(self._database.cursor), loaded)
        #: Users' own tables. Whoever commits or drops one calls `publish_research` afterwards, and reads it then.
        self.research = ResearchTables(lake, clock=self._clock)
        self._research_views = ResearchViews(self._database, self.research)
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._news_lock = threading.Lock()
        self._newest: dict[str, Snapshot] = {}
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._topics: tuple[str, list[TopicInfo]] | None = None
        self._publisher: Publisher | None = None
        self._reader: KafkaLogReader | None = None
        self._threads: list[threading.Thread] = []
        self._rows_published = 0
        #: The tables, and the number (`research_version`) that they were listed at: every statement asks for them.
        self._listed: tuple[int, Sequence[TableInfo]] | None = None
        self.failure: BaseException | None = None
        self._metrics = TailMetrics(self._held, registry or CollectorRegistry())

    # -- the engine's side

    def cursor(self) -> Any:
        """A new cursor on the database; the caller closes it."""
        return self._database.cursor()

    @property
    def version(self) -> int:
        """Another number after each publication: while it stays, every new transaction sees the same."""
        return self._database.version

    def begin(self, cursor: Any) -> Seen:
        """Open a read-only transaction on the cursor and fix its instant: what it sees. Raises Unavailable."""
        if self._publisher is None:
            raise Unavailable("the server is not running; connect again later")
        return self._publisher.published.begin(cursor)

    def check_ready(self) -> None:
        """Raises Unavailable or TailGap when `market.*` cannot be answered exactly now."""
        if self._publisher is None or self.failure is not None:
            raise Unavailable("the server is not running; connect again later")
        if (gap := self._publisher.gap) is not None:
            raise gap

    def table_cut(self, table: str, as_of: AsOf) -> TableCut:
        """The positions that `as_of` means for a table, by its full name, as in "market.trades".

        Those of bars are the trades'. A table of `research` has no positions but its snapshot. For a snapshot and a
        time the catalog is asked, which blocks. What the sink has just committed, or another server has given out, this
        one may not have read yet: it is waited for, not longer than the settings say. Raises SnapshotNotFound,
        TableNotFound, Unsupported, Unavailable, CatalogError.
        """
        schema, _, name = table.partition(".")
        dataset = next((dataset for dataset in self._datasets if dataset.table == log_table(table)), None)
        if dataset is None and schema != RESEARCH:
            raise TableNotFound(f"there is no table {table} that could be read as of an earlier instant")
        if isinstance(as_of, AsOfCut):
            cut = table_cut(log_table(table), as_of)
        elif dataset is None:
            return TableCut(self.research.snapshot_at(name, as_of), PartitionOffsets())
        else:
            cut = self._histories.table_cut(dataset, as_of)
        if dataset is not None:
            self._come_to(dataset, cut.offsets)
        return cut

    def _come_to(self, dataset: Dataset, wanted: PartitionOffsets) -> None:
        """Return when the table is shown up to these offsets, or has not been for long enough."""
        publisher = self._publisher
        if publisher is None or publisher.has_come_to(dataset.name, wanted):
            return
        published = threading.Event()
        forget = self.listen(published.set)
        deadline_s = self._clock.monotonic_s() + self._settings.as_of_wait_ms / 1000
        try:
            while not publisher.has_come_to(dataset.name, wanted):
                left_s = deadline_s - self._clock.monotonic_s()
                if left_s <= 0 or not published.wait(left_s):
                    return
                published.clear()
        finally:
            forget()

    def columns_at(self, table: str, cut: TableCut) -> Sequence[tuple[str, str]] | None:
        """The columns that a table had at a cut, as (name now, name then), in the order of now; None: as now.

        Columns are the same when their field ids are. May ask the catalog, which blocks. Raises SnapshotExpired when
        nobody knows them any more, CatalogError, Unavailable.
        """
        dataset = next((dataset for dataset in self._datasets if dataset.table == table), None)
        return None if dataset is None else self._histories.columns(dataset, cut, self._shown(dataset))

    def tell_cut(self, cursor: Any, cut: str | None) -> None:
        """Make `k2_cut()` say this on the cursor, until the next call."""
        self._database.tell_cut(cursor, cut)

    def commits(self, *, with_cuts: bool) -> pa.Table:
        """The commits of all tables, those of expired snapshots included: see commit_rows.COMMITS. Blocking.

        Without `with_cuts` the texts of the cuts, which take longest, are left out. Raises CatalogError, Unavailable.
        """
        return pa.concat_tables(
            [ops_rows(dataset.table, *self._histories.rows(dataset), with_cuts=with_cuts) for dataset in self._datasets]
        )

    def dead_letters(self) -> pa.Table:
        """The dead letters that the broker has now: see dead_letter_rows.DEAD_LETTERS. Blocking.

        Raises BrokerError, LimitExceeded.
        """
        return letter_rows(all_letters(self._kafka))

    def select_at(self, cursor: Any, table: str, wanted: TableCut, conditions: Sequence[Condition] = ()) -> str:
        """The SELECT that gives the rows of a table at a cut, in the cursor's open transaction; of those that do not
        meet the conditions some may be left out.

        What it needs is checked against what that transaction sees, which it fixes; in later transactions the same text
        gives the same rows. Raises Unavailable (this server is not as far; again in a moment), SnapshotExpired (rows of
        it were deleted, or are of a log that is gone), CatalogError, and for a table of `research` what
        `ResearchTables.select_at` raises.
        """
        schema, _, name = table.partition(".")
        relation = f"{CATALOG}.{schema}.{quoted(name)}"
        if schema == RESEARCH:
            if wanted.snapshot_id is None:
                return f"SELECT * FROM {relation} WHERE false"
            return self.research.select_at(name, wanted.snapshot_id)
        self.check_ready()
        assert self._publisher is not None
        bars = self._publisher.bars
        if bars is not None and table != log_table(table):
            # Bars do not say which trades are in them: at an earlier instant they are made of the trades of then.
            trades = self.select_at(cursor, log_table(table), wanted, bars.on_trades(name, conditions))
            return bars.computed(name, trades)
        now = self._publisher.published.cut(cursor).tables.get(table)
        if now is None:
            raise Unavailable(f"the table {table} has just been made; begin a new transaction")
        condition = condition_at(table, wanted, now, self._publisher.followed())
        dataset = next(dataset for dataset in self._datasets if dataset.table == table)
        self._histories.check_complete(dataset, wanted, now.snapshot_id)
        cut = CutOff(wanted.offsets, condition)
        chosen = self._publisher.published.select_where(self._publisher.published.seen(cursor), table, conditions, cut)
        return chosen or f"SELECT * FROM {relation} WHERE {condition}"

    def changes(self, cursor: Any, table: str, low: TableCut | None, high: TableCut | None) -> str:
        """The SELECT of a table's rows between two cuts, for the cursor's open transaction; see Publisher.changes.

        Raises SnapshotExpired also when rows below `high` were deleted since: a part is never given as the whole.
        """
        self.check_ready()
        assert self._publisher is not None
        select = self._publisher.published.changes(cursor, table, low, high)
        if high is not None:
            dataset = next(dataset for dataset in self._datasets if dataset.table == table)
            now = self._publisher.published.cut(cursor).tables[table]
            self._histories.check_complete(dataset, high, now.snapshot_id)
        return select

    def stretch(self, cursor: Any, table: str, choose: Choose) -> tuple[TableCut, PartitionOffsets, str]:
        """What a reader that goes along with a table reads next; see Publisher.stretch."""
        self.check_ready()
        assert self._publisher is not None
        found = self._publisher.published.stretch(cursor, table, choose)
        # Asked again: what became inexact before the transaction's instant was fixed is seen by it.
        self.check_ready()
        return found

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called after each publication, on the publisher's thread: it must not block or raise."""
        with self._news_lock:
            self._listeners = (*self._listeners, wake)

        def forget() -> None:
            with self._news_lock:
                self._listeners = tuple(other for other in self._listeners if other is not wake)

        return forget

    def select_where(self, seen: Seen, table: str, conditions: Sequence[Condition]) -> str | None:
        """All rows of a table of `market` that meet the conditions, and others; see Publisher.select_where."""
        return None if self._publisher is None else self._publisher.published.select_where(seen, table, conditions)

    def parts(self, cursor: Any, table: str, count: int, *, rows_min: int) -> list[str]:
        """A large table in parts, each a SELECT, for the cursor's open transaction; see Publications.parts."""
        return (
            [] if self._publisher is None else self._publisher.published.parts(cursor, table, count, rows_min=rows_min)
        )

    def tables(self) -> Sequence[TableInfo]:
        """The tables of `market`, those of `ops` that the log feeds, and those of `research` as of their latest
        publication."""
        # The number first: what changes meanwhile has another one, and is listed at the next call.
        version = self.research_version
        if self._listed is None or self._listed[0] != version:
            self._listed = (version, self._list_tables())
        return self._listed[1]

    def _list_tables(self) -> list[TableInfo]:
        known = [*self._datasets, *self._bars]
        fed = [TableInfo(CATALOG, d.namespace, d.name, "TABLE", self._shown(d)) for d in known]
        fed += [TableInfo(CATALOG, OPS, view.name, "VIEW", view.columns) for view in self._views()]
        research = self._research_views.schemas().items()
        return fed + [TableInfo(CATALOG, RESEARCH, name, "TABLE", schema) for name, schema in research]

    @property
    def research_version(self) -> int:
        """Another number after each publication that changed which tables there are, or columns of one."""
        shapes = 0 if self._publisher is None else self._publisher.shapes_version
        return self._research_views.version + len(self._datasets) + shapes

    def publish_research(self) -> None:
        """Show the research tables as they are in the catalog now to every transaction that begins after. Blocking.

        Raises CatalogError or Unavailable.
        """
        self._research_views.publish()

    def _held(self) -> dict[str, int]:
        return {} if self._publisher is None else self._publisher.tail_rows()

    def _shown(self, dataset: Dataset) -> pa.Schema:
        """The columns that a table has now."""
        if self._publisher is None or isinstance(dataset, Bars):
            return table_schema(dataset.schema_name)
        return self._publisher.schema(dataset.name)

    def _views(self) -> list[OpsView]:
        tables = {dataset.table for dataset in self._datasets}
        return [view for view in VIEWS.values() if tables.issuperset(view.tables)]

    # -- the service's side

    def start(self, timeout_s: float = 60.0) -> None:
        """Return when answers are exact. Raises BrokerError, Unavailable or SettingsError when that cannot be."""
        log = KafkaLog(self._kafka)
        self._datasets += tuple(dataset for dataset, _ in self._awake(log))
        self._dormant = tuple(dataset for dataset in self._dormant if dataset not in self._datasets)
        self._topics = (log.cluster_id(), self._list_topics(log))
        locations = self._snapshots.locations((*self._datasets, *self._bars))
        self._newest = {dataset.name: self._snapshots.newest(dataset, locations) for dataset in self._datasets}
        self._ask_for(self._bars)
        self.publish_research()
        self._reader = KafkaLogReader(self._kafka, client_id="k2-tail")
        registry = open_registry(self._kafka)
        self._publisher = Publisher(
            self._database,
            self._reader,
            registry,
            self._settings,
            self._clock,
            self._datasets,
            topic_ids=log.topic_ids,
            bars=self._bars,
        )
        for view in self._views():
            self._database.create_view(
                f"{OPS}.{view.name}", view.select(lambda table, alias: f"{CATALOG}.{table} AS {alias}")
            )
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._publish,), name="k2-publisher"),
            threading.Thread(target=self._guarded, args=(self._refresh, log), name="k2-refresher"),
        ]
        for thread in self._threads:
            thread.start()
        settled = self._settled.wait(timeout_s)
        if settled and self.failure is None:
            return
        failure = self.failure or Unavailable(
            f"the tail did not reach the end of the log within {timeout_s:g} s; check the broker"
        )
        self.stop()
        raise failure

    def stop(self) -> None:
        """End the threads and close the database. Idempotent."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._database.close()

    def stats(self) -> LakeStats:
        publisher = self._publisher
        if publisher is None:
            return LakeStats(False, {}, {}, {}, None, None, 0)
        return LakeStats(
            ready=publisher.gap is None,
            tail_rows=publisher.tail_rows(),
            records_refused=publisher.records_refused(),
            snapshot_ids={name: snapshot.snapshot_id for name, snapshot in publisher.snapshots().items()},
            freshness_ms=_p50_p99_ms(publisher.latencies.us("receive_time")),
            event_freshness_ms=_p50_p99_ms(publisher.latencies.us("event_time")),
            rows_published=self._rows_published,
        )

    # -- threads

    def _guarded(self, run: Any, *args: Any) -> None:
        try:
            run(*args)
        except BaseException as error:  # noqa: BLE001  (a thread has nobody above it: keep the failure, wake who waits)
            self.failure = error
            self._log.error("the lake stopped", error=str(error), kind=type(error).__name__)
            self._stopping.set()
            self._settled.set()
            self._wake()

    def _wake(self) -> None:
        for wake in self._listeners:
            wake()

    def _publish(self) -> None:
        publisher = self._publisher
        assert publisher is not None
        waiting = False
        while not self._stopping.is_set():
            with self._news_lock:
                newest, self._newest = self._newest, {}
                topics, self._topics = self._topics, None
                arrived, self._arrived = self._arrived, []
            self._show(publisher, arrived)
            try:
                self._adopt(publisher, newest)
                if topics is not None:
                    publisher.assign(*topics)
                published = publisher.poll(0.1)
            except K2Error as error:
                # Nothing inexact is shown: what failed shows nothing, and `gap` refuses what it has to.
                self._log.warning("the tail waits", reason=str(error))
                waiting = True
                with self._news_lock:
                    self._topics = self._topics or topics
                self._stopping.wait(0.2)
                continue
            self._rows_published += published
            if published or newest or topics or waiting:
                self._wake()
            waiting = publisher.gap is not None
            if published:
                self._metrics.published(publisher.latencies.ages)
            if publisher.gap is None:
                self._settled.set()

    def _show(self, publisher: Publisher, arrived: Sequence[tuple[Dataset, Snapshot]]) -> None:
        """Show further tables; one that cannot be shown now is tried again when the broker is asked next."""
        for dataset, snapshot in arrived:
            try:
                publisher.add(dataset, snapshot)
                self._datasets = (*self._datasets, dataset)
            except K2Error as error:
                self._log.warning("a further table cannot be shown", table=dataset.table, reason=str(error))
                self._dormant = (*self._dormant, dataset)

    def _adopt(self, publisher: Publisher, newest: dict[str, Snapshot]) -> None:
        """All at once, or else each by itself: a table whose files cannot be read holds up no other.

        What could not be shown is tried again. Raises K2Error before the first answer, which needs every table.
        """
        if not newest:
            return
        try:
            publisher.adopt(newest)
        except K2Error as error:
            failed, last = {}, error
            for name, snapshot in newest.items():
                try:
                    publisher.adopt({name: snapshot})
                except K2Error as again:
                    failed[name], last = snapshot, again
            with self._news_lock:
                self._newest = failed | self._newest
            if failed and not self._settled.is_set():
                raise last from None
            if failed:
                self._log.warning("a newer snapshot cannot be shown", tables=sorted(failed), reason=str(last))

    def _refresh(self, log: KafkaLog) -> None:
        topics_due = 0.0
        while not self._stopping.wait(self._settings.snapshot_refresh_ms / 1000):
            self._guarded_news(self._ask_catalog)
            if self._clock.monotonic_s() >= topics_due and self._guarded_news(self._ask_broker, log):
                topics_due = self._clock.monotonic_s() + self._settings.topic_refresh_ms / 1000
            self._guarded_news(self.publish_research)
            self._guarded_news(self.research.sweep)

    def _ask_catalog(self) -> None:
        """The bars last: they are ahead of trades that are not known yet as seldom as may be."""
        self._ask_for((*self._datasets, *self._bars))

    def _ask_for(self, datasets: Sequence[Dataset]) -> None:
        """One table without news, for whatever reason, keeps the snapshot that it has, and the others get theirs."""
        newest: dict[str, Snapshot] = {}
        locations = self._snapshots.locations(datasets)

        def ask(dataset: Dataset) -> None:
            newest[dataset.name] = self._snapshots.newest(dataset, locations)

        for dataset in datasets:
            self._guarded_news(ask, dataset)
        with self._news_lock:
            self._newest |= newest

    def _awake(self, log: KafkaLog) -> list[tuple[Dataset, Snapshot]]:
        """The dormant datasets that have a topic, or a table with rows, and their snapshots. One whose table cannot be
        read stays dormant, and holds up no other, nor the news of topics."""
        if not self._dormant:
            return []
        topics = log.topics(rf"^({MARKET}|{OPS})\.")
        locations = self._snapshots.locations(self._dormant)
        found = []
        for dataset in self._dormant:
            try:
                snapshot = self._snapshots.newest(dataset, locations)
            except K2Error as error:
                self._log.warning("a further table cannot be shown", table=dataset.table, reason=str(error))
                continue
            if snapshot.snapshot_id is not None or any(map(dataset.matches, topics)):
                found.append((dataset, snapshot))
        return found

    def _ask_broker(self, log: KafkaLog) -> None:
        arrived = self._awake(log)
        if arrived:
            self._dormant = tuple(one for one in self._dormant if all(one is not dataset for dataset, _ in arrived))
            with self._news_lock:
                self._arrived += arrived
        topics = (log.cluster_id(), self._list_topics(log))
        with self._news_lock:
            self._topics = topics

    def _guarded_news(self, ask: Callable[..., object], *args: object) -> bool:
        """Whether there was an answer. Without news answers are as exact as with: they go on from what is known."""
        try:
            ask(*args)
        except Exception as error:  # noqa: BLE001  (a table's metadata may be anything; the thread must outlive it)
            self._log.warning(
                "no news from catalog or broker; answers go on from what is known",
                reason=str(error) or repr(error),
                kind=type(error).__name__,
            )
            return False
        return True

    def _list_topics(self, log: KafkaLog) -> list[TopicInfo]:
        found: dict[str, TopicInfo] = {}
        for dataset in self._datasets:
            found |= log.topics(dataset.topic_pattern)
        return list(found.values())


def _p50_p99_ms(latencies_us: Any) -> tuple[float, float] | None:
    if not len(latencies_us):
        return None
    p50, p99 = np.percentile(latencies_us, [50, 99])
    return float(p50) / 1000, float(p99) / 1000
