"""The fixture itself: a Kafka that answers, keeps its data over a restart, and is gone when it is told to go."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from common.log import KafkaLog
from common.settings import KafkaSettings
from tests.integration.kafka_server import KafkaServer, jars
from tests.support.missing import MissingTool


def test_topics_survive_a_clean_stop_and_a_kill(kafka_server: KafkaServer, tmp_path: Path) -> None:
    server = KafkaServer(tmp_path)
    server.start()
    try:
        log = KafkaLog(KafkaSettings.load(bootstrap_servers=server.bootstrap_servers))
        log.ensure_topics(["kept"])
        topic_id = log.topics("^kept$")["kept"].topic_id
        for end in (server.stop, server.kill):
            pid = server.pid
            end()
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            server.start()
            assert log.topics("^kept$")["kept"].topic_id == topic_id
    finally:
        server.stop()


def test_without_maven_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="java is not on the path"):
        jars()
