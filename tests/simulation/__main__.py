"""Many schedules, in several processes: `python -m tests.simulation --schedules 10000`.

Ends with 0 when the property held in all of them. A failure is told with its seed and its shortened schedule, which
`--replay` plays again.
"""

from __future__ import annotations

import argparse
import ast
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from tests.simulation.runs import Outcome, play, quiet
from tests.simulation.schedules import LENGTH, run

_PER_TASK = 20
_FAILURES_MAX = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1, help="the first one; each schedule has the next")
    parser.add_argument("--length", type=int, default=LENGTH, help="actions in each")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", help="play this one schedule, as a failure printed it")
    options = parser.parse_args()
    quiet()
    if options.replay:
        _say(str(run(ast.literal_eval(options.replay))))
        return 0
    total = Outcome()
    began_s = time.monotonic()
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"), quiet) as pool:
        for outcome in _outcomes(pool, options.seed, options.schedules, options.length):
            total.schedules += outcome.schedules
            total.counts.add(outcome.counts)
            total.cpu_s += outcome.cpu_s
            total.failures += outcome.failures
            for failure in outcome.failures:
                _say(f"\n{failure}")
            _progress(total, options.schedules, time.monotonic() - began_s)
            if len(total.failures) >= _FAILURES_MAX:
                pool.shutdown(cancel_futures=True)
                break
    _report(total, options.seed, options.length, time.monotonic() - began_s)
    return 1 if total.failures else 0


def _outcomes(pool: ProcessPoolExecutor, seed: int, count: int, length: int) -> Iterator[Outcome]:
    tasks: list[Future[Outcome]] = [
        pool.submit(play, first, min(_PER_TASK, seed + count - first), length)
        for first in range(seed, seed + count, _PER_TASK)
    ]
    for task in as_completed(tasks):
        yield task.result()


def _progress(total: Outcome, wanted: int, passed_s: float) -> None:
    left_s = passed_s / max(1, total.schedules) * (wanted - total.schedules)
    line = f"{total.schedules}/{wanted} schedules, {total.counts.answered} answers, {left_s:.0f} s left"
    sys.stdout.write(line + ("\r" if sys.stdout.isatty() else "\n"))
    sys.stdout.flush()


def _report(total: Outcome, seed: int, length: int, passed_s: float) -> None:
    _say(
        f"\n{total.schedules} schedules of {length} actions from seed {seed}, {len(total.failures)} failed; "
        f"{passed_s:.0f} s, {total.cpu_s:.0f} s of processor time"
    )
    for name, value in vars(total.counts).items():
        _say(f"  {name.replace('_', ' '):<12} {value:>9,}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
