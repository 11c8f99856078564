"""Pure: what was typed, as statements and as the shell's own commands."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.errors import SettingsError

#: What is not SQL's own: strings, quoted names, comments, dollar quotes. Each ends as it says, or with the text.
_OPAQUE = re.compile(
    r"""
    '(?:[^']|'')*(?P<string>'|\Z) | "(?:[^"]|"")*(?P<name>"|\Z) | --[^\n]*(?:\n|\Z) | /\*.*?(?P<comment>\*/|\Z)
    | (?P<dollar>\$\w*\$).*?(?P<end>(?P=dollar)|\Z) | ;
    """,
    re.VERBOSE | re.DOTALL,
)


#: What people type who come from other prompts.
_WORDS = {"exit": "q", "quit": "q", "help": "?"}


@dataclass(frozen=True)
class Meta:
    """A command of the shell itself: `\\watch 5` has the name `watch` and the rest `5`."""

    name: str
    rest: str


@dataclass(frozen=True)
class Parsed:
    """The statements that ended, each without its semicolon, and what is behind the last of them."""

    statements: tuple[str, ...]
    rest: str
    is_open: bool
    """Whether `rest` ends inside of a string, a quoted name or a comment."""


def parse(text: str) -> Parsed:
    statements, begin, is_open = [], 0, False
    for found in _OPAQUE.finditer(text):
        if found[0] == ";":
            statements.append(text[begin : found.start()].strip())
            begin = found.end()
        elif found.end() == len(text):
            ends = (found["string"], found["name"], found["comment"], found["end"])
            is_open = "" in ends
    return Parsed(tuple(each for each in statements if each), text[begin:].strip(), is_open)


def is_complete(text: str) -> bool:
    """Whether Enter runs it: nothing, a command of the shell, or statements of which the last has its semicolon."""
    if not text.strip() or meta(text) is not None:
        return True
    parsed = parse(text)
    return bool(parsed.statements) and not parsed.is_open and _is_only_comment(parsed.rest)


def meta(text: str) -> Meta | None:
    """The shell's command in a line; None for SQL."""
    stripped = text.strip()
    word = _WORDS.get(stripped.rstrip("; ").lower())
    if word is not None:
        return Meta(word, "")
    if not stripped.startswith("\\"):
        return None
    name, _, rest = stripped[1:].rstrip(";").partition(" ")
    return Meta(name.strip(), rest.strip())


def seconds(text: str) -> float:
    """The interval of \\watch; 2 where nothing is said. Raises SettingsError."""
    try:
        value = float(text or "2")
    except ValueError:
        value = -1.0
    if not 0.1 <= value <= 86_400:
        raise SettingsError(f"\\watch takes seconds, from 0.1 to 86400, not {text!r}")
    return value


def is_on(text: str, now: bool) -> bool:
    """What `on`, `off` or nothing (the other) makes of a switch. Raises SettingsError."""
    if text.lower() not in ("", "on", "off"):
        raise SettingsError(f"say on or off, not {text!r}")
    return not now if not text else text.lower() == "on"


def _is_only_comment(text: str) -> bool:
    return not _OPAQUE.sub(lambda found: "" if found[0].startswith(("--", "/*")) else found[0], text).strip()
