"""A Kafka consumer group in memory that keeps the contract of common.consumer_group, cooperative as the real one.

A partition goes from one member to another in two turns: its member hears of it, finishes, lets go; only then may the
other take it. A member that the group has thrown out does not know, and goes on, until it is served again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

from common.log import Share
from tests.support.fake_log import FakeLog


@dataclass
class FakeGroup:
    """The coordinator. `noted` are the offsets that members wrote."""

    log: FakeLog
    noted: dict[Share, int] = field(default_factory=dict)
    _members: list[FakeMember] = field(default_factory=list)
    _owners: dict[Share, FakeMember] = field(default_factory=dict)

    def member(self) -> FakeMember:
        return FakeMember(self)

    def throw_out(self, member: FakeMember) -> None:
        """The member's session timed out: its partitions are free at once, and it has not heard of that."""
        if member in self._members:
            self._members.remove(member)
            self._owners = {share: owner for share, owner in self._owners.items() if owner is not member}

    def settled(self) -> bool:
        """Every partition is with the member that it is meant for, and that member knows."""
        meant = self._meant()
        held = {share: member for member in self._members for share in member._shares}
        return meant == self._owners == held

    def _meant(self) -> dict[Share, FakeMember]:
        """Spread in turn over those who follow the topic."""
        meant: dict[Share, FakeMember] = {}
        for name, info in sorted(self.log.topics.items()):
            who = [member for member in self._members if name in member._topics]
            for number in range(info.partitions if who else 0):
                meant[Share(name, number)] = who[number % len(who)]
        return meant


class FakeMember:
    """One member. Equal only to itself."""

    def __init__(self, group: FakeGroup) -> None:
        self._group = group
        self._topics: frozenset[str] = frozenset()
        self._shares: frozenset[Share] = frozenset()
        self.closed = False

    def follow(self, topics: Iterable[str]) -> None:
        self._topics = frozenset(topics)

    def serve(self, on_revoke: Callable[[Set[Share], bool], None]) -> Set[Share]:
        assert not self.closed, "a member that has left is used"
        group = self._group
        if self not in group._members:
            self._let_go(self._shares, on_revoke, lost=True)
            group._members.append(self)
            return self._shares
        meant = group._meant()
        self._let_go({share for share in self._shares if meant.get(share) is not self}, on_revoke, lost=False)
        free = {share for share, member in meant.items() if member is self and share not in group._owners}
        group._owners |= dict.fromkeys(free, self)
        self._shares |= free
        return self._shares

    def note(self, next_offsets: Mapping[Share, int]) -> None:
        if self in self._group._members:
            self._group.noted |= next_offsets

    def close(self) -> None:
        self.closed = True
        self._group.throw_out(self)

    def _let_go(self, going: Set[Share], on_revoke: Callable[[Set[Share], bool], None], *, lost: bool) -> None:
        try:
            if going:
                on_revoke(going, lost)
        finally:
            self._shares -= going
            if not lost:
                for share in going:
                    self._group._owners.pop(share, None)
