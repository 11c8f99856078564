"""The server's certificate and key, checked before they are used: gRPC itself only says that it cannot listen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from pyarrow import flight

from common.errors import SettingsError
from common.settings import FlightSettings


@dataclass(frozen=True)
class Transport:
    """How clients reach the server: in the clear, by TLS, or by TLS with certificates on both sides."""

    scheme: str = "grpc"
    certificates: tuple[flight.CertKeyPair, ...] = ()
    client_ca: bytes | None = None

    @classmethod
    def from_settings(cls, settings: FlightSettings) -> Transport:
        """Raises SettingsError: a file is missing, unreadable or no PEM, or key and certificate do not fit."""
        cert_file, key_file, ca_file = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        if cert_file is None or key_file is None:
            if cert_file or key_file or ca_file:
                raise SettingsError(
                    "TLS needs a certificate and its key; set K2_FLIGHT_TLS_CERT_FILE and K2_FLIGHT_TLS_KEY_FILE, both"
                )
            return cls()
        chain, key = _read(cert_file), _read(key_file)
        _check_pair(chain, key, cert_file, key_file)
        client_ca = None if ca_file is None else _read(ca_file)
        if client_ca is not None:
            _certificates(client_ca, str(ca_file))
        return cls("grpc+tls", (flight.CertKeyPair(chain, key),), client_ca)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}); correct K2_FLIGHT_TLS_... or permissions"
        ) from None


def _certificates(pem: bytes, where: str) -> bytes:
    """The first certificate's public key, for comparison."""
    try:
        first = load_pem_x509_certificates(pem)[0]
        return first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{where} holds no PEM certificate; correct K2_FLIGHT_TLS_...") from None


def _check_pair(chain: bytes, key: bytes, cert_file: Path, key_file: Path) -> None:
    certified = _certificates(chain, str(cert_file))
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SettingsError(
            f"{key_file} holds no PEM private key without a passphrase; correct K2_FLIGHT_TLS_KEY_FILE"
        ) from None
    if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != certified:
        raise SettingsError(f"the key in {key_file} is not that of the certificate in {cert_file}; correct one of them")
