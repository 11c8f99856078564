"""How written files become part of a table that others write to as well: design rules 2 and 3, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from common.clock import Clock
from common.errors import CommitConflict, CommitStateUnknown
from common.offsets import PartitionOffsets
from common.resilience import jittered_wait_s
from common.telemetry import get_logger

_log = get_logger("sink")
F = TypeVar("F")

#: How long a commit is tried again on a table that others change without touching our offsets. Two workers that commit
#: every second meet each other in 5 % of their commits; what lasts this long is a job that runs in a loop.
_CONFLICTS_S_MAX = 60.0
#: A commit takes some 30 ms; whoever lost waits for a random part of that, twice as long each time, at most so long.
_CONFLICT_WAIT_S_FIRST, _CONFLICT_WAIT_S_MAX = 0.03, 1.0


class Table(Protocol[F]):
    """What the sink needs of a table; `sink.table.IcebergTable` is the real one, F its written, uncommitted files."""

    @property
    def name(self) -> str: ...
    @property
    def snapshot_id(self) -> int | None: ...
    def committed_offsets(self) -> PartitionOffsets: ...
    def write(self, rows: pa.Table) -> F: ...
    def commit(
        self,
        files: F,
        base: PartitionOffsets,
        to: PartitionOffsets,
        commit_id: str,
        *,
        manifests_written: Callable[[], None],
    ) -> int: ...
    def landed(self, commit_id: str) -> bool: ...
    def discard(self, files: F) -> None: ...


class Landing(Generic[F]):
    """Lands files on one table, each offset once, whoever else is at work. One thread at a time."""

    def __init__(
        self,
        table: Table[F],
        clock: Clock,
        wait: Callable[[float], object],
        *,
        manifests_written: Callable[[], None] = lambda: None,
        new_commit_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._table = table
        self._clock = clock
        self._wait = wait
        self._manifests_written = manifests_written
        self._new_commit_id = new_commit_id
        self.conflicts = 0

    def land(
        self, files: F, base: PartitionOffsets, to: PartitionOffsets, *, others: bool = False
    ) -> PartitionOffsets | None:
        """Commit the files; None when they are in the table, else where the table stands: theirs is not wanted now.

        `others`: more workers write to this table, so it is looked at first; a commit made for an old state is work for
        nothing. Blocks for as long as others are faster, a minute at most. Raises CommitConflict after that, the files
        discarded; CatalogError, whereupon nobody knows what became of them and they stay.
        """
        commit_id = self._new_commit_id()
        give_up_s = self._clock.monotonic_s() + _CONFLICTS_S_MAX
        failures = 0
        if others and (stands := self._passed(base, to)) is not None:
            return self._unwanted(files, stands, "looked at before the commit")
        while True:
            try:
                self._table.commit(files, base, to, commit_id, manifests_written=self._manifests_written)
                return None
            except CommitConflict as conflict:
                self.conflicts += 1
                failures += 1
                stands = self._passed(base, to)
                if stands is not None:
                    return self._unwanted(files, stands, conflict.message)
                wait_s = jittered_wait_s(failures, first_s=_CONFLICT_WAIT_S_FIRST, max_s=_CONFLICT_WAIT_S_MAX)
                if self._clock.monotonic_s() + wait_s > give_up_s:
                    break
                self._wait(wait_s)
            except CommitStateUnknown as unknown:
                _log.warning("commit outcome unknown; asking the table", table=self._table.name, reason=unknown.message)
                if self._table.landed(commit_id):
                    return None
                # Rule 3: nothing is deleted. Should it land after all, the fence lets no other one land on `base`.
                return self._table.committed_offsets()
        self._table.discard(files)
        raise CommitConflict(
            f"the table {self._table.name} was changed by others {failures} times during one commit, for "
            f"{_CONFLICTS_S_MAX:.0f} s; is a maintenance job running in a loop?"
        )

    def _passed(self, base: PartitionOffsets, to: PartitionOffsets) -> PartitionOffsets | None:
        """Where the table stands, if it is not where these files begin: another writer landed them, or some of them."""
        stands = self._table.committed_offsets()
        return stands if any(stands.next_offset(p) != base.next_offset(p) for p in to) else None

    def _unwanted(self, files: F, stands: PartitionOffsets, why: str) -> PartitionOffsets:
        _log.warning("another writer was first; reading on from the table", table=self._table.name, reason=why)
        self._table.discard(files)
        return stands
