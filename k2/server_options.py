"""Which server a command asks, and who asks: the options that all clients' commands share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from k2.console import FILE

if TYPE_CHECKING:
    from clients import Connection


class Server:
    """A server, and who asks. The password is read, or asked for, when it is first needed, and once. Thread-safe."""

    def __init__(self, uri: str, user: str | None = None, ca_file: Path | None = None) -> None:
        self.uri = uri
        self._user, self._ca_file = user, ca_file
        self._password: str | None = None
        self._lock = threading.Lock()

    def connect(self) -> Connection:
        """A new connection. Raises ConnectError."""
        from clients import connect

        token = (os.environ.get("K2_TOKEN") or None) if self._user is None else None
        return connect(
            self.uri, username=self._user, password=self._known_password(), token=token, ca_file=self._ca_file
        )

    def _known_password(self) -> str | None:
        with self._lock:
            if self._user is not None and self._password is None:
                given = os.environ.get("K2_PASSWORD")
                self._password = given or click.prompt("Password", hide_input=True, err=True)
            return self._password


_URI = click.option("--uri", default="grpc://127.0.0.1:50051", show_default=True, envvar="K2_URI", help="Also K2_URI.")
_USER = click.option("--user", envvar="K2_USER", help="Also K2_USER; its password is K2_PASSWORD, or is asked for.")
_CA_FILE = click.option(
    "--ca-file", type=FILE, envvar="K2_CA_FILE", help="PEM to trust, with grpc+tls://.  Also K2_CA_FILE."
)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--uri, --user and --ca-file, and the environment behind them, as the one argument `server`."""

    def with_server(*, uri: str, user: str | None, ca_file: Path | None, **given: Any) -> Any:
        return command(server=Server(uri, user, ca_file), **given)

    with_server.__name__, with_server.__doc__ = command.__name__, command.__doc__
    with_server.__dict__.update(command.__dict__)
    return _URI(_USER(_CA_FILE(with_server)))
