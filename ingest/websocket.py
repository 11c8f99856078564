"""A websocket client that hands out all messages of one read of the socket together. Home of `websockets`' client.

`websockets` shakes hands, answers pings (with their payload, as Binance asks), joins fragments and closes. Messages as
they ordinarily come, whole and short in one unmasked text frame, are cut out of the read here: its own parser, which is
for whatever may come, takes ten times as long for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from common.errors import FeedClosed, SettingsError

#: Frames that wait while we are busy with others. Beyond, the socket is not read: TCP slows the venue down. asyncio
#: reads up to 256 KiB at once, which is some 1,600 trades, so that many may come on top.
_QUEUED_FRAMES_MAX: Final = 1_024
_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
#: The first byte of a whole text message, and the second one's values that say how its length is written.
_WHOLE_TEXT: Final = 0x81
_LENGTH_IN_TWO_BYTES: Final = 126


class Websocket(ClientConnection):
    """An open connection. What `recv` and its queue do beside handing out is done here: the socket is not read while
    too much waits. Nothing of it is thread-safe.
    """

    def __init__(self, *args: Any, now_us: Callable[[], int], **options: Any) -> None:
        super().__init__(*args, **options)
        self._now_us = now_us
        self._messages: list[bytes] = []
        self._fragments = bytearray()
        self._joining = False
        #: The begin of a frame whose end has not come yet, when it is one that is cut out here.
        self._held = b""
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

    async def say(self, message: str) -> None:
        """Send a text message; nothing happens when the connection has ended: its reader says so."""
        try:
            await self.send(message)
        except ConnectionClosed:
            return

    async def ask_alive(self) -> Awaitable[float] | None:
        """Send a ping; the future is done, with the seconds it took, once its echo came. None when it has ended."""
        try:
            return await self.ping()
        except ConnectionClosed:
            return None

    def abort(self) -> None:
        """Cut it off without a word: what was read so far can still be received."""
        self.transport.abort()

    @property
    def reading_paused(self) -> bool:
        """Do so many messages wait that the socket is not read?"""
        return self._reading_paused

    @property
    def end_reason(self) -> str:
        """What the other side said when it closed the connection."""
        return str(self.protocol.close_rcvd or "without a word")

    def data_received(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        if self._between_frames():
            end = self._cut_out(data)
            rest = data[end:]
            if _is_begun(rest):
                self._held = rest
            elif rest:
                super().data_received(rest)
        else:
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
            self._joining = not event.fin
            if event.fin:
                self._messages.append(bytes(self._fragments))
                self._fragments.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._came.set()

    def _between_frames(self) -> bool:
        """Does the library hold nothing that the next bytes belong to?"""
        protocol = self.protocol
        return protocol.state is State.OPEN and not self._joining and not protocol.reader.buffer

    def _cut_out(self, data: bytes) -> int:
        """Take the whole short text messages that `data` begins with; returns where the first other byte is."""
        at, end, take = 0, len(data), self._messages.append
        while end - at >= 2 and data[at] == _WHOLE_TEXT:
            length = data[at + 1]
            if length < _LENGTH_IN_TWO_BYTES:
                begin = at + 2
            elif length == _LENGTH_IN_TWO_BYTES and end - at >= 4:
                begin = at + 4
                length = data[at + 2] << 8 | data[at + 3]
            else:
                break
            if begin + length > end:
                break
            at = begin + length
            take(data[begin:at])
        return at


def _is_begun(data: bytes) -> bool:
    """Is this the begin of a message that `_cut_out` will take once the rest is there?"""
    return data[:1] == b"\x81" and (len(data) == 1 or data[1] <= _LENGTH_IN_TWO_BYTES)


async def open_websocket(
    url: str, *, timeout_s: float, now_us: Callable[[], int], greetings: Sequence[str] = ()
) -> Websocket:
    """One attempt to connect, and the greetings said. Raises FeedClosed with the reason."""
    host, is_loopback = host_of(url)

    def make(*args: Any, **options: Any) -> Websocket:
        return Websocket(*args, now_us=now_us, **options)

    try:
        websocket = await connect(
            url,
            open_timeout=timeout_s,
            close_timeout=timeout_s,
            ping_interval=None,  # the venue pings, and the feed's watchers ask for an echo
            compression=None,
            proxy=None if is_loopback else True,
            create_connection=make,  # type: ignore[arg-type]  # any factory will do
        )
    except InvalidStatus as error:
        body = (error.response.body or b"").decode(errors="replace").strip()[:200]
        status = error.response.status_code
        raise FeedClosed(
            f"{host} refused the connection (HTTP {status}: {body or 'no reason given'}); check the URL and the symbols"
        ) from None
    except (OSError, InvalidHandshake, TimeoutError, UnicodeError, EOFError) as error:
        raise FeedClosed(f"{host} cannot be reached ({_reason(error)}); check the URL and the network") from None
    assert isinstance(websocket, Websocket)
    for message in greetings:
        await websocket.say(message)
    return websocket


def host_of(url: str) -> tuple[str, bool]:
    """(host and port as written, is it this machine). Raises SettingsError when it is no websocket URL."""
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
