"""A venue that costs next to nothing: trades as ready-made websocket bytes, written in bulk by a process of its own.

    python -m tests.performance.feed_load RATE TRADES SYMBOLS FIRST_ID CONNECTIONS

It prints its port, waits for CONNECTIONS websockets, sends each of them TRADES trades at RATE a second (0 = as fast as
they are read), prints when it began, when it ended and how far it fell behind at worst, and stays silent. Whoever asks
for anything but a websocket is told that there is none. Each trade's event time, in
microseconds, is when its bytes were handed to the socket. All frames are of one length, so that a tick's frames are
one array of bytes in which ids and times are set by column: 0.2 us a trade.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time

import numpy as np
from websockets.http11 import Request
from websockets.server import ServerProtocol

#: Ids have ten digits, so that all frames are of one length.
FIRST_ID = 1_000_000_000
#: Trades of one write at full speed, and how often trades are sent at a rate.
_CHUNK, _TICK_S = 500, 0.002


def symbols(count: int) -> list[str]:
    """The names of the symbols, all of one length."""
    return [f"K{number:03d}USDT" for number in range(count)]


class Frames:
    """Frames of consecutive trades, the symbols in turn."""

    def __init__(self, symbol_count: int, first_id: int) -> None:
        self._first_id = first_id
        payload = (
            b'{"stream":"s000usdt@trade","data":{"e":"trade","E":%016d,"s":"S000USDT","t":%010d,"p":"61234.%04d0000",'
            b'"q":"0.%05d000","T":%016d,"m":true,"M":true}}'
        ) % (0, 0, 0, 1, 0)
        head = bytes((0x81, 126)) + struct.pack("!H", len(payload))
        self._template = np.frombuffer(head + payload, np.uint8)
        whole = head + payload
        self._stream, self._symbol = whole.index(b"s000usdt"), whole.index(b"S000USDT")
        self._id = whole.index(b'"t":') + 4
        self._times = (whole.index(b'"E":') + 4, whole.index(b'"T":') + 4)
        self._cents = whole.index(b"61234.") + 6
        names = [name.encode() for name in symbols(symbol_count)]
        self._upper = np.array([list(name) for name in names], np.uint8)
        self._lower = np.array([list(name.lower()) for name in names], np.uint8)
        self._count = symbol_count

    def make(self, first: int, count: int, now_us: int) -> bytes:
        """Trades `first` to `first + count`, by number since the start."""
        numbers = np.arange(first, first + count)
        rows = np.tile(self._template, (count, 1))
        which = numbers % self._count
        rows[:, self._stream : self._stream + 8] = self._lower[which]
        rows[:, self._symbol : self._symbol + 8] = self._upper[which]
        rows[:, self._id : self._id + 10] = _digits(self._first_id + numbers // self._count, 10)
        rows[:, self._cents : self._cents + 4] = _digits(numbers * 7919, 4)
        for at in self._times:
            rows[:, at : at + 16] = np.frombuffer(b"%016d" % now_us, np.uint8)
        return rows.tobytes()


def _digits(numbers: np.ndarray, width: int) -> np.ndarray:
    powers = 10 ** np.arange(width - 1, -1, -1)
    return (numbers[:, None] // powers % 10 + 48).astype(np.uint8)


class FeedLoad:
    """The process, from the benchmark's side."""

    def __init__(
        self, *, rate: float, trades: int, symbol_count: int = 20, first_id: int = FIRST_ID, connections: int = 1
    ) -> None:
        words = [str(word) for word in (rate, trades, symbol_count, first_id, connections)]
        command = [sys.executable, "-m", "tests.performance.feed_load", *words]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.symbols = ",".join(symbols(symbol_count))
        self.url = f"ws://127.0.0.1:{self._line()}"
        self.pid = self._child.pid

    def began_s(self) -> float:
        """When the first trade was sent (Unix time); waits for it."""
        return float(self._line())

    def ended(self) -> tuple[float, float]:
        """When the last trade was sent (Unix time), and how many seconds it fell behind its rate at worst; waits."""
        ended_s, behind_s = self._line().split()
        return float(ended_s), float(behind_s)

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


def main() -> None:
    rate, (trades, symbol_count, first_id, connections) = float(sys.argv[1]), map(int, sys.argv[2:])
    frames = Frames(symbol_count, first_id)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        while True:
            clients: list[socket.socket] = []
            while len(clients) < connections:
                client, _ = listener.accept()
                if _shake_hands(client):
                    clients.append(client)
                else:
                    client.close()
            try:
                _send(clients, frames, rate, trades)
                while clients[0].recv(4096):
                    pass
            except OSError:
                continue
            finally:
                for client in clients:
                    client.close()


def _shake_hands(client: socket.socket) -> bool:
    """False when it is no websocket that is asked for; it has its answer then."""
    protocol = ServerProtocol()
    while not (requests := protocol.events_received()):
        protocol.receive_data(client.recv(65_536))
    assert isinstance(requests[0], Request)
    accepted = protocol.accept(requests[0])
    protocol.send_response(accepted)
    client.sendall(b"".join(protocol.data_to_send()))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return accepted.status_code == 101


def _send(clients: list[socket.socket], frames: Frames, rate: float, trades: int) -> None:
    print(time.time(), flush=True)  # noqa: T201
    sent, begun_s, behind_s = 0, time.monotonic(), 0.0
    while sent < trades:
        due = trades if rate == 0 else min(trades, int((time.monotonic() - begun_s) * rate))
        if rate:
            behind_s = max(behind_s, (due - sent) / rate)
        while sent < due:
            count = min(_CHUNK, due - sent)
            made = frames.make(sent, count, time.time_ns() // 1_000)
            for client in clients:
                client.sendall(made)
            sent += count
        if sent < trades:
            time.sleep(_TICK_S)
    print(time.time(), behind_s, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
