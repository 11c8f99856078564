from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState, Retrying

from common.errors import SettingsError
from common.settings import IngestSettings
from ingest.feed import Feed
from ingest.venues.binance import BinanceSession
from ingest.watch import Decision, decide, reconnect_waits

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


def waits_s(settings: IngestSettings, attempts: int, count: int) -> list[float]:
    """What is waited before each of `count` attempts, behind so many in vain."""
    waits = reconnect_waits(settings, attempts)
    state = RetryCallState(Retrying(), None, (), {})
    found = []
    for state.attempt_number in range(1, count + 1):
        found.append(waits(state))
    return found


def test_backoff_doubles_to_its_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.wait.random.random", lambda: 1.0)
    assert waits_s(SETTINGS, 0, 6) == [5, 10, 20, 40, 60, 60]
    assert waits_s(SETTINGS, 3, 3) == [40, 60, 60]
    assert waits_s(SETTINGS, 9, 2) == [60, 60]
    assert waits_s(IngestSettings(backoff_s_first=5, backoff_s_max=1), 0, 2) == [1, 1]


@given(st.integers(0, 100), st.floats(0.001, 60), st.floats(0.001, 3600))
def test_jitter_takes_off_at_most_a_half(attempts: int, first_s: float, longest_s: float) -> None:
    settings = IngestSettings(backoff_s_first=first_s, backoff_s_max=longest_s)
    full_s = min(first_s * 2.0**attempts, longest_s)
    (wait_s,) = waits_s(settings, attempts, 1)
    assert full_s / 2 <= wait_s <= full_s


def test_clients_that_were_cut_off_together_do_not_come_back_together() -> None:
    assert len({waits_s(SETTINGS, 0, 1)[0] for _ in range(20)}) > 1


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "http://x", "wss://", "ws://x:99999", "ws://x:port", "ws://[::1", "ws://x:0"]
)
def test_a_url_that_is_none_is_a_settings_error(url: str) -> None:
    async def handle(frames: Sequence[bytes], receive_time_us: int, correlation_id: str) -> None:
        raise AssertionError

    with pytest.raises(SettingsError, match="is not a websocket URL"):
        Feed([url], BinanceSession(["BTCUSDT"]), [], handle, SETTINGS)
