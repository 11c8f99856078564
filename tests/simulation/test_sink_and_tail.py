"""Sink and tail agree on which records there are, and on every value of them, whatever lies in the log."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import example, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from common.datasets import QUOTES, TRADES
from tests.simulation.producers import ENCODERS, NAMES
from tests.simulation.world import World
from tests.support.records import quote, trade

TOPIC = NAMES[0]
VALID = [ENCODERS[TOPIC].encode(trade(number, vendor_data={"k": "v"} if number % 2 else None)) for number in range(4)]
OTHERS = [ENCODERS[name].encode(quote(1)) for name in NAMES if QUOTES.matches(name)]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good message of which some bytes are others, or are gone, or are there twice."""
    value = bytearray(draw(st.sampled_from(VALID)))
    at = draw(st.integers(0, len(value) - 1))
    return bytes(
        draw(
            st.sampled_from(
                [
                    value[:at],
                    value[at:],
                    value[:at] + bytes([value[at] ^ draw(st.integers(1, 255))]) + value[at + 1 :],
                    value[:at] + draw(st.binary(min_size=1, max_size=4)) + value[at:],
                    value + draw(st.binary(min_size=1, max_size=4)),
                ]
            )
        )
    )


MESSAGES = st.lists(
    st.one_of(
        st.sampled_from(VALID),
        damaged(),
        st.none(),
        st.binary(max_size=40),
        st.sampled_from(OTHERS),
        st.just(b"\0" * 5),
    ),
    min_size=1,
    max_size=12,
)


@trials(max_examples=80, deadline=None)
@given(MESSAGES)
@example([VALID[0], VALID[1][:-1], None, OTHERS[0], b"", VALID[2] + b"\0", VALID[3]])
def test_the_same_records_with_the_same_values_and_the_same_refusals(messages: list[bytes | None]) -> None:
    world = World()
    try:
        for number, message in enumerate(messages):
            world.log.append(TOPIC, message, number % 2)
        world.server.tail_poll(0)
        in_tail = rows(world)
        refused = world.server.publisher.records_refused()[TRADES.name]
        for _ in range(2):
            world.clock.advance(10.0)
            world.sinks.workers[TRADES.name].step()
        store = world.tables.stores[TRADES.name]
        in_table = sorted(store.rows(), key=position)
        assert in_tail == in_table
        assert len(in_table) + refused == len(messages)
        letters = {(letter.partition, letter.offset): letter.value for letter in world.sinks.letters.written}
        taken = {(row["_kafka_partition"], row["_kafka_offset"]) for row in in_table}
        sent = {(number % 2, number // 2): message for number, message in enumerate(messages)}
        assert letters == {at: message for at, message in sent.items() if at not in taken}, "refused here, taken there"
        world.server.refresh(1)
        assert rows(world) == in_table, "after the commit the server shows the same"
    finally:
        world.close()


def rows(world: World) -> list[dict[str, Any]]:
    """All columns of what the server shows; strings of DuckDB's own kinds as plain ones."""
    cursor = world.server.database.cursor()
    try:
        shown: pa.Table = cursor.execute("SELECT * FROM market.trades").to_arrow_table()
    finally:
        cursor.close()
    return sorted(shown.to_pylist(), key=position)


def position(row: dict[str, Any]) -> tuple[int, int]:
    return row["_kafka_partition"], row["_kafka_offset"]
