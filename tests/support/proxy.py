"""A TCP proxy on loopback whose connections can be cut at a word, as networks cut them."""

from __future__ import annotations

import socket
import threading


class Proxy:
    """Passes bytes on to one server. Close it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._refusing = False
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, name="test-proxy", daemon=True).start()

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def cut(self, *, refusing: bool = False) -> None:
        """End every connection at once; with `refusing` take no new one, until the next cut."""
        with self._lock:
            self._refusing = refusing
            found, self._open = self._open, []
        for one in found:
            _end(one)

    def close(self) -> None:
        self.cut(refusing=True)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with self._lock:
                refusing = self._refusing
            if refusing:
                _end(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._open += [client, server]
            for here, there in ((client, server), (server, client)):
                threading.Thread(target=_pass, args=(here, there), daemon=True).start()


def _pass(here: socket.socket, there: socket.socket) -> None:
    try:
        while data := here.recv(65_536):
            there.sendall(data)
    except OSError:
        pass
    finally:
        _end(there)


def _end(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        one.close()
