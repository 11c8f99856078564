"""Which session a call belongs to, told by a cookie; every client without one is given one.

Cookies are off by default in ADBC, so a session can be found by the login's token or by the connection as well: see
`caller_of`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from pyarrow import flight

from flight_server.engine.sessions import Caller
from flight_server.service.middleware import principal_of, session_token_of

#: The name under which handlers find the middleware of their call.
SESSION = "session"
COOKIE = "k2_session"
_GOOD = re.compile(rf"(?:^|;\s*){COOKIE}=\"?([0-9a-f]{{32}})\"?(?:;|$)")


class SessionCall(flight.ServerMiddleware):  # type: ignore[misc]
    """One call's cookie: the one that came, or the one that is offered."""

    def __init__(self, cookie: str | None) -> None:
        super().__init__()
        self.cookie = cookie
        self.offered = secrets.token_hex(16) if cookie is None else cookie

    def sending_headers(self) -> dict[str, str]:
        return {"set-cookie": f"{COOKIE}={self.offered}"} if self.cookie is None else {}


class SessionFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Reads the cookie of each call; one that is not of our making is not taken."""

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, list[str]]) -> SessionCall:
        for header in headers.get("cookie", ()):
            found = _GOOD.search(header) if isinstance(header, str) else None
            if found is not None:
                return SessionCall(found[1])
        return SessionCall(None)


def caller_of(context: flight.ServerCallContext) -> Caller:
    """Who calls, and by which session. Raises Unauthenticated.

    Without a cookie the session is found by the token of the login, or else by the connection that the call came on;
    behind a proxy that shares connections, clients need cookies or logins to have sessions of their own.
    """
    principal = principal_of(context)
    call: SessionCall = context.get_middleware(SESSION)
    peer = context.peer()
    return Caller(
        principal=principal.name,
        session_id=call.offered,
        is_admin=principal.is_admin,
        peer=peer,
        has_cookie=call.cookie is not None,
        channel=session_token_of(context) or peer,
    )
