"""The embedded broker: it comes up under its own name, and it goes whichever way its parent goes."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from common.errors import SettingsError
from common.log import KafkaLog
from common.settings import KafkaSettings
from k2.broker import EmbeddedBroker, broker_binary

PARENT = """
import signal, sys, threading, time
from k2.broker import EmbeddedBroker
signal.signal(signal.SIGINT, signal.default_int_handler)  # who was started in the background ignores it
broker = EmbeddedBroker()
if sys.argv[1] == "thread":
    starter = threading.Thread(target=broker.start)
    starter.start()
    starter.join()
else:
    broker.start()
print(broker.pid, broker.bootstrap_servers, flush=True)
time.sleep(600)
"""


def ends(process: psutil.Process, *, timeout_s: float) -> bool:
    """True when the process ends in time. A zombie has ended: who reaps orphans here is not our matter."""
    if not hasattr(os, "pidfd_open"):
        return not psutil.wait_procs([process], timeout=timeout_s)[1]
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def test_a_started_broker_answers_under_its_own_cluster_id_and_is_gone_after_stop() -> None:
    with EmbeddedBroker() as broker:
        pid = broker.pid
        assert KafkaLog(KafkaSettings(bootstrap_servers=broker.bootstrap_servers)).cluster_id() == broker.cluster_id
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    broker.stop()


def test_every_start_is_another_cluster_unless_it_is_named() -> None:
    with EmbeddedBroker() as first, EmbeddedBroker() as second, EmbeddedBroker(cluster_id="named") as named:
        assert len({first.cluster_id, second.cluster_id, named.cluster_id}) == 3
        assert named.cluster_id == "named"
        assert len({first.port, second.port, named.port}) == 3


@pytest.mark.parametrize("starter", ["main", "thread"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_broker_ends_with_its_parent_whatever_way_the_parent_ends(how: signal.Signals, starter: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, starter], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    pid, _bootstrap_servers = parent.stdout.readline().split()
    broker = psutil.Process(int(pid))
    guard = broker.parent()
    assert guard is not None and guard.pid != parent.pid
    os.kill(parent.pid, how)
    parent.wait(10)
    parent.stdout.close()
    assert ends(broker, timeout_s=10)
    assert ends(guard, timeout_s=10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_the_broker_ends_with_its_guard() -> None:
    with EmbeddedBroker() as broker:
        process = psutil.Process(broker.pid)
        guard = process.parent()
        assert guard is not None
        guard.kill()
        assert ends(process, timeout_s=10)
        assert not broker.running


def test_a_thread_that_started_the_broker_may_end() -> None:
    broker = EmbeddedBroker()
    starter = threading.Thread(target=broker.start)
    starter.start()
    starter.join()
    try:
        assert broker.running
        assert KafkaLog(KafkaSettings(bootstrap_servers=broker.bootstrap_servers)).cluster_id() == broker.cluster_id
    finally:
        broker.stop()


def test_a_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError,
            match=rf"cannot listen on 127\.0\.0\.1:{port} because another process does; choose another port",
        ):
            EmbeddedBroker(port=port).start()


def test_a_missing_binary_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", str(tmp_path / "nothing"))
    with pytest.raises(
        SettingsError,
        match=r"no embedded broker for this machine .*install Kafka and set K2_KAFKA_",
    ):
        broker_binary()


def test_a_binary_that_fails_tells_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no luck today >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(broken))
    with pytest.raises(SettingsError, match="did not come up: no luck today"):
        EmbeddedBroker().start()
