"""JSON web tokens as bearer: signed by a shared secret, by the owner of a public key, or by a key server's keys.

A key decides which algorithms may be used with it, never the token: so `none` is no algorithm, and a public key is
never taken for a shared secret. Source: RFC 7519, RFC 8725 sections 3.1 and 3.2; PyJWT 2.15.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from common.clock import Clock
from common.errors import SettingsError, Unauthenticated, Unavailable
from common.settings import AccessSettings
from common.telemetry import get_logger
from flight_server.access.addresses import is_loopback
from flight_server.access.credentials import usable_name
from flight_server.access.principal import Principal

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
#: HMAC's algorithms, and how many bytes a secret must have for each (RFC 7518, section 3.2).
_SHARED = {"HS256": 32, "HS384": 48, "HS512": 64}
_CURVES = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}
_RSA_BITS_MIN = 2048
_PURPOSE = "get a new token from whoever issues them for this server"
#: A key server is asked again for what it gave after this long, and for a key it did not give no sooner than this.
_KEYS_LIFE_S, _UNKNOWN_KEY_S = 300.0, 10.0
#: A key server that does not answer is asked again only after this long.
_PAUSE_S = 5.0


class Expired(Unauthenticated):
    """The token was good once. Everyday, and nobody's attempt to get in."""


@dataclass(frozen=True)
class WebTokenLogin:
    """Who the token is for, and until when it may be believed, in seconds since the epoch."""

    principal: Principal
    expires_s: float


class KeySource(Protocol):
    """Where keys come from."""

    def key_for(self, header: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]] | None:
        """The key for a token with this (unproved) header, and the algorithms that may be used with it; None when it
        has none. Raises Unavailable when it cannot say."""
        ...


class SharedSecret:
    """One secret that whoever issues tokens shares with this server. Raises SettingsError when it is too short."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._algorithms = tuple(name for name, bytes_min in _SHARED.items() if len(self._secret) >= bytes_min)
        if not self._algorithms:
            raise SettingsError(
                f"K2_ACCESS_JWT_SECRET has {len(self._secret)} bytes; HS256 needs {_SHARED['HS256']} or more, so make "
                "one with: openssl rand -base64 48"
            )

    def key_for(self, header: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]] | None:
        return (self._secret, self._algorithms) if header.get("alg") in self._algorithms else None


class PublicKey:
    """One public key, or certificate, as PEM. Raises SettingsError when it is none, or too weak."""

    def __init__(self, pem: bytes, *, where: str) -> None:
        try:
            if b"BEGIN CERTIFICATE" in pem:
                self._key: Any = load_pem_x509_certificate(pem).public_key()
            else:
                self._key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise SettingsError(f"{where} holds no PEM public key; correct K2_ACCESS_JWT_PUBLIC_KEY_FILE") from None
        self._algorithms = _algorithms_of(self._key)
        if not self._algorithms:
            raise SettingsError(
                f"the key in {where} cannot be used; it must be RSA of {_RSA_BITS_MIN} bits or more, an elliptic curve "
                "P-256, P-384 or P-521, or Ed25519"
            )

    def key_for(self, header: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]] | None:
        return (self._key, self._algorithms) if header.get("alg") in self._algorithms else None


class KeyServer:
    """A JWKS URL. Its keys are kept, asked for again when they are old or one is unknown, each at a bounded rate."""

    def __init__(self, url: str, clock: Clock, *, timeout_s: float) -> None:
        """Raises SettingsError for a URL by which somebody on the way could give keys of his own."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise SettingsError(f"K2_ACCESS_JWT_JWKS_URL is {url}; keys are fetched by https:// only, or from loopback")
        self._client = jwt.PyJWKClient(url, lifespan=_KEYS_LIFE_S, timeout=timeout_s, cooldown_duration=_UNKNOWN_KEY_S)
        self._clock = clock
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._failed_s: float | None = None
        self._log = get_logger("flight_server.access")

    def key_for(self, header: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]] | None:
        """Blocks while the URL is asked, `timeout_s` and a little at most."""
        key_id = header.get("kid")
        if not isinstance(key_id, str) or header.get("alg") in _SHARED:
            return None
        down = Unavailable("the server that has the keys of tokens does not answer; try again in a few seconds")
        if not self._lock.acquire(timeout=self._timeout_s):
            raise down
        try:
            if self._failed_s is not None and self._clock.monotonic_s() - self._failed_s < _PAUSE_S:
                raise down
            found = self._client.get_signing_key(key_id)
            self._failed_s = None
        except jwt.PyJWKClientConnectionError as error:
            self._failed_s = self._clock.monotonic_s()
            self._log.error("the JWKS URL does not answer", error=str(error))
            raise down from None
        except jwt.PyJWKClientError:
            return None
        except (jwt.PyJWTError, ValueError, OSError) as error:
            self._failed_s = self._clock.monotonic_s()
            self._log.error("the JWKS URL does not answer with keys", error=repr(error))
            raise down from None
        finally:
            self._lock.release()
        # The key's own `alg`, or the usual one of its kind; never one that its kind does not have.
        fits = header.get("alg") == found.algorithm_name and found.algorithm_name in _algorithms_of(found.key)
        return (found.key, (found.algorithm_name,)) if fits else None


class WebTokens:
    """Proves tokens: signature, issuer, audience and times."""

    def __init__(self, settings: AccessSettings, sources: list[KeySource]) -> None:
        self._settings = settings
        self._sources = sources

    @classmethod
    def from_settings(cls, settings: AccessSettings, clock: Clock) -> WebTokens | None:
        """None when no key is set. Raises SettingsError."""
        sources: list[KeySource] = []
        if settings.jwt_secret is not None:
            sources.append(SharedSecret(settings.jwt_secret.get_secret_value()))
        if (path := settings.jwt_public_key_file) is not None:
            try:
                pem = path.read_bytes()
            except OSError as error:
                raise SettingsError(
                    f"the public key {path} cannot be read ({error.strerror}); correct K2_ACCESS_JWT_PUBLIC_KEY_FILE"
                ) from None
            sources.append(PublicKey(pem, where=str(path)))
        if settings.jwt_jwks_url is not None:
            sources.append(KeyServer(settings.jwt_jwks_url, clock, timeout_s=settings.jwt_jwks_timeout_s))
        if not sources:
            return None
        if not settings.jwt_audience:
            raise SettingsError(
                "K2_ACCESS_JWT_AUDIENCE is not set; set it to what stands in the claim aud of tokens for this server; "
                "without it, tokens that were issued for others would open it"
            )
        return cls(settings, sources)

    @staticmethod
    def looks_like_one(token: str) -> bool:
        return token.count(".") == 2 and token.startswith("ey")

    def login(self, token: str) -> WebTokenLogin:
        """Raises Unauthenticated, Expired when only that is wrong, and Unavailable when the keys cannot be had."""
        key, algorithms = self._key(token)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=self._settings.jwt_leeway_s,
                options={"require": ["exp", "aud", *(["iss"] if self._settings.jwt_issuer else [])]},
            )
        except jwt.ExpiredSignatureError:
            raise Expired(f"the token has expired; {_PURPOSE}") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated(
                "the token is not valid yet; compare the clocks of its issuer and of this server"
            ) from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"the token lacks the claim {error.claim!r}; {_PURPOSE}") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated(f"the token is for another audience; {_PURPOSE}") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(f"the token is of another issuer; {_PURPOSE}") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated(f"the token's signature does not prove it; {_PURPOSE}") from None
        return WebTokenLogin(self._principal(claims), float(claims["exp"]) + self._settings.jwt_leeway_s)

    def _key(self, token: str) -> tuple[Any, tuple[str, ...]]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated(f"the bearer token is no web token that can be read; {_PURPOSE}") from None
        for source in self._sources if isinstance(header.get("alg"), str) else ():
            if (found := source.key_for(header)) is not None:
                return found
        raise Unauthenticated(
            f"the token is signed with a key or an algorithm that this server does not take; {_PURPOSE}"
        )

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        name = claims.get(self._settings.jwt_name_claim)
        if not isinstance(name, str) or not usable_name(name):
            raise Unauthenticated(
                f"the token's claim {self._settings.jwt_name_claim!r} holds no name that can be used; {_PURPOSE}"
            )
        admin = claims.get(self._settings.jwt_admin_claim) if self._settings.jwt_admin_claim else None
        wanted = self._settings.jwt_admin_value
        is_admin = admin is True or admin == wanted or (isinstance(admin, list) and wanted in admin)
        return Principal(name, is_admin, "jwt")


def _algorithms_of(key: object) -> tuple[str, ...]:
    """The algorithms that this public key was made for; none for a key that is too weak, or is a shared secret."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA if key.key_size >= _RSA_BITS_MIN else ()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name, ())
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return ("EdDSA",)
    return ()
