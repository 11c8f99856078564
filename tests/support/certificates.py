"""An authority of a test's own, and certificates by it: made when the test runs, good for an hour."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM and as files."""

    certificate: bytes
    key: bytes
    certificate_file: Path
    key_file: Path


class Authority:
    """Signs certificates, and puts each beside its key into `folder`."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._certificate = self._sign(self._name, self._key.public_key(), [], is_authority=True)
        self.pem = self._certificate.public_bytes(Encoding.PEM)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.pem)

    def server(self) -> Pair:
        """For localhost and 127.0.0.1."""
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return self._pair("localhost", names)

    def client(self, name: str, *, also: Sequence[str] = ()) -> Pair:
        """For a client; `also` are e-mail addresses as alternative names."""
        return self._pair(name, [x509.RFC822Name(address) for address in also])

    def _pair(self, name: str, alternatives: Sequence[x509.GeneralName]) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(name), key.public_key(), alternatives)
        stem = self._folder / name
        pair = Pair(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            stem.with_suffix(".crt"),
            stem.with_suffix(".key"),
        )
        pair.certificate_file.write_bytes(pair.certificate)
        pair.key_file.write_bytes(pair.key)
        return pair

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        alternatives: Sequence[x509.GeneralName],
        *,
        is_authority: bool = False,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
