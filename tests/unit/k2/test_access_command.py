"""`k2 access`: what it prints is a credentials file that lets exactly its holder in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import SettingsError
from flight_server.access.credentials import api_key_digest, parse_credentials, read_credentials
from flight_server.access.principal import Principal
from k2.cli import cli


@pytest.mark.parametrize("name", ["ada", "ada@example.com", 'Zoë "Z" K\\'])
@pytest.mark.parametrize("admin", [True, False])
def test_a_password_becomes_a_user(name: str, admin: bool, tmp_path: Path) -> None:
    arguments = ["access", "hash-password", "--name", name, *(["--admin"] if admin else [])]
    done = CliRunner().invoke(cli, arguments, input="open sesame\n")
    assert done.exit_code == 0
    assert "open sesame" not in done.output
    path = tmp_path / "access.toml"
    path.write_text(done.stdout)
    path.chmod(0o600)
    user = read_credentials(path).users[name]
    assert user.principal == Principal(name, admin, "password")
    assert user.password.matches("open sesame")


def test_a_new_key_is_shown_once_and_only_its_digest_goes_into_the_file() -> None:
    done = CliRunner().invoke(cli, ["access", "new-key", "--name", "dashboards"])
    assert done.exit_code == 0
    key = re.findall(r"k2k_[\w-]+", done.stderr)
    assert len(key) == 1
    assert key[0] not in done.stdout
    credentials = parse_credentials(done.stdout, where="stdout")
    assert credentials.api_keys == {api_key_digest(key[0]): Principal("dashboards", False, "api-key")}


@pytest.mark.parametrize("command", ["hash-password", "new-key"])
@pytest.mark.parametrize("name", ["anonymous", "a:b", " a", "a\tb"])
def test_a_name_that_cannot_be_used_is_said(command: str, name: str) -> None:
    done = CliRunner().invoke(cli, ["access", command, "--name", name], input="open sesame\n")
    assert isinstance(done.exception, SettingsError)
    assert "cannot be a name" in done.exception.message
    assert not done.stdout


@pytest.mark.parametrize("password", ["", "x" * 1025])
def test_a_password_that_cannot_be_used_is_said(password: str) -> None:
    done = CliRunner().invoke(cli, ["access", "hash-password", "--name", "ada"], input=f"{password}\n")
    assert isinstance(done.exception, SettingsError)
    assert not done.stdout
