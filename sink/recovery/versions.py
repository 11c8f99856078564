"""Pure: which of the metadata files in a table's folder was the table's newest version.

The names say little: two writers that race both write a file, and the catalog takes one. What was taken shows in the
contents. Every version lists the versions before it (`metadata-log`), and only a version that the catalog took is ever
built upon. So whatever another file lists was the table once, in that order; and only the files that none lists may
have lost a race. Of those, the one with the longest way behind it is the newest: a loser has no successors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Version:
    """A metadata file that can be read: its name in the table's folder, and what is in it."""

    name: str
    tree: Mapping[str, Any]

    @property
    def uuid(self) -> str:
        return str(self.tree.get("table-uuid", ""))

    @property
    def before(self) -> list[str]:
        """The names of the versions before it, the oldest first."""
        return [file_name(entry["metadata-file"]) for entry in self.tree.get("metadata-log") or []]

    @property
    def base_ms(self) -> int:
        """When the version that it is built upon was made; its own time when it is the first one."""
        log = self.tree.get("metadata-log") or []
        return int(log[-1]["timestamp-ms"]) if log else self.updated_ms

    @property
    def updated_ms(self) -> int:
        return int(self.tree.get("last-updated-ms") or 0)

    @property
    def sequence_number(self) -> int:
        return int(self.tree.get("last-sequence-number") or 0)


def file_name(path: str) -> str:
    return path.rpartition("/")[2]


def candidates(versions: Sequence[Version]) -> list[Version]:
    """The versions of one table that may have been its newest, the likeliest first.

    First those that no other one is built upon: by how many versions are known before them, then, where a race ended
    with the catalog's loss, by their sequence number and time. Last the newest that another one is built upon, should
    those before it turn out to have lost their files with the race.
    """
    newest = _newest_stretch(versions)
    depths = _depths(newest)
    listed = {name for version in newest for name in version.before}

    def order(version: Version) -> tuple[int, int, int]:
        return depths[file_name(version.name)], version.sequence_number, version.updated_ms

    newest_first = sorted(newest, key=order, reverse=True)
    tips = [version for version in newest_first if file_name(version.name) not in listed]
    built_upon = [version for version in newest_first if file_name(version.name) in listed]
    # A file that lost an old race is a tip too; it is no candidate once others went further.
    deepest = max((order(version)[0] for version in tips), default=0)
    return [version for version in tips if order(version)[0] == deepest] + built_upon[:1]


def _newest_stretch(versions: Sequence[Version]) -> list[Version]:
    """Those that hang together by their lists with the one whose base is the youngest.

    A list holds the last hundred versions or so, and older files are deleted; what lost a race before that may stay,
    and nothing connects it with the versions of now. Of a base the time counts: the catalog has taken that one.
    """
    stretches: list[tuple[set[str], list[Version]]] = []
    for version in versions:
        names, members = {file_name(version.name), *version.before}, [version]
        for stretch in [stretch for stretch in stretches if not names.isdisjoint(stretch[0])]:
            stretches.remove(stretch)
            names |= stretch[0]
            members += stretch[1]
        stretches.append((names, members))
    return max((members for _, members in stretches), key=lambda all_: max(each.base_ms for each in all_), default=[])


def _depths(versions: Sequence[Version]) -> dict[str, int]:
    """File name -> how many versions are known before it."""
    depths: dict[str, int] = {}
    for _ in range(len(versions) + 1):
        changed = False
        for version in versions:
            depth = -1
            for name in (*version.before, file_name(version.name)):
                depth = max(depths.get(name, 0), depth + 1)
                changed |= depths.get(name) != depth
                depths[name] = depth
        if not changed:
            break
    return depths
