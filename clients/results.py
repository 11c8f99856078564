"""A whole result: the rows of one statement at one cut, in whatever form they are wanted.

    trades = k2.sql("SELECT * FROM market.trades")
    trades.polars(), trades.pandas(), trades.arrow(), trades.cut

Guarantee: every form has the same rows, in the same order, with the same exact values; decimals stay decimals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from clients.errors import ClientError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd


class Result:
    """Rows that are here already; nothing is asked of the server any more.

    It is an Arrow stream itself (`__arrow_c_stream__`): what reads those, such as `polars.DataFrame(result)`, takes it.
    """

    def __init__(self, table: pa.Table, cut: str | None) -> None:
        self._table = table
        self._cut = cut

    @property
    def cut(self) -> str | None:
        """The instant that the rows are of, as text, for `K2.at`. None where no table of market was read."""
        return self._cut

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self._table.schema.names)

    def arrow(self) -> pa.Table:
        """As a pyarrow Table, in the types that the server sent."""
        return self._table

    def polars(self) -> pl.DataFrame:
        """As a polars DataFrame. Most columns share their memory with the Arrow table."""
        frame = pl.from_arrow(self._table)
        return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()

    def lazy(self) -> pl.LazyFrame:
        """As a polars LazyFrame over the rows that are here."""
        return self.polars().lazy()

    def pandas(self) -> pd.DataFrame:
        """As a pandas DataFrame with Arrow-backed dtypes, so that decimals and nulls stay exact.

        Raises ClientError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ClientError("pandas is not installed; install it with: pip install 'k2[pandas]'") from None
        return self._table.to_pandas(types_mapper=pandas.ArrowDtype)

    def duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """As a relation of DuckDB in this process, on `connection`, or on DuckDB's default one, for one thread.

        The relation reads the Arrow table where it lies, and keeps it.
        """
        import duckdb

        return duckdb.from_arrow(self._table) if connection is None else connection.from_arrow(self._table)

    def rows(self) -> list[dict[str, Any]]:
        """As plain Python values, a dict for each row: `Decimal`, `datetime` and so on. Slow for many rows."""
        rows: list[dict[str, Any]] = self._table.to_pylist()
        return rows

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"{self.polars()!r}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return str(self.polars()._repr_html_())
