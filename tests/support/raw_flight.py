"""Flight by bytes: every method of the service through grpcio, with nothing that checks what is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import pyarrow as pa

_SERVICE = "/arrow.flight.protocol.FlightService/"
#: Method -> (takes a stream, gives a stream).
METHODS: dict[str, tuple[bool, bool]] = {
    "Handshake": (True, True),
    "ListFlights": (False, True),
    "GetFlightInfo": (False, False),
    "PollFlightInfo": (False, False),
    "GetSchema": (False, False),
    "DoGet": (False, True),
    "DoPut": (True, True),
    "DoExchange": (True, True),
    "DoAction": (False, True),
    "ListActions": (False, True),
}
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass
class Outcome:
    """How a call ended: its status, every word that came with it, and the messages before."""

    code: grpc.StatusCode
    said: str
    messages: list[bytes] = field(default_factory=list)


class RawFlight:
    """One connection of its own. Close it."""

    def __init__(self, address: str) -> None:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        # A pool of its own, or all the connections of a process would be one.
        self._channel = grpc.insecure_channel(address, options=[*unlimited, ("grpc.use_local_subchannel_pool", 1)])
        self._calls = {name: self._callable(name, *streams) for name, streams in METHODS.items()}

    def call(
        self,
        method: str,
        messages: Sequence[bytes],
        *,
        metadata: Metadata = (),
        timeout_s: float = 20.0,
        leave_after: int | None = None,
    ) -> Outcome:
        """Send the messages, read to the end; or leave after so many messages that were read."""
        takes_stream, gives_stream = METHODS[method]
        given: object = iter(messages) if takes_stream else messages[0]
        read: list[bytes] = []
        try:
            if not gives_stream:
                answer, call = self._calls[method].with_call(given, timeout=timeout_s, metadata=tuple(metadata))
                return Outcome(grpc.StatusCode.OK, _trailers(call), [answer])
            call = self._calls[method](given, timeout=timeout_s, metadata=tuple(metadata))
            if leave_after == 0:
                call.cancel()
                return Outcome(grpc.StatusCode.CANCELLED, "")
            for message in call:
                read.append(message)
                if leave_after is not None and len(read) >= leave_after:
                    call.cancel()
                    return Outcome(grpc.StatusCode.CANCELLED, "", read)
            return Outcome(call.code(), _trailers(call), read)
        except grpc.RpcError as error:
            return Outcome(error.code(), f"{error.details()} {_trailers(error)}", read)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> RawFlight:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _callable(self, name: str, takes_stream: bool, gives_stream: bool) -> grpc.UnaryUnaryMultiCallable:
        made = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, True): self._channel.stream_stream,
        }[takes_stream, gives_stream]
        return made(_SERVICE + name, _same, _same)


def _same(data: bytes) -> bytes:
    return data


def _trailers(call: grpc.Call) -> str:
    return " ".join(f"{key}={value!r}" for key, value in call.trailing_metadata() or ())


# -- the messages of Flight that the project has no classes for, by hand


def varint(value: int) -> bytes:
    parts = []
    while True:
        value, part = value >> 7, value & 0x7F
        parts.append(part | (0x80 if value else 0))
        if not value:
            return bytes(parts)


def length_delimited(number: int, data: bytes) -> bytes:
    """One field of a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def action(name: str, body: bytes) -> bytes:
    return length_delimited(1, name.encode()) + length_delimited(2, body)


def descriptor(command: bytes) -> bytes:
    return b"\x08\x02" + length_delimited(2, command)


def ticket(data: bytes) -> bytes:
    return length_delimited(1, data)


def flight_data(*, descriptor: bytes = b"", header: bytes = b"", body: bytes = b"", metadata: bytes = b"") -> bytes:
    parts = ((1, descriptor), (2, header), (3, metadata), (1000, body))
    return b"".join(length_delimited(number, data) for number, data in parts if data)


def ipc_messages(batch: pa.RecordBatch) -> list[tuple[bytes, bytes]]:
    """(header, body) of the batch's schema and of the batch itself, as FlightData carries them."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    messages = list(pa.ipc.MessageReader.open_stream(sink.getvalue()))
    return [(m.metadata.to_pybytes(), m.body.to_pybytes() if m.body is not None else b"") for m in messages]
