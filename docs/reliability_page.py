"""Write the table of docs/reliability.md from what the fault matrix measured: `just docs`. Tests hold it current.

Each run of the matrix leaves its outcomes in bench-results/reliability, and fails when the page says something else;
this writes them into the page when every cell was measured on every catalog.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.fault_matrix import CATALOGS, CELLS, PAGE, RESULTS, Outcome

_BEGIN = "<!-- matrix: written by `just docs` -->"
_END = "<!-- end of matrix -->"


def table(measured: dict[str, dict[str, dict[str, int]]]) -> str:
    """The matrix. Raises KeyError for a cell that was not measured."""
    lines = [f"| fault | behind the step | {' | '.join(CATALOGS)} |", "|---|---|" + "---|" * len(CATALOGS)]
    for fault, step in CELLS:
        outcomes = [Outcome(**measured[catalog][f"{fault.name} {step.name}"]) for catalog in CATALOGS]
        cells = [f"{outcome.lost} / {outcome.doubled} / {outcome.left}" for outcome in outcomes]
        lines.append(f"| {fault.value} | {step.value} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str, matrix: str) -> str:
    """The page with its table made anew. Raises ValueError when it has not one place for it."""
    head, found, rest = text.partition(f"{_BEGIN}\n")
    _, closed, tail = rest.partition(_END)
    if not found or not closed or _BEGIN in tail:
        raise ValueError(f"{PAGE.name} needs exactly one '{_BEGIN}' with its '{_END}' behind it")
    return f"{head}{_BEGIN}\n{matrix}{_END}{tail}"


if __name__ == "__main__":
    try:
        known = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in CATALOGS}
        matrix = table(known)
    except (OSError, KeyError) as error:
        sys.stderr.write(
            f"{PAGE.name} stays as it is: {error} was not measured; run tests/recovery, tests/integration\n"
        )
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), matrix), encoding="utf-8")
        sys.stderr.write(f"wrote {PAGE.name}\n")
