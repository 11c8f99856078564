"""A venue's REST interface, within its limits: the one home of httpx2.

A request waits until the limiter has room for its weight. After 429 or 418 nothing is asked before Retry-After has
passed. A host that cannot be reached, or answers with 5xx, is passed over for the next one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

import httpx2

from common.clock import Clock, SystemClock
from common.errors import FeedClosed, FeedLimited, FeedProtocolError, FeedRefused, SettingsError
from ingest.limits import RateLimiter

Sleep = Callable[[float], Awaitable[None]]

#: When a venue says 429 without saying how long.
_RETRY_AFTER_S: Final = 10.0
#: Binance tells with each answer what was used of the current minute.
_USED_WEIGHT: Final = "x-mbx-used-weight-1m"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class RestRequest(NamedTuple):
    """A GET and what it weighs. `params` are texts and numbers."""

    path: str
    params: dict[str, str | int]
    weight: int


class RestClient:
    """GETs of one venue's REST interface. One event loop; any number of requests at a time.

    `urls` are its hosts in order of preference (https://host). `close` it in the end.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        weight_per_minute_max: int,
        timeout_s: float = 10.0,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Raises SettingsError for a URL that cannot be."""
        if not urls:
            raise SettingsError("no REST URL of the venue is given; give one, such as https://host")
        self._urls = [_checked(url) for url in urls]
        self._limiter = RateLimiter(weight_per_minute_max, 60.0)
        self._clock = clock or SystemClock()
        self._sleep = sleep
        loopback = all(urlsplit(url).hostname in _LOOPBACK for url in self._urls)
        self._client = httpx2.AsyncClient(timeout=timeout_s, trust_env=not loopback)
        self._at = 0
        self.requests = 0
        self.limited = 0

    async def get(self, request: RestRequest) -> Any:
        """The answer's JSON, fractions as Decimal. Waits for its turn; every host is tried once.

        Raises FeedClosed (no host answers) and FeedLimited (429, 418), which may be tried again: the next call waits as
        long as the venue asked for; FeedRefused with the venue's code, FeedProtocolError when it is no JSON.
        """
        failure: FeedClosed | None = None
        for _ in self._urls:
            await self._turn(request.weight)
            url = self._urls[self._at]
            self.requests += 1
            try:
                response = await self._client.get(url + request.path, params=request.params)
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                failure = FeedClosed(
                    f"{url} cannot be reached ({str(error) or type(error).__name__}); check the URL and the network"
                )
            else:
                self._note_weight(response)
                if response.status_code < 500:
                    return self._answer(url, response)
                failure = FeedClosed(f"{url} answered HTTP {response.status_code}; try again later")
            self._at = (self._at + 1) % len(self._urls)
        assert failure is not None
        raise failure from None

    @property
    def weight_used(self) -> int:
        """What is counted of the last minute."""
        return self._limiter.used(self._clock.monotonic_s())

    async def close(self) -> None:
        await self._client.aclose()

    async def _turn(self, weight: int) -> None:
        while (wait_s := self._limiter.take(self._clock.monotonic_s(), weight)) > 0:
            await self._sleep(wait_s)

    def _note_weight(self, response: httpx2.Response) -> None:
        used = response.headers.get(_USED_WEIGHT, "")
        if used.isdecimal():
            self._limiter.observe(self._clock.monotonic_s(), int(used))

    def _answer(self, url: str, response: httpx2.Response) -> Any:
        if response.status_code in (418, 429):
            self._limited(url, response)
        try:
            answer = json.loads(response.content, parse_float=Decimal)
        except (ValueError, RecursionError):
            raise FeedProtocolError(
                f"{url} answered HTTP {response.status_code} with what is not JSON: {response.text[:100]!r}"
            ) from None
        if response.status_code != 200:
            about = answer if isinstance(answer, dict) else {}
            raise FeedRefused(
                f"{url} refused {response.request.url.path} (HTTP {response.status_code}: "
                f"{str(about.get('msg', about.get('message', 'no reason given')))[:200]})",
                code=about.get("code"),
            )
        return answer

    def _limited(self, url: str, response: httpx2.Response) -> NoReturn:
        said = response.headers.get("retry-after", "")
        wait_s = float(said) if said.isdecimal() else _RETRY_AFTER_S
        self._limiter.hold(self._clock.monotonic_s() + wait_s)
        self.limited += 1
        what = "has banned this address" if response.status_code == 418 else "was asked too often"
        raise FeedLimited(f"{url} {what} (HTTP {response.status_code}); nothing is asked of it for {wait_s:.0f} s")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise SettingsError(f"{url[:100]!r} is not a REST URL; write it as https://host or http://host:port")
    return url.rstrip("/")
