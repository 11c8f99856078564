"""DuckDB as a Quack server, run by the Python of the benchmark's throw-away environment.

`peers_quack.py PORT TOKEN FILE...`: the files are its view `trades`. The extension httpfs is loaded for its
cryptography: without it Quack answers each handshake with HTTP 500.
"""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import duckdb


def extension(name: str) -> str:
    """The path of an extension that was installed from PyPI."""
    package = Path(str(importlib.import_module(f"duckdb_extension_{name}").__file__)).parent
    return str(next(package.glob(f"extensions/*/{name}.duckdb_extension")))


if __name__ == "__main__":
    port, token, *files = sys.argv[1:]
    database = duckdb.connect()
    for name in ("httpfs", "quack"):
        database.execute(f"LOAD '{extension(name)}'")
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    database.execute("SET GLOBAL parquet_metadata_cache = true")
    database.execute(f"CREATE VIEW trades AS SELECT * FROM read_parquet({files!r})")
    database.execute(f"CALL quack_serve('quack:127.0.0.1:{port}', token => '{token}')")
    print("ready", flush=True)  # noqa: T201  (the benchmark waits for this line)
    threading.Event().wait()
