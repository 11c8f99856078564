"""The tables of `ops` that a statement reads, as its caller is to see them now."""

from __future__ import annotations

import pyarrow as pa

from common.clock import Clock
from flight_server.engine import activity
from flight_server.engine.seam import Lake
from flight_server.engine.sessions import Caller, Sessions
from flight_server.engine.sources import Part, Source, relation_of
from flight_server.engine.statements import Statement
from flight_server.engine.watchdog import Watchdog


class OpsTables:
    """Thread-safe."""

    def __init__(self, lake: Lake, sessions: Sessions, watchdog: Watchdog, clock: Clock) -> None:
        self._lake = lake
        self._sessions = sessions
        self._watchdog = watchdog
        self._clock = clock

    def of(
        self, source: Source | Part | None, caller: Caller | None, statement: Statement | None
    ) -> dict[str, pa.Table]:
        """Relation -> rows, of those that `source` names; `statement` tells which columns are worth making."""
        if source is None or caller is None or not source.ops:
            return {}
        running = [about for _, about in self._watchdog.running()]
        sessions, now_us, now_s = self._sessions.all(), self._clock.now_us(), self._clock.monotonic_s()
        tables = {
            relation_of(table): activity.rows_of(table, caller, sessions, running, now_us, now_s)
            for table in source.ops - {"commits", "dead_letters"}
        }
        if "commits" in source.ops:
            # The texts of the cuts are made only for who may look at them. A million rows: 0.9 s without, 1.8 s with.
            asked = statement is None or "*" in statement.text or "cut" in statement.words
            tables[relation_of("commits")] = self._lake.commits(with_cuts=asked)
        if "dead_letters" in source.ops:
            tables[relation_of("dead_letters")] = self._lake.dead_letters()
        return tables
