from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from common.settings import IngestSettings
from ingest.feed import Feed
from ingest.venues.binance import BinanceSession
from ingest.watch import Decision, backoff_s, decide

SETTINGS = IngestSettings(stale_after_s=120, rotate_after_s=3600, backoff_s_first=5, backoff_s_max=60)


@pytest.mark.parametrize(
    ("now_s", "heard_s", "busy", "decision"),
    [
        (119.9, 0.0, False, Decision.KEEP),
        (120.0, 0.0, False, Decision.STALE),
        (120.0, 0.1, False, Decision.KEEP),
        (500.0, 0.0, True, Decision.KEEP),
        (3600.0, 3599.0, False, Decision.ROTATE),
        (3600.0, 3599.0, True, Decision.ROTATE),
        (3600.0, 0.0, False, Decision.STALE),
    ],
)
def test_when_a_connection_is_given_up(now_s: float, heard_s: float, busy: bool, decision: Decision) -> None:
    assert decide(now_s=now_s, opened_s=0.0, heard_s=heard_s, busy=busy, settings=SETTINGS) is decision


def test_backoff_doubles_to_its_longest() -> None:
    assert [backoff_s(attempt, SETTINGS, 0.0) for attempt in range(6)] == [5, 10, 20, 40, 60, 60]


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_jitter_takes_off_at_most_a_half(attempt: int, share: float) -> None:
    full = backoff_s(attempt, SETTINGS, 0.0)
    assert full / 2 <= backoff_s(attempt, SETTINGS, share) <= full <= SETTINGS.backoff_s_max


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "http://x", "wss://", "ws://x:99999", "ws://x:port", "ws://[::1", "ws://x:0"]
)
def test_a_url_that_is_none_is_a_settings_error(url: str) -> None:
    async def handle(frames: Sequence[bytes], receive_time_us: int, correlation_id: str) -> None:
        raise AssertionError

    with pytest.raises(SettingsError, match="is not a websocket URL"):
        Feed([url], BinanceSession(["BTCUSDT"]), [], handle, SETTINGS)
