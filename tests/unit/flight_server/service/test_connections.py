"""Closing accepted connections: those of one port, nothing else, and no descriptor is left behind."""

from __future__ import annotations

import socket

import psutil

from flight_server.service.connections import close_accepted


def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    return client, accepted


def test_only_what_was_accepted_on_the_port_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.create_server(("127.0.0.1", 0)) as other:
        client, accepted = pair(ours)
        stranger, elsewhere = pair(other)
        with client, accepted, stranger, elsewhere:
            before = psutil.Process().num_fds()
            assert close_accepted(ours.getsockname()[1]) == 1
            assert psutil.Process().num_fds() == before
            assert client.recv(1) == b""
            elsewhere.sendall(b"x")
            assert stranger.recv(1) == b"x"
            again, taken = pair(ours)
            with again, taken:
                taken.sendall(b"y")
                assert again.recv(1) == b"y"
