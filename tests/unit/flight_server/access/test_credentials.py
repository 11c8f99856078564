"""The credentials file: what it says is taken as it stands; what is wrong in it is said without any of its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import SettingsError
from flight_server.access.credentials import (
    api_key_digest,
    new_api_key,
    parse_credentials,
    read_credentials,
    usable_name,
)
from flight_server.access.passwords import PasswordHash
from flight_server.access.principal import Principal

HASH = PasswordHash.of("open sesame", log_n=1, r=1, p=1).to_text()
KEY = new_api_key()
GOOD = f"""
[[users]]
name = "ada"
password = "{HASH}"
admin = true

[[users]]
name = "José"
password = "{HASH}"

[[api_keys]]
name = "dashboards"
sha256 = "{api_key_digest(KEY).hex()}"

[[certificates]]
name = "ops"
admin = true

[[certificates]]
name = "guest"
"""


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "access.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_says_who_may_come_in(tmp_path: Path) -> None:
    credentials = read_credentials(written(tmp_path, GOOD))
    assert {name: user.principal for name, user in credentials.users.items()} == {
        "ada": Principal("ada", True, "password"),
        "José": Principal("José", False, "password"),
    }
    assert credentials.users["ada"].password.matches("open sesame")
    assert credentials.api_keys == {api_key_digest(KEY): Principal("dashboards", False, "api-key")}
    assert credentials.admin_certificates == {"ops"}
    assert parse_credentials("", where="nothing").users == {}


def test_keys_are_long_random_and_not_in_their_digest() -> None:
    assert len({new_api_key() for _ in range(100)}) == 100
    assert len(KEY) >= 43
    assert KEY.encode() not in api_key_digest(KEY)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, GOOD, mode)
    with pytest.raises(SettingsError, match=f"mode {mode:04o}.*chmod 600 "):
        read_credentials(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_file_of_ours_or_of_our_group_is_taken(tmp_path: Path, mode: int) -> None:
    assert read_credentials(written(tmp_path, GOOD, mode)).users


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read \(No such file or directory\); correct K2_ACCESS_FILE"):
        read_credentials(tmp_path / "nothing.toml")
    with pytest.raises(SettingsError, match="is no file"):
        read_credentials(tmp_path)
    path = written(tmp_path, "")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="UTF-8"):
        read_credentials(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[users]]\nname = "ada"\npassword = "hunter2"', r"users\.0\.password: a password hash has the form"),
        ('[[users]]\nname = "ada"', r"users\.0\.password is wrong \(field required\)"),
        ('[[users]]\nname = "ada"\npassword = 7', r"users\.0\.password is wrong"),
        ('[[users]]\nname = "ada"\npasswrd = "hunter2"', r"users\.0\.pass"),
        (f'[[users]]\nname = "a:b"\npassword = "{HASH}"', "colon"),
        (f'[[users]]\nname = "anonymous"\npassword = "{HASH}"', "cannot be a name"),
        (f'[[users]]\nname = " ada"\npassword = "{HASH}"', "cannot be a name"),
        (f'[[users]]\nname = "a\\nb"\npassword = "{HASH}"', "cannot be a name"),
        (f'[[users]]\nname = ""\npassword = "{HASH}"', r"users\.0\.name is wrong"),
        (f'[[users]]\nname = "ada"\npassword = "{HASH}"\n' * 2, "'ada' is there twice"),
        ('[[api_keys]]\nname = "d"\nsha256 = "hunter2"', r"api_keys\.0\.sha256 is wrong"),
        (f'[[api_keys]]\nname = "d"\nsha256 = "{"0" * 64}"\n' * 2, "one API key is there twice"),
        ('[[users]]\nname = "ada" hunter2', r"is not valid TOML \(at line 2"),
        ('[[guests]]\nname = "hunter2"', "guests is wrong"),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence_without_its_value(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        parse_credentials(text, where="access.toml")
    assert caught.value.message.startswith("access.toml")
    assert "hunter2" not in caught.value.message
    assert HASH not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["ada", "ada@example.com", "Zoë K.", "x" * 128])
def test_names_that_can_be_used(name: str) -> None:
    assert usable_name(name)


@pytest.mark.parametrize("name", ["", " ", "ada ", "a\tb", "a\x7fb", "x" * 129, "anonymous", None, 7])
def test_names_that_cannot(name: object) -> None:
    assert not usable_name(name)
