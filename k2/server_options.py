"""Which server a command asks, and who asks: the options that all clients' commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from k2.console import FILE

if TYPE_CHECKING:
    from clients import Connection


@dataclass(frozen=True)
class Server:
    """A server and the caller's credentials; the password is asked for once."""

    uri: str
    user: str | None
    password: str | None
    token: str | None
    ca_file: Path | None

    def connect(self) -> Connection:
        """A new connection. Raises ConnectError."""
        from clients import connect

        return connect(self.uri, username=self.user, password=self.password, token=self.token, ca_file=self.ca_file)


_URI = click.option("--uri", default="grpc://127.0.0.1:50051", show_default=True, envvar="K2_URI", help="Also K2_URI.")
_USER = click.option("--user", envvar="K2_USER", help="Also K2_USER; its password is K2_PASSWORD, or is asked for.")
_CA_FILE = click.option(
    "--ca-file", type=FILE, envvar="K2_CA_FILE", help="PEM to trust, with grpc+tls://.  Also K2_CA_FILE."
)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--uri, --user and --ca-file, and the environment behind them, as the one argument `server`."""

    def with_server(*, uri: str, user: str | None, ca_file: Path | None, **given: Any) -> Any:
        password = token = None
        if user is not None:
            password = os.environ.get("K2_PASSWORD") or click.prompt("Password", hide_input=True, err=True)
        else:
            token = os.environ.get("K2_TOKEN") or None
        return command(server=Server(uri, user, password, token, ca_file), **given)

    with_server.__name__, with_server.__doc__ = command.__name__, command.__doc__
    with_server.__dict__.update(command.__dict__)
    return _URI(_USER(_CA_FILE(with_server)))
