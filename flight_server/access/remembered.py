"""What was proved already, for a while: credentials by a keyed digest, so that no secret is kept.

A call's credentials are looked up here first, which costs a hash and a dictionary; only what is not found is proved.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from common.clock import Clock
from flight_server.access.principal import Principal

_SESSION_PREFIX = "k2s_"


@dataclass(frozen=True, slots=True)
class Admission:
    """Who came in. `session_token` is the id of the bearer token of our own Handshake, None for other credentials."""

    principal: Principal
    session_token: str | None = None


@dataclass(slots=True)
class _Entry:
    admission: Admission
    idle_s_max: float
    ends_s: float
    idle_ends_s: float


class Remembered:
    """Thread-safe and bounded: beyond `count_max` the entry used longest ago goes.

    The digest is keyed with a secret of this process, so that not even a weak password could be found from it.
    """

    def __init__(self, clock: Clock, *, count_max: int) -> None:
        self._clock = clock
        self._count_max = count_max
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()

    def get(self, secret: str) -> Admission | None:
        """What was proved with this secret, when it still counts; using it makes its idle time begin again."""
        digest = self.digest(secret)
        now_s = self._clock.monotonic_s()
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            if now_s >= entry.ends_s or now_s >= entry.idle_ends_s:
                del self._entries[digest]
                return None
            entry.idle_ends_s = now_s + entry.idle_s_max
            self._entries.move_to_end(digest)
            return entry.admission

    def put(self, secret: str, admission: Admission, *, life_s_max: float, idle_s_max: float) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._entries[self.digest(secret)] = _Entry(admission, idle_s_max, now_s + life_s_max, now_s + idle_s_max)
            self._entries.move_to_end(self.digest(secret))
            while self._entries and self._over(now_s):
                self._entries.popitem(last=False)

    def _over(self, now_s: float) -> bool:
        """Is the entry used longest ago dead, or one too many?"""
        oldest = next(iter(self._entries.values()))
        return len(self._entries) > self._count_max or now_s >= min(oldest.ends_s, oldest.idle_ends_s)


class SessionTokens(Remembered):
    """The bearer tokens that a Handshake gives: 256 random bits, valid while they are used, and for a life at most."""

    def __init__(self, clock: Clock, *, count_max: int, idle_s_max: float, life_s_max: float) -> None:
        super().__init__(clock, count_max=count_max)
        self._idle_s_max = idle_s_max
        self._life_s_max = life_s_max

    @staticmethod
    def looks_like_one(token: str) -> bool:
        return token.startswith(_SESSION_PREFIX)

    def issue(self, principal: Principal) -> str:
        token = _SESSION_PREFIX + secrets.token_urlsafe(32)
        admission = Admission(principal, self.digest(token).hex())
        self.put(token, admission, life_s_max=self._life_s_max, idle_s_max=self._idle_s_max)
        return token

    def revoke(self, session_token: str) -> None:
        """Forget the token with this id; nothing when it is gone."""
        with self._lock:
            self._entries.pop(bytes.fromhex(session_token), None)
