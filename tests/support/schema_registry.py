"""A schema registry on loopback that speaks Confluent's HTTP API as far as K2 uses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import fastavro

JSON = "application/vnd.schemaregistry.v1+json"


class _Registry(BaseHTTPRequestHandler):
    """POST /subjects/S/versions, GET /subjects, GET /subjects/S/versions[/N], GET /schemas/ids/N."""

    schemas: dict[int, str]
    subjects: dict[str, list[int]]
    refuses: set[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self._parts()[1]
        fastavro.parse_schema(json.loads(body["schema"]))
        if subject in self.refuses:
            return self._answer(409, {"error_code": 409, "message": "Schema being registered is incompatible"})
        known = {text: number for number, text in self.schemas.items()}
        number = known.get(body["schema"], len(self.schemas) + 1)
        self.schemas[number] = body["schema"]
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return self._answer(200, {"id": number})

    def do_GET(self) -> None:
        match self._parts():
            case ["schemas", "ids", number] if int(number) in self.schemas:
                self._answer(200, {"schema": self.schemas[int(number)]})
            case ["schemas", "ids", _]:
                self._answer(404, {"error_code": 40403, "message": "Schema not found"})
            case ["subjects"]:
                self._answer(200, list(self.subjects))
            case ["subjects", subject, "versions"] if subject in self.subjects:
                self._answer(200, list(range(1, len(self.subjects[subject]) + 1)))
            case ["subjects", subject, "versions", version] if subject in self.subjects:
                number = self.subjects[subject][int(version) - 1]
                text = self.schemas[number]
                self._answer(200, {"subject": subject, "version": int(version), "id": number, "schema": text})
            case _:
                self._answer(404, {"error_code": 40401, "message": "Subject not found."})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", JSON)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def schema_registry(*, refuses: set[str] | None = None) -> Iterator[str]:
    """Its URL. The subjects in `refuses` take no schema: they answer 409, as one that is not compatible gets."""
    shared = {"schemas": {}, "subjects": {}, "refuses": refuses or set()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Registry,), shared))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
