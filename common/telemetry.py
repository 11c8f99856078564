"""Logs (structlog) and metrics (Prometheus), and the correlation id that ties one piece of work together.

A correlation id travels as the Kafka header and the Flight metadata key `k2-correlation-id`, and stands in each log
line made while it is bound.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from common.errors import SettingsError
from common.settings import TelemetrySettings

CORRELATION_KEY = "k2-correlation-id"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: TelemetrySettings, *, service: str) -> None:
    """Send every log line to stderr: JSON for services, coloured text on a terminal. Call once per process."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
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
    return uuid.uuid4().hex[:16]


@contextmanager
def correlation(correlation_id: str | None) -> Iterator[str]:
    """Bind a correlation id (a new one when None) to every log line of this context."""
    bound = correlation_id or new_correlation_id()
    with structlog.contextvars.bound_contextvars(correlation_id=bound):
        yield bound


def serve_metrics(settings: TelemetrySettings, registry: CollectorRegistry) -> int | None:
    """Serve the registry for Prometheus; returns the port, None when metrics are off. Raises SettingsError."""
    if settings.metrics_port is None:
        return None
    try:
        server, _thread = start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=registry)
    except OSError as error:
        raise SettingsError(
            f"the metrics port {settings.metrics_host}:{settings.metrics_port} cannot be opened ({error.strerror}); "
            "choose another with K2_TELEMETRY_METRICS_PORT"
        ) from None
    return int(server.server_port)
