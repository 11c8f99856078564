from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from ingest.simulator import Simulator, answer


def ask(streams: dict[str, None], **request: object) -> dict[str, object]:
    reply = json.loads(answer(json.dumps(request), streams))
    assert isinstance(reply, dict)
    return reply


def test_subscribe_list_and_unsubscribe_answer_as_binance_does() -> None:
    streams: dict[str, None] = {}
    names = ["btcusdt@trade", "btcusdt@depth@100ms"]
    assert ask(streams, method="SUBSCRIBE", params=names, id=1) == {"result": None, "id": 1}
    assert ask(streams, method="LIST_SUBSCRIPTIONS", id=3) == {"result": names, "id": 3}
    assert ask(streams, method="UNSUBSCRIBE", params=["btcusdt@trade", "never@trade"], id="a") == {
        "result": None,
        "id": "a",
    }
    assert ask(streams, method="LIST_SUBSCRIPTIONS", id=None) == {"result": ["btcusdt@depth@100ms"], "id": None}


@pytest.mark.parametrize("name", ["btcusdt", "BTCUSDT@trade", "btcusdt@nothing", "@trade", "a b@trade", "", 5, None])
def test_a_wrong_stream_name_is_an_error_and_changes_nothing(name: object) -> None:
    streams = {"ethusdt@trade": None}
    reply = ask(streams, method="SUBSCRIBE", params=["btcusdt@trade", name], id=7)
    assert reply == {"code": 2, "msg": "Invalid request: invalid stream", "id": 7}
    assert list(streams) == ["ethusdt@trade"]


def test_too_many_streams_are_refused() -> None:
    streams: dict[str, None] = {}
    many = [f"s{number}@trade" for number in range(1025)]
    assert ask(streams, method="SUBSCRIBE", params=many, id=1)["code"] == 2
    assert ask(streams, method="SUBSCRIBE", params=many[:1024], id=1) == {"result": None, "id": 1}
    assert ask(streams, method="SUBSCRIBE", params=many[-1:], id=1)["code"] == 2


@pytest.mark.parametrize(
    ("request_text", "code"),
    [
        ("{", 3), ("", 3), ("[" * 100_000, 3), ("[]", 2), ("{}", 2), ('{"method":"FLY","id":1}', 2),
        ('{"method":{},"id":1}', 2), ('{"method":"SUBSCRIBE","id":1}', 2),
        ('{"method":"SUBSCRIBE","params":"x","id":1}', 2),
        ('{"method":"LIST_SUBSCRIPTIONS","id":true}', 2), ('{"method":"LIST_SUBSCRIPTIONS","id":[1]}', 2),
    ],
)  # fmt: skip
def test_what_is_no_request_is_an_error_with_binances_code(request_text: str, code: int) -> None:
    assert json.loads(answer(request_text, {}))["code"] == code


@given(st.text() | st.binary())
def test_anything_gets_an_answer(request_text: str | bytes) -> None:
    assert isinstance(json.loads(answer(request_text, {})), dict)


def test_nothing_to_simulate_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="nothing to simulate"):
        Simulator.replay([]).start()
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingsError):
            Simulator.replay([], speed=speed)
