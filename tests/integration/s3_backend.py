"""Run by the Python of an environment of its own: moto's S3 server on a free port of this machine's loopback.

Writes `ready PORT` to its standard output, and each request that it has answered as a line of JSON to the file that is
its one argument: who (the access key that signed it), method, path, query, range, status.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_KEY = re.compile(r"Credential=([^/]+)/")


class Recorded:
    """The application, and what it was asked for."""

    def __init__(self, application: Callable[..., Iterable[bytes]], log: Any) -> None:
        self._application = application
        self._log = log
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, *rest: Any) -> Any:
            key = _KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
            line = {
                "who": key[1] if key else None,
                "method": environ["REQUEST_METHOD"],
                "path": environ["PATH_INFO"],
                "query": environ["QUERY_STRING"],
                "range": environ.get("HTTP_RANGE"),
                "status": int(status.partition(" ")[0]),
            }
            # Before the answer leaves: whoever has an answer finds its line.
            with self._lock:
                self._log.write(json.dumps(line) + "\n")
                self._log.flush()
            return start_response(status, *rest)

        return self._application(environ, start)


class Handler(WSGIRequestHandler):
    """Connections stay open, as a store's do."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log(self, *_: Any) -> None:
        return


def main() -> None:
    with open(sys.argv[1], "a", encoding="utf-8") as log:  # noqa: PTH123
        application = Recorded(DomainDispatcherApplication(create_backend_app), log)
        server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
        print("ready", server.server_port, flush=True)  # noqa: T201
        server.serve_forever()


if __name__ == "__main__":
    main()
