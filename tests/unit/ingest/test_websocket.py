"""The client's own cut through short frames gives what the library's parser gives, wherever the reads end."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Event
from websockets.uri import parse_uri

from ingest.websocket import Websocket


class Transport:
    """Counts pauses; there is no socket."""

    def __init__(self) -> None:
        self.paused = 0

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1


class Offline(Websocket):
    """A connection that is open, without a socket; `heard` are events that are no messages."""

    def __init__(self) -> None:
        protocol = ClientProtocol(parse_uri("ws://test/"))
        protocol.state = OPEN
        super().__init__(protocol, now_us=lambda: 7)
        self.transport: Any = Transport()
        self.heard: list[Opcode] = []
        self.protocol.parser = self.protocol.parse()
        next(self.protocol.parser)

    def send_data(self) -> None:
        self.protocol.data_to_send()

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            self.heard.append(event.opcode)
        else:
            super().process_event(event)


def wire(opcode: Opcode, body: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, body, fin=fin).serialize(mask=False)


def through(data: bytes, ends: list[int], *, cut: bool) -> tuple[list[bytes], list[Opcode], Any]:
    """Messages, other frames and the reason to close, of data that comes in reads that end there."""

    async def read() -> tuple[list[bytes], list[Opcode], Any]:
        one = Offline()
        if not cut:
            one._between_frames = lambda: False  # type: ignore[method-assign]
        edges = [0, *sorted(end % (len(data) + 1) for end in ends), len(data)]
        for begin, end in pairwise(edges):
            if end > begin:
                one.data_received(data[begin:end])
        messages = [message for read, _ in one._reads for message in read]
        return messages, one.heard, one.protocol.close_sent

    return asyncio.run(read())


MESSAGE = st.one_of(
    st.binary(max_size=30),
    st.integers(100, 300).map(lambda n: b"x" * n),
    st.just(b"y" * 65_535),
    st.just(b"z" * 70_000),
)
PIECE = st.one_of(
    MESSAGE.map(lambda body: wire(Opcode.TEXT, body)),
    MESSAGE.map(lambda body: wire(Opcode.TEXT, body)),
    MESSAGE.map(lambda body: wire(Opcode.BINARY, body)),
    st.lists(st.binary(max_size=20), min_size=2, max_size=4).map(
        lambda parts: b"".join(
            wire(Opcode.TEXT if number == 0 else Opcode.CONT, part, fin=number == len(parts) - 1)
            for number, part in enumerate(parts)
        )
    ),
    st.binary(max_size=20).map(lambda body: wire(Opcode.PING, body)),
    st.just(wire(Opcode.TEXT, b"a", fin=False) + wire(Opcode.PING, b"") + wire(Opcode.CONT, b"b")),
)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECE, max_size=12), ends=st.lists(st.integers(0, 200_000), max_size=8))
def test_messages_are_the_same_as_the_library_s_wherever_reads_end(pieces: list[bytes], ends: list[int]) -> None:
    data = b"".join(pieces)
    assert through(data, ends, cut=True) == through(data, ends, cut=False)


@pytest.mark.parametrize(
    "broken",
    [
        wire(Opcode.TEXT, b"a", fin=False) + wire(Opcode.TEXT, b"b"),  # a message inside of another
        b"\xc1\x01a",  # a reserved bit
        b"\x81\x81\0\0\0\0a",  # masked by a server
        b"\x81\x7f" + (2**21).to_bytes(8, "big"),  # larger than a message may be
        b"\x83\x00",  # an opcode that there is not
    ],
)
def test_what_breaks_the_protocol_still_ends_the_connection(broken: bytes) -> None:
    for ends in ([], [1, 2, 3, 4, 5]):
        messages, _, close = through(wire(Opcode.TEXT, b"good") + broken, ends, cut=True)
        assert messages[0] == b"good"
        assert close is not None
        assert close == through(wire(Opcode.TEXT, b"good") + broken, ends, cut=False)[2]
