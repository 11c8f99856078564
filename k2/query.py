"""`k2 query`: one statement over the wire, and its result in a form to read or to keep."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import click

from clients import connect
from clients.formats import BINARY_FORMATS, FORMATS, Format, write
from common.errors import SettingsError
from k2.console import FILE


@click.command()
@click.argument("sql")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--uri", default="grpc://127.0.0.1:50051", show_default=True, envvar="K2_URI", help="Also K2_URI.")
@click.option("--user", envvar="K2_USER", help="Also K2_USER; its password is K2_PASSWORD, or is asked for.")
@click.option("--ca-file", type=FILE, envvar="K2_CA_FILE", help="PEM to trust, with grpc+tls://.  Also K2_CA_FILE.")
@click.option("--output", type=FILE, help="Write there instead of to the terminal.")
def query(sql: str, form: Format, uri: str, user: str | None, ca_file: Path | None, output: Path | None) -> None:
    """Run one statement and print its result; `-` reads the statement from standard input.

    An API key or another bearer token is read from K2_TOKEN.
    """
    if form in BINARY_FORMATS and output is None and sys.stdout.isatty():
        raise SettingsError(f"{form} is binary and this is a terminal; add --output FILE")
    text = sys.stdin.read() if sql == "-" else sql
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() and output is None else None
    password = token = None
    if user is not None:
        password = os.environ.get("K2_PASSWORD") or click.prompt("Password", hide_input=True, err=True)
    else:
        token = os.environ.get("K2_TOKEN") or None
    with (
        connect(uri, username=user, password=password, token=token, ca_file=ca_file) as connection,
        connection.stream(text) as result,
        _output(output) as out,
    ):
        write(result.schema, result, form, out, width=width)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        opened: IO[bytes] = path.open("wb")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}); choose another --output") from None
    with opened:
        yield opened  # type: ignore[misc]
