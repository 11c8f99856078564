"""The gate: from the credentials of a call to a principal. Knows no gRPC: header, peer and certificate are texts.

What was proved before is found by one hash. All else is proved here: passwords are checked one or two at a time, since
each takes 32 MiB and some tenths of a second on purpose, and after failures not at all for a while.
"""

from __future__ import annotations

import base64
import binascii
import math
import threading

from common.clock import Clock, SystemClock
from common.errors import SettingsError, Unauthenticated, Unavailable
from common.settings import AccessSettings
from common.telemetry import get_logger
from flight_server.access.addresses import is_loopback, peer_address
from flight_server.access.credentials import Credentials, User, api_key_digest, read_credentials, usable_name
from flight_server.access.limiter import Key, LimitPolicy, LoginLimiter
from flight_server.access.passwords import PASSWORD_CHARACTERS_MAX, PasswordHash
from flight_server.access.principal import ANONYMOUS, Principal
from flight_server.access.remembered import Admission, Remembered, SessionTokens
from flight_server.access.web_tokens import Expired, WebTokens

_NOBODY = Admission(ANONYMOUS)
_WRONG = "the name or the password is wrong; correct them and connect again"
#: How long proved credentials are believed without another look: a key server that withdrew a key is believed after it.
_REMEMBERED_S, _REMEMBERED_MAX = 300.0, 10_000
#: Passwords that are checked at once, and how long a login waits for its turn.
_CHECKS_MAX, _CHECK_WAIT_S = 2, 10.0
#: Handshakes come without their peer's address (pyarrow has none there): together they have one key of their own, with
#: many free failures and short locks, so that one who guesses names cannot hold a core, nor keep all others out.
_HANDSHAKES: Key = ("handshakes", "")


class Gate:
    """Lets in, or raises. Thread-safe."""

    def __init__(
        self,
        settings: AccessSettings,
        credentials: Credentials,
        web_tokens: WebTokens | None = None,
        *,
        certificates: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """`certificates` says that every connection has a client certificate, proved by the transport."""
        clock = clock or SystemClock()
        self._clock = clock
        self._log = get_logger("flight_server.access")
        self._credentials = credentials
        self._web_tokens = web_tokens
        self.certificates = certificates
        #: Is there any way to come in other than as nobody?
        self.has_ways_in = bool(credentials.users or credentials.api_keys or web_tokens or certificates)
        self.anonymous = settings.anonymous == "on" or (settings.anonymous == "auto" and not self.has_ways_in)
        self._decoy = _decoy(credentials)
        self._sessions = SessionTokens(
            clock,
            count_max=settings.tokens_max,
            idle_s_max=settings.token_idle_s_max,
            life_s_max=settings.token_life_s_max,
        )
        self._proved = Remembered(clock, count_max=_REMEMBERED_MAX)
        self._checks = threading.BoundedSemaphore(_CHECKS_MAX)
        self._limiter_lock = threading.Lock()
        self._limiter = LoginLimiter(
            clock,
            {
                "name": LimitPolicy(settings.failures_free, 1.0, settings.lock_s_max, forgive_s=180.0),
                "peer": LimitPolicy(settings.failures_free * 4, 1.0, settings.lock_s_max, forgive_s=45.0),
                "handshakes": LimitPolicy(
                    settings.failures_free * 20, 1.0, min(5.0, settings.lock_s_max), forgive_s=9.0
                ),
            },
        )

    @classmethod
    def from_settings(cls, settings: AccessSettings, *, certificates: bool = False, clock: Clock | None = None) -> Gate:
        """The gate that the settings describe, its files read. Raises SettingsError."""
        credentials = read_credentials(settings.file) if settings.file is not None else Credentials()
        if settings.password is not None:
            if settings.user in credentials.users:
                raise SettingsError(
                    f"the user {settings.user!r} is in the credentials file and K2_ACCESS_PASSWORD is set; "
                    "leave one of them"
                )
            if not usable_name(settings.user) or ":" in settings.user:
                raise SettingsError(
                    f"K2_ACCESS_USER is {settings.user!r}, which is no name; use printable characters and no colon"
                )
            password = PasswordHash.of(settings.password.get_secret_value())
            user = User(Principal(settings.user, True, "password"), password)
            credentials.users[settings.user] = user
        web_tokens = WebTokens.from_settings(settings, clock or SystemClock())
        return cls(settings, credentials, web_tokens, certificates=certificates, clock=clock)

    @classmethod
    def open(cls, clock: Clock | None = None) -> Gate:
        """A gate that lets everybody in as nobody, whatever the environment says: for loopback."""
        return cls(AccessSettings.model_construct(anonymous="on"), Credentials(), clock=clock)

    def check_address(self, host: str) -> None:
        """Raises SettingsError when a server with this gate must not listen there."""
        if not self.has_ways_in and not self.anonymous:
            raise SettingsError(
                "nobody could come in: K2_ACCESS_ANONYMOUS is off and there are no credentials; set K2_ACCESS_FILE, "
                "K2_ACCESS_PASSWORD, a K2_ACCESS_JWT_... key or K2_FLIGHT_TLS_CLIENT_CA_FILE"
            )
        if not self.anonymous or is_loopback(host):
            return
        if self.has_ways_in:
            raise SettingsError(
                f"K2_ACCESS_ANONYMOUS is on, but {host} can be reached from other machines; set it to off, or listen "
                "on 127.0.0.1"
            )
        raise SettingsError(
            f"{host} can be reached from other machines and no credentials are configured; set K2_ACCESS_FILE "
            "(or K2_ACCESS_PASSWORD, a K2_ACCESS_JWT_... key or K2_FLIGHT_TLS_CLIENT_CA_FILE), or listen on 127.0.0.1"
        )

    # -- calls

    def handshake(self, header: str | None) -> str | None:
        """The bearer token to give back: for a name and password a new one, else None. Raises Unauthenticated."""
        if header is None:
            # The certificate, where one is asked for, was proved by the transport; who has neither may shake hands and
            # is asked at his first call.
            return None
        if not self.has_ways_in:
            return self._sessions.issue(ANONYMOUS)
        admission = self.admit(header, peer=None)
        return self._sessions.issue(admission.principal) if _scheme(header) == "basic" else None

    def admit(self, header: str | None, *, peer: str | None, certificate: str | None = None) -> Admission:
        """Who the call is made for.

        `header` is its authorization, `peer` gRPC's name of the other side, None where that is unknown, `certificate`
        the name in the client's certificate. A header goes before a certificate. Raises Unauthenticated, and
        Unavailable when the key server or the passwords' turn does not come.
        """
        if header is None:
            return self._without_header(certificate)
        known = self._sessions.get(header_token(header)) or self._proved.get(header)
        if known is not None:
            return known
        if not self.has_ways_in:
            return _NOBODY
        scheme = _scheme(header)
        if scheme == "basic":
            return self._password(header, peer)
        if scheme == "bearer":
            return self._bearer(header, peer)
        raise Unauthenticated("the authorization is neither Basic nor Bearer; send one of these")

    def revoke(self, session_token: str) -> None:
        """The token with this id is worth nothing from now on."""
        self._sessions.revoke(session_token)

    def _without_header(self, certificate: str | None) -> Admission:
        if self.certificates:
            if not usable_name(certificate):
                raise Unauthenticated("the client's certificate holds no name that can be used; get another one")
            is_admin = certificate in self._credentials.admin_certificates
            return Admission(Principal(certificate, is_admin, "certificate"))
        if self.anonymous:
            return _NOBODY
        raise Unauthenticated(
            "this server asks for credentials and none came; send a user name and password, an API key or a token"
        )

    # -- bearer

    def _bearer(self, header: str, peer: str | None) -> Admission:
        token = header_token(header)
        if (principal := self._credentials.api_keys.get(api_key_digest(token))) is not None:
            return self._remember(header, principal, _REMEMBERED_S)
        if SessionTokens.looks_like_one(token):
            raise Unauthenticated("the session has ended, by its time or by a new start of the server; log in again")
        if self._web_tokens is not None and WebTokens.looks_like_one(token):
            return self._web_token(self._web_tokens, header, token, peer)
        self._refuse_while_locked(None, peer)
        self._failed(None, peer, method="bearer", reason="unknown token")
        raise Unauthenticated("the bearer token is not known here; send a valid API key or token, or log in again")

    def _web_token(self, web_tokens: WebTokens, header: str, token: str, peer: str | None) -> Admission:
        self._refuse_while_locked(None, peer)
        try:
            login = web_tokens.login(token)
        except Expired:
            raise
        except Unauthenticated as error:
            self._failed(None, peer, method="jwt", reason=str(error).partition(";")[0])
            raise
        left_s = login.expires_s - self._clock.now_us() / 1e6
        return self._remember(header, login.principal, min(left_s, _REMEMBERED_S))

    # -- passwords

    def _password(self, header: str, peer: str | None) -> Admission:
        name, password = _basic(header)
        # An unknown name is checked against a decoy: it fails as a wrong password does, in words and in time.
        user = self._credentials.users.get(name)
        if not self._checks.acquire(timeout=_CHECK_WAIT_S):
            raise Unavailable("too many logins are being checked; try again in a few seconds")
        try:
            if (known := self._proved.get(header)) is not None:  # somebody was faster while this one waited
                return known
            self._refuse_while_locked(name, peer)
            matches = (user.password if user else self._decoy).matches(password)
        finally:
            self._checks.release()
        if user is None or not matches:
            self._failed(name, peer, method="password", reason="wrong name or password")
            raise Unauthenticated(_WRONG)
        with self._limiter_lock:
            self._limiter.succeeded(("name", name))
        self._log.info("a user logged in", name=name, peer=peer)
        return self._remember(header, user.principal, _REMEMBERED_S)

    def _remember(self, header: str, principal: Principal, life_s: float) -> Admission:
        admission = Admission(principal)
        self._proved.put(header, admission, life_s_max=life_s, idle_s_max=life_s)
        return admission

    # -- failures

    def _refuse_while_locked(self, name: str | None, peer: str | None) -> None:
        with self._limiter_lock:
            wait_s = self._limiter.wait_s(*_keys(name, peer))
        if wait_s > 0:
            raise Unauthenticated(f"too many logins failed; try again in {math.ceil(wait_s)} s")

    def _failed(self, name: str | None, peer: str | None, *, method: str, reason: str) -> None:
        with self._limiter_lock:
            self._limiter.failed(*_keys(name, peer))
        # A name that is not known may be a password typed into the wrong field.
        shown = name if name in self._credentials.users else None
        self._log.warning(
            "a login failed", method=method, name=shown, peer=peer or "unknown (handshake)", reason=reason
        )


def header_token(header: str) -> str:
    """What follows the scheme."""
    return header.partition(" ")[2].strip()


def _scheme(header: str) -> str:
    return header.partition(" ")[0].lower()


def _basic(header: str) -> tuple[str, str]:
    """Name and password. ADBC (1.13) leaves the padding off; all others do not. Raises Unauthenticated."""
    unreadable = Unauthenticated("the Basic authorization cannot be read; send base64 of name:password in UTF-8")
    try:
        encoded = header_token(header).rstrip("=")
        text = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise unreadable from None
    name, colon, password = text.partition(":")
    if not colon:
        raise unreadable
    if len(password) > PASSWORD_CHARACTERS_MAX:
        raise Unauthenticated(_WRONG)
    return name, password


def _keys(name: str | None, peer: str | None) -> list[Key]:
    keys = [("peer", peer_address(peer)) if peer is not None else _HANDSHAKES]
    if name is not None:
        keys.append(("name", name))
    return keys


def _decoy(credentials: Credentials) -> PasswordHash:
    """As slow to check as the slowest real one."""
    hashes = [user.password for user in credentials.users.values()]
    slowest = max(hashes, key=lambda h: (1 << h.log_n) * h.r * h.p, default=None)
    return slowest.decoy() if slowest else PasswordHash(10, 8, 1, b"-" * 16, b"-" * 32)
