from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.datasets import QUOTES, TRADES
from common.errors import FeedProtocolError, SettingsError
from ingest.venues.binance import (
    BinanceSession,
    BookTickerEvent,
    IgnoredEvent,
    ServerShutdown,
    TradeEvent,
)

RECEIVED_US = 1_723_161_904_525_430
TRADE = {
    "e": "trade",
    "E": 1723161905801,
    "s": "BTCUSDT",
    "t": 3735703162,
    "p": "61602.02000000",
    "q": "0.00536000",
    "T": 1723161905800,
    "m": False,
    "M": True,
}
BOOK = {"u": 50093421613, "s": "BTCUSDT", "b": "61685.99", "B": "1.25869", "a": "61686.00", "A": "2.44816"}


def session() -> BinanceSession:
    return BinanceSession(["BTCUSDT", "ETHBTC"])


def frame(stream: str, data: object) -> bytes:
    return json.dumps({"stream": stream, "data": data}).encode()


def trade_frame(**changes: Any) -> bytes:
    return frame("btcusdt@trade", {k: v for k, v in {**TRADE, **changes}.items() if v is not ...})


def book_frame(**changes: Any) -> bytes:
    return frame("btcusdt@bookTicker", {k: v for k, v in {**BOOK, **changes}.items() if v is not ...})


def test_a_trade_keeps_every_digit_and_its_three_times() -> None:
    event = session().receive(trade_frame(), RECEIVED_US)
    assert event == TradeEvent(
        symbol="BTCUSDT",
        trade_id=3735703162,
        price=Decimal("61602.02000000"),
        quantity=Decimal("0.00536000"),
        event_time_us=1_723_161_905_801_000,
        transaction_time_us=1_723_161_905_800_000,
        buyer_is_maker=False,
        receive_time_us=RECEIVED_US,
    )


def test_a_book_ticker_has_no_time_of_its_own() -> None:
    event = session().receive(book_frame(), RECEIVED_US)
    assert event == BookTickerEvent(
        "BTCUSDT",
        50093421613,
        Decimal("61685.99"),
        Decimal("1.25869"),
        Decimal("61686.00"),
        Decimal("2.44816"),
        RECEIVED_US,
    )


def test_a_side_of_zeros_is_an_empty_side() -> None:
    event = session().receive(book_frame(b="0.00000000", B="0.00000000"), RECEIVED_US)
    assert isinstance(event, BookTickerEvent)
    assert (event.bid_price, event.bid_quantity, event.ask_price) == (None, None, Decimal("61686.00"))


def test_microseconds_are_told_from_milliseconds() -> None:
    event = session().receive(trade_frame(E=1_723_161_905_801_234, T=1_723_161_905_800_999), RECEIVED_US)
    assert isinstance(event, TradeEvent)
    assert (event.event_time_us, event.transaction_time_us) == (1_723_161_905_801_234, 1_723_161_905_800_999)


def test_text_and_bytes_are_the_same_frame() -> None:
    assert session().receive(trade_frame().decode(), 1) == session().receive(trade_frame(), 1)


def test_the_largest_numbers_of_the_schema_fit() -> None:
    event = session().receive(trade_frame(p="9999999999.99999999", q="1000000000000000.00000001"), RECEIVED_US)
    assert isinstance(event, TradeEvent)
    assert (event.price, event.quantity) == (Decimal("9999999999.99999999"), Decimal("1000000000000000.00000001"))


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "Infinity", "-1", "+1", "1e5", "1E-8", "", " 1", "1 ", "1\n", "1.", ".5", "0x10", "1_000", "1,5", "١٢",
        "1.123456789", "12345678901", "0" * 5000, "1." + "0" * 5000,
    ],
)  # fmt: skip
def test_a_price_that_is_no_plain_number_of_the_schema_is_refused_by_name(text: str) -> None:
    with pytest.raises(FeedProtocolError, match="'p'") as raised:
        session().receive(trade_frame(p=text), RECEIVED_US)
    assert len(str(raised.value)) < 250
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p", 61602.02), ("p", None), ("p", ...), ("q", True), ("q", ["1"]), ("t", "3735703162"), ("t", -1),
        ("t", 1 << 63), ("t", 1.5), ("t", True), ("t", None), ("E", "now"), ("E", -5), ("E", 10**18), ("E", ...),
        ("T", {}), ("m", "true"), ("m", 1), ("m", ...), ("s", "ETHBTC"), ("s", ...), ("s", 5),
    ],
)  # fmt: skip
def test_a_wrong_trade_field_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(FeedProtocolError, match=f"'{field}' of a Binance frame on btcusdt@trade"):
        session().receive(trade_frame(**{field: value}), RECEIVED_US)


@pytest.mark.parametrize("field", ["u", "b", "B", "a", "A"])
@pytest.mark.parametrize("value", [..., None, "x", 1.5, "1e3"])
def test_a_wrong_book_ticker_field_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(FeedProtocolError, match=f"'{field}' of a Binance frame on btcusdt@bookTicker"):
        session().receive(book_frame(**{field: value}), RECEIVED_US)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"null", b"[]", b"7", b'"text"', b"\xff\xfe", b"{}", b'{"stream":"btcusdt@trade"}',
        b'{"stream":5,"data":{}}', b'{"stream":"btcusdt@trade","data":[]}', b'{"stream":"btcusdt@trade","data":null}',
        b'{"a":NaN}', b'{"a":-Infinity}', b"[" * 100_000, trade_frame()[:-7], b"\x00" * 10,
        b'{"stream":"btcusdt@trade","data":{"t":' + b"9" * 5_000 + b"}}",
    ],
)  # fmt: skip
def test_a_frame_that_is_none_is_refused_in_one_short_sentence(raw: bytes) -> None:
    with pytest.raises(FeedProtocolError) as raised:
        session().receive(raw, RECEIVED_US)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "raw",
    [
        frame("btcusdt@depth@100ms", {"e": "depthUpdate", "s": "BTCUSDT"}),
        frame("dogeusdt@trade", {**TRADE, "s": "DOGEUSDT"}),
        frame("btcusdt@trade", {**TRADE, "e": "tradeBust"}),
        b'{"result":null,"id":1}',
        b'{"result":["btcusdt@trade"],"id":3}',
    ],
)
def test_what_is_well_formed_and_of_no_use_is_ignored_not_refused(raw: bytes) -> None:
    assert isinstance(session().receive(raw, RECEIVED_US), IgnoredEvent)


@pytest.mark.parametrize(
    "raw", [b'{"code":2,"msg":"Invalid request: x"}', b'{"error":{"code":2,"msg":"Invalid request: x"},"id":1}']
)
def test_an_error_response_is_refused_with_the_exchanges_own_words(raw: bytes) -> None:
    with pytest.raises(FeedProtocolError, match="Binance refused a request: Invalid request: x"):
        session().receive(raw, RECEIVED_US)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
        b'{"event":{"e":"serverShutdown","E":1770123456789}}',
        b'{"e":"serverShutdown","E":1770123456789}',
    ],
)
def test_a_shutdown_is_recognised_in_each_of_its_wrappings(raw: bytes) -> None:
    assert session().receive(raw, RECEIVED_US) == ServerShutdown(1_770_123_456_789_000)


def test_a_refused_frame_leaves_the_session_usable() -> None:
    one = session()
    with pytest.raises(FeedProtocolError):
        one.receive(b"{", RECEIVED_US)
    assert isinstance(one.receive(trade_frame(), RECEIVED_US), TradeEvent)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_at_all_get_past_the_error_tree(raw: bytes) -> None:
    with contextlib.suppress(FeedProtocolError):
        session().receive(raw, RECEIVED_US)


@given(st.sampled_from(sorted(TRADE)), json_values)
def test_no_value_of_a_field_gets_past_the_error_tree(field: str, value: object) -> None:
    try:
        event = session().receive(trade_frame(**{field: value}), RECEIVED_US)
    except FeedProtocolError as error:
        str(error).encode()
    else:
        assert isinstance(event, TradeEvent | IgnoredEvent)


prices = st.decimals(min_value=0, max_value=Decimal("9999999999.99999999"), places=8)
quantities = st.decimals(min_value=0, max_value=Decimal("99999999999999999999.99999999"), places=8)


@given(prices, quantities, st.integers(0, (1 << 63) - 1), st.booleans())
def test_any_number_that_fits_the_schema_comes_out_exactly(
    price: Decimal, quantity: Decimal, trade_id: int, maker: bool
) -> None:
    event = session().receive(trade_frame(p=f"{price:f}", q=f"{quantity:f}", t=trade_id, m=maker), RECEIVED_US)
    assert isinstance(event, TradeEvent)
    assert (event.price, event.quantity, event.trade_id, event.buyer_is_maker) == (price, quantity, trade_id, maker)


def test_streams_and_path_are_binances_own_form() -> None:
    one = BinanceSession(["btcusdt", "BTCUSDT", " ETHBTC "])
    assert one.symbols == ("BTCUSDT", "ETHBTC")
    assert one.streams == ("btcusdt@trade", "btcusdt@bookTicker", "ethbtc@trade", "ethbtc@bookTicker")
    assert one.path_of(one.streams) == "/stream?streams=btcusdt@trade/btcusdt@bookTicker/ethbtc@trade/ethbtc@bookTicker"


def test_symbols_outside_of_ascii_are_escaped_in_the_path() -> None:
    assert (
        BinanceSession.path_of(BinanceSession(["币安USDT"]).streams)
        == "/stream?streams=%E5%B8%81%E5%AE%89usdt@trade/%E5%B8%81%E5%AE%89usdt@bookTicker"
    )


@pytest.mark.parametrize("symbols", [[], [""], ["BTC/USDT"], ["A B"], ["x@trade"], ["B" * 51]])
def test_symbols_that_cannot_be_are_a_settings_error(symbols: list[str]) -> None:
    with pytest.raises(SettingsError):
        BinanceSession(symbols)


def test_a_broken_frame_is_the_dead_letter_of_the_stream_it_names() -> None:
    assert BinanceSession.dataset_of_frame(book_frame()[:-3]) is QUOTES
    assert BinanceSession.dataset_of_frame(trade_frame()[:-3]) is TRADES
    assert BinanceSession.dataset_of_frame(b"\xff") is TRADES


def told(raw: bytes) -> object:
    """What `receive` gives, or the sentence that it refuses the frame with."""
    try:
        return session().receive(raw, RECEIVED_US)
    except FeedProtocolError as error:
        return str(error)


def told_all(frames: list[bytes]) -> list[object]:
    found = session().receive_all(frames, RECEIVED_US)
    return [str(event) if isinstance(event, FeedProtocolError) else event for event in found]


@st.composite
def near_frames(draw: st.DrawFn) -> bytes:
    """Frames of trades and book tickers with some fields changed, left out, added, or written twice."""
    good = draw(st.sampled_from([("btcusdt@trade", TRADE), ("ethbtc@bookTicker", BOOK | {"s": "ETHBTC"})]))
    fields: list[tuple[str, object]] = list(good[1].items())
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*TRADE, *BOOK, "x"]))
        odd = json_values | st.sampled_from(["1", "0", "0.0", "-1", "1e5", "NaN", "trade", "BTCUSDT", "ETHBTC", 10**18])
        change = draw(st.sampled_from(["set", "add", "drop"]))
        if change != "add":
            fields = [field for field in fields if field[0] != name]
        if change != "drop":
            fields.insert(draw(st.integers(0, len(fields))), (name, draw(odd)))
    data = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields)
    raw = f'{{"stream":{json.dumps(good[0])},"data":{{{data}}}}}'.encode()
    cut = draw(st.integers(0, len(raw)) | st.just(0))
    return raw[:cut] + draw(st.sampled_from([b"", b"", b" ", b"\xff", b"\n", b"}", b"\x00"])) + raw[cut:]


@given(st.lists(near_frames() | st.binary(max_size=60), max_size=6))
def test_frames_together_are_what_they_are_one_by_one(frames: list[bytes]) -> None:
    assert told_all(frames) == [told(raw) for raw in frames]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":"\xff",' + trade_frame()[1:],
        b'{"\xff":1,' + book_frame()[1:],
        b'{"x":' + b"9" * 5_000 + b"," + trade_frame()[1:],
        b'{"x":1e999999,' + trade_frame()[1:],
        b'{"x":"\\ud800",' + trade_frame()[1:],
        b'{"x":' + b"[" * 900 + b"]" * 900 + b"," + trade_frame()[1:],
        trade_frame()[:-1] + b',"data":{}}',
        trade_frame(t=1.0), trade_frame(t=1 << 63), trade_frame(E=-1), trade_frame(m=None), book_frame(b="0", B="0"),
        book_frame(a="0.000"), frame("btcusdt@trade", BOOK), frame("btcusdt@bookTicker", TRADE), b"", b"[]",
    ],
)  # fmt: skip
def test_a_frame_out_of_the_ordinary_is_the_same_together_with_others(raw: bytes) -> None:
    around = trade_frame()
    assert told_all([around, raw, around]) == [told(around), told(raw), told(around)]
