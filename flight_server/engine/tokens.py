"""The words of a statement, by DuckDB's own tokenizer: quotes and comments are what the engine takes them for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

_NAME = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|[^\W\d]\w*')


@dataclass(frozen=True)
class Token:
    """`name` is a word or quoted identifier, lower case only where it is not quoted; None for anything else.

    `start` and `end` are byte positions; `sign` is the first character of what is no name, `raw` all of
    it.
    """

    start: int
    end: int
    name: str | None
    sign: str
    quoted: bool = False
    raw: str = ""

    def says(self, *words: str) -> bool:
        """True when it is one of these keywords, which are written without quotes."""
        return self.name is not None and not self.quoted and self.name in words


def tokens_of(text: str) -> list[Token]:
    """Comments and spaces are left out; the inside of a string constant is one token without a name."""
    data = text.encode()
    found = []
    starts = duckdb.tokenize(text)
    for index, (start, kind) in enumerate(starts):
        until = starts[index + 1][0] if index + 1 < len(starts) else len(data)
        piece = data[start:until].decode(errors="replace")
        word = None
        if kind != duckdb.token_type.string_const or piece.startswith('"'):
            word = _NAME.match(piece)
        if word is None:
            found.append(Token(start, _end_of(data, start, until), None, piece[:1], raw=piece.rstrip()))
        else:
            quoted = word["quoted"]
            name = word.group().lower() if quoted is None else quoted.replace('""', '"')
            found.append(Token(start, start + len(word.group().encode()), name, "", quoted is not None))
    return found


def qualified_name(tokens: Sequence[Token], at: int) -> tuple[tuple[str, ...], int]:
    """The parts of `a.b.c` beginning at index `at`, and the index behind it; no parts when no name stands there."""
    parts: list[str] = []
    while at < len(tokens) and (name := tokens[at].name) is not None:
        parts.append(name)
        at += 1
        if at + 1 >= len(tokens) or tokens[at].sign != "." or tokens[at + 1].name is None:
            break
        at += 1
    return tuple(parts), at


def skip_words(tokens: Sequence[Token], at: int, *words: str) -> tuple[bool, int]:
    """Whether exactly these keywords stand at `at`, and the index behind them (or `at`)."""
    for offset, word in enumerate(words):
        if at + offset >= len(tokens) or not tokens[at + offset].says(word):
            return False, at
    return True, at + len(words)


def _end_of(data: bytes, start: int, until: int) -> int:
    """Where a constant or sign ends: before the spaces behind it (comments behind it are taken for a part of it)."""
    return start + len(data[start:until].rstrip())


def outermost_indexes(tokens: Sequence[Token], start: int) -> list[int]:
    """The indexes from `start` on of what stands inside no parentheses."""
    found, depth = [], 0
    for index, token in enumerate(tokens):
        if token.sign in ("(", "[", "{"):
            depth += 1
        elif token.sign in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and index >= start:
            found.append(index)
    return found


def outermost(tokens: Sequence[Token]) -> list[Token]:
    """What stands inside no parentheses."""
    return [tokens[index] for index in outermost_indexes(tokens, 0)]
