"""What happens around each call: a correlation id, taken from the client or made, and given back; and its credentials.

pyarrow shows the peer only to the calls' handlers, so credentials are proved when a handler asks who calls. Two calls
are proved before: a Handshake, whose answer is a header, and GetSchema, whose handler cannot say UNAUTHENTICATED.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyarrow import flight

from common.errors import Unauthenticated
from common.telemetry import CORRELATION_KEY, get_logger, new_correlation_id
from flight_server.access.gate import Gate
from flight_server.access.principal import Principal
from flight_server.access.remembered import Admission
from flight_server.service.status import on_the_wire

#: The names under which handlers find the middleware of their call.
CORRELATION = "correlation"
ACCESS = "access"
_GOOD_ID = re.compile(r"[\w.:/-]{1,64}")
_AUTHORIZATION = "authorization"


class Correlation(flight.ServerMiddleware):  # type: ignore[misc]
    """One call's correlation id."""

    def __init__(self, correlation_id: str) -> None:
        super().__init__()
        self.correlation_id = correlation_id

    def sending_headers(self) -> dict[str, str]:
        return {CORRELATION_KEY: self.correlation_id}


class CorrelationFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Makes the id for each call; one that is no plain short word is replaced."""

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, list[str]]) -> Correlation:
        given = headers.get(CORRELATION_KEY, [""])[0]
        correlation_id = given if isinstance(given, str) and _GOOD_ID.fullmatch(given) else new_correlation_id()
        return Correlation(correlation_id)


class AccessCall(flight.ServerMiddleware):  # type: ignore[misc]
    """One call's credentials, proved once, when they are asked for."""

    def __init__(self, gate: Gate, header: str | None) -> None:
        super().__init__()
        self._gate = gate
        self._header = header
        self._admission: Admission | None = None

    def admission(self, context: flight.ServerCallContext | None) -> Admission:
        """Raises Unauthenticated or Unavailable. Without a context neither peer nor certificate is known."""
        if self._admission is None:
            peer = certificate = None
            if context is not None and (self._header is not None or self._gate.certificates):
                peer = context.peer()
                certificate = _text(context.peer_identity())
            self._admission = self._gate.admit(self._header, peer=peer, certificate=certificate)
        return self._admission

    def revoke(self, context: flight.ServerCallContext) -> None:
        if (token := self.admission(context).session_token) is not None:
            self._gate.revoke(token)


class HandshakeCall(flight.ServerMiddleware):  # type: ignore[misc]
    """A Handshake that went well; its token, if one was made, goes back as a header."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self._token = token

    def sending_headers(self) -> dict[str, str]:
        return {} if self._token is None else {_AUTHORIZATION: f"Bearer {self._token}"}


class AccessFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Takes the credentials of each call to the gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._log = get_logger("flight_server.service")

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, list[str]]) -> AccessCall | HandshakeCall:
        given = headers.get(_AUTHORIZATION)
        try:
            if given is not None and len(set(given)) > 1:
                raise Unauthenticated("the call has several authorization headers; send one")
            header = None if given is None else str(given[0])
            if info.method == flight.FlightMethod.HANDSHAKE:
                return HandshakeCall(self._gate.handshake(header))
            call = AccessCall(self._gate, header)
            if info.method == flight.FlightMethod.GET_SCHEMA and not self._gate.certificates:
                call.admission(None)
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not leave with a traceback)
            raise on_the_wire(error, self._log) from None
        return call


class Handshakes(flight.ServerAuthHandler):  # type: ignore[misc]
    """Without an auth handler pyarrow answers a Handshake with UNIMPLEMENTED. Its credentials come as a header, which
    the middleware has seen to; some clients want one message besides. With one, pyarrow hides client certificates."""

    def authenticate(self, outgoing: Any, incoming: object) -> None:
        outgoing.write(b"")

    def is_valid(self, token: bytes) -> bytes:
        return b""


def principal_of(context: flight.ServerCallContext) -> Principal:
    """Who the call is made for. Raises Unauthenticated; so every call asks, before it does anything else."""
    return _access(context).admission(context).principal


def session_token_of(context: flight.ServerCallContext) -> str | None:
    """Which bearer token of our own Handshake came with the call, as an id that is safe to keep and to show (not the
    token itself); None for every other credential."""
    return _access(context).admission(context).session_token


def revoke_session_token(context: flight.ServerCallContext) -> None:
    """Make the bearer token of this call, when our Handshake made it, worth nothing from now on."""
    _access(context).revoke(context)


def _access(context: flight.ServerCallContext) -> AccessCall:
    call: AccessCall = context.get_middleware(ACCESS)
    return call


def _text(identity: bytes) -> str | None:
    return identity.decode("utf-8", "replace") or None
