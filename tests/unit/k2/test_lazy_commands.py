"""Each process imports what it needs: an ingest is no lake and no server, and must not have their memory."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from k2.cli import cli

#: What costs tens of megabytes and has no business in a process that feeds Kafka.
_HEAVY = ("duckdb", "pyiceberg", "sqlalchemy", "adbc_driver_manager", "grpc", "pandas", "pyarrow.flight", "polars")


@pytest.mark.parametrize("module", ["k2.cli", "k2.feeds"])
def test_the_command_and_the_feeds_import_neither_lake_nor_server(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {_HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_avro_is_decoded_without_polars() -> None:
    """46 MB of each process; the package of the decoder would import it."""
    script = "import sys, common.codec; print([name for name in ('polars', 'fsspec') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_is_where_the_group_says() -> None:
    context = click.Context(cli)
    names = cli.list_commands(context)
    assert {"ingest", "simulate", "sink", "serve", "demo", "query", "tables", "access"} <= set(names)
    for name in names:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
    assert cli.get_command(context, "nothing") is None
