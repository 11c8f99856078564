"""The Flight SQL server as a service: starts, says where it is, drains, stops."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from hashlib import sha512

from prometheus_client import CollectorRegistry, Gauge

from common.clock import Clock, SystemClock
from common.errors import SettingsError, Unavailable
from common.settings import FlightSettings
from common.telemetry import get_logger
from flight_server.access.gate import Gate
from flight_server.engine.engine import Engine
from flight_server.engine.seam import Lake
from flight_server.engine.writing import Writing
from flight_server.protocol.tickets import TicketSeal
from flight_server.service.commands import Statements
from flight_server.service.connections import close_accepted
from flight_server.service.prepared import PreparedStatements
from flight_server.service.server import FlightSqlServer
from flight_server.service.status import hide_tracebacks, show_tracebacks
from flight_server.service.tls import Transport

#: How often a drain looks whether the last statement has ended.
_DRAIN_STEP_S = 0.02
#: What gRPC needs to end calls whose clients are gone.
_GRACE_S = 0.5
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class FlightStats:
    """Counters at one moment."""

    open_statements: int
    prepared_statements: int
    sessions: int
    pinned_statements: int


class FlightService:
    """Serves a lake that is started already and that the caller stops afterwards."""

    def __init__(
        self,
        lake: Lake,
        settings: FlightSettings,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Without a `gate` everybody may come in, and the server can only listen on loopback. Raises SettingsError."""
        self._settings = settings
        self._registry = registry or CollectorRegistry()
        self._clock = clock or SystemClock()
        self._lake = lake
        self._transport = Transport.from_settings(settings)
        self._gate = gate or Gate.open(self._clock)
        self._gate.check_address(settings.host)
        self._log = get_logger("flight_server.service")
        self._engine = Engine(lake, settings, clock=self._clock, registry=self._registry)
        self._prepared = PreparedStatements(
            self._clock, count_max=settings.prepared_statements_max, idle_s_max=settings.session_idle_s_max
        )
        prepared = Gauge("k2_prepared_statements", "Prepared statements that are open", registry=self._registry)
        prepared.set_function(lambda: float(len(self._prepared)))
        self._server: FlightSqlServer | None = None
        self._stopped = False
        self.failure: BaseException | None = None

    @property
    def port(self) -> int:
        """The port listened on, also when the settings said 0. Raises Unavailable when not started."""
        if self._server is None:
            raise Unavailable("the Flight server is not started")
        return int(self._server.port)

    @property
    def uri(self) -> str:
        """Where clients on this machine connect."""
        host = _WILDCARDS.get(self._settings.host, self._settings.host)
        return f"{self._transport.scheme}://{_bracketed(host)}:{self.port}"

    def start(self) -> None:
        """Return when clients can connect. Raises SettingsError when the address cannot be had."""
        self._engine.start()
        hide_tracebacks()
        location = f"{self._transport.scheme}://{_bracketed(self._settings.host)}:{self._settings.port}"
        try:
            self._server = FlightSqlServer(
                location,
                self._statements(),
                self._settings,
                self._prepared,
                registry=self._registry,
                gate=self._gate,
                transport=self._transport,
            )
        except Exception as error:  # noqa: BLE001  (pyarrow raises OSError, ArrowException or FlightError here)
            show_tracebacks()
            self._engine.stop()
            raise SettingsError(
                f"the Flight server cannot listen on {self._settings.host}:{self._settings.port}: the port is in use "
                "or the address is not this machine's; choose another with --port, K2_FLIGHT_PORT or K2_FLIGHT_HOST"
            ) from (None if isinstance(error, OSError) else error)
        self._log.info("serving Flight SQL", uri=self.uri)

    def _statements(self) -> Statements:
        writing = Writing(self._engine, self._lake, timeout_s_max=self._settings.statement_timeout_s)
        key = self._settings.ticket_key
        # Without a key of its own a server's tickets end with it.
        seal = TicketSeal(secrets.token_bytes(32) if key is None else sha512(key.get_secret_value().encode()).digest())
        return Statements(self._engine, writing, seal, self._clock, ticket_s=self._settings.ticket_s_max)

    def check_ready(self) -> None:
        """Raises Unavailable, or TailGap, unless statements are taken and answered exactly."""
        if self._server is None or self._stopped:
            raise Unavailable("the Flight server is not serving; connect again in a moment")
        self._lake.check_ready()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Refuse new statements, let running ones end for a while, cancel them, close what clients hold. Idempotent."""
        if self._server is None or self._stopped:
            return
        self._stopped = True
        began_s = self._clock.monotonic_s()
        stopping = Unavailable("the server is stopping; connect again in a moment")
        self._engine.drain(stopping)
        patience = threading.Event()
        drain_until_s = began_s + min(self._settings.drain_s_max, timeout_s / 2)
        while self._engine.open_statements and self._clock.monotonic_s() < drain_until_s:
            patience.wait(_DRAIN_STEP_S)
        self._engine.cancel_all(stopping)
        port = self.port
        ending = threading.Thread(target=self._server.shutdown, name="k2-flight-shutdown", daemon=True)
        ending.start()
        ending.join(max(_GRACE_S, began_s + timeout_s - _GRACE_S - self._clock.monotonic_s()))
        if ending.is_alive():
            count = close_accepted(port)
            self._log.warning("clients held their connections without reading; they were closed", connections=count)
            ending.join(_GRACE_S)
        self._engine.stop()
        show_tracebacks()

    def stats(self) -> FlightStats:
        return FlightStats(
            self._engine.open_statements,
            len(self._prepared),
            len(self._engine.sessions),
            self._engine.pinned_statements,
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
