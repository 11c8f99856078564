"""One database for each module, and ranges of time to ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.market import MarketDatabase


@pytest.fixture(scope="module")
def market() -> Iterator[MarketDatabase]:
    database = MarketDatabase()
    yield database
    database.close()
