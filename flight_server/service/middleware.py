"""What happens around each call: a correlation id, taken from the client or made, and given back.

The server has no accounts yet: a Handshake is answered whatever it says, and a client that sent basic credentials gets
the bearer token that it will not go on without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyarrow import flight

from common.telemetry import CORRELATION_KEY, new_correlation_id
from flight_server.access.principal import ANONYMOUS, Principal

#: The names under which handlers find the middleware of their call.
CORRELATION = "correlation"
ACCESS = "access"
_GOOD_ID = re.compile(r"[\w.:/-]{1,64}")
_ANONYMOUS = "Bearer anonymous"


class Correlation(flight.ServerMiddleware):  # type: ignore[misc]
    """One call's correlation id."""

    def __init__(self, correlation_id: str, token: str | None) -> None:
        super().__init__()
        self.correlation_id = correlation_id
        self._token = token

    def sending_headers(self) -> dict[str, str]:
        headers = {CORRELATION_KEY: self.correlation_id}
        if self._token is not None:
            headers["authorization"] = self._token
        return headers


class CorrelationFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Makes the id for each call; one that is no plain short word is replaced."""

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, list[str]]) -> Correlation:
        given = headers.get(CORRELATION_KEY, [""])[0]
        correlation_id = given if isinstance(given, str) and _GOOD_ID.fullmatch(given) else new_correlation_id()
        handshake = info.method == flight.FlightMethod.HANDSHAKE
        return Correlation(correlation_id, _ANONYMOUS if handshake and "authorization" in headers else None)


class Anonymous(flight.ServerAuthHandler):  # type: ignore[misc]
    """Lets everybody in. Without an auth handler pyarrow answers a Handshake with UNIMPLEMENTED."""

    def authenticate(self, outgoing: object, incoming: object) -> None:
        return

    def is_valid(self, token: bytes) -> bytes:
        return b""


class AccessCall(flight.ServerMiddleware):  # type: ignore[misc]
    """One call's credentials."""

    def principal(self, context: flight.ServerCallContext) -> Principal:
        return ANONYMOUS

    def session_token(self) -> str | None:
        return None


class AccessFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Takes the credentials of each call."""

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, list[str]]) -> AccessCall:
        return AccessCall()


def principal_of(context: flight.ServerCallContext) -> Principal:
    """Who the call is made for. Raises Unauthenticated; so every call asks, before it does anything else."""
    access: AccessCall = context.get_middleware(ACCESS)
    return access.principal(context)


def session_token_of(context: flight.ServerCallContext) -> str | None:
    """Which bearer token of our own Handshake came with the call, as an id that is safe to keep and to show (not the
    token itself); None for every other credential."""
    access: AccessCall = context.get_middleware(ACCESS)
    return access.session_token()
