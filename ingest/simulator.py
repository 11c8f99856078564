"""Binance's own websocket protocol on loopback, from captures or from a seeded random market.

What connects here is the real client code: combined streams by URL, SUBSCRIBE / UNSUBSCRIBE / LIST_SUBSCRIPTIONS in the
shape of Binance's web-socket-streams.md, pings every 20 s, an announced shutdown. Only subscribed streams are sent. The
same port answers Binance's REST requests for the time, the symbols and past trades.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State

from common.clock import Clock, SystemClock
from common.errors import FeedProtocolError, SettingsError
from ingest import simulated_coinbase
from ingest.capture import CaptureFrame, merge_captures, read_capture
from ingest.faults import Fault, FaultKind, FaultPlan, Tamper
from ingest.loop_thread import LoopThread, Ready
from ingest.market import Market
from ingest.normaliser import currencies
from ingest.simulated_rest import RestAnswer, SimulatedRest, TradeHistory
from ingest.venues.binance import SHUTDOWN_STREAM, STREAMS_MAX
from ingest.venues.events import InstrumentInfo

Sleep = Callable[[float], Awaitable[None]]

_STREAM = re.compile(
    r"(?:[^@/\sA-Z]+@(?:trade|blockTrade|aggTrade|bookTicker|avgPrice|miniTicker|ticker(?:_\w+)?|kline_\w+(?:@\+08:00)?"
    r"|depth(?:5|10|20)?(?:@\d+ms)?)|![\w@]+)"
)
#: Frames written to a socket in one go: few enough for an even flow, enough that the write costs nothing per frame.
_FRAMES_PER_WRITE: Final = 256
#: Bytes that may wait in a socket before its client is waited for.
_WRITE_BYTES_MAX: Final = 1 << 20
#: Frames that are due within this time of each other are sent together: asyncio's own timer is no finer.
_PACE_S: Final = 0.001
#: How often the random market sends, and how far it may fall behind its rate before it gives the rest up.
_TICK_S: Final = 0.005
_BEHIND_S_MAX: Final = 1.0
#: Binance pings every 20 s and gives a minute for the answer.
_PING_S, _PONG_S_MAX = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class SimulatorStats:
    """Counters since start. `finished` is True once a capture was sent to its end."""

    frames_sent: int
    connections: int
    clients: int
    finished: bool
    faults: dict[str, int]
    trades_withheld: int


class _Client:
    """One connection and the streams it asked for."""

    def __init__(self, connection: ServerConnection, streams: Iterable[str]) -> None:
        self.connection = connection
        self.streams: dict[str, None] = dict.fromkeys(streams)
        self.stalled = False
        self.subscribed = asyncio.Event()
        if self.streams:
            self.subscribed.set()

    @property
    def open(self) -> bool:
        """Does it get what it asked for?"""
        return self.connection.state is State.OPEN and not self.stalled

    def stall(self) -> None:
        """Hear nothing and say nothing from now on, while the connection stays open."""
        self.stalled = True
        self.connection.transport.pause_reading()

    def resume(self) -> None:
        """Hear and be sent what comes from now on."""
        self.stalled = False
        if not self.connection.transport.is_closing():
            self.connection.transport.resume_reading()

    def end_in_a_frame(self) -> None:
        """Send the first half of a frame, and the end of the connection behind it."""
        self.stalled = True
        wire = _wire(b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1700000000000,"s":"BTC')
        self.connection.transport.write(wire[: len(wire) // 2])
        self.connection.transport.close()


class Simulator:
    """A stand-in for stream.binance.com. Made by `replay` or `market`; its `url` goes where the exchange's would.

    Flow control: a client that does not read is waited for, so nothing piles up here and no frame is dropped.
    """

    def __init__(
        self,
        *,
        captures: Sequence[Path] = (),
        speed: float = math.inf,
        resume: bool = False,
        market: Market | None = None,
        trades_per_s: float = 100.0,
        host: str = "127.0.0.1",
        port: int = 0,
        venue: Literal["binance", "coinbase"] = "binance",
        faults: FaultPlan | None = None,
        goes_on: bool = False,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if not speed > 0 or not trades_per_s > 0:
            raise SettingsError("the simulator's speed and rate must be above 0; give --speed 1, 10 or max")
        self._captures = tuple(captures)
        self._speed = speed
        self._resume = resume
        self._market = market
        self._trades_per_s = trades_per_s
        self._goes_on = goes_on
        self._host, self._port = host, port
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._thread = LoopThread("k2-simulator", self._main)
        self._clients: dict[_Client, None] = {}
        self._someone = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None
        self._market_task: asyncio.Task[None] | None = None
        if venue == "coinbase" and market is None:
            raise SettingsError("captures are of Binance; simulate coinbase from a random market, without files")
        self._venue = venue
        self._plan = faults
        self._tamper = Tamper()
        self._inflicted: dict[str, int] = {}
        self._jumped_us = 0
        self._history = TradeHistory()
        self._rest = SimulatedRest(market.instruments(), self._history) if market is not None else None
        self._frames_sent = 0
        self._connections = 0
        #: Set once a capture was sent to its end on some connection; stays set.
        self.finished = threading.Event()

    @classmethod
    def replay(cls, captures: Iterable[Path], *, speed: float = math.inf, resume: bool = False, **options: Any) -> Self:
        """Captures side by side, each from its own start, `speed` times as fast as they were taken (inf: no waiting).

        Each connection is sent the whole replay; with `resume` there is one replay, which goes on with whoever is
        connected and waits while nobody is. After the end a connection stays open and silent.
        """
        return cls(captures=[Path(path) for path in captures], speed=speed, resume=resume, **options)

    @classmethod
    def random_market(cls, market: Market, *, trades_per_s: float, **options: Any) -> Self:
        """One market for all connections, so that ids go on over a reconnect; it stands still without any, or with
        `goes_on` trades on, and only REST has what nobody was sent."""
        return cls(market=market, trades_per_s=trades_per_s, **options)

    def start(self) -> None:
        """Listen. Raises SettingsError (no or no readable capture, a port in use), FeedProtocolError (a broken one)."""
        if self._market is None:
            if not self._captures:
                raise SettingsError("there is nothing to simulate: name a capture file, or give symbols and a rate")
            for path in self._captures:
                if next(read_capture(path), None) is None:
                    raise FeedProtocolError(f"the capture {path} holds no frame of a combined stream; give another one")
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End every connection and stop listening. Idempotent."""
        self._thread.stop(timeout_s)

    @property
    def failure(self) -> BaseException | None:
        """Why the simulator ended by itself, such as a malformed line inside a capture; None otherwise."""
        return self._thread.failure

    @property
    def url(self) -> str:
        """`ws://host:port`; valid once started."""
        return f"ws://{self._host}:{self._port}"

    def stats(self) -> SimulatorStats:
        return SimulatorStats(
            self._frames_sent,
            self._connections,
            len(self._clients),
            self.finished.is_set(),
            dict(self._inflicted),
            self._tamper.trades_withheld,
        )

    def announce_shutdown(self) -> None:
        """Send every client Binance's `serverShutdown`. From any thread."""
        self._call(lambda client: client.connection.transport.write(self._shutdown()))

    def close_market(self) -> None:
        """Trade no more; connections and REST stay as they are. From any thread."""
        if self._thread.loop is not None and self._thread.running and self._market_task is not None:
            self._thread.loop.call_soon_threadsafe(self._market_task.cancel)

    def drop_connections(self, count: int | None = None) -> None:
        """Cut so many connections off, or all, without a closing handshake, as a network does. From any thread."""
        self._call(lambda client: client.connection.transport.abort(), count)

    def stall_connections(self, count: int | None = None) -> None:
        """So many connections, or all, hear and say nothing any more, and are not told of it. From any thread."""
        self._call(_Client.stall, count)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _shutdown(self) -> bytes:
        data = {"stream": SHUTDOWN_STREAM, "data": {"e": "serverShutdown", "E": self._now_us() // 1_000}}
        return _wire(_json(data).encode())

    def _call(self, function: Callable[[_Client], None], count: int | None = None) -> None:
        """Call the function for so many clients, the oldest first, or for every one, on the loop's thread."""

        def for_each() -> None:
            for client in list(self._clients)[:count]:
                function(client)

        if self._thread.loop is not None and self._thread.running:
            self._thread.loop.call_soon_threadsafe(for_each)

    async def _main(self, ready: Ready) -> None:
        self._failed = asyncio.get_running_loop().create_future()
        try:
            server = await serve(
                self._serve_client,
                self._host,
                self._port,
                process_request=self._check_path,
                compression=None,
                ping_interval=_PING_S,
                ping_timeout=_PONG_S_MAX,
                close_timeout=1.0,
                write_limit=_WRITE_BYTES_MAX,
                server_header=None,
            )
        except OSError as error:
            raise SettingsError(
                f"the simulator cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "choose another port, or 0 for any free one"
            ) from None
        async with server:
            self._port = next(iter(server.sockets)).getsockname()[1]
            shared: asyncio.Task[None] | None = None
            faults = self._playing(self._follow(self._plan)) if self._plan is not None else None
            if self._market is not None:
                shared = self._market_task = self._playing(self._play_market(self._market))
            elif self._resume:
                shared = self._playing(self._play_captures(None))
            try:
                ready()
                await self._failed
            finally:
                for task in (shared, faults):
                    if task is not None:
                        task.cancel()

    def _playing(self, play: Any) -> asyncio.Task[None]:
        """Run a player; when it fails, so does the simulator."""
        task: asyncio.Task[None] = asyncio.create_task(play)
        task.add_done_callback(self._played)
        return task

    def _played(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    # --- faults -------------------------------------------------------------------------------------------------------

    def inflict(self, fault: Fault) -> None:
        """Do it now. From any thread."""
        if self._thread.loop is not None and self._thread.running:
            self._thread.loop.call_soon_threadsafe(self._inflict, fault)

    async def _follow(self, plan: FaultPlan) -> None:
        """Inflict the plan's faults at their times, counted from the first client on."""
        await self._someone.wait()
        started_s = self._clock.monotonic_s()
        for fault in plan.faults:
            await self._sleep(max(0.0, started_s + fault.at_s - self._clock.monotonic_s()))
            self._inflict(fault)

    def _inflict(self, fault: Fault) -> None:
        """One fault, on the loop. One that needs a connection does nothing while there is none."""
        kind, clients = fault.kind, [client for client in self._clients if client.open]
        victim = clients[int(fault.share * len(clients))] if clients else None
        self._inflicted[kind.value] = self._inflicted.get(kind.value, 0) + 1
        self._tamper.take(fault)
        if kind is FaultKind.CLOCK_JUMP:
            self._jumped_us += fault.size * 1_000
        elif kind is FaultKind.REST_LIMIT:
            if self._rest is not None:
                self._rest.limit(self._clock.monotonic_s() + fault.size)
        elif kind is FaultKind.CUT_ALL:
            for client in clients:
                client.connection.transport.abort()
        elif victim is not None and kind is FaultKind.CUT:
            victim.connection.transport.abort()
        elif victim is not None and kind is FaultKind.HALF_FRAME:
            victim.end_in_a_frame()
        elif victim is not None and kind is FaultKind.STALL:
            victim.stall()
            asyncio.get_running_loop().call_later(fault.size, victim.resume)
        elif victim is not None and kind is FaultKind.SHUTDOWN:
            victim.connection.transport.write(self._shutdown())
            asyncio.get_running_loop().call_later(fault.size, victim.connection.transport.abort)

    def _now_us(self) -> int:
        """The venue's clock."""
        return self._clock.now_us() + self._jumped_us

    # --- one connection -----------------------------------------------------------------------------------------------

    async def _check_path(self, connection: ServerConnection, request: Request) -> Response | None:
        path = urlsplit(request.path).path
        if self._venue == "coinbase":
            if path in ("", "/"):
                return None
            assert self._market is not None
            return _response(simulated_coinbase.rest_answer(request.path, self._market.instruments(), self._now_us()))
        if path.startswith("/api/"):
            return await self._rest_answer(request.path)
        if path != "/stream":
            return connection.respond(
                404, f"the simulator serves combined streams only: {self.url}/stream?streams=a@trade/b@trade\n"
            )
        wrong = [name for name in _streams_of(request.path) if not _STREAM.fullmatch(name)]
        if wrong or len(_streams_of(request.path)) > STREAMS_MAX:
            return connection.respond(
                400, _json({"code": 2, "msg": f"Invalid request: invalid stream {wrong[0] if wrong else 'count'}"})
            )
        return None

    async def _rest_answer(self, target: str) -> Response:
        if self._rest is None:  # only now: a replay that nobody asks for its past is not read for it
            self._rest = await asyncio.to_thread(self._rest_of_captures)
        answer = self._rest.answer(target, now_us=self._now_us(), now_s=self._clock.monotonic_s())
        return _response(answer)

    def _rest_of_captures(self) -> SimulatedRest:
        """The REST interface of the symbols and trades that the captures hold."""
        symbols: dict[str, None] = {}
        for frame in self._frames():
            symbol, _, kind = frame.stream.partition("@")
            symbols[symbol.upper()] = None
            if kind == "trade":
                self._history.add(symbol.upper(), json.loads(frame.frame)["data"]["t"], frame.frame)
        infos = []
        for symbol in symbols:
            base, quote = currencies(symbol)
            infos.append(InstrumentInfo(symbol, base or symbol, quote, None, None, "TRADING"))
        return SimulatedRest(infos, self._history)

    async def _serve_client(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        client = _Client(connection, _streams_of(connection.request.path))
        self._clients[client] = None
        self._someone.set()
        self._connections += 1
        player = None if self._market is not None or self._resume else self._playing(self._play_captures(client))
        try:
            async for message in connection:
                said = simulated_coinbase.answer if self._venue == "coinbase" else answer
                await connection.send(said(message, client.streams))
                if client.streams:
                    client.subscribed.set()
        except ConnectionClosed:
            return
        finally:
            self._clients.pop(client, None)
            if player is not None:
                player.cancel()

    # --- the players --------------------------------------------------------------------------------------------------

    async def _play_captures(self, only: _Client | None) -> None:
        """Send the captures to one client, or to all connected, at the pace they were taken in, times the speed."""
        await (only.subscribed if only is not None else self._someone).wait()
        waiting: list[CaptureFrame] = []
        started_s = self._clock.monotonic_s()
        for frame in self._frames():
            due_in_s = started_s + frame.elapsed_ns / 1e9 / self._speed - self._clock.monotonic_s()
            if due_in_s > _PACE_S or len(waiting) >= _FRAMES_PER_WRITE:
                started_s += await self._deliver(waiting, only)
                waiting.clear()
                if only is not None and not only.open:
                    return
            if due_in_s > _PACE_S:
                await self._sleep(due_in_s)
            waiting.append(frame)
        await self._deliver(waiting, only)
        self.finished.set()

    def _frames(self) -> Iterator[CaptureFrame]:
        return merge_captures(self._captures)

    async def _play_market(self, market: Market) -> None:
        """Send the market's frames to whoever is connected, at its rate or as fast as the slowest client reads."""
        started_s, made = self._clock.monotonic_s(), 0
        while True:
            due = int((self._clock.monotonic_s() - started_s) * self._trades_per_s) - made
            if due > self._trades_per_s * _BEHIND_S_MAX:
                started_s, made, due = self._clock.monotonic_s(), 0, 0
            count = min(due, _FRAMES_PER_WRITE)
            now_us = self._now_us()
            frames: list[CaptureFrame] = []
            for _ in range(count):
                trade, book = market.step(now_us)
                self._history.add(*market.last_trade, trade.frame)
                if self._venue == "coinbase":
                    trade, book = simulated_coinbase.frames_of(trade, book, now_us)
                frames += CaptureFrame(0, *trade), CaptureFrame(0, *book)
            started_s += await self._deliver(frames, None)
            made += count
            if due <= count:
                await self._sleep(_TICK_S)

    async def _deliver(self, frames: Sequence[CaptureFrame], only: _Client | None) -> float:
        """Write the frames to each client that asked for them and wait until its socket takes more.

        Without `only`, waits for a client when there is none, unless the market goes on; returns the seconds that took.
        """
        waited_s = 0.0
        frames = self._tamper.through(frames)
        if only is None and not self._goes_on and not any(client.open for client in self._clients):
            before_s = self._clock.monotonic_s()
            self._someone.clear()
            await self._someone.wait()
            waited_s = self._clock.monotonic_s() - before_s
        for client in (only,) if only is not None else tuple(self._clients):
            streams = client.streams
            wires = [_wire(frame.frame) for frame in frames if frame.stream in streams]
            if wires and client.open:
                client.connection.transport.write(b"".join(wires))
                self._frames_sent += len(wires)
                try:
                    await client.connection.drain()
                except (ConnectionError, ConnectionClosed):
                    continue
        await asyncio.sleep(0)
        return waited_s


def answer(request: str | bytes, streams: dict[str, None]) -> str:
    """Binance's response to one request; SUBSCRIBE and UNSUBSCRIBE change `streams`. Pure but for that."""
    try:
        message = json.loads(request)
    except (ValueError, RecursionError):
        return _json({"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"})
    if not isinstance(message, dict) or "method" not in message:
        return _json({"code": 2, "msg": "Invalid request: missing field `method`"})
    method, request_id = message["method"], message.get("id")
    if (
        isinstance(request_id, bool)
        or not (request_id is None or isinstance(request_id, int | str))
        or len(str(request_id)) > 36
    ):
        return _json({"code": 2, "msg": "Invalid request: request ID must be an unsigned integer"})
    if method == "LIST_SUBSCRIPTIONS":
        return _json({"result": list(streams), "id": request_id})
    if method not in ("SUBSCRIBE", "UNSUBSCRIBE"):
        why = f"unknown variant `{str(method)[:40]}`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`, `LIST_SUBSCRIPTIONS`"
        return _json({"code": 2, "msg": f"Invalid request: {why}", "id": request_id})
    names = message.get("params")
    if not isinstance(names, list) or not all(isinstance(name, str) and _STREAM.fullmatch(name) for name in names):
        return _json({"code": 2, "msg": "Invalid request: invalid stream", "id": request_id})
    if method == "UNSUBSCRIBE":
        for name in names:
            streams.pop(name, None)
    elif len({*streams, *names}) > STREAMS_MAX:
        return _json({"code": 2, "msg": f"Invalid request: more than {STREAMS_MAX} streams", "id": request_id})
    else:
        streams.update(dict.fromkeys(names))
    return _json({"result": None, "id": request_id})


def _streams_of(path: str) -> list[str]:
    """The stream names of a combined-stream URL."""
    return [name for text in parse_qs(urlsplit(path).query).get("streams", []) for name in text.split("/") if name]


def _response(answer: RestAnswer) -> Response:
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(answer.body))})
    headers.update({"Connection": "close", **answer.headers})
    return Response(answer.status, HTTPStatus(answer.status).phrase, headers, answer.body)


def _wire(frame: bytes) -> bytes:
    """A text frame as it goes over the socket, from server to client."""
    return Frame(Opcode.TEXT, frame).serialize(mask=False)


def _json(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))
