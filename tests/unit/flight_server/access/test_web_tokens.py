"""Web tokens: each way in which one can be wrong is refused with its reason, and no token chooses how it is checked."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from common.clock import ManualClock
from common.errors import SettingsError, Unauthenticated, Unavailable
from common.settings import AccessSettings
from flight_server.access.principal import Principal
from flight_server.access.web_tokens import Expired, WebTokens
from tests.support.key_server import AUDIENCE, ISSUER, SECRET, KeyServer, SigningKey, claims

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {algorithm: SigningKey(algorithm) for algorithm in ASYMMETRIC}


def web_tokens(clock: ManualClock | None = None, **settings: Any) -> WebTokens:
    access = AccessSettings.load(**{"jwt_audience": AUDIENCE, "jwt_issuer": ISSUER, **settings})
    found = WebTokens.from_settings(access, clock or ManualClock())
    assert found is not None
    return found


def with_public_key(folder: Path, pem: bytes, **settings: Any) -> WebTokens:
    path = folder / "public.pem"
    path.write_bytes(pem)
    return web_tokens(jwt_public_key_file=path, **settings)


def shared(**changes: Any) -> str:
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")


def forged(header: dict[str, Any], body: dict[str, Any], secret: bytes) -> str:
    """A token signed with HMAC whatever its header says, and whatever the secret is."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, body)]
    signature = hmac.new(secret, b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_shared_secret(algorithm: str) -> None:
    token = jwt.encode(claims(), SECRET, algorithm=algorithm)
    assert web_tokens(jwt_secret=SECRET).login(token).principal == Principal("ada", False, "jwt")
    with pytest.raises(Unauthenticated, match="signature"):
        web_tokens(jwt_secret=SECRET[:-1] + "x").login(token)


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_public_key(algorithm: str, keys: dict[str, SigningKey], tmp_path: Path) -> None:
    tokens = with_public_key(tmp_path, keys[algorithm].pem)
    assert tokens.login(keys[algorithm].token()).principal == Principal("ada", False, "jwt")
    with pytest.raises(Unauthenticated, match="signature"):
        tokens.login(SigningKey(algorithm).token())


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_key_takes_only_the_algorithms_of_its_kind(
    algorithm: str, keys: dict[str, SigningKey], tmp_path: Path
) -> None:
    tokens = with_public_key(tmp_path, keys[algorithm].pem)
    for other in ASYMMETRIC:
        same_kind = {algorithm[:2], other[:2]} <= {"RS", "PS"} or algorithm == other
        if not same_kind:
            with pytest.raises(Unauthenticated, match="does not take"):
                tokens.login(keys[other].token())


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_is_never_a_shared_secret(algorithm: str, keys: dict[str, SigningKey], tmp_path: Path) -> None:
    """The classic swap: an HMAC made with the public key, which everybody has, sent as HS256, and as what it is not."""
    tokens = with_public_key(tmp_path, keys[algorithm].pem)
    for stated in ("HS256", algorithm):
        with pytest.raises(Unauthenticated):
            tokens.login(forged({"alg": stated, "typ": "JWT"}, claims(), keys[algorithm].pem))
    both = with_public_key(tmp_path, keys[algorithm].pem, jwt_secret=SECRET)
    with pytest.raises(Unauthenticated):
        both.login(forged({"alg": "HS256", "typ": "JWT"}, claims(), keys[algorithm].pem))


@pytest.mark.parametrize("stated", ["none", "None", "NONE", "", None, 7, "HS1", ["HS256"]])
def test_no_algorithm_is_no_proof(stated: object, keys: dict[str, SigningKey], tmp_path: Path) -> None:
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": stated, "typ": "JWT", "kid": "key"}, claims())
    )
    with KeyServer(keys["RS256"].jwk(kid=None)) as server:
        tokens = with_public_key(tmp_path, keys["RS256"].pem, jwt_secret=SECRET, jwt_jwks_url=server.url)
        for signature in ("", "AAAA"):
            with pytest.raises(Unauthenticated):
                tokens.login(f"{head}.{body}.{signature}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "lacks the claim 'aud'"),
        ({"iss": "https://another.example"}, "another issuer"),
        ({"iss": None}, "lacks the claim 'iss'"),
        ({"exp": None}, "lacks the claim 'exp'"),
        ({"exp": "soon"}, "does not prove it"),
        ({"nbf": claims()["exp"]}, "not valid yet"),
        ({"iat": claims()["exp"]}, "not valid yet"),
        ({"sub": None}, "claim 'sub' holds no name"),
        ({"sub": "anonymous"}, "claim 'sub' holds no name"),
        ({"sub": "a\nb"}, "claim 'sub' holds no name"),
    ],
)
def test_each_claim_is_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Unauthenticated, match=words) as caught:
        web_tokens(jwt_secret=SECRET).login(shared(**changes))
    assert not isinstance(caught.value, Expired)


def test_a_list_of_audiences_holds_ours() -> None:
    assert web_tokens(jwt_secret=SECRET).login(shared(aud=["another", AUDIENCE])).principal.name == "ada"


def test_clocks_may_be_apart_by_the_leeway() -> None:
    now_s = claims()["iat"]
    tokens = web_tokens(jwt_secret=SECRET, jwt_leeway_s=60)
    login = tokens.login(shared(exp=now_s - 30))
    assert login.expires_s == now_s - 30 + 60
    with pytest.raises(Expired, match="has expired; get a new token"):
        tokens.login(shared(exp=now_s - 120))


def test_the_name_and_the_admin_come_from_the_claims_that_are_set() -> None:
    tokens = web_tokens(jwt_secret=SECRET, jwt_name_claim="email", jwt_admin_claim="roles")
    for roles, is_admin in (
        (["k2-admin", "x"], True),
        ("k2-admin", True),
        (True, True),
        (["x"], False),
        ("true", False),
        (1, False),
        ({"k2-admin": 1}, False),
        (None, False),
    ):
        login = tokens.login(shared(email="ada@example.com", roles=roles))
        assert login.principal == Principal("ada@example.com", is_admin, "jwt")
    assert not web_tokens(jwt_secret=SECRET).login(shared(roles=["k2-admin"])).principal.is_admin


@pytest.mark.parametrize("token", ["", "ey", "ey..", "eyJ.eyJ.x", "ey.ey.ey", "ey" + "A" * 6000 + "..", "eyé.a.b"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated):
        web_tokens(jwt_secret=SECRET).login(token)


def test_no_refusal_repeats_the_token() -> None:
    for token in (shared(aud="another"), "ey" + "A" * 60 + ".b.c", shared(sub="a\nb")):
        with pytest.raises(Unauthenticated) as caught:
            web_tokens(jwt_secret=SECRET).login(token)
        assert token not in caught.value.message
        assert "\n" not in caught.value.message


# -- settings


def test_without_a_key_there_are_no_web_tokens() -> None:
    assert WebTokens.from_settings(AccessSettings.load(), ManualClock()) is None


def test_a_key_without_an_audience_is_refused() -> None:
    with pytest.raises(SettingsError, match="K2_ACCESS_JWT_AUDIENCE is not set"):
        WebTokens.from_settings(AccessSettings.load(jwt_secret=SECRET), ManualClock())


def test_a_short_secret_is_refused_and_a_middling_one_has_no_long_algorithms() -> None:
    with pytest.raises(SettingsError, match="has 31 bytes") as caught:
        web_tokens(jwt_secret="s" * 31)
    assert "sss" not in caught.value.message
    tokens = web_tokens(jwt_secret="s" * 32)
    assert tokens.login(jwt.encode(claims(), "s" * 32, algorithm="HS256"))
    with pytest.raises(Unauthenticated, match="does not take"):
        tokens.login(jwt.encode(claims(), "s" * 64, algorithm="HS512"))


def test_a_public_key_must_be_one_and_strong(tmp_path: Path, keys: dict[str, SigningKey]) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        web_tokens(jwt_public_key_file=tmp_path / "nothing.pem")
    private = keys["ES256"].private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem in (b"", b"no PEM", private):
        with pytest.raises(SettingsError, match="no PEM public key"):
            with_public_key(tmp_path, pem)
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    with pytest.raises(SettingsError, match="RSA of 2048 bits"):
        with_public_key(tmp_path, weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize("url", ["http://issuer.example/keys", "file:///etc/passwd", "issuer.example", "ftp://x/keys"])
def test_keys_are_fetched_only_by_a_way_that_nobody_can_change(url: str) -> None:
    with pytest.raises(SettingsError, match="https:// only"):
        web_tokens(jwt_jwks_url=url)


# -- a key server


@pytest.mark.parametrize("algorithm", ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"])
def test_keys_of_a_url(algorithm: str, keys: dict[str, SigningKey]) -> None:
    key = keys[algorithm]
    with KeyServer(keys["RS384"].jwk(), key.jwk()) as server:
        tokens = web_tokens(jwt_jwks_url=server.url)
        assert server.requests == 0
        for _ in range(3):
            assert tokens.login(key.token()).principal.name == "ada"
        assert server.requests == 1
        with pytest.raises(Unauthenticated, match="signature"):
            tokens.login(SigningKey(algorithm, key.key_id).token())


def test_a_key_of_a_url_takes_only_its_own_algorithm(keys: dict[str, SigningKey]) -> None:
    key = keys["RS256"]
    with KeyServer(key.jwk(), {"kty": "oct", "kid": "shared", "k": "c2VjcmV0" * 8, "alg": "HS256"}) as server:
        tokens = web_tokens(jwt_jwks_url=server.url)
        for algorithm in ("RS512", "PS256"):
            other = jwt.encode(claims(), key.private, algorithm=algorithm, headers={"kid": key.key_id})
            with pytest.raises(Unauthenticated, match="does not take"):
                tokens.login(other)
        for header in ({"alg": "HS256", "kid": "shared"}, {"alg": "HS256", "kid": key.key_id}, {"alg": "none"}):
            for secret in (base64.b64decode("c2VjcmV0" * 8), key.pem):
                with pytest.raises(Unauthenticated):
                    tokens.login(forged(header, claims(), secret))


def test_an_unknown_key_is_asked_for_at_a_bounded_rate(
    keys: dict[str, SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = keys["RS256"], keys["ES256"]
    with KeyServer(old.jwk()) as server:
        tokens = web_tokens(jwt_jwks_url=server.url)
        tokens.login(old.token())
        server.keys = [new.jwk()]
        for _ in range(50):
            with pytest.raises(Unauthenticated, match="does not take"):
                tokens.login(new.token())
        assert server.requests == 1
        # PyJWT keeps this time itself, by the machine's clock.
        client = tokens._sources[0]._client  # type: ignore[attr-defined]
        monkeypatch.setattr(client, "_last_successful_fetch", client._last_successful_fetch - 11)
        assert tokens.login(new.token()).principal.name == "ada"
        assert server.requests == 2
        with pytest.raises(Unauthenticated):
            tokens.login(old.token())


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_url_that_fails_is_not_asked_again_at_once(status: int, keys: dict[str, SigningKey]) -> None:
    clock = ManualClock()
    with KeyServer(keys["ES256"].jwk()) as server:
        server.status = status
        tokens = web_tokens(clock, jwt_jwks_url=server.url)
        for _ in range(10):
            with pytest.raises(Unavailable, match="does not answer"):
                tokens.login(keys["ES256"].token())
        assert server.requests == 1
        server.status = 200
        clock.advance(5.0)
        assert tokens.login(keys["ES256"].token()).principal.name == "ada"


def test_nobody_behind_the_url(keys: dict[str, SigningKey]) -> None:
    with KeyServer() as server:
        url = server.url
    with pytest.raises(Unavailable, match="does not answer"):
        web_tokens(jwt_jwks_url=url, jwt_jwks_timeout_s=1).login(keys["ES256"].token())


@pytest.mark.parametrize("answer", [[], ["x"], [{"kty": "RSA", "kid": "key-RS256"}]])
def test_a_url_without_usable_keys(answer: list[Any], keys: dict[str, SigningKey]) -> None:
    with KeyServer(*answer) as server:
        tokens = web_tokens(jwt_jwks_url=server.url)
        with pytest.raises((Unavailable, Unauthenticated)) as caught:
            tokens.login(keys["RS256"].token())
        assert "\n" not in caught.value.message
