"""How the command runs services: signals become a clean stop, failures become one sentence and an exit code."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

import structlog

from common.errors import (
    AccessError,
    BrokerError,
    Interrupted,
    K2Error,
    Refused,
    SettingsError,
    StatementError,
    Unavailable,
)

#: Exit codes, as `k2 --help` lists them.
EXIT_FAILED, EXIT_WRONG_USE, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_DEFECT = 1, 2, 3, 4, 70
#: As a shell gives it for a command that Ctrl-C ended.
EXIT_INTERRUPTED = 130
STOP_S_MAX = 4.0


class Service(Protocol):
    """What every part offers; see each for its own guarantees."""

    def start(self) -> None: ...

    def stop(self, timeout_s: float = ...) -> None: ...

    @property
    def failure(self) -> BaseException | None: ...


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. A second signal does not interrupt the clean stop either."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_until_stopped(service: Service, announce: Callable[[], None]) -> None:
    """Start, announce, wait for a signal or for the service's own end, stop. Raises what the service failed with."""
    with stop_on_signals() as stop:
        service.start()
        # What is there now stays: modules, classes, schemas, 200,000 objects of a server. A full collection looked at
        # them all, again and again, for 130 ms of CPU in which no thread of Python's went on.
        gc.freeze()
        try:
            announce()
            while not stop.wait(0.2):
                if service.failure is not None:
                    raise service.failure
        finally:
            service.stop(STOP_S_MAX)
        if service.failure is not None:
            raise service.failure


def exit_code(error: BaseException) -> int:
    """What the process ends with for this error."""
    if isinstance(error, SettingsError):
        return EXIT_WRONG_USE
    if isinstance(error, BrokerError | Unavailable) or getattr(error, "code", "") == "UNAVAILABLE":
        return EXIT_UNREACHABLE
    if isinstance(error, Interrupted):
        return EXIT_INTERRUPTED
    from clients import QueryError  # only now: what runs well has no use for the drivers' memory

    if isinstance(error, QueryError | StatementError | AccessError | Refused):
        return EXIT_REFUSED
    return EXIT_FAILED if isinstance(error, K2Error) else EXIT_DEFECT


def report(error: BaseException, *, debug: bool) -> int:
    """Say on stderr what went wrong, in one sentence, and give the exit code. `debug` adds the traceback."""
    if debug:
        structlog.get_logger().error("traceback", exc_info=error)
    if isinstance(error, K2Error):
        sys.stderr.write(f"k2: {error}\n")
    else:
        sys.stderr.write(
            f"k2: an unexpected {type(error).__name__} ({error}); this is a defect of K2, run again with --debug "
            "to see where it comes from\n"
        )
    return exit_code(error)
