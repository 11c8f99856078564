"""Pure: what DuckDB says of a name that is not there, with K2's own names among those that may have been meant.

DuckDB looks for what is near in its own catalog. K2's functions of FROM are not in it, for they are put into the text
before DuckDB sees it; and what is nearest there may be a function that K2 does not allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

from common.datasets import DATASETS, MARKET, OPS
from flight_server.engine.market.registry import FUNCTIONS, LISTING
from flight_server.storage.macros import MACROS

#: How alike two names are, from 0 to 1, when one may be meant for the other: `ohlvc` and `ohlcv` are 0.8 alike.
_LIKE_MIN = 0.7
_MACROS = frozenset(macro.name for macro in MACROS if macro.help)
_TABLES = {dataset.name: dataset.table for dataset in DATASETS.values()}
_SCHEMAS = (MARKET, OPS, "research")

_FUNCTION = re.compile(
    r'^Catalog Error: (?P<kind>[A-Za-z]+) Function with name "?(?P<name>[^"\s]+?)"? does not exist!'
    r'(?P<meant>\nDid you mean "(?P<near>[^"]*)"\?)?'
)
_TABLE = re.compile(
    r'^Catalog Error: Table with name "?(?P<name>[^"\s]+?)"? does not exist!'
    r'(?P<meant>\nDid you mean "(?P<near>[^"]*)"\?)?'
)
_SCHEMA = re.compile(r'^Catalog Error: .* does not exist because schema "(?P<name>[^"]+)" does not exist\.')
_COLUMN = re.compile(
    r'^Binder Error: Referenced column "(?P<name>[^"]+)" not found in FROM clause!'
    r"(?P<meant>\nCandidate bindings: (?P<near>[^\n]*))?"
)


def suggested(text: str) -> str:
    """An error's text with what may have been meant in the second line; as it is where that is no better."""
    if (found := _FUNCTION.match(text)) is not None:
        line = _for_function(found["name"].lower(), found["near"], in_from=found["kind"] == "Table")
        return text[: _end(found)] + line + text[found.end() :]
    if (found := _TABLE.match(text)) is not None:
        better = _for_table(found["name"].lower(), found["near"] or "")
        return text if better is None else text[: _end(found)] + better + text[found.end() :]
    if (found := _SCHEMA.match(text)) is not None:
        meant = _nearest(found["name"].lower(), _SCHEMAS)
        return text if meant is None else f'{found[0]}\nDid you mean "{meant}"?{text[found.end() :]}'
    if (found := _COLUMN.match(text)) is not None and _is_a_text(found["name"], found["near"] or ""):
        return f"{found[0]}\nA text stands in single quotes: '{found['name']}'{text[found.end() :]}"
    return text


def _end(found: re.Match[str]) -> int:
    """Where the sentence ends that says what is missing."""
    return found.end() if found["near"] is None else found.start("meant")


def _for_function(name: str, near: str | None, *, in_from: bool) -> str:
    bare = name.rpartition(".")[2]
    if in_from and bare in _TABLES:
        return f"\n{bare} is a table, and stands without parentheses: FROM {_TABLES[bare]}"
    if not in_from and bare in FUNCTIONS:
        return f"\n{bare} is a function of FROM: {FUNCTIONS[bare].example}"
    ours = _nearest(bare, FUNCTIONS if in_from else [*_MACROS, *FUNCTIONS])
    theirs = (near or "").rpartition(".")[2]
    if ours is not None and _likeness(bare, ours) >= _likeness(bare, theirs):
        where = "" if in_from or ours in _MACROS else f", a function of FROM: {FUNCTIONS[ours].example}"
        return f'\nDid you mean "{ours}"{where or "?"}'
    if near is not None and not in_from and _likeness(bare, theirs) >= _LIKE_MIN:
        return f'\nDid you mean "{near}"?'
    return f"\nSELECT name, help FROM {LISTING}() lists the functions that are K2's own"


def _for_table(name: str, near: str) -> str | None:
    """None where DuckDB's own suggestion stays."""
    bare = name.rpartition(".")[2]
    if bare in FUNCTIONS:
        return f"\n{bare} is a function, and takes arguments: {FUNCTIONS[bare].example}"
    ours = _nearest(bare, FUNCTIONS)
    if ours is not None and _likeness(bare, ours) > _likeness(bare, near.rpartition(".")[2]):
        return f'\nDid you mean "{ours}", which is a function: {FUNCTIONS[ours].example}'
    return None


def _is_a_text(name: str, candidates: str) -> bool:
    """Whether a name that is no column looks like a symbol that was left without its quotes."""
    known = [each.strip(' "').lower() for each in candidates.split(",")]
    return name.upper() == name and name[:1].isalnum() and _nearest(name.lower(), known) is None


def _nearest(name: str, names: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(name, sorted(names), n=1, cutoff=_LIKE_MIN)), None)


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, other.lower(), name).ratio()
