"""What the engine needs of the storage beneath it; flight_server.storage.lake.Lake is the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from common.offsets import PartitionOffsets
from flight_server.storage.as_of import AsOf
from flight_server.storage.between_cuts import Choose
from flight_server.storage.commit_rows import COMMITS
from flight_server.storage.dead_letter_rows import DEAD_LETTERS
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import Seen, TableCut
from flight_server.storage.research import ResearchTables


class TableInfo(Protocol):
    """A table as catalogs show it; `arrow_schema` has true nullability and the remarks in metadata `doc`."""

    @property
    def catalog(self) -> str: ...
    @property
    def schema(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def arrow_schema(self) -> pa.Schema: ...


__all__ = [
    "COMMITS",
    "DEAD_LETTERS",
    "AsOf",
    "Condition",
    "Lake",
    "ListedTable",
    "ResearchTables",
    "Seen",
    "TableCut",
    "TableInfo",
]


@dataclass(frozen=True)
class ListedTable:
    """A table that the engine itself has to show."""

    catalog: str
    schema: str
    name: str
    kind: str
    arrow_schema: pa.Schema


class Lake(Protocol):
    """Cursors on one database that holds the tables; whole published states only (MVCC)."""

    def cursor(self) -> Any:
        """A new cursor (duckdb.DuckDBPyConnection) for one thread at a time; the engine closes it."""
        ...

    @property
    def version(self) -> int:
        """Another number after each publication: while it stays, every new transaction sees the same."""
        ...

    def begin(self, cursor: Any) -> Seen:
        """Open a read-only transaction on the cursor and fix its instant: what it sees. Raises our errors, and then the
        transaction may be open."""
        ...

    def check_ready(self) -> None:
        """Raises Unavailable or TailGap when the tables cannot be answered exactly now."""
        ...

    def tables(self) -> Sequence[TableInfo]:
        """The tables that clients are to see."""
        ...

    def table_cut(self, table: str, as_of: AsOf) -> TableCut:
        """The positions that `as_of` means for a table, by its full name. May ask the catalog. Raises our errors."""
        ...

    def columns_at(self, table: str, cut: TableCut) -> Sequence[tuple[str, str]] | None:
        """The columns that the table had at a cut, as (name now, name then); None: as now. Raises our errors."""
        ...

    def tell_cut(self, cursor: Any, cut: str | None) -> None:
        """Make the function `k2_cut` say this on the cursor, until the next call."""
        ...

    def commits(self, *, with_cuts: bool) -> pa.Table:
        """The commits of all tables of market, with the columns of activity.COMMITS; the cuts' texts if asked for.

        Blocks on the catalog and the file store. Raises our errors.
        """
        ...

    def dead_letters(self) -> pa.Table:
        """The dead letters that the broker has now, with the columns of DEAD_LETTERS. Blocks. Raises our errors."""
        ...

    def select_at(self, cursor: Any, table: str, wanted: TableCut, conditions: Sequence[Condition] = ()) -> str:
        """The SELECT that gives the table's rows at a cut in the cursor's open transaction, at least all of those that
        meet the conditions. Raises our errors."""
        ...

    def changes(self, cursor: Any, table: str, low: TableCut | None, high: TableCut | None) -> str:
        """The SELECT that gives a table's rows between two cuts in the cursor's open transaction.

        From `low` on, which None puts at the beginning, to before `high`, which None puts at the transaction's own cut.
        Raises our errors.
        """
        ...

    def stretch(self, cursor: Any, table: str, choose: Choose) -> tuple[TableCut, PartitionOffsets, str]:
        """What a reader that goes along with a table reads next; see Publisher.stretch. Raises our errors."""
        ...

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called, on the publisher's thread, after each publication; returns what ends that."""

    def select_where(self, seen: Seen, table: str, conditions: Sequence[Condition]) -> str | None:
        """The SELECT of all rows of a table that meet the conditions, and of others, in a transaction that sees this;
        None when the table itself is as good."""
        ...

    def parts(self, cursor: Any, table: str, count: int, *, rows_min: int) -> list[str]:
        """A table of at least `rows_min` rows as SELECTs of at most `count` parts, every row in exactly one of them.

        The last one is to be read in the cursor's open transaction, the others anywhere. None: it cannot be parted.
        """
        ...

    @property
    def research(self) -> ResearchTables:
        """The Iceberg tables that users write."""
        ...

    @property
    def research_version(self) -> int:
        """Another number whenever the research tables that cursors see, or their columns, have changed."""
        ...

    def publish_research(self) -> None:
        """Make what was just written to research seen by every new transaction; returns when it is."""
        ...
