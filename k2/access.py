"""`k2 access`: what a credentials file is made of. Secrets are shown once, or never."""

from __future__ import annotations

import json
import sys

import click

from common.errors import SettingsError
from flight_server.access.credentials import api_key_digest, new_api_key, usable_name
from flight_server.access.passwords import PASSWORD_CHARACTERS_MAX, PasswordHash

_NAME = click.option("--name", required=True, help="Whom it lets in; stands in logs and in ops.sessions.")
_ADMIN = click.option("--admin", is_flag=True, help="May end the sessions and statements of others.")


@click.group()
def access() -> None:
    """Make the lines of a credentials file (K2_ACCESS_FILE); docs/access.md says how it is used."""


@access.command("hash-password")
@_NAME
@_ADMIN
def hash_password(name: str, admin: bool) -> None:
    """Ask for a password, or read it from standard input, and print the user's lines with its hash."""
    _check(name)
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not 0 < len(password) <= PASSWORD_CHARACTERS_MAX:
        raise SettingsError(f"a password has 1 to {PASSWORD_CHARACTERS_MAX} characters; give another one")
    _print("users", name, admin, "password", PasswordHash.of(password).to_text())


@access.command("new-key")
@_NAME
@_ADMIN
def new_key(name: str, admin: bool) -> None:
    """Make an API key: print it, this once, and the lines that let its holder in."""
    _check(name)
    key = new_api_key()
    click.echo(f"# The key, shown only now: {key}", err=True)
    _print("api_keys", name, admin, "sha256", api_key_digest(key).hex())


def _check(name: str) -> None:
    if not usable_name(name) or ":" in name:
        raise SettingsError(f"{name!r} cannot be a name; use printable characters without a colon, and not 'anonymous'")


def _print(section: str, name: str, admin: bool, field: str, value: str) -> None:
    click.echo(f"[[{section}]]")
    # JSON's strings of printable characters are TOML's.
    click.echo(f"name = {json.dumps(name, ensure_ascii=False)}")
    click.echo(f'{field} = "{value}"')
    if admin:
        click.echo("admin = true")
