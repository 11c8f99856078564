"""Pure: what may come next. The catalog is read from the server once, and again when something was made or dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Read on a connection of their own, so that the session's transaction is not in the way.
COLUMNS_SQL = (
    "SELECT table_schema, table_name, column_name FROM information_schema.columns "
    "WHERE table_schema IN ('market', 'ops', 'research') ORDER BY ALL"
)
FUNCTIONS_SQL = (
    "SELECT name, kind, arguments FROM k2_functions() UNION ALL "
    "SELECT DISTINCT function_name, function_type, '' FROM duckdb_functions() "
    "WHERE function_type IN ('scalar', 'aggregate') AND regexp_full_match(function_name, '[a-z][a-z0-9_]+')"
)
COMMANDS: dict[str, str] = {
    "?": "this list",
    "d": "the tables; \\d TABLE: its columns",
    "df": "K2's functions; \\df NAME: one of them",
    "as_of": "read at a cut, a snapshot's id or a time; \\as_of now: the newest again",
    "cut": "the cut of the latest result",
    "format": "table, lines (for wide rows), csv or json",
    "plot": "the latest result as a plot: candles, or its numbers over its first column",
    "timing": "on or off: how long each statement took",
    "watch": "the latest statement again, every N seconds, until Ctrl-C",
    "q": "leave, as Ctrl-D does",
}
_KEYWORDS = """
    SELECT FROM WHERE GROUP BY ORDER BY HAVING LIMIT DISTINCT AS AND OR NOT NULL IS IN BETWEEN LIKE CASE WHEN THEN ELSE
    END JOIN LEFT JOIN ASOF JOIN USING ON UNION ALL WITH VALUES INTERVAL DESC ASC QUALIFY OVER PARTITION BY FILTER CAST
    CREATE TABLE CREATE VIEW INSERT INTO UPDATE DELETE DROP BEGIN COMMIT ROLLBACK DESCRIBE SUMMARIZE EXPLAIN AT VERSION
    TIMESTAMP SUBSCRIBE PIVOT UNPIVOT EXCLUDE REPLACE
"""
_KEYWORDS_ALL = sorted(set(_KEYWORDS.split()))
_TABLE_WORDS = frozenset({"from", "join", "into", "update", "describe", "summarize", "table"})
_WORD = re.compile(r"[\w$]*\Z")
_BEFORE = re.compile(r"(\w+)(?:\s+|\s*,\s*)\Z")
_NAMED = re.compile(r"\b(?:from|join|update|into)\s+([\w.]+)(?:\s+(?:as\s+)?(\w+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """`text` is what the word becomes; `about` stands beside it."""

    text: str
    about: str = ""


@dataclass(frozen=True)
class Catalog:
    """`columns` by table, as `market.trades`; `functions` by name, with their arguments where they are K2's;
    `table_functions` are those of FROM."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    functions: Mapping[str, str] = field(default_factory=dict)
    table_functions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: list[tuple[str, str, str]], functions: list[tuple[str, str, str]]) -> Catalog:
        """From the rows of COLUMNS_SQL and FUNCTIONS_SQL."""
        tables: dict[str, list[str]] = {}
        for schema, table, column in columns:
            tables.setdefault(f"{schema}.{table}", []).append(column)
        return cls(
            {table: tuple(names) for table, names in tables.items()},
            {name: arguments for name, kind, arguments in reversed(functions) if kind != "table"},
            {name: arguments for name, kind, arguments in functions if kind == "table"},
        )


def word_before(text: str) -> str:
    """The word that is being typed at the end of the text."""
    found = _WORD.search(text)
    return found[0] if found else ""


def candidates(before: str, whole: str, catalog: Catalog) -> list[Candidate]:
    """What the word at the end of `before` may become, the likeliest first; `whole` is all that was typed."""
    if before.lstrip().startswith("\\"):
        return _of_commands(before.lstrip(), catalog)
    word = word_before(before)
    behind = before[: len(before) - len(word)]
    if behind.endswith("."):
        return _matching(word, _of_owner(behind[:-1], whole, catalog))
    previous = _BEFORE.search(behind)
    if previous and previous[1].lower() in _TABLE_WORDS:
        return [*_matching(word, _tables(catalog)), *_matching(word, _functions(catalog.table_functions))]
    if not word:
        return []
    found = [*_columns(whole, catalog), *_functions(catalog.functions), *_keywords(word), *_tables(catalog)]
    return _matching(word, found)


def _of_commands(text: str, catalog: Catalog) -> list[Candidate]:
    name, space, rest = text[1:].partition(" ")
    if not space:
        return [Candidate(each, about) for each, about in COMMANDS.items() if each.startswith(name)]
    if name == "d":
        word = word_before(rest)
        owner = rest[: len(rest) - len(word)]
        found = _of_owner(owner[:-1], "", catalog) if owner else _tables(catalog)
        return _matching(word, list(found))
    if name == "df":
        return _matching(
            word_before(rest), [Candidate(each) for each in (*catalog.table_functions, *catalog.functions)]
        )
    return []


def _of_owner(text: str, whole: str, catalog: Catalog) -> Iterator[Candidate]:
    """What may stand behind `text` and a dot: a schema's tables, or the columns of a table or of its alias."""
    owner = text[-len(word_before(text)) :].lower() if word_before(text) else ""
    for table in catalog.columns:
        schema, _, name = table.partition(".")
        if schema == owner:
            yield Candidate(name, "table")
    aliases = {alias.lower(): table.lower() for table, alias in _NAMED.findall(whole) if alias}
    wanted = aliases.get(owner, owner)
    for table, columns in catalog.columns.items():
        if wanted in (table, table.partition(".")[2]):
            yield from (Candidate(column, table) for column in columns)


def _columns(whole: str, catalog: Catalog) -> Iterator[Candidate]:
    """The columns of the tables that the statement names; of all tables where it names none."""
    named = {table.lower() for table, _ in _NAMED.findall(whole)}
    told = {t: names for t, names in catalog.columns.items() if t in named or t.partition(".")[2] in named}
    for table, names in (told or catalog.columns).items():
        yield from (Candidate(name, table) for name in names)


def _tables(catalog: Catalog) -> Iterator[Candidate]:
    return (Candidate(table, "table") for table in catalog.columns)


def _functions(functions: Mapping[str, str]) -> Iterator[Candidate]:
    return (Candidate(f"{name}(", arguments or "function") for name, arguments in functions.items())


def _keywords(word: str) -> Iterator[Candidate]:
    small = word.islower()
    return (Candidate(each.lower() if small else each, "keyword") for each in _KEYWORDS_ALL)


def _matching(word: str, found: Iterator[Candidate] | list[Candidate]) -> list[Candidate]:
    """Those that begin with the word, then those with a part that does (`trades` of `market.trades`), each once."""
    wanted = word.lower()
    first: dict[str, Candidate] = {}
    second: dict[str, Candidate] = {}
    for each in found:
        text = each.text.lower()
        if text.startswith(wanted):
            first.setdefault(each.text, each)
        elif wanted and any(part.startswith(wanted) for part in re.split(r"[._]", text)):
            second.setdefault(each.text, each)
    return [*first.values(), *second.values()]
