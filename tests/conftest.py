"""What every test may use: the real captures, where this machine has them, and quiet logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.settings import TelemetrySettings
from common.telemetry import configure_logging

_CAPTURES = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "binance"


@pytest.fixture(scope="session", autouse=True)
def _quiet_logs() -> Iterator[None]:
    configure_logging(TelemetrySettings(log_level="error", log_format="json"), service="tests")
    yield


@pytest.fixture(autouse=True)
def _logs_stay_where_they_were() -> Iterator[None]:
    """A command that ran in this process sent its logs to a stream that ends with its test."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def captures() -> dict[str, Path]:
    """The recorded Binance feeds by file name; skips with the reason where they are not."""
    found = {path.name: path for path in sorted(_CAPTURES.glob("*.gz"))}
    if not found:
        pytest.skip("the recorded Binance feeds are not on this machine (../shared/data/binance beside the checkout)")
    return found
