"""`k2 ...` in this process: for what ends at once, where a process of its own costs seconds of imports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import structlog

from k2.cli import main


@dataclass(frozen=True)
class Done:
    """As subprocess has it."""

    returncode: int
    stdout: str
    stderr: str


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A function that runs `k2` with these arguments and this environment, as its console script does."""

    def run(*arguments: str, **env: str) -> Done:
        interval_s, logs = sys.getswitchinterval(), structlog.get_config()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["k2", *arguments])
            for name, value in env.items():
                patch.setenv(name, value)
            code: object = 0
            try:
                main()
            except SystemExit as ended:
                code = ended.code or 0
            finally:
                sys.setswitchinterval(interval_s)
                structlog.configure(**logs)  # before the stream that the command logs to is closed
        said = capfd.readouterr()
        assert isinstance(code, int)
        return Done(code, said.out, said.err)

    return run
