"""The search patterns of the catalog commands: % any run of characters, _ one, a backslash takes either literally."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

#: What SqlInfo reports as SQL_SEARCH_STRING_ESCAPE.
ESCAPE = "\\"

Filter = Callable[[str], bool]


@lru_cache(maxsize=256)
def pattern_filter(pattern: str | None) -> Filter:
    """True for names that match the whole pattern; None matches all. Case does not matter, as in SQL identifiers."""
    if pattern is None:
        return lambda name: True
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == ESCAPE:
            parts.append(re.escape(next(characters, ESCAPE)))
        else:
            parts.append({"%": ".*", "_": "."}.get(character) or re.escape(character))
    # Runs of % are one %: `.*.*.*` would take exponential time on a long name.
    expression = re.compile(re.sub(r"(?:\.\*){2,}", ".*", "".join(parts)), re.IGNORECASE | re.DOTALL)
    return lambda name: expression.fullmatch(name) is not None


def name_filter(name: str | None) -> Filter:
    """True for exactly this name, case aside; None matches all, the empty name only what has none."""
    if name is None:
        return lambda candidate: True
    return lambda candidate: candidate.casefold() == name.casefold()
