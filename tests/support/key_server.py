"""Keys that sign web tokens, and a JWKS URL for them on loopback, which can fail and counts how often it is asked."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

AUDIENCE, ISSUER = "k2", "https://issuer.example"
SECRET = "s" * 64


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones, for ada, for an hour; a change to None leaves a claim out."""
    now_s = int(time.time())
    good = {"sub": "ada", "aud": AUDIENCE, "iss": ISSUER, "iat": now_s, "exp": now_s + 3600} | changes
    return {name: value for name, value in good.items() if value is not None}


class SigningKey:
    """A private key and the algorithm it signs with."""

    def __init__(self, algorithm: str, key_id: str | None = None) -> None:
        self.algorithm = algorithm
        self.key_id = key_id or f"key-{algorithm}"
        self.private: Any = _new(algorithm)

    @property
    def pem(self) -> bytes:
        """The public half."""
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def jwk(self, **changes: Any) -> dict[str, Any]:
        algorithm: Any = get_default_algorithms()[self.algorithm]
        public = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.key_id, "use": "sig", "alg": self.algorithm, **changes}

    def token(self, **changes: Any) -> str:
        return jwt.encode(claims(**changes), self.private, algorithm=self.algorithm, headers={"kid": self.key_id})


def _new(algorithm: str) -> Any:
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curve = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}[algorithm]
    return ec.generate_private_key(curve())


class KeyServer:
    """Serves `keys` as a JWK set; with `status` other than 200, that and no keys."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.status = 200
        self.requests = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests += 1
                body = json.dumps({"keys": owner.keys}).encode()
                self.send_response(owner.status)
                self.send_header("Content-Type", "application/json")
                if owner.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/keys"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
