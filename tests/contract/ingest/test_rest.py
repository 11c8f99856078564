"""The REST client against the simulator, and against hosts that fail: limits, fail-over, refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from common.clock import ManualClock
from common.errors import FeedClosed, FeedLimited, FeedProtocolError, FeedRefused, SettingsError
from ingest.rest import RestClient, RestRequest
from ingest.simulator import Simulator
from ingest.venues.binance_rest import (
    historical_trades_request,
    instrument_request,
    instruments_of,
    server_time_request,
    server_time_us_of,
    trades_of,
)
from tests.contract.ingest.ingest_support import made_up

TIME = server_time_request()
DEAD = "http://127.0.0.1:1"


class Patience:
    """A sleep that takes no time but the clock's."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def client(*urls: str, weight: int = 6_000) -> AsyncIterator[tuple[RestClient, Patience]]:
    patience = Patience()
    one = RestClient(urls, weight_per_minute_max=weight, clock=patience.clock, sleep=patience.sleep)
    try:
        yield one, patience
    finally:
        await one.close()


@contextlib.asynccontextmanager
async def host(answers: Iterable[bytes]) -> AsyncIterator[str]:
    """An HTTP host that gives these answers, one a connection, the last one again and again."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def http(status: str, body: str = "{}", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_the_simulator_tells_time_symbols_and_the_trades_of_its_captures(tmp_path: Path, simulator: Any) -> None:
    source: Simulator = simulator([made_up(tmp_path / "c", trades=1_500).path])

    async def test() -> None:
        async with client(source.url.replace("ws", "http")) as (rest, _):
            assert server_time_us_of(await rest.get(TIME)) > 1_700_000_000_000_000
            infos = instruments_of(await rest.get(instrument_request(["BTCUSDT", "ETHBTC"])))
            assert [(info.base_currency, info.quote_currency) for info in infos] == [("BTC", "USDT"), ("ETH", "BTC")]
            trades = trades_of(await rest.get(historical_trades_request("ETHBTC", 1_000_100)), "ETHBTC", 5)
            assert [trade.trade_id for trade in trades] == list(range(1_000_100, 1_001_100))
            assert rest.weight_used == 1 + 20 + 25
            assert rest.requests == 3
            with pytest.raises(FeedRefused, match="Invalid symbol") as refused:
                await rest.get(historical_trades_request("NOPE", 1))
            assert (refused.value.code, refused.value.retryable) == (-1121, False)

    run(test)


def test_requests_wait_until_there_is_room_for_their_weight() -> None:
    async def test() -> None:
        async with host([http("200 OK")]) as url, client(url, weight=100) as (rest, patience):
            await asyncio.gather(*(rest.get(RestRequest("/x", {}, 40)) for _ in range(5)))
            assert patience.clock.monotonic_s() == pytest.approx(120)
            assert rest.requests == 5

    run(test)


def test_what_others_of_our_address_used_is_taken_into_account() -> None:
    async def test() -> None:
        async with (
            host([http("200 OK", "{}", "X-MBX-USED-WEIGHT-1M: 90")]) as url,
            client(url, weight=100) as (
                rest,
                patience,
            ),
        ):
            await rest.get(RestRequest("/x", {}, 1))
            await rest.get(RestRequest("/x", {}, 20))
            assert sum(patience.waits) == pytest.approx(60)

    run(test)


def test_after_429_nothing_is_asked_before_its_time(tmp_path: Path) -> None:
    refusals = [http("429 Too Many Requests", "{}", "Retry-After: 33"), http("418 I'm a teapot"), http("200 OK", "[7]")]

    async def test() -> None:
        async with host(refusals) as url, client(url) as (rest, patience):
            with pytest.raises(FeedLimited, match=r"asked too often \(HTTP 429\).*for 33 s") as limited:
                await rest.get(TIME)
            assert limited.value.retryable
            with pytest.raises(FeedLimited, match=r"has banned this address \(HTTP 418\).*for 10 s"):
                await rest.get(TIME)
            assert patience.waits == [33]
            assert await rest.get(TIME) == [7]
            assert patience.waits == [33, 10]
            assert rest.limited == 2

    run(test)


def test_a_host_that_is_away_is_passed_over_and_not_asked_first_again() -> None:
    async def test() -> None:
        async with host([http("503 Unavailable", "no")]) as ill, host([http("200 OK", "[1.50]")]) as well:
            async with client(DEAD, ill, well) as (rest, _):
                [number] = await rest.get(TIME)
                assert str(number) == "1.50"
                assert rest.requests == 3
                await rest.get(TIME)
                assert rest.requests == 4
            async with client(DEAD, ill) as (rest, _):
                with pytest.raises(FeedClosed, match="answered HTTP 503") as closed:
                    await rest.get(TIME)
                assert closed.value.retryable

    run(test)


def test_what_is_not_json_is_no_answer() -> None:
    async def test() -> None:
        async with host([http("200 OK", "<html>")]) as url, client(url) as (rest, _):
            with pytest.raises(FeedProtocolError, match="not JSON: '<html>'"):
                await rest.get(TIME)

    run(test)


@pytest.mark.parametrize("url", ["ws://host", "https://", "host", "http://host:x"])
def test_a_url_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="is not a REST URL"):
        RestClient([url], weight_per_minute_max=1)
    with pytest.raises(SettingsError, match="no REST URL"):
        RestClient([], weight_per_minute_max=1)
