"""DuckDB as the embedded engine. Nothing outside this room and storage knows that it is DuckDB."""
