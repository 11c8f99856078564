"""Pin every version K2 can install, without naming where packages come from: `just lock`.

uv resolves pyproject.toml afresh (all extras, all groups, the build backend) for every Python and platform K2 supports.
The result is written twice, and both say only names and versions: as constraints in pyproject.toml, between the two
marker lines below, which is what uv follows, and as constraints.txt, for `pip install -c constraints.txt .`. A package
that needs different versions on different Pythons keeps its environment marker.

    python .ci/lock.py            upgrade everything to the newest versions that fit together
    python .ci/lock.py --check    exit code 1 when the pins leave anything open or are out of date with the dependencies
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "# --- versions, written by just lock ---"
END = "# --- end ---"
PYTHON_MIN = "3.11"
_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", re.DOTALL | re.MULTILINE)
# `[tool.uv] environments` of pyproject.toml as uv repeats it on every line; it says nothing about one package.
_PLATFORMS = "sys_platform == 'darwin' or sys_platform == 'linux'"


class LockError(Exception):
    """The versions cannot be resolved or written; the message is one sentence for the terminal."""


def without_pins(pyproject: str) -> str:
    """`pyproject` with an empty block. Raises LockError when it has no block, or more than one."""
    bare, count = _BLOCK.subn(f"{BEGIN}\n{END}\n", pyproject)
    if count != 1:
        raise LockError(
            f"pyproject.toml needs exactly one block between '{BEGIN}' and '{END}' under [tool.uv]; it has {count}"
        )
    return bare


def with_pins(pyproject: str, pins: list[str], build_pins: list[str]) -> str:
    """`pyproject` with the block filled."""

    def array(key: str, values: list[str]) -> str:
        return "\n".join([f"{key} = [", *(f'    "{value}",' for value in values), "]"])

    block = "\n".join(
        [BEGIN, array("constraint-dependencies", pins), array("build-constraint-dependencies", build_pins), END, ""]
    )
    return without_pins(pyproject).replace(f"{BEGIN}\n{END}\n", block)


def pins_of(exported: str) -> list[str]:
    """Pins from `uv export` or `uv pip compile`: one line a version, sorted; a marker only where a name has several."""
    found: list[tuple[str, str, str]] = []
    for line in exported.splitlines():
        if not line.strip() or line.startswith(("#", "-", " ")):
            continue
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        name, separator, version = requirement.partition("==")
        if not separator or "://" in line:
            raise LockError(
                f"uv wrote '{requirement}', which is not a plain name==version; pin it from a package index"
            )
        found.append((re.sub(r"\[.*\]", "", name), version, marker))
    versions = Counter(name for name, _, _ in found)
    return sorted(
        f"{name}=={version} ; {_plain(marker)}" if versions[name] > 1 else f"{name}=={version}"
        for name, version, marker in found
    )


def _plain(marker: str) -> str:
    return marker.removesuffix(f" and ({_PLATFORMS})")


def resolve(pyproject: str) -> tuple[list[str], list[str]]:
    """(pins, build pins) for `pyproject` as it stands: its own constraints hold; where it has none, the newest win."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "pyproject.toml").write_text(pyproject)
        (project / "README.md").touch()
        (project / "LICENSE").touch()
        _uv(project, "lock")
        exported = _uv(
            project, "export", "--frozen", "--all-extras", "--all-groups", "--no-emit-project", *_BARE, "--no-hashes"
        )
        pins = pins_of(exported)
        settings = tomllib.loads(pyproject)
        (project / "build.in").write_text("\n".join(settings["build-system"]["requires"]))
        # The build backend may share a name with a pinned package (pathspec, packaging): one version serves both.
        held = pins + settings["tool"]["uv"].get("build-constraint-dependencies", [])
        (project / "held.txt").write_text("\n".join(held))
        build = _uv(
            *(project, "pip", "compile", "build.in", "--universal", "--python-version", PYTHON_MIN),
            *("--constraint", "held.txt", *_BARE),
        )
        return pins, pins_of(build)


_BARE = ("--no-header", "--no-annotate")


def _uv(project: Path, *arguments: str) -> str:
    done = subprocess.run(["uv", *arguments], cwd=project, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LockError(f"uv {arguments[0]} failed:\n{done.stderr.strip()}")
    return done.stdout


def constraints_text(pins: list[str], build_pins: list[str]) -> str:
    """constraints.txt: what pip needs to install the same versions, build backend included."""
    lines = sorted({*pins, *build_pins})
    return "\n".join(["# Written by `just lock`; use it as: pip install -c constraints.txt .", *lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Pin every version in pyproject.toml and constraints.txt.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when the pins are not complete and current"
    )
    check = parser.parse_args().check
    path, constraints_path = ROOT / "pyproject.toml", ROOT / "constraints.txt"
    current = path.read_text()
    try:
        pins, build_pins = resolve(current if check else without_pins(current))
        wanted, wanted_constraints = with_pins(current, pins, build_pins), constraints_text(pins, build_pins)
    except (LockError, OSError) as error:
        sys.stderr.write(f"lock: {error}\n")
        return 1
    if check:
        if (current, constraints_path.read_text()) != (wanted, wanted_constraints):
            sys.stderr.write("lock: the pins do not match the dependencies; run `just lock`\n")
            return 1
        return 0
    path.write_text(wanted)
    constraints_path.write_text(wanted_constraints)
    sys.stderr.write(f"lock: {len(pins)} versions and {len(build_pins)} of the build backend pinned\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
