"""One asyncio loop in a thread of its own: the shape that the feed's service and the simulator share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from common.errors import K2Error
from common.telemetry import get_logger

#: Called by the coroutine once it is ready to be used.
Ready = Callable[[], None]


class LoopThread:
    """Runs one coroutine function on a fresh loop in a thread until it ends, fails, or is stopped (cancelled)."""

    def __init__(self, name: str, main: Callable[[Ready], Awaitable[None]]) -> None:
        self._name = name
        self._main = main
        self._settled = threading.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Return once the coroutine says that it is ready. Raises what it raised when it fails before that."""
        assert self._thread is None, "a LoopThread runs once"
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        self._settled.wait()
        if self.failure is not None:
            self._thread.join()
            raise self.failure

    def stop(self, timeout_s: float) -> bool:
        """Cancel the coroutine and wait for its end; False when that took too long. Idempotent, from any thread."""
        if self._thread is None:
            return True
        if self._thread.is_alive() and self.loop is not None and self._task is not None:
            self._call(self._task.cancel)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _call(self, function: Callable[[], object]) -> None:
        assert self.loop is not None
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has closed in the meantime: there is nothing left to call
            return

    def _run(self) -> None:
        try:
            asyncio.run(self._supervise())
        except asyncio.CancelledError:
            pass
        except K2Error as error:
            self.failure = error
        except BaseException as error:  # noqa: BLE001  (a thread's last word: it is kept for whoever owns the service)
            get_logger("ingest").exception("a thread ended by an unexpected error", thread=self._name)
            self.failure = error
        finally:
            self._settled.set()

    async def _supervise(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        await self._main(self._settled.set)
