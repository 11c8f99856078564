"""An export that ends by SIGKILL: `python -m tests.support.killed_export URI STATEMENT FOLDER STEP FORMAT`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import clients
from clients.export import ExportFormat, ExportOptions, export
from clients.export.files import SliceFiles


def main() -> None:
    uri, statement, folder, step, form = sys.argv[1:]
    if step == "committed":
        from clients.export import local_iceberg

        _die_after(local_iceberg, "commit", 1)
    else:
        _die_after(SliceFiles, {"batch": "add", "moved": "finish"}[step], 4)
    options = ExportOptions(format=cast(ExportFormat, form), partition_by=("symbol",), slice_rows=500)
    export(lambda: clients.connect(uri), statement, Path(folder), options)


def _die_after(owner: Any, name: str, count: int) -> None:
    real: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)

    def counted(*arguments: Any) -> Any:
        result = real(*arguments)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


if __name__ == "__main__":
    main()
