"""What a dead letter says of itself, and letters with their marks as one."""

from __future__ import annotations

from typing import Any

import pytest

from common.dead_letters import FoldedLetter, Letter, folded, letter_id
from common.errors import LimitExceeded
from flight_server.storage import dead_letter_rows
from flight_server.storage.dead_letter_rows import DEAD_LETTERS, letter_rows

OF_THE_SINK = {
    "k2-reason": "because",
    "k2-topic": "market.crypto.trades.binance",
    "k2-partition": "2",
    "k2-offset": "17",
    "k2-schema-id": "9",
}
OF_A_FILE = {
    "k2-reason": "no price",
    "k2-topic": "market.equities.trades.asx",
    "k2-exchange": "asx",
    "k2-file": "trades/7181.csv",
    "k2-line": "5",
}


def letter(value: bytes | None = b"\0\0\0\0\x09abc", *, offset: int = 0, at_us: int = 0, **headers: str) -> Letter:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Letter("dead-letter.market.crypto.trades.binance", 1, offset, at_us, value, OF_THE_SINK | named)


def test_what_a_letter_of_the_sink_says() -> None:
    one = letter()
    assert (one.source_topic, one.source_position, one.schema_id) == ("market.crypto.trades.binance", (2, 17), 9)
    assert (one.reason, one.exchange, one.file, one.line, one.replay_of) == ("because", None, None, None, None)


def test_what_a_letter_of_a_file_says() -> None:
    one = Letter("dead-letter.market.equities.trades.asx", 0, 0, 0, b"x", OF_A_FILE)
    assert (one.source_position, one.schema_id, one.exchange) == (None, None, "asx")
    assert (one.file, one.line) == ("trades/7181.csv", 5)


def test_what_a_letter_without_headers_says() -> None:
    one = Letter("dead-letter.market.crypto.trades.binance", 0, 0, 0, None, {"k2-partition": "x", "k2-offset": ""})
    assert (one.source_topic, one.source_position, one.reason) == ("market.crypto.trades.binance", None, "")


@pytest.mark.parametrize("name", ["k2-topic", "k2-partition", "k2-offset", "k2-exchange", "k2-file", "k2-line"])
def test_an_id_is_of_the_bytes_and_of_the_place(name: str) -> None:
    assert letter_id(b"a", OF_THE_SINK) == letter_id(b"a", OF_THE_SINK | {"k2-reason": "another"})
    assert letter_id(b"a", OF_THE_SINK) != letter_id(b"b", OF_THE_SINK)
    assert letter_id(b"a", OF_THE_SINK) != letter_id(b"a", OF_THE_SINK | {name: "3"})
    assert len(letter_id(None, {})) == 12


def test_letters_that_were_written_twice_are_one_and_marks_are_none() -> None:
    first, twice, other = letter(at_us=5, offset=1), letter(at_us=9, offset=2), letter(b"x", at_us=7, offset=3)
    marks = [letter(None, at_us=at, offset=at, k2_replay_of=first.id) for at in (20, 30)]
    wanted = [FoldedLetter(first, 2, 30), FoldedLetter(other, 0, None)]
    assert folded([first, twice, *marks, other]) == wanted
    assert folded([marks[1], other, twice, marks[0], first]) == wanted
    assert folded(marks) == []


def test_rows_of_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    long = letter(b"y" * 5_000, at_us=1)
    rows = letter_rows(folded([long, letter(None, at_us=2)]))
    assert rows.schema == DEAD_LETTERS
    found: list[dict[str, Any]] = rows.to_pylist()
    assert (found[0]["value_bytes"], len(found[0]["value"]), found[0]["kafka_offset"]) == (5_000, 1_024, 17)
    assert (found[1]["value_bytes"], found[1]["value"], found[1]["replayed_at"]) == (None, None, None)
    assert letter_rows([]).num_rows == 0
    monkeypatch.setattr(dead_letter_rows, "LETTERS_MAX", 1)
    with pytest.raises(LimitExceeded, match="there are 2 dead letters"):
        letter_rows(folded([long, letter(None, at_us=2)]))
