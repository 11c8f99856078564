"""Backups are checked, and old ones go, with the files that only they have."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.clock import Clock, SystemClock
from common.errors import CatalogError, K2Error, Refused, SettingsError
from sink.maintenance.jobs import UNWATCHED, Progress, counted, in_bytes
from sink.recovery.archive import Archive, Backup, FileEntry, new_id
from sink.recovery.backup import PRUNING
from sink.recovery.folders import Digest, FileGone, damaged
from sink.recovery.parallel import each

_DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with the backups that were read, a sentence each; none: every file is there and is what it was."""

    location: str
    backups: tuple[str, ...]
    files: int
    nbytes: int
    findings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"job": "verify-backup", **asdict(self)}

    def to_text(self) -> str:
        read = f"{counted(len(self.backups), 'backup')}, {counted(self.files, 'file')} of {in_bytes(self.nbytes)}"
        if not self.findings:
            return f"{self.location}: {read} read, all as they were written"
        return "\n".join([f"{self.location}: {read} read, {counted(len(self.findings), 'finding')}", *self.findings])


@dataclass(frozen=True)
class PruneReport:
    """Which backups went, or with `dry_run` would go, and the files that no other one has."""

    location: str
    dry_run: bool
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    files: int
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        return {"job": "prune-backups", **asdict(self)}

    def to_text(self) -> str:
        would = "would be " if self.dry_run else ""
        return (
            f"{self.location}: {counted(len(self.removed), 'backup')} {would}removed, {len(self.kept)} kept; "
            f"{counted(self.files, 'file')} of {in_bytes(self.nbytes)} {would}deleted"
        )


def verify_backups(
    archive: Archive, *, backup_id: str | None = None, threads: int = 4, progress: Progress = UNWATCHED
) -> VerifyReport:
    """Read every file of the backups, or of one, and compare it with its checksum. Files that are shared are read once.

    Raises SettingsError (no such backup), CatalogError (the place cannot be reached), Interrupted.
    """
    ids = archive.ids() if backup_id is None else [archive.backup(backup_id).id]
    findings: list[str] = []
    files: dict[tuple[str, Digest], FileEntry] = {}
    for each_id in ids:
        try:
            for file in archive.files(archive.backup(each_id)):
                files.setdefault((file.key, file.digest), file)
        except (CatalogError, K2Error) as error:
            if isinstance(error, CatalogError) and not isinstance(error, FileGone):
                raise
            findings.append(f"backup {each_id}: {error}")
    progress.step("read the files", len(files))

    def check(file: FileEntry) -> str | None:
        try:
            found = archive.folder.digest(file.key)
        except FileGone:
            return f"{archive.folder.location}/{file.key} is not there"
        return None if found == file.digest else str(damaged(archive.folder, file.key, file.digest, found))

    for finding in each(check, files.values(), threads=threads):
        if finding is not None:
            findings.append(finding)
        progress.advance()
    nbytes = sum(file.size for file in files.values())
    return VerifyReport(archive.folder.location, tuple(ids), len(files), nbytes, tuple(findings))


def prune_backups(
    archive: Archive,
    *,
    keep: int | None = None,
    older_than_days: float | None = None,
    interrupted: bool = False,
    clock: Clock | None = None,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> PruneReport:
    """Remove backups, and every file that none of those that stay has. The newest one always stays.

    `keep`: how many stay; `older_than_days`: only those taken before that go; with both, what both let go. With
    `interrupted` what backups and prunings left that were killed goes too, and nobody may be at work there.

    A backup first ceases to be one, then its files go: killed at any moment, what is left is a complete backup or none.
    Raises Refused (somebody is at work there), SettingsError, CatalogError, Interrupted.
    """
    if keep is None and older_than_days is None and not interrupted:
        raise SettingsError("nothing says which backups may go; give --keep, --older-than-days or --interrupted")
    clock = clock or SystemClock()
    work = PRUNING + new_id(clock.now_us())
    if not dry_run:
        archive.begin(work)
    try:
        others = [name for name in archive.running() if name != work]
        if others and not interrupted:
            raise Refused(
                f"{archive.folder.location} is in use ({others[0]}); wait for its end, or say --interrupted when it "
                "was killed and nothing is at work there"
            )
        progress.step("look what may go")
        backups = archive.backups()
        removed = _removable(backups, keep, older_than_days, clock.now_us())
        kept = [backup for backup in backups if backup not in removed]
        needed = {file.key for backup in kept for file in archive.files(backup)}
        if not interrupted:
            needed |= archive.copied().keys()
        unneeded = {key: size for key, size in archive.stored().items() if key not in needed}
        report = PruneReport(
            archive.folder.location,
            dry_run,
            tuple(backup.id for backup in removed),
            tuple(backup.id for backup in kept),
            len(unneeded),
            sum(unneeded.values()),
        )
        if not dry_run:
            _remove(archive, report, unneeded, interrupted, progress)
            for name in others:
                archive.end(name)
        return report
    finally:
        if not dry_run:
            with contextlib.suppress(CatalogError):  # a mark that stays keeps others away until one is told to finish
                archive.end(work)


def _removable(backups: list[Backup], keep: int | None, older_than_days: float | None, now_us: int) -> list[Backup]:
    """Which of the backups, the oldest first, may go."""
    if keep is None and older_than_days is None:
        return []
    removable = backups[: -max(1, keep or 1)]
    if older_than_days is None:
        return removable
    return [backup for backup in removable if backup.taken_us < now_us - older_than_days * _DAY_US]


def _remove(
    archive: Archive, report: PruneReport, unneeded: Mapping[str, int], interrupted: bool, progress: Progress
) -> None:
    progress.step("remove backups", len(report.removed))
    for backup_id in report.removed:
        archive.unpublish(backup_id)
        progress.advance()
    progress.step("delete files", len(unneeded))
    for key in unneeded:
        archive.folder.delete(key)
        progress.advance()
    leftovers = [name for name, _ in archive.folder.list("manifests") if archive.id_of(name) not in report.kept]
    if interrupted:
        leftovers += [name for name, _ in archive.folder.list("copied")]
    for name in leftovers:
        archive.folder.delete(name)
