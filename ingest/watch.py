"""What an open connection is judged by, and when a host is tried again. Pure: values in, decisions out.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from tenacity import wait_chain, wait_random

from common.settings import IngestSettings

#: A host whose connections failed so often in a row is left alone for so long; then one connection tries it.
_FAILURES_MAX: Final = 3
_LEFT_ALONE_S: Final = 30.0


class Decision(Enum):
    """What to do with an open connection."""

    KEEP = "keep"
    STALE = "stale"
    SILENT = "silent"
    ROTATE = "rotate"


def decide(
    *,
    now_s: float,
    opened_s: float,
    heard_s: float,
    busy: bool,
    settings: IngestSettings,
    outheard_s: float | None = None,
    pinged_s: float | None = None,
) -> Decision:
    """Stale when the venue sent nothing for too long while we listened; silent when it left a ping without its echo;
    due for rotation when old.

    `busy` means that we are working on a frame, or waiting for Kafka to take it: then silence proves nothing.
    `outheard_s` is since when another connection with the same streams is seen to bring frames and this one none: then
    it is stale much sooner. `pinged_s` is when the ping that has no echo yet was sent.
    """
    if not busy:
        if now_s - heard_s >= settings.stale_after_s:
            return Decision.STALE
        if outheard_s is not None and now_s - outheard_s >= settings.stale_beside_twin_after_s:
            return Decision.STALE
        if pinged_s is not None and now_s - pinged_s >= settings.ping_timeout_s:
            return Decision.SILENT
    if now_s - opened_s >= settings.rotate_after_s:
        return Decision.ROTATE
    return Decision.KEEP


def reconnect_waits(settings: IngestSettings, attempts: int = 0) -> wait_chain:
    """How long to wait before each attempt to connect, behind `attempts` that were in vain: 5, 10, 20, 40, 60 s and on,
    doubling from the first wait to the longest, each less up to half of it, so that many clients that were cut off
    together do not come back together.
    """
    full = [min(settings.backoff_s_first, settings.backoff_s_max)]
    while full[-1] < settings.backoff_s_max:
        full.append(min(2 * full[-1], settings.backoff_s_max))
    return wait_chain(*(wait_random(wait_s / 2, wait_s) for wait_s in full[attempts:] or full[-1:]))


class Breaker:
    """A circuit breaker: after three failures in a row nothing goes for 30 s, then one probe, whose outcome decides."""

    def __init__(self, failures_max: int = _FAILURES_MAX, open_s: float = _LEFT_ALONE_S) -> None:
        self._failures_max = failures_max
        self._open_s = open_s
        self._failures = 0
        self._opened_s = 0.0
        self._probing_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """How long nothing may go yet; 0.0 when something may."""
        if not self.is_open:
            return 0.0
        since_s = self._opened_s if self._probing_s is None else self._probing_s
        return max(0.0, since_s + self._open_s - now_s)

    def enter(self, now_s: float) -> bool:
        """May one go now? When the breaker is open it is the probe, and no other goes until its outcome is known.

        A probe whose outcome never came counts as failed after another 30 s.
        """
        if self.wait_s(now_s) > 0:
            return False
        if self.is_open:
            self._probing_s = now_s
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._probing_s = None

    def failed(self, now_s: float) -> None:
        self._failures += 1
        self._probing_s = None
        if self.is_open:
            self._opened_s = now_s

    @property
    def is_open(self) -> bool:
        return self._failures >= self._failures_max


class Hosts:
    """The hosts that serve the same streams, in order of preference: which one to try now.

    It stays with one that works; after a failure the next one's turn is first.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        self._breakers = {url: Breaker() for url in self.urls}
        self._at = 0
        self.failures = 0

    def pick(self, now_s: float) -> str | None:
        """The host to try; None when all are left alone."""
        for step in range(len(self.urls)):
            url = self.urls[(self._at + step) % len(self.urls)]
            if self._breakers[url].enter(now_s):
                return url
        return None

    def wait_s(self, now_s: float) -> float:
        """How long until one of them may be tried."""
        return min(breaker.wait_s(now_s) for breaker in self._breakers.values())

    def succeeded(self, url: str) -> None:
        self._breakers[url].succeeded()
        self._at = self.urls.index(url)

    def failed(self, url: str, now_s: float) -> None:
        self._breakers[url].failed(now_s)
        self.failures += 1
        if self.urls[self._at] == url:
            self._at = (self._at + 1) % len(self.urls)

    @property
    def open_breakers(self) -> int:
        """How many hosts are left alone."""
        return sum(breaker.is_open for breaker in self._breakers.values())


def spread(shards: Sequence[Sequence[str]], wanted: Sequence[str], most: int) -> list[list[str]]:
    """The wanted streams in shards of at most `most` each: one that is in a shard stays there, so that no stream moves
    between connections; new ones fill the room that is left, then further shards. A shard may become empty.
    """
    left = dict.fromkeys(wanted)
    spread_out = [[stream for stream in shard if stream in left] for shard in shards]
    for shard in spread_out:
        for stream in shard:
            left.pop(stream, None)
    fresh = list(left)
    for shard in spread_out:
        room = max(0, most - len(shard))
        shard += fresh[:room]
        del fresh[:room]
    for first in range(0, len(fresh), most):
        spread_out.append(fresh[first : first + most])
    return spread_out
