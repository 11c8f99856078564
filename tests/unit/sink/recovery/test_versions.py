"""Which metadata file was the newest: drawn histories with races, against what the catalog had."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sink.recovery.versions import Version, candidates


@dataclass
class Table:
    """A table whose catalog is known. Names do not tell anything; the log is cut to `kept`, files beyond it go."""

    kept: int
    seed: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    current: str | None = None
    now_ms: int = 1_000

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def written(self, *, rows: bool, clock_ms: int = 0) -> str:
        """A metadata file on the current version, as a writer makes it before it asks the catalog."""
        self.now_ms += 1
        base = None if self.current is None else self.files[self.current]
        log = [] if base is None else [*base["metadata-log"], _entry(self.current, base)]
        name = f"metadata/{self._random.randrange(10**12)}.metadata.json"
        self.files[name] = {
            "table-uuid": "t",
            "metadata-log": log[-self.kept :],
            "last-sequence-number": (0 if base is None else base["last-sequence-number"]) + rows,
            "last-updated-ms": self.now_ms + clock_ms,
        }
        return name

    def taken(self, name: str) -> None:
        """The catalog takes it; what the log lets go is deleted, as `delete-after-commit` does."""
        log = [] if self.current is None else self.files[self.current]["metadata-log"]
        self.current = name
        after = {entry["metadata-file"] for entry in self.files[name]["metadata-log"]}
        for gone in {entry["metadata-file"] for entry in log} - after:
            self.files.pop(gone.removeprefix("file:///t/"), None)

    def versions(self) -> list[Version]:
        found = [Version(name, tree) for name, tree in self.files.items()]
        self._random.shuffle(found)
        return found


def _entry(name: str | None, tree: dict[str, Any]) -> dict[str, Any]:
    return {"metadata-file": f"file:///t/{name}", "timestamp-ms": tree["last-updated-ms"]}


COMMITS = st.lists(
    # of each commit: does it add rows; and of each loser: the same, and how far its clock is ahead
    st.tuples(st.booleans(), st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), max_size=2)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(COMMITS, st.integers(2, 12), st.integers(0, 1_000))
def test_the_one_that_the_catalog_had_is_found(commits: list[Any], kept: int, seed: int) -> None:
    table = Table(kept, seed)
    table.taken(table.written(rows=False))  # who loses the race to make a table has made one of another UUID
    raced: list[str] = []
    for rows, losers in commits:
        written = table.written(rows=rows)
        raced = [table.written(rows=other, clock_ms=ahead) for other, ahead in losers]
        table.taken(written)
    found = [version.name for version in candidates(table.versions())]
    # A race that nobody built upon leaves all of its files as candidates; an older one leaves none.
    assert table.current in found
    assert set(found) - set(raced) - {table.current} <= _base(table)
    if not raced:
        assert found[0] == table.current


def _base(table: Table) -> set[str]:
    assert table.current is not None
    log = table.files[table.current]["metadata-log"]
    return {log[-1]["metadata-file"].removeprefix("file:///t/")} if log else set()


def test_a_torn_newest_leaves_the_one_before_it() -> None:
    table = Table(10, 1)
    for _ in range(3):
        table.taken(table.written(rows=True))
    before = table.current
    torn = table.written(rows=True)
    table.taken(torn)
    del table.files[torn]
    assert candidates(table.versions())[0].name == before


def test_of_a_race_the_one_with_more_rows_comes_first_whatever_its_clock() -> None:
    table = Table(10, 1)
    table.taken(table.written(rows=True))
    expiry = table.written(rows=False, clock_ms=1_000)
    rows = table.written(rows=True)
    assert [version.name for version in candidates(table.versions())][:2] == [rows, expiry]


def test_a_log_that_goes_in_a_circle_comes_to_an_end() -> None:
    log = {"a": ["b"], "b": ["a"]}
    versions = [
        Version(name, {"metadata-log": [{"metadata-file": other, "timestamp-ms": 1} for other in before]})
        for name, before in log.items()
    ]
    assert len(candidates(versions)) == 1
