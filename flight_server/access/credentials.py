"""The credentials file: who may come in with a password, an API key or a certificate, and who is an admin.

    [[users]]
    name = "ada"
    password = "$scrypt$ln=15,r=8,p=3$..."     # k2 access hash-password
    admin = true

    [[api_keys]]
    name = "dashboards"
    sha256 = "..."                             # k2 access new-key

    [[certificates]]                           # only to make the holder an admin
    name = "ops"
    admin = true

Nothing in it opens the door by itself. An API key is 256 random bits, so plain SHA-256 of it is as good as any slow
hash: nobody can list the keys that it might be, and it may be checked on any call. A password can be guessed, so it
has scrypt.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import SettingsError
from flight_server.access.passwords import PasswordHash
from flight_server.access.principal import ANONYMOUS, Principal

API_KEY_PREFIX = "k2k_"
NAME_CHARACTERS_MAX = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FILE_BYTES_MAX = 4 * 1024**2
_READ_BY_OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    admin: bool = False


class _User(_Entry):
    password: str


class _ApiKey(_Entry):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    users: list[_User] = []
    api_keys: list[_ApiKey] = []
    certificates: list[_Entry] = []


@dataclass(frozen=True)
class User:
    principal: Principal
    password: PasswordHash


@dataclass(frozen=True)
class Credentials:
    """Users by name, API keys by the SHA-256 of the key, and the names of certificates that are admins'."""

    users: dict[str, User] = field(default_factory=dict)
    api_keys: dict[bytes, Principal] = field(default_factory=dict)
    admin_certificates: frozenset[str] = frozenset()


def read_credentials(path: Path) -> Credentials:
    """What the file says. Raises SettingsError, which names the place and never a value: unreadable, readable or
    writable for others, not of this form, or a name twice."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or path.stat().st_size > _FILE_BYTES_MAX:
            raise SettingsError(f"the credentials file {path} is no file of a few lines; correct K2_ACCESS_FILE")
        if mode & _READ_BY_OTHERS:
            raise SettingsError(
                f"the credentials file {path} can be read or written by others (mode {stat.S_IMODE(mode):04o}); "
                f"run: chmod 600 {path}"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"the credentials file {path} cannot be read ({error.strerror}); correct K2_ACCESS_FILE or its permissions"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"the credentials file {path} is not UTF-8 text; write it anew") from None
    return parse_credentials(text, where=str(path))


def parse_credentials(text: str, *, where: str) -> Credentials:
    """Raises SettingsError."""
    try:
        file = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at .*\)$", str(error))
        raise SettingsError(f"{where} is not valid TOML {place.group() if place else ''}; correct it") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place_text = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{where}: {place_text} is wrong ({first['msg'].lower()}); correct it") from None
    users: dict[str, User] = {}
    for number, user in enumerate(file.users):
        if user.name in users:
            raise SettingsError(f"{where}: the user {user.name!r} is there twice; leave one of them")
        if ":" in user.name:
            raise SettingsError(
                f"{where}: the user name {user.name!r} has a colon, which Basic cannot carry; rename it"
            )
        try:
            password = PasswordHash.from_text(user.password)
        except SettingsError as error:
            raise SettingsError(f"{where}: users.{number}.password: {error}") from None
        users[user.name] = User(Principal(_named(user.name, where), user.admin, "password"), password)
    keys: dict[bytes, Principal] = {}
    for key in file.api_keys:
        digest = bytes.fromhex(key.sha256)
        if digest in keys:
            raise SettingsError(f"{where}: one API key is there twice, once as {key.name!r}; leave one of them")
        keys[digest] = Principal(_named(key.name, where), key.admin, "api-key")
    admins = frozenset(_named(entry.name, where) for entry in file.certificates if entry.admin)
    return Credentials(users, keys, admins)


def new_api_key() -> str:
    """A key of 256 random bits; what the file keeps of it is `api_key_digest`."""
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def api_key_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def usable_name(name: object) -> TypeGuard[str]:
    """May this be a principal's name? It stands in logs and in ops.sessions, and nobody else is called that."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= NAME_CHARACTERS_MAX
        and not _CONTROL.search(name)
        and name == name.strip()
        and name != ANONYMOUS.name
    )


def _named(name: str, where: str) -> str:
    if not usable_name(name):
        raise SettingsError(f"{where}: {name!r} cannot be a name; use printable characters, and not {ANONYMOUS.name!r}")
    return name
