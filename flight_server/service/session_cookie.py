"""Which session a call belongs to, told by a cookie; every client without one is given one.

Cookies are off by default in ADBC, so a session can be found by the login's token or by the connection as well: see
`middleware.Arrived.caller`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

COOKIE = "k2_session"
_GOOD = re.compile(rf"(?:^|;\s*){COOKIE}=\"?([0-9a-f]{{32}})\"?(?:;|$)")


@dataclass(frozen=True)
class Cookie:
    """One call's cookie: the one that came, or the one that is offered."""

    session_id: str
    is_the_clients: bool

    def sent(self) -> Mapping[str, str]:
        """The headers that offer it."""
        return {} if self.is_the_clients else {"set-cookie": f"{COOKIE}={self.session_id}"}


def cookie_in(headers: Mapping[str, list[str]]) -> Cookie:
    """The cookie among a call's headers, or a new one; one that is not of our making is not taken."""
    for header in headers.get("cookie", ()):
        found = _GOOD.search(header) if isinstance(header, str) else None
        if found is not None:
            return Cookie(found[1], is_the_clients=True)
    return Cookie(secrets.token_hex(16), is_the_clients=False)
