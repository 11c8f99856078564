"""`k2 query`: one statement over the wire, and its result in a form to read or to keep."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import click

from clients.formats import BINARY_FORMATS, FORMATS, Format, write
from common.errors import SettingsError
from k2.console import FILE
from k2.server_options import Server, server_options


@click.command()
@click.argument("sql", required=False)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--at", help="Read the market as it was: at a cut, a snapshot's id or a time.  [now]")
@click.option("--cut", "says_cut", is_flag=True, help="Say on standard error at which cut the result is.")
@click.option("--output", type=FILE, help="Write there instead of to the terminal.")
@server_options
def query(server: Server, sql: str | None, form: Format, at: str | None, says_cut: bool, output: Path | None) -> None:
    """Run one statement and print its result; `-`, or none, reads the statement from standard input.

    An API key or another bearer token is read from K2_TOKEN. Exit codes: `k2 --help`.
    """
    if form in BINARY_FORMATS and output is None and sys.stdout.isatty():
        raise SettingsError(f"{form} is binary and this is a terminal; add --output FILE")
    if sql is None and sys.stdin.isatty():
        raise SettingsError('give a statement: k2 query "SELECT 1"; or ask in `k2 shell`')
    text = sys.stdin.read() if sql in (None, "-") else sql
    assert text is not None
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() and output is None else None
    with server.connect() as connection, connection.stream(text, at=at) as result, _output(output) as out:
        write(result.schema, result, form, out, width=width)
        if says_cut:
            click.echo(result.cut or at or "the statement reads no table that has a cut", err=True)


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
