"""The same K2 for asyncio.

    async with clients.AsyncK2("grpc://127.0.0.1:50051") as k2:
        day = await k2.trades("BTCUSDT", "2026-11-24", "2026-11-25")
        async for batch in k2.stream("SELECT * FROM market.quotes ORDER BY receive_time, symbol, quote_id"):
            ...
        async for arrival in k2.subscribe("SELECT symbol, price FROM market.trades", "now"):
            ...

A K2 on a thread of its own: the loop is never blocked, and the statements of one AsyncK2 run one after another; open a
second one to have two at a time. Subscriptions have a thread each. A task that is cancelled while it waits for a
statement ends the statement on the server too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import pyarrow as pa

from clients.connection import Parameters
from clients.errors import ClientError
from clients.link import Batches
from clients.market import K2
from clients.moments import Moment
from clients.subscription import Access, AsyncSubscription

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(method: Callable[Concatenate[K2, P], T]) -> Callable[Concatenate[AsyncK2, P], Coroutine[Any, Any, T]]:
    """K2's method, to be awaited: with its arguments, its types and its docstring."""

    @functools.wraps(method)
    async def awaited(self: AsyncK2, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(lambda k2: method(k2, *args, **kwargs))

    return awaited


class AsyncK2:
    """A K2 whose statements are awaited; it gives and raises what K2 does. Use `async with`, or call `aclose`."""

    def __init__(
        self,
        uri: str,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca_file: Path | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        options: Mapping[str, str] | None = None,
        resume_s_max: float = 60.0,
    ) -> None:
        """As K2, but it does not connect before it is entered, or the first statement is run."""
        self.uri = uri
        self._make = functools.partial(
            K2,
            uri,
            username=username,
            password=password,
            token=token,
            ca_file=ca_file,
            headers=headers,
            connect_timeout_s=connect_timeout_s,
            options=options,
            resume_s_max=resume_s_max,
        )
        self._access = Access(uri, username, password, token, ca_file, headers or {}, options or {})
        self._resume_s_max = resume_s_max
        self._worker = _Worker()
        self._k2: K2 | None = None

    @property
    def cut(self) -> str | None:
        """As K2.cut."""
        return None if self._k2 is None else self._k2.cut

    sql = _awaited(K2.sql)
    trades = _awaited(K2.trades)
    quotes = _awaited(K2.quotes)
    bars = _awaited(K2.bars)
    asof = _awaited(K2.asof)
    markouts = _awaited(K2.markouts)
    functions = _awaited(K2.functions)
    snapshots = _awaited(K2.snapshots)

    def stream(self, query: str, parameters: Parameters | None = None) -> AsyncBatches:
        """As K2.stream, for `async for`. Errors come when it is entered, or with the first batch."""
        return AsyncBatches(lambda: self._connected().stream(query, parameters), self._worker, self._cancel)

    def subscribe(self, query: str, start: str | None = None, *, with_empty: bool = False) -> AsyncSubscription:
        """As K2.subscribe, for `async for`. Errors come when it is entered, or with the first row."""
        return AsyncSubscription(
            self._access, query, start or self.cut, resume_s_max=self._resume_s_max, with_empty=with_empty
        )

    async def at(self, instant: str | int | Moment) -> AsyncK2:
        """As K2.at: the same AsyncK2 at that instant, which shares connection and thread."""
        return self._view(await self._call(lambda k2: k2.at(instant)))

    async def now(self) -> AsyncK2:
        """As K2.now."""
        return self._view(await self._call(lambda k2: k2.now()))

    async def aclose(self) -> None:
        """End the connection, for every view of it too. May be called again."""
        await self._worker.end(self._close)

    async def __aenter__(self) -> Self:
        try:
            await self._worker.run(self._connected)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _connected(self) -> K2:
        if self._k2 is None:
            self._k2 = self._make()
        return self._k2

    async def _call(self, action: Callable[[K2], T]) -> T:
        return await self._worker.run(lambda: action(self._connected()), self._cancel)

    def _close(self) -> None:
        if self._k2 is not None:
            self._k2.close()

    def _cancel(self) -> None:
        if self._k2 is not None:
            self._k2.cancel()

    def _view(self, k2: K2) -> AsyncK2:
        view = AsyncK2.__new__(AsyncK2)
        view.__dict__.update(self.__dict__, _k2=k2)
        return view


class AsyncBatches(AsyncIterator[pa.RecordBatch]):
    """K2's Batches for `async for`. Use it with `async with` where it may be left half read, or call `aclose`."""

    def __init__(self, make: Callable[[], Batches], worker: _Worker, cancel: Callable[[], None]) -> None:
        self._make = make
        self._worker = worker
        self._cancel = cancel
        self._under: Batches | None = None
        self._closed = False

    @property
    def schema(self) -> pa.Schema | None:
        """The result's; None before it is entered."""
        return None if self._under is None else self._under.schema

    @property
    def cut(self) -> str | None:
        """As Batches.cut; None before it is entered."""
        return None if self._under is None else self._under.cut

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pa.RecordBatch:
        """The next rows. A task that is cancelled while it waits here ends the statement."""
        if self._closed:
            raise StopAsyncIteration
        batch = await self._worker.run(self._next, self._cancel)
        if batch is None:
            self._closed = True
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """Let the statement go, finished or not. May be called again."""
        if not self._closed:
            self._closed = True
            await self._worker.run(self._close)

    async def __aenter__(self) -> Self:
        await self._worker.run(self._opened, self._cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _opened(self) -> Batches:
        if self._under is None:
            self._under = self._make()
        return self._under

    def _next(self) -> pa.RecordBatch | None:
        return next(self._opened(), None)

    def _close(self) -> None:
        if self._under is not None:
            self._under.close()


class _Worker:
    """Runs one action after another on a thread, for tasks that may be cancelled."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="k2")
        self._enders = ThreadPoolExecutor(1, thread_name_prefix="k2-cancel")
        self._ending: list[Future[None]] = []
        self._closed = False

    async def run(self, action: Callable[[], T], cancel: Callable[[], None] | None = None) -> T:
        """What it gives. `cancel` ends it from another thread when the task is cancelled meanwhile."""
        if self._closed:
            raise ClientError("this AsyncK2 is closed; make a new one with clients.AsyncK2(uri)")
        future = self._threads.submit(self._begin, action)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if cancel is not None:
                self._ending.append(self._enders.submit(self._end, future, cancel))
            raise

    async def end(self, close: Callable[[], None]) -> None:
        """Run it as the last action."""
        if self._closed:
            return
        last = self._threads.submit(self._begin, close)
        self._closed = True
        try:
            await asyncio.wrap_future(last)
        finally:
            self._threads.shutdown(wait=False)
            self._enders.shutdown(wait=False)

    def _begin(self, action: Callable[[], T]) -> T:
        """Not before every end of an earlier action is over, which could end this one in its stead."""
        wait(self._ending)
        self._ending = [future for future in self._ending if not future.done()]
        return action()

    @staticmethod
    def _end(future: Future[T], cancel: Callable[[], None]) -> None:
        if not future.done():
            with contextlib.suppress(ClientError):  # the server is gone, and the statement with it
                cancel()
