"""A statement on a thread of its own, so that Ctrl-C reaches the prompt's, which has the server end the statement."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from clients import ClientError, Connection

_T = TypeVar("_T")
#: How often the server is told again: a statement that is not announced yet cannot be ended yet.
_AGAIN_S = 0.2


class LeftBehind(Exception):
    """The statement could not be ended. It still has its connection, which is not to be used again."""


def run_cancellable(connection: Connection, work: Callable[[Connection], _T]) -> _T:
    """What the work gives, or raises. Ctrl-C has the server end it, and raises KeyboardInterrupt once it has ended.

    A second Ctrl-C, or a server that cannot be told, raises LeftBehind at once.
    """
    found: list[_T] = []
    failed: list[BaseException] = []
    ended = threading.Event()
    untold = threading.Event()

    def run() -> None:
        try:
            found.append(work(connection))
        except BaseException as error:  # noqa: BLE001  (it is raised where the prompt waits)
            failed.append(error)
        finally:
            ended.set()

    def cancel() -> None:
        try:
            connection.cancel()
            while not ended.wait(_AGAIN_S):
                connection.cancel()
        except ClientError:
            untold.set()
            ended.set()

    threading.Thread(target=run, name="k2-shell-statement", daemon=True).start()
    is_interrupted = False
    while not ended.is_set():
        try:
            ended.wait()
        except KeyboardInterrupt:
            if is_interrupted:
                raise LeftBehind from None
            is_interrupted = True
            threading.Thread(target=cancel, name="k2-shell-cancel", daemon=True).start()
    if untold.is_set() and not found and not failed:
        raise LeftBehind
    if found:
        return found[0]
    if is_interrupted:
        raise KeyboardInterrupt
    raise failed[0]


def close_beside(connection: Connection) -> None:
    """Close a connection that something may still wait on, without waiting for it."""
    threading.Thread(target=connection.close, name="k2-shell-close", daemon=True).start()
