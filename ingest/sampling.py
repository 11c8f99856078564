"""What is told of things that may come by the thousand: the first of each kind, then a count once a minute. Pure."""

from __future__ import annotations

from typing import Final

#: Kinds told apart. What comes of further ones is counted as one kind: names from outside must not fill the memory.
_KINDS_MAX: Final = 256
_OTHERS: Final = "others"


class Sampler:
    """Says of each thing whether to tell it. Times are monotonic seconds."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._told: dict[str, tuple[float, int]] = {}

    def take(self, kind: str, now_s: float) -> int:
        """How many of the kind came since it was last told, this one included, when it is to be told now; else 0."""
        if kind not in self._told and len(self._told) >= _KINDS_MAX:
            kind = _OTHERS
        told_s, untold = self._told.get(kind, (float("-inf"), 0))
        if now_s - told_s < self._every_s:
            self._told[kind] = (told_s, untold + 1)
            return 0
        self._told[kind] = (now_s, 0)
        return untold + 1
