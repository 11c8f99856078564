"""How much may be asked of a venue, and when: rate limits as values. Pure: the time is handed in.

Source: Binance's web-socket-streams.md and rest-api.md (2026): 5 messages a second and connection, 300 connections in
5 minutes and address, a weight of 6,000 a minute and address for REST.
"""

from __future__ import annotations

from collections import deque


class RateLimiter:
    """Never lets more than `most` through in any stretch of `window_s` seconds, wherever the stretch begins.

    Stricter than a venue that counts by the clock's minutes, so it holds for either way of counting. Times are
    monotonic seconds, of one clock.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self.most = most
        self.window_s = window_s
        self._taken: deque[tuple[float, int]] = deque()
        self._used = 0
        self._held_until_s = float("-inf")

    def take(self, now_s: float, weight: int = 1) -> float:
        """0.0, and the weight is counted; or how many seconds to wait before asking again, and nothing is counted.

        A weight beyond `most` goes through when nothing else is in the window: it would never get its turn otherwise.
        """
        self._forget(now_s)
        if now_s < self._held_until_s:
            return self._held_until_s - now_s
        if self._taken and self._used + weight > self.most:
            return self._room_at_s(weight) - now_s
        self._taken.append((now_s, weight))
        self._used += weight
        return 0.0

    def hold(self, until_s: float) -> None:
        """Nothing more before then: the venue said so."""
        self._held_until_s = max(self._held_until_s, until_s)

    def observe(self, now_s: float, used: int) -> None:
        """The venue's own count of the window: what others of our address used is taken into account too."""
        self._forget(now_s)
        if used > self._used:
            self._taken.append((now_s, used - self._used))
            self._used = used

    def used(self, now_s: float) -> int:
        """What is counted in the window that ends now."""
        self._forget(now_s)
        return self._used

    def held_s(self, now_s: float) -> float:
        """How long the venue still wants to hear nothing."""
        return max(0.0, self._held_until_s - now_s)

    def _room_at_s(self, weight: int) -> float:
        left = self._used
        for taken_s, one in self._taken:
            left -= one
            if left + weight <= self.most or left == 0:
                return taken_s + self.window_s
        raise AssertionError("an empty window has room for anything")

    def _forget(self, now_s: float) -> None:
        while self._taken and now_s >= self._taken[0][0] + self.window_s:
            self._used -= self._taken.popleft()[1]
