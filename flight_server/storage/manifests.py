"""Iceberg manifests read by DuckDB: fast, and without holding Python's lock, however many files they list."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import duckdb

from common.errors import Unavailable
from flight_server.storage.file_index import ADDED_BY, PATH, ROWS, FileIndex, decoded_bounds, lower, upper
from flight_server.storage.read_view import literal, quoted

#: Of a manifest's entry: the file was deleted.
_DELETED = 2
#: Of a file: its rows are rows, not deletes.
_DATA = 0
#: What DuckDB takes for a pattern in the name of a file.
_PATTERN = "*?["


class ManifestReader:
    """Reads each manifest on a new cursor of the lake's database. Thread-safe."""

    def __init__(self, cursor: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._cursor = cursor

    def read(self, path: str, added_by: int, columns: Mapping[str, tuple[int, bool]]) -> FileIndex | None:
        """The live data files that a manifest lists. `columns` are those whose bounds are
        wanted: name -> (field id, whether it is a string); `added_by` is the snapshot that added the manifest.

        None when it lists anything but plain Parquet files of rows. Raises Unavailable when it cannot be read.
        """
        bounds = "".join(
            f", data_file.lower_bounds[{field_id}] AS {quoted(lower(name))}"
            f", data_file.upper_bounds[{field_id}] AS {quoted(upper(name))}"
            for name, (field_id, _) in columns.items()
        )
        try:
            cursor = self._cursor()
            try:
                raw = cursor.execute(
                    f"SELECT data_file.file_path AS {PATH}, coalesce(snapshot_id, {added_by}) AS {ADDED_BY}, "
                    f"data_file.record_count AS {ROWS}, data_file.content = {_DATA} "
                    "AND upper(data_file.file_format) = 'PARQUET' AS plain"
                    f"{bounds} FROM read_avro({literal(path)}) WHERE status <> {_DELETED}"
                ).to_arrow_table()
            finally:
                cursor.close()
        except duckdb.Error as error:
            first_line = str(error).splitlines()[0]
            raise Unavailable(f"the manifest {path} cannot be read ({first_line}); check the file store") from None
        if not all(raw.column("plain").to_pylist()):
            return None
        if any(sign in name for name in raw.column(PATH).to_pylist() for sign in _PATTERN):
            return None
        return FileIndex.of(decoded_bounds(raw, {name: is_text for name, (_, is_text) in columns.items()}))
