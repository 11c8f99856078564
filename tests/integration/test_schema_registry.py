"""Schemas at a registry that is not ours: Apicurio Registry by Confluent's API.

Without Java or Maven these tests skip and say why; with K2_REQUIRE_REGISTRY=1, as in CI, that is a failure.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from common.codec import Decoder, Encoder
from common.datasets import CORE_DATASETS, TRADES
from common.errors import IncompatibleSchema
from common.log import ConsumerBatch
from common.registry import ConfluentRegistry, SchemaRegistry, UnknownSchema, open_registry
from common.schemas.arrow import avro_schema_text
from common.settings import KafkaSettings
from tests.integration.apicurio_server import ApicurioServer
from tests.support.missing import MissingTool, skip_or_fail
from tests.support.records import trade
from tests.support.versions import ADDED, changed, trade_2_1, without

TRADE = avro_schema_text("trade")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApicurioServer]:
    """One for all tests; each uses topics of its own."""
    try:
        server = ApicurioServer(tmp_path_factory.mktemp("apicurio"))
    except MissingTool as why:
        skip_or_fail(why, "K2_REQUIRE_REGISTRY")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def registry(server: ApicurioServer) -> SchemaRegistry:
    return connect(server)


def connect(server: ApicurioServer) -> SchemaRegistry:
    """As another process does, that remembers nothing."""
    found = open_registry(KafkaSettings(schema_registry_url=server.url))
    assert isinstance(found, ConfluentRegistry)
    return found


def topic(name: str) -> str:
    return TRADES.topic(asset_class="crypto", exchange=name)


def subject(name: str) -> str:
    return f"{topic(name)}-value"


def test_every_packaged_schema_is_registered_and_given_back_as_it_was(
    registry: SchemaRegistry, server: ApicurioServer
) -> None:
    texts = {
        f"{dataset.topic(asset_class='crypto', exchange='whole')}-value": avro_schema_text(dataset.schema_name)
        for dataset in CORE_DATASETS
    }
    ids = registry.register_all(texts)
    assert len(set(ids.values())) == len(CORE_DATASETS)
    restarted = connect(server)
    for name, number in ids.items():
        found = json.loads(restarted.schema_text(number))
        assert found == json.loads(texts[name]), "field-ids and all"
    assert restarted.register_all(texts) == ids, "what is there already has the id that it had"


def test_a_later_version_is_taken_beside_the_older_one(registry: SchemaRegistry, server: ApicurioServer) -> None:
    old = registry.register(subject("later"), TRADE)
    new = connect(server).register(subject("later"), trade_2_1())
    assert new != old
    assert connect(server).register(subject("later"), TRADE) == old, "an older producer goes on"


@pytest.mark.parametrize(
    ("text", "field"),
    [(without(TRADE, "price"), "price"), (changed(TRADE, "trade_id", type="string"), "trade_id")],
)
def test_a_schema_that_may_not_follow_is_refused_with_its_field_and_not_registered(
    registry: SchemaRegistry, server: ApicurioServer, text: str, field: str
) -> None:
    name = subject(f"refused-{field.replace('_', '-')}")
    registry.register(name, trade_2_1())
    with pytest.raises(IncompatibleSchema, match=f"the schema of {name} may not follow .*'{field}'"):
        connect(server).register(name, text)
    with urllib.request.urlopen(f"{server.url}/subjects/{name}/versions") as answer:
        assert json.load(answer) == [1]


def test_the_registrys_own_refusal_is_said(registry: SchemaRegistry, server: ApicurioServer) -> None:
    """Where older readers too must read what is new, no field without a default may go; K2 itself lets it."""
    name = "words-value"
    kept = {"name": "a", "type": "string", "field-id": 1}
    goes = {"name": "b", "type": ["null", "string"], "field-id": 2}
    more, less = ({"type": "record", "name": "W", "fields": fields} for fields in ([kept, goes], [kept]))
    registry.register(name, json.dumps(more))
    request = urllib.request.Request(
        f"{server.url}/config/{name}",
        json.dumps({"compatibility": "FULL_TRANSITIVE"}).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request).close()
    with pytest.raises(IncompatibleSchema, match=f"{server.url} refuses the schema of {name}"):
        connect(server).register(name, json.dumps(less))


def test_an_id_that_nobody_registered_is_unknown_until_somebody_does(server: ApicurioServer) -> None:
    reader = connect(server)
    with pytest.raises(UnknownSchema, match="schema id 999999"):
        reader.schema_text(999_999)
    text = trade_2_1(doc="Registered after its id was asked for.")
    last = connect(server).register(subject("before"), TRADE)
    ahead = [number for number in range(last + 1, last + 20) if _is_unknown(reader, number)]
    registered = connect(server).register(subject("unknown"), text)
    assert registered in ahead
    assert json.loads(reader.schema_text(registered)) == json.loads(text)


def _is_unknown(registry: SchemaRegistry, number: int) -> bool:
    try:
        registry.schema_text(number)
    except UnknownSchema:
        return True
    return False


def test_records_of_two_versions_are_read_by_one_who_was_told_of_neither(
    registry: SchemaRegistry, server: ApicurioServer
) -> None:
    old = Encoder(TRADES, registry, topic=topic("records"))
    new = Encoder(TRADES, registry, topic=topic("records"), schema_text=trade_2_1())
    values: list[bytes | None] = [old.encode(trade(1)), new.encode(trade(2) | {ADDED: "b-2"})]
    decoded = Decoder(TRADES, connect(server)).decode(ConsumerBatch(topic("records"), "c", "t", [0, 0], [0, 1], values))
    assert decoded.errors == []
    assert [(row["trade_id"], row[ADDED]) for row in decoded.record_batch.to_pylist()] == [(1, None), (2, "b-2")]
