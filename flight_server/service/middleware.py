"""What comes with each call: its correlation id, taken from the client or made, and given back; its credentials; the
cookie of its session.

Headers are shown to the factory of a middleware and to nobody else. pyarrow would ask the middleware for what to send,
tell it of the call's end and let go of it, each time as a new thread of Python's that waits for Python's lock. So none
is made: what came is left for the call's handler, which runs next on the same thread (Arrow's server does a call's
work in one function), takes it away and sends the headers itself. A Handshake has no handler that could, and has a
middleware.

pyarrow shows the peer only to the calls' handlers, so credentials are proved when a handler asks who calls. Two calls
are proved before: a Handshake, whose answer is a header, and GetSchema, whose handler cannot say UNAUTHENTICATED.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from pyarrow import flight

from common.errors import Unauthenticated
from common.telemetry import CORRELATION_KEY, get_logger, new_correlation_id
from flight_server.access.gate import Gate
from flight_server.access.remembered import Admission
from flight_server.engine.sessions import Caller
from flight_server.service.session_cookie import Cookie, cookie_in
from flight_server.service.status import on_the_wire

_GOOD_ID = re.compile(r"[\w.:/-]{1,64}")
_AUTHORIZATION = "authorization"


class Credentials:
    """One call's credentials, proved once, when they are asked for."""

    def __init__(self, gate: Gate, header: str | None) -> None:
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


class Arrived:
    """What one call brought with it."""

    __slots__ = ("cookie", "correlation_id", "credentials")

    def __init__(self, correlation_id: str, credentials: Credentials, cookie: Cookie) -> None:
        self.correlation_id = correlation_id
        self.credentials = credentials
        self.cookie = cookie

    def headers(self) -> dict[str, str]:
        """What it is answered with."""
        return {CORRELATION_KEY: self.correlation_id, **self.cookie.sent()}

    def caller(self, context: flight.ServerCallContext) -> Caller:
        """Who calls, and by which session. Raises Unauthenticated.

        Without a cookie the session is found by the token of the login (as an id that is safe to keep and to show, not
        the token itself), or else by the connection that the call came on; behind a proxy that shares connections,
        clients need cookies or logins to have sessions of their own.
        """
        admission = self.credentials.admission(context)
        peer = context.peer()
        return Caller(
            principal=admission.principal.name,
            session_id=self.cookie.session_id,
            is_admin=admission.principal.is_admin,
            peer=peer,
            has_cookie=self.cookie.is_the_clients,
            channel=admission.session_token or peer,
        )


#: By thread: the call that came last and was not taken away. Not a threading.local, which lives no longer than a thread
#: of Python's: one of Arrow's is one only while it holds the lock, and is made anew each time.
_last: dict[int, Arrived] = {}


class HandshakeMiddleware(flight.ServerMiddleware):  # type: ignore[misc]
    """Sends a Handshake's headers: the bearer token besides, where it went well and there is one."""

    def __init__(self, arrived: Arrived, token: str | None) -> None:
        super().__init__()
        self._headers = arrived.headers()
        if token is not None:
            self._headers[_AUTHORIZATION] = f"Bearer {token}"

    def sending_headers(self) -> dict[str, str]:
        return self._headers


class CallFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Reads the headers of each call, and takes its credentials to the gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._log = get_logger("flight_server.service")

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, list[str]]) -> HandshakeMiddleware | None:
        _last.pop(threading.get_ident(), None)
        given = headers.get(_AUTHORIZATION)
        is_handshake = info.method == flight.FlightMethod.HANDSHAKE
        token = None
        try:
            if given is not None and len(set(given)) > 1:
                raise Unauthenticated("the call has several authorization headers; send one")
            header = None if given is None else str(given[0])
            credentials = Credentials(self._gate, header)
            if is_handshake:
                token = self._gate.handshake(header)
            elif info.method == flight.FlightMethod.GET_SCHEMA and not self._gate.certificates:
                credentials.admission(None)
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not leave with a traceback)
            raise on_the_wire(error, self._log) from None
        arrived = Arrived(_correlation_id(headers), credentials, cookie_in(headers))
        if is_handshake:
            return HandshakeMiddleware(arrived, token)
        _last[threading.get_ident()] = arrived
        return None


def arrived(context: flight.ServerCallContext) -> Arrived:
    """What the call brought with it, for its handler, once; the headers that answer it are sent with this.

    Raises RuntimeError when nothing is there, in which case nobody is let in.
    """
    call = _last.pop(threading.get_ident(), None)
    if call is None:
        raise RuntimeError("a call came to its handler without its headers")
    for name, value in call.headers().items():
        context.add_header(name, value)
    return call


def _correlation_id(headers: Mapping[str, list[str]]) -> str:
    """The client's; one that is no plain short word is replaced."""
    given = headers.get(CORRELATION_KEY, [""])[0]
    return given if isinstance(given, str) and _GOOD_ID.fullmatch(given) else new_correlation_id()


class Handshakes(flight.ServerAuthHandler):  # type: ignore[misc]
    """Without an auth handler pyarrow answers a Handshake with UNIMPLEMENTED. Its credentials come as a header, which
    the middleware has seen to; some clients want one message besides. With one, pyarrow hides client certificates."""

    def authenticate(self, outgoing: Any, incoming: object) -> None:
        outgoing.write(b"")

    def is_valid(self, token: bytes) -> bytes:
        return b""


def _text(identity: bytes) -> str | None:
    return identity.decode("utf-8", "replace") or None
