"""Many clients at once, some of which vanish: no error, nothing left behind. The benchmark `load` is the long one."""

from __future__ import annotations

import time

from tests.support.load import OPERATIONS, run_processes
from tests.support.served import ServedProcess

PROCESSES, CLIENTS, OPERATIONS_EACH = 2, 16, 12


def test_many_clients_at_once_leave_nothing_behind() -> None:
    # What vanished clients held is given back after seconds here, not after minutes.
    idle = {"session_idle_s_max": 2.0, "transaction_idle_s_max": 2.0, "pin_s_max": 2.0}
    served = ServedProcess(rows=20_000, statement_wait_s_max=60.0, statement_timeout_s=60.0, **idle)
    try:
        run_processes(served.uri, processes=1, clients=CLIENTS, operations=2, seconds=60)  # gRPC's threads, caches
        before, threads_before = settled(served, {}), served.threads()
        report, _ = run_processes(
            served.uri,
            processes=PROCESSES,
            clients=CLIENTS,
            operations=OPERATIONS_EACH,
            seconds=120,
            victims=1,
        )
        assert report.errors == []
        assert sum(map(len, report.taken_ms.values())) == PROCESSES * CLIENTS * OPERATIONS_EACH
        assert set(report.taken_ms) == set(OPERATIONS)
        after = settled(served, before)
        assert {name: after[name] for name in HELD} == dict.fromkeys(HELD, 0)
        assert after["python_threads"] <= before["python_threads"]
        assert served.threads() <= threads_before + CLIENTS
    finally:
        assert served.stop() == 0


#: What clients hold on the server.
HELD = ("open_statements", "prepared_statements", "sessions", "pinned_statements")


def settled(served: ServedProcess, before: dict[str, int], *, within_s: float = 30.0) -> dict[str, int]:
    """Its counters once all that clients held is given back, or as they are at the end of the patience."""
    deadline_s = time.monotonic() + within_s
    while True:
        now = served.stats()
        threads_back = now["python_threads"] <= before.get("python_threads", now["python_threads"])
        if (threads_back and not any(now[name] for name in HELD)) or time.monotonic() > deadline_s:
            return now
        time.sleep(0.1)
