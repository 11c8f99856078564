"""The ingest service: one venue's frames in, each trade, quote and instrument into Kafka once.

Its life: what the log has already, the fence against a predecessor, the connections, the checkpoints, and all that is
looked at beside the frames, whose path is ingest/intake.py.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Histogram

from common.clock import Clock, SystemClock
from common.datasets import (
    CORE_DATASETS,
    GAP_EVENTS,
    INSTRUMENTS,
    QUOTES,
    SHED,
    TRADES,
    dead_letter_topic,
)
from common.degradation import Level
from common.errors import BrokerError, FeedError, FeedProtocolError, K2Error, SettingsError
from common.log import KafkaLog, TopicInfo
from common.memory import memory_limit_bytes
from common.registry import SchemaRegistry, open_registry
from common.settings import IngestSettings, KafkaSettings
from common.telemetry import get_logger, new_correlation_id
from ingest.backfill import Backfill
from ingest.checkpoint import CatchUp, Checkpoint, StateDirectory
from ingest.feed import Feed
from ingest.gap_watch import GapWatch
from ingest.gaps import GapBook, GapLimits
from ingest.heartbeats import HeartbeatListener, heartbeat, heartbeat_topic
from ingest.intake import Intake
from ingest.ledger import Ledger
from ingest.loop_thread import LoopThread, Ready
from ingest.normaliser import Normaliser
from ingest.past_trades import RestPastTrades
from ingest.producer import EventProducer
from ingest.reference import ReferenceData
from ingest.rest import RestClient
from ingest.shedding import Shedding, shed_triggers
from ingest.skew import ClockSkew
from ingest.stats import IngestStats, StatsCollector
from ingest.symbols import SymbolsFile
from ingest.venues.events import (
    Event,
    TradeEvent,
)
from ingest.venues.registry import BINANCE, Venue
from ingest.venues.session import Session
from ingest.watchers import ClockWatch, MemoryWatch

#: Delivery reports are taken in, and all that is watched is looked at, so often also when no frame comes.
_POLL_S: Final = 0.02
#: A checkpoint waits this long for the queue to run empty; then it is left for the next time.
_CHECKPOINT_FLUSH_S: Final = 2.0
#: The first messages wait for librdkafka to get the producer its id: 0.5 or 1.0 s, by a timer of its own.
_FIRST_ACKNOWLEDGED_S_MAX: Final = 15.0
#: Bounds of the histogram of acknowledgements, in seconds: fine where they ought to be.
_ACKNOWLEDGED_S: Final = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.012, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05),
    *(0.065, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
#: How often the file of symbols is looked at.
_SYMBOLS_FILE_S: Final = 1.0
#: Topics that were just created show up within this time on every broker seen.
_TOPICS_WAIT_S: Final = 15.0


class IngestService:
    """`k2 ingest`: from the venue's websocket into Kafka, each business event once (design rule 10).

    What is taken already is known from the checkpoint in `state_dir` and the log behind it, and from `seed` (what the
    table holds of a log that is gone, as with the embedded broker). Without a `state_dir` no checkpoint is kept and
    the whole log is read at start. `url` without a path is given the session's streams. One instance runs once.
    """

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        venue: Venue = BINANCE,
        streams: Iterable[str] | None = None,
        kafka: KafkaSettings,
        settings: IngestSettings,
        url: str | None = None,
        symbols_file: Path | None = None,
        state_dir: Path | None = None,
        seed: Ledger | None = None,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Raises SettingsError for symbols or a URL that cannot be."""
        self._venue = venue
        self._session: Session = venue.session(symbols, venue.streams if streams is None else streams)
        self._kafka = kafka
        self._settings = settings
        self._clock = clock or SystemClock()
        self._symbols_file = None if symbols_file is None else SymbolsFile(symbols_file)
        self._state = StateDirectory(state_dir) if state_dir is not None else None
        self._seed = seed
        self._normaliser = Normaliser(exchange=self._session.exchange, asset_class=self._session.asset_class)
        urls = _listed(url or venue.url(settings))
        self._shedding = Shedding(self._session.exchange, shed_triggers(settings), settings.priority_symbols)
        self._intake = Intake(
            self._session,
            self._normaliser,
            self._shedding,
            self._clock,
            queue_messages_max=settings.queue_messages_max,
            connections=lambda: self._feed.connections,
            rotate=self._rotate,
            received=self._note_latency,
        )
        self._feed = Feed(urls, self._session, self._session.streams, self._intake.handle, settings, clock=self._clock)
        self._rest_urls = _listed(venue.rest_url(settings) or venue.rest.rest_url_of(urls[0]) or "")
        self._reference: ReferenceData | None = None
        self._clock_watch = ClockWatch(
            self._venue_time_us, every_s=settings.clock_check_s, clock=self._clock, found=self._note_skew
        )
        self._latencies_negative = 0
        self._memory = MemoryWatch(clock=self._clock)
        self._memory_bytes_max = settings.memory_bytes_max or memory_limit_bytes()
        self._log = get_logger("ingest")
        self._thread = LoopThread("k2-ingest", self._main)
        self._stop_by_s: float | None = None
        self._heartbeat_topic = heartbeat_topic(asset_class=self._session.asset_class, exchange=self._session.exchange)
        self._followed: Checkpoint | None = None
        self._ledger = Ledger()
        self._limits = GapLimits(settings.gap_grace_s, settings.gap_alert_ids_min, settings.gap_alert_ids_max)
        self._watch = GapWatch(self._ledger, GapBook(self._limits), self._clock)
        self._backfill: Backfill | None = None
        self._producer: EventProducer | None = None
        self._log_messages_read = self._checkpoints = 0
        metrics = registry or CollectorRegistry()
        metrics.register(StatsCollector(self))
        self._acknowledged_s = Histogram(
            "k2_ingest_acknowledged_seconds",
            "From reading a frame off the socket to Kafka's acknowledgement of its record; one record in 17.",
            registry=metrics,
            buckets=_ACKNOWLEDGED_S,
        )
        self._latency_s = Histogram(
            "k2_ingest_event_latency_seconds",
            "From the venue's event to its receipt, the clocks' offset taken out, never below 0; one trade a read.",
            registry=metrics,
            buckets=_ACKNOWLEDGED_S,
        )

    # --- the service, as its owner sees it (any thread) ---------------------------------------------------------------

    def start(self) -> None:
        """Catch up with the log, connect to the venue, and return when frames can flow.

        Raises SettingsError (a second ingest on the state directory, a broken checkpoint), BrokerError, FeedClosed.
        """
        try:
            self.open_state()
            self._prepare()
            self._thread.start()
        except BaseException:
            if self._state is not None:
                self._state.close()
            raise

    def open_state(self) -> None:
        """Lock the state directory; nothing when it is. Raises SettingsError when another ingest has it."""
        if self._state is not None:
            self._state.open()

    def follow(self) -> None:
        """Take in the log so far and write nothing, so that `start` has little left to read. Blocks; may be repeated.

        Raises SettingsError, BrokerError.
        """
        self._followed = self._caught_up(open_registry(self._kafka), self._topics().values())

    def listener(self) -> HeartbeatListener:
        """What hears the ingest that writes what this one would. Blocks. Raises BrokerError."""
        log = KafkaLog(self._kafka)
        log.ensure_topics([self._heartbeat_topic])
        topic = log.topics(f"^{re.escape(self._heartbeat_topic)}$")[self._heartbeat_topic]
        settings = self._settings
        return HeartbeatListener(
            self._kafka, topic, settings.shard, silent_s_max=settings.standby_after_s, clock=self._clock
        )

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop reading, wait for what is queued to be acknowledged, keep the checkpoint. Idempotent."""
        self._stop_by_s = time.monotonic() + timeout_s
        if not self._thread.stop(timeout_s + 1.0):
            self._log.error("ingest did not stop in time", timeout_s=timeout_s)
        if self._state is not None:
            self._state.close()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything handled so far is acknowledged; False when that took longer. Raises BrokerError."""
        loop = self._thread.loop
        if loop is None or not self._thread.running:
            return self._producer is not None and self._producer.queued == 0
        flushed = asyncio.run_coroutine_threadsafe(self._intake.flushed(timeout_s), loop)
        try:
            return flushed.result(timeout_s + 1.0)
        except TimeoutError:
            flushed.cancel()
            return False

    @property
    def failure(self) -> BaseException | None:
        """Why the service ended by itself; None while it runs and after `stop`."""
        return self._thread.failure

    def stats(self) -> IngestStats:
        producer, intake = self._producer, self._intake
        return IngestStats(
            frames=intake.frames,
            trades=intake.taken[TRADES.name],
            quotes=intake.taken[QUOTES.name],
            instruments=intake.taken[INSTRUMENTS.name],
            records=dict(intake.taken),
            duplicates_dropped=dict(intake.duplicates),
            echoes_dropped=intake.echoes.dropped,
            ignored=intake.ignored,
            dead_letters=producer.dead_letters if producer else 0,
            produced=producer.produced - producer.others if producer else 0,
            acknowledged=max(0, producer.committed - producer.others) if producer else 0,
            queued=producer.queued if producer else 0,
            connected=self._feed.connected,
            connections=self._feed.connections,
            reconnects=self._feed.counters.reconnects,
            rotations=self._feed.counters.rotations,
            gaps=self._ledger.gap_count,
            backfilled=self._watch.backfilled_ids,
            gaps_open=len(self._watch.gaps.open_gaps()),
            missing_ids=self._watch.gaps.missing_ids(),
            lost_ids=self._watch.lost_ids,
            oldest_gap_s=self._watch.oldest_age_s,
            log_messages_read=self._log_messages_read,
            checkpoints=self._checkpoints,
            level=self._shedding.level,
            shed=dict(self._shedding.records),
            thinned=dict(self._shedding.thinned),
        )

    def watched_counters(self) -> list[tuple[str, str, int]]:
        """What the watchers counted: name, meaning, count."""
        feed, rest = self._feed, self._reference.rest if self._reference is not None else None
        return [
            ("stale_connections", "Connections given up because no frame came.", feed.counters.stale),
            ("silent_peers", "Connections given up because a ping had no echo.", feed.counters.silent),
            ("connect_failures", "Attempts to connect that failed.", feed.hosts.failures),
            ("clock_jumps", "Times that the clocks' offset jumped.", self._clock_watch.skew.jumps),
            ("load_level_changes", "Times that the level of load changed.", self._shedding.changes),
            ("negative_latencies", "Trades whose latency came out below 0.", self._latencies_negative),
            ("rest_requests", "Requests to the venue's REST interface.", rest.requests if rest else 0),
            ("rest_limited", "Answers of 429 and 418.", rest.limited if rest else 0),
        ]

    def watched_levels(self) -> list[tuple[str, str, float]]:
        """What the watchers see now: name, meaning, value. What is not known is left out."""
        feed, skew, leak = self._feed, self._clock_watch.skew, self._memory.leak
        levels: list[tuple[str, str, float | None]] = [
            ("connections", "Open connections to the venue.", feed.connections),
            ("open_breakers", "Hosts left alone after failures.", feed.hosts.open_breakers),
            ("ping_seconds", "What the last ping's echo took.", feed.counters.ping_s),
            ("clock_offset_seconds", "The venue's clock minus ours.", _seconds(skew.offset_us)),
            ("clock_offset_error_seconds", "How far off that may be.", _seconds(skew.error_us)),
            ("resident_bytes", "This process's memory.", self._memory.rss_bytes or None),
            ("resident_slope_bytes_per_second", "How it grows, by least squares.", leak.slope_bytes_per_s),
            ("leak_score", "0 to 1: how much that looks like a leak.", leak.score),
            ("rest_weight_used", "Of the last minute.", self._reference.rest.weight_used if self._reference else None),
        ]
        return [(name, what, value) for name, what, value in levels if value is not None]

    # --- before the first frame (the caller's thread) -----------------------------------------------------------------

    def _prepare(self) -> None:
        """Topics, ledger, producer. Blocking."""
        registry = open_registry(self._kafka)
        topics = self._topics()
        producer = EventProducer(
            self._kafka,
            self._settings,
            registry,
            topics=topics,
            transactional_id="-".join(filter(None, ("k2-ingest", self._session.exchange, self._settings.shard))),
            clock=self._clock,
            timed=self._acknowledged_s.observe,
        )
        try:
            # First the fence, then the log's end: behind it there is nothing that a predecessor may still write.
            producer.fence()
            checkpoint = self._caught_up(registry, topics.values())
        except BaseException:
            producer.close()
            raise
        producer.covers(checkpoint.covered)
        self._ledger = checkpoint.ledger
        if self._seed is not None:
            self._ledger.merge(self._seed)
        self._watch = GapWatch(self._ledger, checkpoint.gaps, self._clock)
        self._producer = producer
        self._intake.begin(producer, self._ledger, self._watch)

    def _topics(self) -> dict[str, TopicInfo]:
        """The topic of each dataset that is used, created when missing."""
        session = self._session
        used = dict.fromkeys((*CORE_DATASETS, *session.datasets))
        names = {d.name: d.topic(asset_class=session.asset_class, exchange=session.exchange) for d in used}
        log = KafkaLog(self._kafka)
        log.ensure_topics([*names.values(), *map(dead_letter_topic, names.values()), self._heartbeat_topic])
        topics = log.made(names.values(), wait_s_max=_TOPICS_WAIT_S)
        return {dataset: topics[name] for dataset, name in names.items()}

    def _caught_up(self, registry: SchemaRegistry, topics: Iterable[TopicInfo]) -> Checkpoint:
        catch_up = CatchUp(self._kafka, registry, topics, self._limits, clock=self._clock)
        known = self._followed
        if known is None and self._state is not None:
            known = self._state.load(self._limits)
        checkpoint = catch_up.run(KafkaLog(self._kafka), known)
        self._log_messages_read = catch_up.messages_read
        self._log.info("caught up with the log", messages=catch_up.messages_read, broken=catch_up.messages_broken)
        return checkpoint

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _main(self, ready: Ready) -> None:
        assert self._producer is not None
        pump: asyncio.Task[None] | None = None
        watchers: list[asyncio.Task[None]] = []
        commits = asyncio.create_task(self._producer.run())
        try:
            self._reference = self._reference_data()
            if self._reference is not None:
                await self._clock_watch.look()
            await self._learn_instruments(self._session.symbols)
            await self._announce_instruments(self._session.symbols)
            await self._feed.open()
            self._backfill = self._open_backfill()
            self._intake.is_filled = self._backfill is not None
            pump = asyncio.create_task(self._pump())
            feed = asyncio.create_task(self._feed.run())
            watchers += [asyncio.create_task(run) for run in (self._memory.run(), self._watch_venue())]
            if self._symbols_file is not None:
                watchers.append(asyncio.create_task(self._watch_symbols(self._symbols_file)))
            ready()
            try:
                done, _pending = await asyncio.wait({feed, pump, commits}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                feed.cancel()
                await asyncio.wait({feed})
        except asyncio.CancelledError:
            if pump is not None:
                pump.cancel()
                await asyncio.wait({pump})
                if self._backfill is not None:
                    await self._backfill.close()
                await self._finish()
        finally:
            if pump is not None:
                pump.cancel()
            if self._backfill is not None:
                await self._backfill.close()
            for watch in watchers:
                watch.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            if self._reference is not None:
                await self._reference.rest.close()
            commits.cancel()
            await asyncio.gather(commits, return_exceptions=True)
            self._producer.close()

    async def _pump(self) -> None:
        """Take in delivery reports also when no frames come, and keep checkpoints. Ends by BrokerError only."""
        assert self._producer is not None
        last_s = self._clock.monotonic_s()
        beat_s = float("-inf")
        while True:
            await asyncio.sleep(_POLL_S)
            self._producer.poll()
            if self._clock.monotonic_s() - beat_s >= self._settings.heartbeat_s:
                beat_s = self._clock.monotonic_s()
                shard = self._settings.shard
                self._producer.send_to(self._heartbeat_topic, shard, heartbeat(shard, self._clock.now_us()))
            self._watch.look()
            self._tell_gaps()
            await self._look_at_load()
            if self._backfill is not None:
                self._backfill.look()
            if self._state is not None and self._clock.monotonic_s() - last_s >= self._settings.checkpoint_interval_s:
                last_s = self._clock.monotonic_s()
                await self._checkpoint(_CHECKPOINT_FLUSH_S)

    async def _look_at_load(self) -> None:
        """What is taken from now on; what was not, to the log. The topic is made when something was shed."""
        shedding, producer, settings = self._shedding, self._producer, self._settings
        assert producer is not None
        if not settings.shed:
            return
        queue_percent = 100 * producer.queued / settings.queue_messages_max
        memory_percent = 100 * self._memory.rss_bytes / self._memory_bytes_max
        now_s = self._clock.monotonic_s()
        if shedding.observe(queue_percent, memory_percent, now_s):
            level = shedding.level
            self._normaliser.thins = level is not Level.NORMAL
            say = self._log.warning if level else self._log.info
            say("load", load_level=level.name, queue_percent=round(queue_percent), memory_percent=round(memory_percent))
        if shedding.due(now_s) and queue_percent < settings.shed_queue_percent[0]:
            if SHED.name not in producer.datasets:
                session, log = self._session, KafkaLog(self._kafka)
                name = SHED.topic(asset_class=session.asset_class, exchange=session.exchange)
                try:
                    await asyncio.to_thread(producer.add_topic, SHED, log, name)
                except K2Error as error:  # counted still, and told the next time
                    self._log.warning("what was shed cannot be told yet", reason=error.message)
                    return
            for record in shedding.tell(now_s):
                while not self._intake.send(SHED, record["symbol"], record, record["last_time"]):
                    await self._intake.room()

    def _tell_gaps(self) -> None:
        """What became of gaps, to the log; what the queue has no room for is told the next time."""
        untold = self._watch.untold
        while untold and self._intake.send(GAP_EVENTS, untold[0].symbol, untold[0].record(), self._clock.now_us()):
            untold.popleft()

    def _open_backfill(self) -> Backfill | None:
        """None where trades of the past cannot be asked for."""
        past = self._venue.past
        if past is None or self._reference is None or not self._settings.backfill:
            return None
        return Backfill(
            self._watch,
            RestPastTrades(self._reference.rest, past, self._clock),
            self._intake.take_past,
            self._settings,
            page_trades_max=past.TRADES_MAX,
            clock=self._clock,
            gone_codes=frozenset({past.UNKNOWN_SYMBOL}),
        )

    async def _finish(self) -> None:
        """A clean end: everything acknowledged, the checkpoint kept; both within the time that `stop` was given."""
        left_s = max(0.0, (self._stop_by_s or 0.0) - time.monotonic())
        if self._state is not None:
            flushed = await self._checkpoint(left_s)
        else:
            flushed = await self._intake.flushed(left_s)
        if not flushed:
            queued = self._producer.queued if self._producer else 0
            self._log.warning("ingest ended with messages that were not acknowledged", messages=queued)

    async def _checkpoint(self, timeout_s: float) -> bool:
        """Write the checkpoint at a moment when all that is taken is acknowledged; False when none came in time."""
        assert self._producer is not None and self._state is not None
        # Nothing is sent meanwhile; at the embedded broker's speed that is a few milliseconds.
        async with self._intake.turn:
            self._tell_gaps()
            if self._watch.untold or not await self._intake.flushed(timeout_s):
                self._log.warning(
                    "no checkpoint this time: the broker did not acknowledge everything", timeout_s=timeout_s
                )
                return False
            text = Checkpoint(self._producer.covered_offsets(), self._ledger, self._watch.gaps).to_text()
        try:
            await asyncio.to_thread(self._state.save, text)
            self._checkpoints += 1
        except SettingsError as error:  # the log still tells everything, a restart only reads more of it
            self._log.error("the checkpoint was not kept", reason=error.message)
        return True

    # --- what the venue tells beside its streams ----------------------------------------------------------------------

    def _reference_data(self) -> ReferenceData | None:
        """None for a host whose REST interface is not known."""
        if not self._rest_urls:
            return None
        settings = self._settings
        rest = RestClient(
            self._rest_urls,
            weight_per_minute_max=settings.rest_weight_per_minute_max,
            timeout_s=settings.rest_timeout_s,
            clock=self._clock,
        )
        return ReferenceData(rest, self._venue.rest)

    def _rotate(self, correlation_id: str) -> None:
        self._feed.rotate(correlation_id)

    async def _venue_time_us(self) -> int:
        assert self._reference is not None
        return await self._reference.time_us()

    def _note_skew(self, skew: ClockSkew) -> None:
        """Each record keeps the offset that was known when it came, as whole ms, so that its text repeats."""
        if self._settings.clock_offset_recorded and skew.offset_us is not None:
            self._normaliser.vendor_data = {"clock_offset_ms": str(round(skew.offset_us / 1_000))}

    def _note_latency(self, event: Event | FeedProtocolError) -> None:
        if type(event) is TradeEvent:
            latency_us = self._clock_watch.skew.latency_us(event.event_time_us, event.receive_time_us)
            self._latencies_negative += latency_us < 0
            self._latency_s.observe(max(0, latency_us) / 1e6)

    async def _learn_instruments(self, symbols: Sequence[str]) -> bool:
        """Ask the venue what its symbols are; False when it does not tell: then what their names tell has to do."""
        if self._reference is None:
            return False
        try:
            infos = await self._reference.instruments(symbols)
        except FeedError as error:
            self._log.warning("the venue does not tell what its symbols are; asking again later", reason=str(error))
            return False
        for info in infos.values():
            self._normaliser.learn(info)
        return True

    async def change_symbols(self, symbols: Sequence[str]) -> None:
        """Take these symbols from now on; what stays is not disturbed. On the loop.

        Raises SettingsError and BrokerError.
        """
        session = self._session.with_symbols(symbols)
        fresh = [symbol for symbol in session.symbols if symbol not in self._session.symbols]
        gone = [symbol for symbol in self._session.symbols if symbol not in session.symbols]
        await self._learn_instruments(fresh)
        async with self._intake.turn:
            await self._announce_instruments(fresh)
            self._session = self._intake.session = session
        self._feed.change(session, session.streams)
        self._log.info("other symbols from now on", more=fresh, less=gone)

    async def _watch_symbols(self, file: SymbolsFile) -> None:
        """Follow the file of symbols until cancelled. What it says wrongly is told, and changes nothing."""
        while True:
            await asyncio.sleep(_SYMBOLS_FILE_S)
            try:
                symbols = await asyncio.to_thread(file.changed)
                if symbols is not None:
                    await self.change_symbols(symbols)
            except SettingsError as error:
                self._log.error("the symbols stay as they are", reason=error.message)

    async def _watch_venue(self) -> None:
        """The venue's clock, and now and then its instruments, until cancelled."""
        if self._reference is None:
            return
        clock = asyncio.create_task(self._clock_watch.run())
        try:
            while True:
                await asyncio.sleep(self._settings.instruments_refresh_s)
                if await self._learn_instruments(self._session.symbols):
                    async with self._intake.turn:
                        await self._announce_instruments(self._session.symbols)
        finally:
            clock.cancel()

    async def _announce_instruments(self, symbols: Sequence[str]) -> None:
        """One record per symbol, unless the log's last one says the same; acknowledged before any frame is read.

        So a broker that takes nothing is known at start, and the 0.5 to 1 s in which librdkafka gets an idempotent
        producer its id are over before the first trade. Where the venue told nothing, a symbol that the log knows is
        left as it is there. Raises BrokerError.
        """
        self._intake.belong_to(new_correlation_id())
        exchange = self._session.exchange
        for symbol in symbols:
            record = self._normaliser.instrument(symbol, self._clock.now_us())
            known = self._ledger.knows_instrument(exchange, symbol) and not self._normaliser.was_told(symbol)
            if self._ledger.is_new_instrument(exchange, symbol, record["message_id"]) and not known:
                while not self._intake.send(INSTRUMENTS, symbol, record, record["updated_time"]):
                    await self._intake.room()
                self._ledger.take_instrument(exchange, symbol, record["message_id"])
            else:
                self._intake.duplicates[INSTRUMENTS.name] += 1
        if not await self._intake.flushed(_FIRST_ACKNOWLEDGED_S_MAX):
            raise BrokerError(
                f"the broker {self._kafka.bootstrap_servers} did not acknowledge ingest's first messages within "
                f"{_FIRST_ACKNOWLEDGED_S_MAX:.0f} s; check the broker and start again"
            )


def _seconds(us: int | None) -> float | None:
    return None if us is None else us / 1e6


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]
