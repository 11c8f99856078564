"""Schemas by id: the embedded registry, and Confluent's protocol against a small server that speaks it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.errors import BrokerError
from common.registry import ConfluentRegistry, EmbeddedRegistry, UnknownSchema, open_registry
from common.schemas.arrow import avro_schema_text


def test_processes_agree_on_ids_without_talking() -> None:
    one, other = EmbeddedRegistry(), EmbeddedRegistry()
    text = avro_schema_text("trade")
    schema_id = one.register("market.crypto.trades.binance-value", text)
    assert other.schema_text(schema_id) == text
    assert 0 < schema_id < 2**31


def test_an_unknown_id_is_said() -> None:
    with pytest.raises(UnknownSchema, match="schema id 7"):
        open_registry(None).schema_text(7)


class _Registry(BaseHTTPRequestHandler):
    """The two calls of Confluent's API that K2 uses, over HTTP."""

    schemas: dict[int, str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.schemas[len(self.schemas) + 1] = body["schema"]
        self._answer(200, {"id": len(self.schemas)})

    def do_GET(self) -> None:
        schema_id = int(self.path.split("?")[0].rsplit("/", 1)[1])
        if schema_id in self.schemas:
            self._answer(200, {"schema": self.schemas[schema_id]})
        else:
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    handler = type("Handler", (_Registry,), {"schemas": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_confluents_registry_registers_and_gives_back(url: str) -> None:
    registry = open_registry(url)
    schema_id = registry.register("t-value", avro_schema_text("quote"))
    assert json.loads(ConfluentRegistry(url).schema_text(schema_id)) == json.loads(avro_schema_text("quote"))


def test_confluents_unknown_id_is_said(url: str) -> None:
    with pytest.raises(UnknownSchema, match="schema id 99"):
        open_registry(url).schema_text(99)


def test_a_registry_that_is_away_is_a_broker_error() -> None:
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        ConfluentRegistry("http://127.0.0.1:1").schema_text(1)
