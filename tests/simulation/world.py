"""A whole K2 in one thread: fake log, catalog and clock; the real sink workers, codec, publisher, DuckDB and Parquet.

A schedule is a list of (action, number) pairs. Every action is defined in every state, so any part of a schedule is a
schedule too: that is what makes shortening a failing one easy. Each room of a world has actions of its own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from common.clock import ManualClock
from tests.simulation.parts import Counts, base_folder
from tests.simulation.producers import Producers
from tests.simulation.queries import Queries
from tests.simulation.server import Server
from tests.simulation.sinks import Sinks
from tests.simulation.subscribers import Subscribers
from tests.simulation.tables import TABLES, Tables
from tests.simulation.truth import Truth
from tests.support.fake_log import FakeLog

ROOMS = (Producers, Sinks, Tables, Server, Queries, Subscribers)


class World:
    """What the actions act upon."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=base_folder()))
        self.clock = ManualClock()
        self.log = FakeLog()
        self.truth = Truth()
        self.counts = Counts()
        self.tables = Tables(self)
        self.producers = Producers(self)
        self.sinks = Sinks(self)
        self.queries = Queries(self)
        self.subscribers = Subscribers(self)
        self.server = Server(self)
        self.server.start()

    def act(self, name: str, number: int) -> None:
        """One action, of whichever room has it."""
        rooms = (self.producers, self.sinks, self.tables, self.server, self.queries, self.subscribers)
        found: list[Callable[[int], None]] = [getattr(room, name) for room in rooms if has_action(type(room), name)]
        if not found:
            raise ValueError(f"there is no action {name!r} in a schedule; they are in tests/simulation/schedules.py")
        found[0](number)

    def settle(self) -> None:
        """No more faults: everything is committed, the last answer is the whole log, and old cuts are readable."""
        self.server.database.fails_after = None
        self.producers.settle()
        self.tables.settle()
        self.sinks.settle()
        for dataset in TABLES:
            self.tables.check(dataset)
        self.sinks.check_letters()
        self.queries.finish_all()
        for _turn in range(3):
            self.server.refresh(1)
            self.server.tail_poll(0)
        last = self.queries.settle()
        for dataset in self.server.datasets:
            ends = self.sinks.of(dataset, self.log.end_offsets())
            assert last.tables[dataset.table].offsets.covers(ends), f"the tail of {dataset.table} is behind the log"
        self.subscribers.settle(last)

    def close(self) -> None:
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def has_action(room: type, name: str) -> bool:
    return not name.startswith("_") and callable(getattr(room, name, None))
