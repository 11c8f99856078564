"""A broker that is reached and never answers: every call ends, and no client that was given up is left."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.errors import BrokerError
from common.log import KafkaLog
from common.settings import KafkaSettings
from tests.support.kafka import eventually

_CALLERS, _ROUNDS, _PATIENCE_S = 6, 3, 60.0


@pytest.fixture
def port() -> Iterator[int]:
    """Connections are taken by the kernel, and nobody reads from them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield int(listener.getsockname()[1])


@pytest.fixture
def silent(port: int) -> KafkaLog:
    return KafkaLog(KafkaSettings.load(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=500))


def asked_by_all(log: KafkaLog) -> list[str]:
    """Each caller makes each call; the errors' texts."""
    said: list[str] = []

    calls = (log.cluster_id, lambda: log.topics("x"), lambda: log.topic_ids(["x"]))

    def ask(first: int) -> None:
        for number in range(len(calls)):
            call = calls[(first + number) % len(calls)]
            try:
                call()
            except BrokerError as error:
                said.append(error.message)

    callers = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(_CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(_PATIENCE_S)
    assert not any(caller.is_alive() for caller in callers), "a call never ended"
    return said


def held_by_clients(port: int) -> tuple[int, int]:
    """Threads of Kafka clients, as their library names them, and connections to this broker.

    Not all of the process's: other tests of it leave servers whose pools grow when they like.
    """
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended since it was listed
            names.append((task / "comm").read_text())
    connections = psutil.Process().net_connections("tcp4")
    return (
        sum(name.startswith("rdk:") for name in names),
        sum(bool(connection.raddr) and connection.raddr.port == port for connection in connections),
    )


def test_every_call_ends_and_no_client_is_left_behind(silent: KafkaLog, port: int) -> None:
    asked_by_all(silent)
    threads, connections = held_by_clients(port)
    assert threads
    gc.disable()  # what goes with the last who used it needs no collector
    try:
        for _ in range(_ROUNDS):
            said = asked_by_all(silent)
            assert len(said) == 3 * _CALLERS
            assert all(text.startswith("Kafka could not ") for text in said)

        def left() -> bool:
            """A thread that was joined is in the kernel's list for some moments still."""
            now = held_by_clients(port)
            return now[0] <= threads and now[1] <= connections

        eventually(left, what="the clients that were given up have ended")
    finally:
        gc.enable()
