"""The connections to a venue: two at a time for every stream, so that the end of one costs no event and no time.

A `Line` keeps one connection alive: it connects, watches, rotates and backs off. A `Feed` has two lines for each shard
of the streams, and hands on what all of them bring; whoever handles it drops what came before. Neither knows what
frames mean. What decides is pure and in ingest/watch.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never

from common.clock import Clock, SystemClock
from common.errors import FeedClosed
from common.settings import IngestSettings
from common.telemetry import get_logger, new_correlation_id
from ingest.limits import RateLimiter
from ingest.venues.session import Dialect
from ingest.watch import Decision, Hosts, decide, reconnect_waits, spread
from ingest.websocket import Websocket, host_of, open_websocket

#: Takes the frames of one read of a socket, when that was (microseconds UTC), and the correlation id of their
#: connection. While it waits, no more than the queue's bound is read from that connection.
FrameHandler = Callable[[Sequence[bytes], int, str], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]

#: Streams of one message, and of a connection's URL: some 5 KB of text. Servers take URLs of 8 KB and few longer ones;
#: what a shard has more is said once the connection is there.
_STREAMS_PER_MESSAGE: Final = 200


@dataclass
class FeedCounters:
    """What happened to the connections since start."""

    reconnects: int = 0
    rotations: int = 0
    stale: int = 0
    silent: int = 0
    #: The seconds that the last echo of a ping took; None before the first.
    ping_s: float | None = None


@dataclass
class Shard:
    """The streams that one connection carries; what is in it may change at any time."""

    streams: tuple[str, ...]
    dialect: Dialect


@dataclass
class _Shared:
    """What the lines of a feed have in common."""

    hosts: Hosts
    handle: FrameHandler
    settings: IngestSettings
    clock: Clock
    sleep: Sleep
    tick_s: float
    connecting: RateLimiter
    counters: FeedCounters = field(default_factory=FeedCounters)


class _Connection:
    """One open websocket with what the watchers need to know about it."""

    def __init__(self, websocket: Websocket, streams: Iterable[str], opened_s: float, messages_per_s_max: int) -> None:
        self.websocket = websocket
        self.correlation_id = new_correlation_id()
        self.streams = dict.fromkeys(streams)
        #: One message a second is left for the echo of a ping.
        self.saying = RateLimiter(max(1, messages_per_s_max - 1), 1.0)
        self.opened_s = opened_s
        self.heard_s = opened_s
        self.pinged_s = opened_s
        self.outheard_s: float | None = None
        self.echo: asyncio.Future[float] | None = None
        self.busy = False
        self.first_frame = asyncio.Event()
        #: Set while the venue was asked for everything that the shard holds.
        self.complete = asyncio.Event()
        self.reader: asyncio.Task[str] | None = None

    @property
    def ended(self) -> bool:
        return self.reader is not None and self.reader.done()

    @property
    def behind(self) -> bool:
        """Do we work on its frames, or do so many wait that we do not read on?"""
        return self.busy or self.websocket.reading_paused


class Line:
    """Keeps one shard's frames flowing into a handler, over as many connections as that takes.

    On rotation the successor is opened first and the old connection is read to its end, so frames come twice rather
    than not at all. After a connection is lost, this line misses frames until the next one.
    """

    def __init__(self, shard: Shard, shared: _Shared, *, age_s: float = 0.0) -> None:
        """`age_s` is how old the first connection is taken to be, so that twins do not rotate together."""
        self.shard = shard
        self.twins: Sequence[Line] = ()
        self._shared = shared
        self._settings, self._clock, self._handle = shared.settings, shared.clock, shared.handle
        self._counters = shared.counters
        self._age_s = age_s
        self._log = get_logger("ingest").bind(venue_host=host_of(shared.hosts.urls[0])[0])
        self._wake = asyncio.Event()
        self._rotate_asked = False
        self._retiring: set[asyncio.Task[None]] = set()
        self._current: _Connection | None = None
        self._failure: BaseException | None = None

    @property
    def connected(self) -> bool:
        return self._current is not None and not self._current.ended

    @property
    def heard_s(self) -> float | None:
        """When the current connection last brought a frame; None while there is no connection."""
        current = self._current
        return current.heard_s if current is not None and not current.ended else None

    @property
    def unanswered(self) -> bool:
        """Is there a ping whose echo has not come?"""
        return self._current is not None and self._current.echo is not None and not self._current.echo.done()

    def has(self, correlation_id: str) -> bool:
        """Is this the correlation id of the current connection?"""
        return self._current is not None and self._current.correlation_id == correlation_id

    def rotate(self) -> None:
        """Move to a new connection soon: the venue has announced that this one ends. Nothing while a move is on."""
        if not self._retiring:
            self._rotate_asked = True
            self._wake.set()

    def changed(self) -> None:
        """The shard has other streams now."""
        self._wake.set()

    async def open(self) -> None:
        """Make the first connection. Raises FeedClosed."""
        self._current = await self._connect()
        self._current.opened_s -= self._age_s

    async def run(self) -> None:
        """Read until cancelled. Raises only what the handler raises; lost connections are made again, with back-off."""
        attempt = 0
        try:
            if self._current is None:
                await self._open_at_last()
            while True:
                assert self._current is not None
                self._listen(self._current)
                reason = await self._look_after()
                attempt = 0 if self._current.first_frame.is_set() else attempt + 1
                self._current = await self._connect_again(reason, attempt)
        finally:
            await self._close_all()

    async def _open_at_last(self) -> None:
        try:
            await self.open()
        except FeedClosed as error:
            self._current = await self._connect_again(str(error), 0)

    async def _look_after(self) -> str:
        """Watch the current connection, rotate it when it is time to; return why it ended."""
        while True:
            current = self._current
            assert current is not None and current.reader is not None
            await self._any_of(current.reader, self._wake)
            if self._failure is not None:
                raise self._failure
            if current.reader.done():
                return current.reader.result()
            await self._ping(current)
            now_s = self._clock.monotonic_s()
            decision = self._judge(current, now_s)
            if decision in (Decision.STALE, Decision.SILENT):
                current.websocket.abort()
                await asyncio.wait({current.reader})
                if decision is Decision.STALE:
                    self._counters.stale += 1
                    return f"no frame came for {now_s - current.heard_s:.0f} s"
                self._counters.silent += 1
                return f"a ping had no echo for {now_s - current.pinged_s:.0f} s"
            if decision is Decision.ROTATE or self._rotate_asked:
                await self._rotate_from(current)
            else:
                await self._reconcile(current)

    def _judge(self, current: _Connection, now_s: float) -> Decision:
        twins_heard_s = max((twin.heard_s or 0.0 for twin in self.twins), default=0.0)
        if twins_heard_s <= current.heard_s:
            current.outheard_s = None
        elif current.outheard_s is None or current.heard_s >= current.outheard_s:
            current.outheard_s = now_s
        return decide(
            now_s=now_s,
            opened_s=current.opened_s,
            heard_s=current.heard_s,
            busy=current.behind,
            settings=self._settings,
            outheard_s=current.outheard_s,
            pinged_s=current.pinged_s if current.echo is not None else None,
        )

    async def _ping(self, current: _Connection) -> None:
        """Take in the echo of the last ping, and send the next one when it is time."""
        if current.echo is not None and current.echo.done():
            if not current.echo.cancelled() and current.echo.exception() is None:
                self._counters.ping_s = current.echo.result()
            current.echo = None
        now_s = self._clock.monotonic_s()
        if current.echo is None and now_s - current.pinged_s >= self._settings.ping_interval_s:
            echo = await current.websocket.ask_alive()
            current.pinged_s = now_s
            current.echo = None if echo is None else asyncio.ensure_future(echo)

    async def _reconcile(self, current: _Connection) -> None:
        """Say what is to be said until the venue sends what the shard holds, as fast as the venue takes it."""
        self._wake.clear()
        wanted, dialect = dict.fromkeys(self.shard.streams), self.shard.dialect
        more = [stream for stream in wanted if stream not in current.streams][:_STREAMS_PER_MESSAGE]
        less = [stream for stream in current.streams if stream not in wanted][:_STREAMS_PER_MESSAGE]
        if not more:
            current.complete.set()
            if not less:
                return
        messages = dialect.subscribe(more) if more else dialect.unsubscribe(less)
        for message in messages:
            while (wait_s := current.saying.take(self._clock.monotonic_s())) > 0:
                await self._shared.sleep(wait_s)
            await current.websocket.say(message)
        if more:
            current.streams.update(dict.fromkeys(more))
        else:
            for stream in less:
                del current.streams[stream]
        self._wake.set()

    async def _rotate_from(self, old: _Connection) -> None:
        """Make a successor current and read `old` to its end beside it; stay with `old` when none can be had now."""
        self._rotate_asked = False
        self._wake.clear()
        try:
            successor = await self._connect()
        except FeedClosed as error:
            self._log.warning("rotation failed; staying with the old connection", reason=str(error))
            old.opened_s += self._settings.backoff_s_max  # not due again until then
            return
        self._listen(successor)
        self._current = successor
        self._counters.rotations += 1
        retire = asyncio.create_task(self._retire(old, successor))
        self._retiring.add(retire)
        retire.add_done_callback(self._retiring.discard)

    async def _retire(self, old: _Connection, successor: _Connection) -> None:
        """Close `old` once the successor delivers. What the venue had sent on it until then is still read."""
        assert old.reader is not None and successor.reader is not None
        delivers = asyncio.ensure_future(_delivers(successor))
        try:
            await asyncio.wait({delivers, successor.reader, old.reader}, return_when=asyncio.FIRST_COMPLETED)
            await old.websocket.close()
            await asyncio.wait({old.reader})
            self._failure = self._failure or old.reader.exception()
            self._wake.set()
        finally:
            delivers.cancel()
            old.reader.cancel()

    async def _connect_again(self, reason: str, attempts: int) -> _Connection:
        """The next connection, however long that takes; `attempts` before this were in vain."""
        ended = [FeedClosed(reason)]

        async def connect() -> _Connection:
            if ended:
                raise ended.pop()
            self._counters.reconnects += 1
            return await self._connect()

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(FeedClosed),
            wait=reconnect_waits(self._settings, attempts),
            stop=stop_never,
            sleep=self._shared.sleep,
            before_sleep=self._tell_of_wait,
        )
        return await retrying(connect)

    def _tell_of_wait(self, state: RetryCallState) -> None:
        reason = "" if state.outcome is None else str(state.outcome.exception())
        self._log.warning("the connection to the venue ended", reason=reason, again_in_s=round(state.upcoming_sleep, 1))

    async def _connect(self) -> _Connection:
        """One attempt at each host that may be tried. Raises FeedClosed with the last one's reason."""
        hosts, clock = self._shared.hosts, self._clock
        failure = FeedClosed("every host of the venue failed lately and is left alone for now; check the network")
        for _ in hosts.urls:
            while (wait_s := self._shared.connecting.take(clock.monotonic_s())) > 0:
                await self._shared.sleep(wait_s)
            url = hosts.pick(clock.monotonic_s())
            if url is None:
                break
            streams = self.shard.streams[:_STREAMS_PER_MESSAGE]
            try:
                websocket = await open_websocket(
                    url.rstrip("/") + self.shard.dialect.path_of(streams),
                    timeout_s=self._settings.open_timeout_s,
                    now_us=clock.now_us,
                    greetings=self.shard.dialect.greetings(streams),
                )
            except FeedClosed as error:
                hosts.failed(url, clock.monotonic_s())
                failure = error
                continue
            hosts.succeeded(url)
            connection = _Connection(websocket, streams, clock.monotonic_s(), self.shard.dialect.messages_per_s_max)
            if len(streams) == len(self.shard.streams):
                connection.complete.set()
            return connection
        raise failure from None

    def _listen(self, connection: _Connection) -> None:
        if connection.reader is None:
            connection.reader = asyncio.create_task(self._read(connection))

    async def _read(self, connection: _Connection) -> str:
        """Hand on every frame of the connection; returns why it ended."""
        websocket, handle, monotonic_s = connection.websocket, self._handle, self._clock.monotonic_s
        while (read := await websocket.received()) is not None:
            connection.first_frame.set()
            connection.busy = True
            frames, receive_time_us = read
            await handle(frames, receive_time_us, connection.correlation_id)
            connection.heard_s = monotonic_s()
            connection.busy = False
        return f"the venue closed the connection ({websocket.end_reason})"

    async def _any_of(self, reader: asyncio.Task[str], wake: asyncio.Event) -> None:
        """Until the reader ends, `wake` is set, or a tick has passed."""
        woken = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait({reader, woken}, timeout=self._shared.tick_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    async def _close_all(self) -> None:
        """Leave nothing behind: used on cancellation, so nothing here waits for the venue."""
        current, self._current = self._current, None
        tasks: list[asyncio.Task[object]] = [*self._retiring]
        if current is not None:
            current.websocket.abort()
            if current.reader is not None:
                tasks.append(current.reader)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _delivers(connection: _Connection) -> None:
    """Until a frame has come, and the venue was asked for everything."""
    await connection.complete.wait()
    await connection.first_frame.wait()


class Feed:
    """Everything that a venue sends of some streams, in a handler: each frame at least once while one of the two
    connections of its shard is well, most of them twice.
    """

    def __init__(
        self,
        urls: Sequence[str],
        dialect: Dialect,
        streams: Sequence[str],
        handle: FrameHandler,
        settings: IngestSettings,
        *,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        tick_s: float = 0.25,
    ) -> None:
        """`urls` are the venue's hosts in order of preference; `tick_s` is how often we look after a connection.

        Raises SettingsError for a URL that cannot be.
        """
        for url in urls:
            host_of(url)
        self._dialect = dialect
        self._shared = _Shared(
            Hosts(urls),
            handle,
            settings,
            clock or SystemClock(),
            sleep,
            tick_s,
            RateLimiter(*dialect.connections_max),
        )
        self._settings = settings
        self._streams_max = min(settings.streams_per_connection_max, dialect.streams_per_connection_max)
        self._shards: list[tuple[Shard, list[Line]]] = []
        self._tasks: dict[Line, asyncio.Task[None]] = {}
        self._ended = asyncio.Event()
        for some in spread((), streams, self._streams_max):
            self._add_shard(some)

    @property
    def counters(self) -> FeedCounters:
        return self._shared.counters

    @property
    def hosts(self) -> Hosts:
        return self._shared.hosts

    @property
    def lines(self) -> list[Line]:
        return [line for _, lines in self._shards for line in lines]

    @property
    def connections(self) -> int:
        """How many lines have an open connection."""
        return sum(line.connected for line in self.lines)

    @property
    def connected(self) -> bool:
        """Does every stream come in over one connection at least?"""
        return bool(self._shards) and all(any(line.connected for line in lines) for _, lines in self._shards)

    def rotate(self, correlation_id: str) -> None:
        """The venue has announced that this connection ends: its line moves to a new one."""
        for line in self.lines:
            if line.has(correlation_id):
                line.rotate()

    async def open(self) -> None:
        """Make the first connection of each shard. Raises FeedClosed when one cannot be had."""
        for _, lines in self._shards:
            await lines[0].open()

    async def run(self) -> None:
        """Read until cancelled. Raises only what the handler raises."""
        try:
            for line in self.lines:
                self._start(line)
            while True:
                await self._ended.wait()
                self._ended.clear()
                for task in [task for task in self._tasks.values() if task.done() and not task.cancelled()]:
                    task.result()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def change(self, dialect: Dialect, streams: Sequence[str]) -> None:
        """Carry these streams from now on: what is new is subscribed to, what is left out no longer. On the loop."""
        self._dialect = dialect
        spread_out = spread([shard.streams for shard, _ in self._shards], streams, self._streams_max)
        before = list(self._shards)
        for (shard, lines), some in zip(before, spread_out, strict=False):
            shard.streams, shard.dialect = tuple(some), dialect
            if not some:
                self._shards.remove((shard, lines))
            for line in lines:
                if some:
                    line.changed()
                elif (task := self._tasks.pop(line, None)) is not None:
                    task.cancel()
        for some in spread_out[len(before) :]:
            for line in self._add_shard(some):
                self._start(line)

    def _add_shard(self, streams: Sequence[str]) -> list[Line]:
        shard = Shard(tuple(streams), self._dialect)
        count = self._settings.connections
        apart_s = self._settings.rotate_after_s / count
        lines = [Line(shard, self._shared, age_s=number * apart_s) for number in range(count)]
        for line in lines:
            line.twins = [twin for twin in lines if twin is not line]
        self._shards.append((shard, lines))
        return lines

    def _start(self, line: Line) -> None:
        task = asyncio.create_task(line.run())
        self._tasks[line] = task
        task.add_done_callback(lambda _: self._ended.set())
