"""What is left out at each level of load, and that each of it is told once."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import Encoder
from common.datasets import SHED
from common.degradation import Level, Triggers
from common.errors import SettingsError
from common.registry import EmbeddedRegistry
from common.settings import IngestSettings
from ingest.shedding import Shedding, shed_triggers
from ingest.venues.events import (
    AggTradeEvent,
    BlockTradeEvent,
    BookSnapshotEvent,
    BookTickerEvent,
    DepthEvent,
    Event,
    IgnoredEvent,
    ServerShutdown,
    TradeEvent,
)

ONE = Decimal(1)
TRIGGERS = Triggers((50, 70, 85, 95), (70, 80, 90, 95), recover_after_s=30.0)
#: The queue that brings each level.
QUEUE = {Level.NORMAL: 0, Level.SOFT: 50, Level.GRACEFUL: 70, Level.AGGRESSIVE: 85, Level.CIRCUIT_BREAK: 95}


def quote(symbol: str, update_id: int = 1, time_us: int = 5) -> BookTickerEvent:
    return BookTickerEvent(symbol, update_id, ONE, ONE, ONE, ONE, time_us)


def trade(symbol: str, trade_id: int = 1, time_us: int = 5) -> TradeEvent:
    return TradeEvent(symbol, trade_id, ONE, ONE, 1, 1, True, time_us)


def depth(symbol: str) -> DepthEvent:
    return DepthEvent(symbol, 9, 7, 1, [], [], [], [], 5)


def at(level: Level) -> Shedding:
    shedding = Shedding("binance", TRIGGERS, ["btcusdt"])
    shedding.observe(QUEUE[level], 0, 0.0)
    assert shedding.level is level
    return shedding


@pytest.mark.parametrize(
    ("event", "begins"),
    [
        (depth("ETHBTC"), Level.SOFT),
        (BookSnapshotEvent("ETHBTC", 1, [], [], [], [], 5), Level.SOFT),
        (AggTradeEvent("ETHBTC", 1, ONE, ONE, 1, 2, 1, 1, True, 5), Level.SOFT),
        (depth("BTCUSDT"), Level.GRACEFUL),
        (quote("ETHBTC"), Level.GRACEFUL),
        (quote("BTCUSDT"), Level.AGGRESSIVE),
        (trade("ETHBTC"), None),
        (BlockTradeEvent("ETHBTC", 1, ONE, ONE, 1, 1, True, 5), None),
        (ServerShutdown(None), None),
        (IgnoredEvent("pong"), None),
    ],
)
def test_each_event_is_shed_from_its_level_on(event: Event, begins: Level | None) -> None:
    for level in Level:
        shedding = at(level)
        assert shedding.sheds(event) == (begins is not None and level >= begins)
        assert sum(shedding.records.values()) == (begins is not None and level >= begins)


@given(st.lists(st.tuples(st.sampled_from(["BTCUSDT", "ETHBTC"]), st.integers(1, 99), st.booleans(), st.booleans())))
def test_each_of_what_is_shed_is_told_once(events: list[tuple[str, int, bool, bool]]) -> None:
    shedding, told, wanted = at(Level.CIRCUIT_BREAK), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for symbol, an_id, is_trade, tells in events:
        wanted[symbol, "trades" if is_trade else "quotes"] += 1
        if is_trade:
            shedding.shed_trade(trade(symbol, an_id))
        else:
            assert shedding.sheds(quote(symbol, an_id))
        if tells:
            for record in shedding.tell(1.0):
                told[record["symbol"], record["dataset"]] += record["records"]
    for record in shedding.tell(2.0):
        told[record["symbol"], record["dataset"]] += record["records"]
    assert told == wanted
    assert shedding.tell(3.0) == []
    assert sum(shedding.records.values()) == sum(wanted.values())


def test_a_record_says_how_many_of_which_ids_when_and_how_bad_it_was() -> None:
    shedding = at(Level.GRACEFUL)
    shedding.sheds(quote("ETHBTC", 7, 30))
    shedding.observe(85, 0, 1.0)
    shedding.sheds(quote("ETHBTC", 5, 20))
    shedding.sheds(quote("ETHBTC", 9, 40))
    (record,) = shedding.tell(2.0)
    assert record == {
        "message_id": "binance:ETHBTC:quotes:20",
        "exchange": "binance",
        "symbol": "ETHBTC",
        "dataset": "quotes",
        "level": "aggressive",
        "records": 3,
        "first_id": 5,
        "last_id": 9,
        "first_time": 20,
        "last_time": 40,
    }
    assert Encoder(SHED, EmbeddedRegistry(), topic="t").encode(record)


def test_it_is_told_when_it_is_over_and_now_and_then_before() -> None:
    shedding = at(Level.GRACEFUL)
    assert not shedding.due(100.0), "nothing was shed"
    shedding.tell(0.0)
    shedding.sheds(quote("ETHBTC"))
    assert not shedding.due(9.9)
    assert shedding.due(10.0)
    for now_s in (1.0, 31.0, 61.0):
        shedding.observe(0, 0, now_s)
    assert shedding.level is Level.NORMAL
    assert shedding.due(61.0)


@pytest.mark.parametrize("percents", [(50, 40, 85, 95), (0, 70, 85, 95)])
def test_levels_that_do_not_rise_are_refused(percents: tuple[float, float, float, float]) -> None:
    with pytest.raises(SettingsError, match=r"K2_INGEST_SHED_QUEUE_PERCENT is \["):
        shed_triggers(IngestSettings(shed_queue_percent=percents))
