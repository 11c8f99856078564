"""A bound on what runs at once, a bounded wait, and turns in the order of arrival."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest

from common.clock import ManualClock
from common.errors import StatementCancelled, Unavailable
from flight_server.engine.admission import Admission
from flight_server.engine.pending import Pending
from flight_server.engine.results import ReadyResult


def test_the_bound_holds_and_places_are_handed_on() -> None:
    admission = Admission(count_max=2, wait_s_max=0.0)
    admission.acquire()
    admission.acquire()
    with pytest.raises(Unavailable, match="2 statements are running and this one waited 0 s"):
        admission.acquire()
    admission.release()
    admission.acquire()
    assert (admission.held, admission.waiting) == (2, 0)


def test_who_has_waited_longest_is_next() -> None:
    admission = Admission(count_max=1, wait_s_max=60.0)
    admission.acquire()
    order: list[int] = []
    threads = []

    def wait(number: int) -> None:
        admission.acquire()
        order.append(number)
        admission.release()

    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while admission.waiting <= number:
            threading.Event().wait(0.001)
    admission.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert (admission.held, admission.waiting) == (0, 0)


def test_who_has_left_gives_up_its_turn() -> None:
    admission = Admission(count_max=1, wait_s_max=60.0)
    admission.acquire()
    with pytest.raises(StatementCancelled):
        admission.acquire(lambda: True)
    assert admission.waiting == 0
    admission.release()
    assert admission.held == 0


class Pin:
    """A pinned place, as far as what is pending knows one."""

    def __init__(self) -> None:
        self.unpinned = 0

    def unpin(self) -> None:
        self.unpinned += 1


def test_pins_give_way_expire_and_are_cancelled() -> None:
    clock = ManualClock()
    pending = Pending(clock, count_max=2, pin_s_max=10.0)
    pins = [Pin() for _ in range(4)]
    for number, pin in enumerate(pins[:3]):
        pending.add(bytes([number]), pin, None)  # type: ignore[arg-type]
    assert [pin.unpinned for pin in pins] == [1, 0, 0, 0] and len(pending) == 2
    assert pending.take(b"\x00") == (None, None)
    assert pending.take(b"\x01")[0] is pins[1] and pins[1].unpinned == 0
    clock.advance(6)
    pending.renew(b"\x02")
    clock.advance(6)
    pending.expire()
    assert len(pending) == 1
    clock.advance(6)
    pending.expire()
    assert len(pending) == 0 and pins[2].unpinned == 1
    pending.add(b"\x03", pins[3], None)  # type: ignore[arg-type]
    assert pending.cancel(b"\x03") and pins[3].unpinned == 1 and pending.is_cancelled(b"\x03")
    assert not pending.cancel(b"\x03")
    assert not pending.is_cancelled(b"\x02")


def test_what_is_ready_is_given_once() -> None:
    pending = Pending(ManualClock(), count_max=1, pin_s_max=10.0)
    result = ReadyResult(pa.schema([]), [], None)
    pending.add_ready(b"a", result)
    pending.add_ready(b"b", result)
    assert pending.take_ready(b"a") is None
    assert pending.take_ready(b"b") is result and pending.take_ready(b"b") is None
