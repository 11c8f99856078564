"""How many statements run at once: a bound, and a bounded wait for a place in arrival order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from common.errors import StatementCancelled, Unavailable

#: How often a waiting statement looks whether its client is still there.
_STEP_S = 0.25


class Admission:
    """At most `count_max` hold a place; others wait their turn, each for at most `wait_s_max`. Thread-safe."""

    def __init__(self, *, count_max: int, wait_s_max: float) -> None:
        self._count_max = count_max
        self._wait_s_max = wait_s_max
        self._held = 0
        self._queue: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        return self._held

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def acquire(self, is_gone: Callable[[], bool] | None = None) -> None:
        """Take a place. Raises Unavailable after `wait_s_max`, StatementCancelled when the client left meanwhile."""
        with self._lock:
            if self._held < self._count_max and not self._queue:
                self._held += 1
                return
            turn = threading.Event()
            self._queue.append(turn)
        until_s = time.monotonic() + self._wait_s_max
        while not turn.wait(max(0.0, min(_STEP_S, until_s - time.monotonic()))):
            gone = is_gone is not None and is_gone()
            if (gone or time.monotonic() >= until_s) and self._give_up(turn):
                if gone:
                    raise StatementCancelled("the client left while its statement waited for its turn")
                raise Unavailable(
                    f"{self._count_max} statements are running and this one waited {self._wait_s_max:g} s for its "
                    "turn; try again in a moment"
                )

    def release(self) -> None:
        """Give the place back; the one that has waited longest gets it."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._held -= 1

    def _give_up(self, turn: threading.Event) -> bool:
        """Leave the queue; False when the turn has come after all."""
        with self._lock:
            if turn.is_set():
                return False
            self._queue.remove(turn)
            return True
