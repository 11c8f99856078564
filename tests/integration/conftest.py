"""A real Apache Kafka for the integration tests. Without Java or Maven they skip and say why; with
K2_REQUIRE_KAFKA=1, as in CI, that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from common.settings import KafkaSettings
from tests.integration.kafka_server import KafkaServer, jars
from tests.integration.s3_server import S3Server, StoreUnavailable
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


@pytest.fixture(scope="module")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A store that speaks S3 over HTTP, empty. Without one the test skips; with K2_REQUIRE_S3=1 that is a failure."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
    except StoreUnavailable as why:
        if os.environ.get("K2_REQUIRE_S3") == "1":
            pytest.fail(f"K2_REQUIRE_S3 is set and there is no S3 server: {why}")
        pytest.skip(f"no S3 server: {why}")
    yield server
    server.stop()
