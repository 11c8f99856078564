"""grpc.health.v1 on a port of its own, since pyarrow's server has no place for another gRPC service.

SERVING only while answers are exact; NOT_SERVING while the server starts, drains, or its tail has a gap. Each Check
asks anew; a Watch is told within `_LOOK_S`. However many watch, and however they go away, there is room for checks, and
`stop` ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.errors import K2Error, SettingsError
from common.telemetry import get_logger

#: The server as a whole, and by the name of its one gRPC service.
SERVICES = ("", "arrow.flight.protocol.FlightService")
_LOOK_S = 0.25
#: Each Watch holds a thread for as long as it lasts. The others are for checks, which are short.
_WATCHES_MAX, _THREADS_MAX = 64, 72
_STATUS = health_pb2.HealthCheckResponse


class HealthServer:
    """Answers for a server that may not have started yet. Its port opens with `start` and closes with `stop`."""

    def __init__(self, host: str, port: int, check_ready: Callable[[], None]) -> None:
        """`check_ready` raises a K2Error when the server cannot answer exactly; it is called from other threads."""
        self._host = host
        self._port = port
        self._check_ready = check_ready
        self._log = get_logger("flight_server.service")
        self._servicer = _Servicer(self._look)
        self._ready: bool | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._looking = threading.Thread(target=self._look_on, name="k2-health", daemon=True)
        self._server: grpc.Server | None = None

    @property
    def port(self) -> int:
        """The port listened on, also when 0 was asked for; only after `start`."""
        return self._port

    def start(self) -> None:
        """Raises SettingsError when the address cannot be had."""
        self._look()
        server = grpc.server(
            ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="k2-health-call"), options=[("grpc.so_reuseport", 0)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._port = server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError:
            raise SettingsError(
                f"the health port {self._host}:{self._port} cannot be opened; choose another with "
                "K2_FLIGHT_HEALTH_PORT or K2_FLIGHT_HEALTH_HOST"
            ) from None
        server.start()
        self._server = server
        self._looking.start()
        self._log.info("serving grpc.health.v1", host=self._host, port=self._port)

    def stop(self) -> None:
        """Say NOT_SERVING to whoever watches, then close. Idempotent."""
        self._stopping.set()
        if self._server is None:
            return
        self._looking.join()
        self._look()
        self._server.stop(grace=0.1).wait()
        self._server = None

    def _look_on(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            ready = not self._stopping.is_set() and self._is_ready()
            if ready == self._ready:
                return
            self._ready = ready
            for service in SERVICES:
                self._servicer.set(service, _STATUS.SERVING if ready else _STATUS.NOT_SERVING)

    def _is_ready(self) -> bool:
        try:
            self._check_ready()
        except K2Error:
            return False
        except Exception as error:  # noqa: BLE001  (a probe must answer, and a failing check is an answer)
            self._log.error("the health check failed inside", error=repr(error))
            return False
        return True


class _Servicer(health.HealthServicer):  # type: ignore[misc]
    """The library's servicer, which looks anew before it answers a Check."""

    def __init__(self, look: Callable[[], None]) -> None:
        # Its other way, in which a Watch holds no thread, can stop for ever: `set` waits, with the lock that a Watch
        # which goes away needs, for a message to be sent, and both are ended by the same thread of the server's.
        super().__init__(experimental_non_blocking=False)
        self._look = look
        self._watches = threading.BoundedSemaphore(_WATCHES_MAX)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  (the service's own name)
        self._look()
        return super().Check(request, context)

    def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802  (as above)
        if not self._watches.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{_WATCHES_MAX} clients watch the health of this server already; ask with Check now and then",
            )
        if not context.add_callback(self._watches.release):  # it is over already
            self._watches.release()
            return iter(())
        return super().Watch(request, context)
