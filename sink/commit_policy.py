"""When the sink commits: whichever of rows, bytes and age comes first. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.settings import SinkSettings


@dataclass(frozen=True)
class CommitPolicy:
    """Bounds of what is held uncommitted: rows (count), Avro bytes, and age of the oldest message (ms)."""

    rows_max: int
    bytes_max: int
    age_ms_max: int

    @classmethod
    def from_settings(cls, settings: SinkSettings) -> CommitPolicy:
        return cls(settings.commit_rows_max, settings.commit_bytes_max, settings.commit_age_ms_max)

    def shared(self, share: float) -> CommitPolicy:
        """The same with this share of the rows and bytes, of each 1 at least."""
        rows_max, bytes_max = (max(1, int(bound * share)) for bound in (self.rows_max, self.bytes_max))
        return replace(self, rows_max=rows_max, bytes_max=bytes_max)

    def is_due(self, *, rows: int, nbytes: int, oldest_s: float | None, now_s: float) -> bool:
        """True when what is held reaches any bound. `oldest_s` is when the oldest of it was polled, on the clock of
        `now_s`; None means that nothing is held, and nothing is never due.
        """
        if oldest_s is None:
            return False
        return rows >= self.rows_max or nbytes >= self.bytes_max or (now_s - oldest_s) * 1000 >= self.age_ms_max

    def wait_s(self, *, oldest_s: float | None, now_s: float, idle_s: float) -> float:
        """How long a poll may wait for more: until the age bound at most, `idle_s` at most, never negative."""
        if oldest_s is None:
            return idle_s
        return min(idle_s, max(0.0, self.age_ms_max / 1000 - (now_s - oldest_s)))
