"""A real Apache Kafka for the integration tests. Without Java or Maven they skip and say why; with
K2_REQUIRE_KAFKA=1, as in CI, that is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from common.settings import KafkaSettings
from tests.integration.kafka_server import KafkaServer, jars
from tests.support.kafka import eventually
from tests.support.missing import MissingTool, skip_or_fail


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """One Kafka for the whole session."""
    try:
        jars()
    except MissingTool as why:
        skip_or_fail(why, "K2_REQUIRE_KAFKA")
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def kafka(kafka_server: KafkaServer) -> Iterator[KafkaSettings]:
    """Settings for the session's Kafka, which holds no topics of ours; those that the test makes are deleted."""
    settings = KafkaSettings.load(bootstrap_servers=kafka_server.bootstrap_servers)
    yield settings
    admin = AdminClient(settings.client_config())
    ours = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")]
    if ours:
        for future in admin.delete_topics(ours).values():
            future.result()
    eventually(lambda: all(name.startswith("__") for name in admin.list_topics(timeout=10).topics))
