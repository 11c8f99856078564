"""The websocket shell round a venue session: connect, keep alive, rotate, back off. Knows nothing of what frames mean.

`websockets` answers the venue's pings (with their payload, as Binance asks). When to give a connection up is decided by
`decide`, which is pure; everything else here waits, reads and hands frames on.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from common.clock import Clock, SystemClock
from common.errors import FeedClosed, SettingsError
from common.settings import IngestSettings
from common.telemetry import get_logger, new_correlation_id

#: Takes the frames of one read of the socket, when that was (microseconds UTC), and the correlation id of their
#: connection. While it waits, no more than the queue's bound is read from the connection.
FrameHandler = Callable[[Sequence[bytes], int, str], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]

#: Frames that wait while we are busy with others. Beyond, the socket is not read: TCP slows the venue down. asyncio
#: reads up to 256 KiB at once, which is some 1,600 trades, so that many may come on top.
_QUEUED_FRAMES_MAX: Final = 1_024
_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class Decision(Enum):
    """What to do with an open connection."""

    KEEP = "keep"
    STALE = "stale"
    ROTATE = "rotate"


def decide(*, now_s: float, opened_s: float, heard_s: float, busy: bool, settings: IngestSettings) -> Decision:
    """Stale when the venue was silent for too long while we listened; due for rotation when old. Times are monotonic.

    `busy` means that we are working on a frame, or waiting for Kafka to take it: then silence proves nothing.
    """
    if not busy and now_s - heard_s >= settings.stale_after_s:
        return Decision.STALE
    if now_s - opened_s >= settings.rotate_after_s:
        return Decision.ROTATE
    return Decision.KEEP


def backoff_s(attempt: int, settings: IngestSettings, share: float) -> float:
    """How long to wait before attempt 0, 1, 2, ...: doubling from the first wait to the longest, less up to half of it.

    `share` in [0, 1) is the jitter's draw, so that many clients cut off together do not come back together.
    """
    full = min(settings.backoff_s_first * 2.0 ** min(attempt, 60), settings.backoff_s_max)
    return full * (1 - share / 2)


class _Websocket(ClientConnection):
    """A websocket that hands out all messages of a read of the socket together.

    `recv` would hand them out one by one, at twice the cost. What `recv` and its queue do beside that is done here:
    fragments are joined, and the socket is not read while too much waits.
    """

    def __init__(self, *args: Any, now_us: Callable[[], int], **options: Any) -> None:
        super().__init__(*args, **options)
        self._now_us = now_us
        self._messages: list[bytes] = []
        self._fragments = bytearray()
        self._reads: deque[tuple[list[bytes], int]] = deque()
        self._waiting = 0
        self._reading_paused = False
        self._came = asyncio.Event()

    async def received(self) -> tuple[list[bytes], int] | None:
        """The next read's messages and when it was (microseconds UTC); None once the connection ended and all is read.

        Cancelling it loses nothing. One caller at a time.
        """
        while not self._reads:
            if self.connection_lost_waiter.done():
                return None
            self._came.clear()
            await self._came.wait()
        read = self._reads.popleft()
        self._waiting -= len(read[0])
        if self._reading_paused and self._waiting <= _QUEUED_FRAMES_MAX // 4:
            self._reading_paused = False
            self.transport.resume_reading()
        return read

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._reads.append((self._messages, self._now_us()))
            self._waiting += len(self._messages)
            self._messages = []
            self._came.set()
            if self._waiting > _QUEUED_FRAMES_MAX and not self._reading_paused:
                self._reading_paused = True
                self.transport.pause_reading()

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
        elif event.fin and event.opcode is not Opcode.CONT:
            self._messages.append(bytes(event.data))
        else:
            self._fragments += event.data
            if event.fin:
                self._messages.append(bytes(self._fragments))
                self._fragments.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._came.set()


class _Connection:
    """One open websocket with what the watchdog needs to know about it."""

    def __init__(self, websocket: _Websocket, now_s: float) -> None:
        self.websocket = websocket
        self.correlation_id = new_correlation_id()
        self.opened_s = now_s
        self.heard_s = now_s
        self.busy = False
        self.first_frame = asyncio.Event()
        self.reader: asyncio.Task[str] | None = None

    @property
    def ended(self) -> bool:
        return self.reader is not None and self.reader.done()


class Feed:
    """Keeps one venue's stream of frames flowing into a handler, over as many connections as that takes.

    On rotation the successor is opened first and the old connection is read to its end, so frames come twice rather
    than not at all: whoever handles them drops duplicates. After a connection is lost, frames may be missing until the
    next one.
    """

    def __init__(
        self,
        url: str,
        handle: FrameHandler,
        settings: IngestSettings,
        *,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        tick_s: float = 0.25,
    ) -> None:
        """`url` is whole, streams included; `tick_s` is how often we look after it. Raises SettingsError."""
        self._url = url
        self._host, self._is_loopback = _host_of(url)
        self._handle = handle
        self._settings = settings
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._tick_s = tick_s
        self._random = random.Random()
        self._log = get_logger("ingest").bind(venue_host=self._host)
        self._wake = asyncio.Event()
        self._rotate_asked = False
        self._retiring: set[asyncio.Task[None]] = set()
        self._current: _Connection | None = None
        self._failure: BaseException | None = None
        self.reconnects = 0
        self.rotations = 0

    @property
    def connected(self) -> bool:
        return self._current is not None and not self._current.ended

    def rotate(self) -> None:
        """Move to a new connection soon: the venue has announced that this one ends. Nothing while a move is on."""
        if not self._retiring:
            self._rotate_asked = True
            self._wake.set()

    async def open(self) -> None:
        """Make the first connection. Raises FeedClosed."""
        self._current = await self._connect()

    async def run(self) -> None:
        """Read until cancelled. Raises only what the handler raises; lost connections are made again, with back-off."""
        attempt = 0
        try:
            while True:
                assert self._current is not None
                self._listen(self._current)
                reason = await self._look_after()
                attempt = 0 if self._current.first_frame.is_set() else attempt + 1
                self._current = await self._connect_again(reason, attempt)
        finally:
            await self._close_all()

    async def _look_after(self) -> str:
        """Rotate when it is time to; return why the current connection ended."""
        while True:
            current = self._current
            assert current is not None and current.reader is not None
            await self._any_of(current.reader, self._wake)
            if self._failure is not None:
                raise self._failure
            if current.reader.done():
                return current.reader.result()
            now_s = self._clock.monotonic_s()
            decision = decide(
                now_s=now_s,
                opened_s=current.opened_s,
                heard_s=current.heard_s,
                busy=current.busy,
                settings=self._settings,
            )
            if decision is Decision.STALE:
                current.websocket.transport.abort()
                await asyncio.wait({current.reader})
                return f"no frame came for {now_s - current.heard_s:.0f} s"
            if decision is Decision.ROTATE or self._rotate_asked:
                await self._rotate_from(current)

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
        self.rotations += 1
        retire = asyncio.create_task(self._retire(old, successor))
        self._retiring.add(retire)
        retire.add_done_callback(self._retiring.discard)

    async def _retire(self, old: _Connection, successor: _Connection) -> None:
        """Close `old` once the successor delivers. What the venue had sent on it until then is still read."""
        assert old.reader is not None and successor.reader is not None
        delivers = asyncio.ensure_future(successor.first_frame.wait())
        try:
            await asyncio.wait({delivers, successor.reader, old.reader}, return_when=asyncio.FIRST_COMPLETED)
            await old.websocket.close()
            await asyncio.wait({old.reader})
            self._failure = self._failure or old.reader.exception()
            self._wake.set()
        finally:
            delivers.cancel()
            old.reader.cancel()

    async def _connect_again(self, reason: str, attempt: int) -> _Connection:
        while True:
            wait_s = backoff_s(attempt, self._settings, self._random.random())
            self._log.warning("the connection to the venue ended", reason=reason, again_in_s=round(wait_s, 1))
            await self._sleep(wait_s)
            self.reconnects += 1
            try:
                return await self._connect()
            except FeedClosed as error:
                reason, attempt = str(error), attempt + 1

    async def _connect(self) -> _Connection:
        """One attempt. Raises FeedClosed with the reason."""
        try:
            websocket = await connect(
                self._url,
                open_timeout=self._settings.open_timeout_s,
                close_timeout=self._settings.open_timeout_s,
                ping_interval=None,  # the venue pings; silence is the watchdog's business
                compression=None,
                proxy=None if self._is_loopback else True,
                create_connection=self._websocket,  # type: ignore[arg-type]  # any factory will do
            )
        except InvalidStatus as error:
            body = (error.response.body or b"").decode(errors="replace").strip()[:200]
            status = error.response.status_code
            raise FeedClosed(
                f"{self._host} refused the connection (HTTP {status}: {body or 'no reason given'}); "
                "check the URL and the symbols"
            ) from None
        except (OSError, InvalidHandshake, TimeoutError, UnicodeError) as error:
            raise FeedClosed(
                f"{self._host} cannot be reached ({_reason(error)}); check the URL and the network"
            ) from None
        assert isinstance(websocket, _Websocket)
        return _Connection(websocket, self._clock.monotonic_s())

    def _websocket(self, *args: Any, **options: Any) -> _Websocket:
        return _Websocket(*args, now_us=self._clock.now_us, **options)

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
        ended = websocket.protocol.close_rcvd
        return f"{self._host} closed the connection ({ended or 'without a word'})"

    async def _any_of(self, reader: asyncio.Task[str], wake: asyncio.Event) -> None:
        """Until the reader ends, `wake` is set, or a tick has passed."""
        woken = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait({reader, woken}, timeout=self._tick_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    async def _close_all(self) -> None:
        """Leave nothing behind: used on cancellation, so nothing here waits for the venue."""
        current, self._current = self._current, None
        tasks: list[asyncio.Task[object]] = [*self._retiring]
        if current is not None:
            current.websocket.transport.abort()
            if current.reader is not None:
                tasks.append(current.reader)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _host_of(url: str) -> tuple[str, bool]:
    """(host and port as written, is it this machine)."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise SettingsError(f"{url[:100]!r} is not a websocket URL; write it as wss://host or wss://host:port")
    return parts.netloc, parts.hostname in _LOOPBACK


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
