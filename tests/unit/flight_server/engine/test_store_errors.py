"""What the engine says when a store that is read over HTTP does not give a file: a real server on loopback."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import K2Error, SnapshotExpired, Unavailable
from common.settings import FlightSettings, LakeSettings
from flight_server.engine.errors import translated
from flight_server.storage.database import Database
from flight_server.storage.read_view import read_files

ROWS = 300_000


class Store(ThreadingHTTPServer):
    """One Parquet file under every name, but for those of which `answers` says what they are answered with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        written = io.BytesIO()
        pq.write_table(pa.table({"number": range(ROWS)}), written, row_group_size=10_000)
        self.file = written.getvalue()
        self.answers: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        whole = self.server.file
        status = self.server.answers.get(self.path.partition("?")[0], 200)
        body = whole if status == 200 else b"<Error><Code>Refused</Code></Error>"
        asked = self.headers.get("Range")
        headers = {"ETag": '"1"', "Accept-Ranges": "bytes", "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        if status == 200 and asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), int(last or len(whole) - 1)
            status, body = 206, whole[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{begin + len(body) - 1}/{len(whole)}"
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as store:
        thread = threading.Thread(target=store.serve_forever)
        thread.start()
        yield store
        store.shutdown()
        thread.join()


@pytest.fixture
def cursor(store: Store, tmp_path: Path) -> Iterator[Any]:
    lake = LakeSettings.load(
        data_dir=tmp_path,
        warehouse="s3://lake/warehouse",
        catalog_properties={
            "s3.endpoint": f"http://127.0.0.1:{store.server_port}",
            "s3.access-key-id": "key",
            "s3.secret-access-key": "secret",
            "s3.region": "us-east-1",
        },
    )
    database = Database(FlightSettings(threads=1), lake)
    yield database.cursor()
    database.close()


FILES = read_files([f"s3://lake/warehouse/{number}.parquet" for number in range(3)])


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (404, SnapshotExpired, "is gone .* send the statement again"),
        (403, Unavailable, "the file store did not give a file .*403"),
        (400, Unavailable, "the file store did not give a file"),
    ],
)
def test_a_file_that_the_store_does_not_give(
    store: Store, cursor: Any, status: int, kind: type[K2Error], says: str
) -> None:
    """Whether before the first row or in the middle of the result: an error of ours, and no part as the whole."""
    stream = cursor.execute(f"SELECT number FROM {FILES}").to_arrow_reader(10_000)
    came = stream.read_next_batch().num_rows
    store.answers = {f"/lake/warehouse/{number}.parquet": status for number in (1, 2)}
    with pytest.raises(OSError) as in_stream:
        for batch in stream:
            came += batch.num_rows
    with pytest.raises(Exception) as at_once:
        cursor.execute(f"SELECT sum(number) FROM {FILES}").fetchall()
    assert came < 3 * ROWS
    for found in (in_stream.value, at_once.value):
        with pytest.raises(kind, match=says):
            raise translated(found)
