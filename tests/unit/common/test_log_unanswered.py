"""A broker that is reached and never answers: every call ends, and no client that was given up is left."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator

import psutil
import pytest

from common.errors import BrokerError
from common.log import KafkaLog
from common.settings import KafkaSettings

_CALLERS, _ROUNDS, _PATIENCE_S = 6, 3, 60.0


@pytest.fixture
def silent() -> Iterator[KafkaLog]:
    """Connections are taken by the kernel, and nobody reads from them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        servers = f"127.0.0.1:{listener.getsockname()[1]}"
        yield KafkaLog(KafkaSettings.load(bootstrap_servers=servers, request_timeout_ms=500))


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


def test_every_call_ends_and_no_client_is_left_behind(silent: KafkaLog) -> None:
    process = psutil.Process()
    asked_by_all(silent)
    held = process.num_fds(), process.num_threads()
    gc.disable()  # what goes with the last who used it needs no collector
    try:
        for _ in range(_ROUNDS):
            said = asked_by_all(silent)
            assert len(said) == 3 * _CALLERS
            assert all(text.startswith("Kafka could not ") for text in said)
        assert process.num_threads() <= held[1]
        assert process.num_fds() <= held[0]
    finally:
        gc.enable()
