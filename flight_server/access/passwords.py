"""Passwords at rest: scrypt, with its parameters kept beside each hash, so that they can be raised without a migration.

The text form is PHC's: `$scrypt$ln=15,r=8,p=3$<salt>$<hash>`, in base64 without padding. Source: RFC 7914, and the
OWASP password storage sheet, which gives these parameters (32 MiB) as equal to its first choice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Self

from common.errors import SettingsError

#: Some 0.3 s of one core, and 32 MiB while it runs: the gate bounds how many run at once.
LOG_N, R, P = 15, 8, 3
PASSWORD_CHARACTERS_MAX = 1024
_FORM = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")
#: What a hash in the file may ask of this server: 512 MiB.
_LOG_N_MAX, _R_MAX, _P_MAX = 19, 16, 16
_SALT_BYTES, _HASH_BYTES = 16, 32


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """One hashed password. `matches` takes the same time whatever it is given."""

    log_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str, *, log_n: int = LOG_N, r: int = R, p: int = P) -> Self:
        salt = secrets.token_bytes(_SALT_BYTES)
        return cls(log_n, r, p, salt, _scrypt(password, salt, log_n, r, p, _HASH_BYTES))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Raises SettingsError, which does not repeat the text."""
        wrong = (
            "a password hash has the form $scrypt$ln=..,r=..,p=..$salt$hash; make one with `k2 access hash-password`"
        )
        if (form := _FORM.fullmatch(text)) is None:
            raise SettingsError(wrong)
        log_n, r, p = (int(number) for number in form.group(1, 2, 3))
        if not (1 <= log_n <= _LOG_N_MAX and 1 <= r <= _R_MAX and 1 <= p <= _P_MAX):
            raise SettingsError(f"a password hash asks for ln={log_n}, r={r}, p={p}, which is out of bounds; {wrong}")
        try:
            salt, digest = (base64.b64decode(part + "=" * (-len(part) % 4), validate=True) for part in form.group(4, 5))
        except binascii.Error:
            raise SettingsError(wrong) from None
        if len(digest) < _HASH_BYTES:
            raise SettingsError(f"a password hash is too short; {wrong}")
        return cls(log_n, r, p, salt, digest)

    def to_text(self) -> str:
        salt, digest = (base64.b64encode(part).decode().rstrip("=") for part in (self.salt, self.digest))
        return f"$scrypt$ln={self.log_n},r={self.r},p={self.p}${salt}${digest}"

    def matches(self, password: str) -> bool:
        found = _scrypt(password, self.salt, self.log_n, self.r, self.p, len(self.digest))
        return hmac.compare_digest(found, self.digest)

    def decoy(self) -> PasswordHash:
        """A hash that costs the same to check, and that no password matches."""
        return PasswordHash(
            self.log_n, self.r, self.p, secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(len(self.digest))
        )


def _scrypt(password: str, salt: bytes, log_n: int, r: int, p: int, length: int) -> bytes:
    n = 1 << log_n
    # OpenSSL counts n blocks of 128 r bytes, and refuses at its own 32 MiB when it is told nothing else.
    memory = 128 * r * (n + p + 2)
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=length)
