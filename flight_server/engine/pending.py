"""Statements that GetFlightInfo has answered and DoGet has not asked for yet, each with its cut pinned.

Bounded in number and time: the oldest gives way. What is not here any more can be run all the same, at the cut that
its ticket names, only not from a pin.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from common.clock import Clock
from flight_server.engine.places import PoolPlace
from flight_server.engine.results import ReadyResult
from flight_server.engine.sources import Part, Source

#: Ids of cancelled statements that are remembered, so that their tickets are refused.
_CANCELLED_MAX = 4_096


class Pending:
    """Statement id -> pinned place. Thread-safe."""

    def __init__(self, clock: Clock, *, count_max: int, pin_s_max: float) -> None:
        self._clock = clock
        self._count_max = count_max
        self._pin_s_max = pin_s_max
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, tuple[PoolPlace, Source | Part | None, float]] = OrderedDict()
        self._ready: OrderedDict[bytes, ReadyResult] = OrderedDict()
        self._cancelled: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, statement_id: bytes, place: PoolPlace, source: Source | Part | None) -> None:
        """Hold a place that is pinned, and what is to be read there."""
        gone = None
        with self._lock:
            self._held[statement_id] = (place, source, self._clock.monotonic_s() + self._pin_s_max)
            if len(self._held) > self._count_max:
                _, (gone, *_) = self._held.popitem(last=False)
        if gone is not None:
            gone.unpin()

    def add_ready(self, statement_id: bytes, result: ReadyResult) -> None:
        """Hold a result that is there already, until it is asked for or others have taken its room."""
        with self._lock:
            self._ready[statement_id] = result
            if len(self._ready) > self._count_max:
                self._ready.popitem(last=False)

    def take_ready(self, statement_id: bytes) -> ReadyResult | None:
        """The result that is there already, once."""
        return self._ready.pop(statement_id, None)

    def take(self, statement_id: bytes) -> tuple[PoolPlace | None, Source | Part | None]:
        """The place and its source, once; the caller enters or unpins it."""
        with self._lock:
            held = self._held.pop(statement_id, None)
        return (None, None) if held is None else held[:2]

    def renew(self, statement_id: bytes) -> None:
        """Hold it for as long again from now on."""
        with self._lock:
            held = self._held.pop(statement_id, None)
            if held is not None:
                self._held[statement_id] = (*held[:2], self._clock.monotonic_s() + self._pin_s_max)

    def cancel(self, statement_id: bytes) -> bool:
        """Let go of the place and refuse the id from now on; False when it was not held."""
        with self._lock:
            self._cancelled[statement_id] = None
            if len(self._cancelled) > _CANCELLED_MAX:
                self._cancelled.popitem(last=False)
        ready = self.take_ready(statement_id)
        place, _ = self.take(statement_id)
        if place is None:
            return ready is not None
        place.unpin()
        return True

    def is_cancelled(self, statement_id: bytes) -> bool:
        return statement_id in self._cancelled

    def expire(self) -> None:
        """Let go of what was pinned for too long."""
        now_s = self._clock.monotonic_s()
        late = []
        with self._lock:
            for statement_id, (place, _, until_s) in list(self._held.items()):
                if until_s <= now_s:
                    del self._held[statement_id]
                    late.append(place)
        for place in late:
            place.unpin()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            held, self._held = self._held, OrderedDict()
        for place, *_ in held.values():
            place.unpin()
