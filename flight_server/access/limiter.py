"""How long somebody must wait after failed logins. Pure: no threads, no sleep; time is handed in.

A key is (kind, value). The first failures of a key are free; each further one locks it, for a time that doubles. What
is tried while a key is locked is refused unchecked and does not count. Time forgives, one failure after the other.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from common.clock import Clock

Key = tuple[str, str]


@dataclass(frozen=True)
class LimitPolicy:
    """`free` failures cost nothing; the next locks for `lock_s_first`, each one after it twice as long as the last.

    One failure is forgiven every `forgive_s`: nobody fails more often than that for long.
    """

    free: int
    lock_s_first: float
    lock_s_max: float
    forgive_s: float


@dataclass(slots=True)
class _Record:
    failures: float
    failed_s: float
    locked_until_s: float


class LoginLimiter:
    """Counts failures per key, in bounded memory: beyond `keys_max` the key that failed longest ago is forgotten.

    Not locked against threads: the caller is.
    """

    def __init__(self, clock: Clock, policies: Mapping[str, LimitPolicy], *, keys_max: int = 10_000) -> None:
        self._clock = clock
        self._policies = dict(policies)
        self._keys_max = keys_max
        self._records: OrderedDict[Key, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def wait_s(self, *keys: Key) -> float:
        """Seconds until every key may try again; 0.0 when now."""
        now_s = self._clock.monotonic_s()
        # Bounded again: a sum and a difference of floats may come out a hair above what went in.
        locked_s = (
            min(self._records[key].locked_until_s - now_s, self._policies[key[0]].lock_s_max)
            for key in keys
            if key in self._records
        )
        return max(0.0, max(locked_s, default=0.0))

    def failed(self, *keys: Key) -> None:
        """Count one failure for each key."""
        now_s = self._clock.monotonic_s()
        for key in keys:
            policy = self._policies[key[0]]
            record = self._records.pop(key, None)
            before = 0.0 if record is None else record.failures - (now_s - record.failed_s) / policy.forgive_s
            failures = max(0.0, before) + 1
            locked_until_s = now_s
            if (beyond := failures - policy.free) > 0:
                # 2 ** 30 s is beyond any bound; the exponent stays small enough for a float.
                locked_until_s += min(policy.lock_s_first * 2.0 ** min(math.ceil(beyond) - 1, 30), policy.lock_s_max)
            self._records[key] = _Record(failures, now_s, locked_until_s)
        while len(self._records) > self._keys_max:
            self._records.popitem(last=False)

    def succeeded(self, key: Key) -> None:
        """Forget the key's failures."""
        self._records.pop(key, None)
