"""What this process may have of memory, and has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common import memory


@pytest.mark.parametrize(("text", "limit"), [("1048576\n", 1_048_576), ("max\n", None), (None, None)])
def test_memory_is_the_containers_or_the_machines(
    text: str | None, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(memory, "_CGROUP_MEMORY", file)
    found = memory.memory_limit_bytes()
    assert found == limit if limit is not None else found > 100 * 1024**2


@pytest.mark.parametrize("text", ["", "12", "12 many 3"])
def test_a_system_that_does_not_tell_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "statm"
    file.write_text(text)
    monkeypatch.setattr(memory, "_STATM", file)
    assert memory.resident_bytes() is None
    file.write_text("900 25 3")
    assert memory.resident_bytes() == 25 * os.sysconf("SC_PAGE_SIZE")
    file.unlink()
    assert memory.resident_bytes() is None
