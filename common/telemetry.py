"""Logs (structlog) and metrics (Prometheus), and the correlation id that ties one piece of work together.

A correlation id travels as the Kafka header and the Flight metadata key `k2-correlation-id`, and stands in each log
line made while it is bound.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar, Token
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from common.errors import K2Error, SettingsError
from common.settings import TelemetrySettings

CORRELATION_KEY = "k2-correlation-id"
_correlation_id: ContextVar[str | None] = ContextVar("k2_correlation_id", default=None)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: TelemetrySettings, *, service: str) -> None:
    """Send every log line to stderr: JSON for services, coloured text on a terminal. Call once per process."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _with_correlation,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(message)s")


def get_logger(room: str) -> Any:
    """A logger that names its room in each line."""
    return structlog.get_logger(room=room)


def new_correlation_id() -> str:
    """A fresh id, 16 hexadecimal digits."""
    return os.urandom(8).hex()


class correlation:  # noqa: N801  (used as a function: `with correlation(id):`)
    """Bind a correlation id (a new one when None) to every log line of this context.

    A context variable of its own: structlog's own binding takes 15 µs, which every call would pay.
    """

    __slots__ = ("_token", "id")

    def __init__(self, correlation_id: str | None) -> None:
        self.id = correlation_id or new_correlation_id()
        self._token: Token[str | None] | None = None

    def __enter__(self) -> str:
        self._token = _correlation_id.set(self.id)
        return self.id

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _correlation_id.reset(self._token)


def _with_correlation(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (bound := _correlation_id.get()) is not None:
        event.setdefault("correlation_id", bound)
    return event


class Readiness:
    """Whether the service of this process can do its work, for probes; not before it has set `check`."""

    def __init__(self) -> None:
        #: Raises a K2Error that says why not.
        self.check: Callable[[], None] | None = None

    def reason_against(self) -> str | None:
        """None when ready."""
        if self.check is None:
            return "starting"
        try:
            self.check()
        except K2Error as error:
            return error.message
        return None


def serve_metrics(
    settings: TelemetrySettings, registry: CollectorRegistry, readiness: Readiness | None = None
) -> int | None:
    """Serve the registry for Prometheus at /metrics and, when asked, readiness at /ready: 200, or 503 with the reason.

    Returns the port, None when metrics are off. Raises SettingsError.
    """
    if settings.metrics_port is None:
        return None
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if readiness is None or environ.get("PATH_INFO") != "/ready":
            return metrics(environ, start_response)
        reason = readiness.reason_against()
        start_response("200 OK" if reason is None else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [f"{reason or 'ready'}\n".encode()]

    try:
        server = _bound(settings.metrics_host, settings.metrics_port, app)
    except OSError as error:
        raise SettingsError(
            f"the metrics port {settings.metrics_host}:{settings.metrics_port} cannot be opened ({error.strerror}); "
            "choose another with K2_TELEMETRY_METRICS_PORT"
        ) from None
    threading.Thread(target=server.serve_forever, name="k2-metrics", daemon=True).start()
    return int(server.server_port)


class _Quiet(WSGIRequestHandler):
    """Does not print each request."""

    def log_message(self, *_: Any) -> None:
        return


def _bound(host: str, port: int, app: Any) -> WSGIServer:
    """Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

    class Server(ThreadingMixIn, WSGIServer):
        address_family = family
        daemon_threads = True

    return make_server(host, port, app, server_class=Server, handler_class=_Quiet)
