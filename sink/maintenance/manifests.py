"""The manifests of a table written anew: few, of one size, each of files that lie together.

Guarantee: the same files are listed before and after, each with the snapshot and the sequence number that it came with;
the snapshot that does it is Iceberg's `replace`, and no data file is touched. Beside writers and other jobs it is safe
as `rewrite_listing` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pyiceberg.manifest import ManifestEntry

from common.iceberg import translated
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted
from sink.maintenance.replace import data_manifests, rewrite_listing


@dataclass(frozen=True)
class ManifestsPolicy:
    """`files_max` files to a manifest; nothing is done unless there are more than `spare` manifests too many.

    A sink's commits merge twenty manifests at a time by themselves, so a few more than needed are always there.
    """

    files_max: int = 1_000
    spare: int = 0


@dataclass(frozen=True)
class ManifestsReport(Report):
    """How many manifests there were, and are now; the same when there was nothing to do."""

    job: ClassVar[str] = "rewrite-manifests"

    manifests_before: int = 0
    manifests_after: int = 0
    files: int = 0

    def to_text(self) -> str:
        if self.manifests_after >= self.manifests_before:
            return f"nothing to rewrite: {counted(self.manifests_before, 'manifest')}"
        would = "would become" if self.dry_run else "became"
        return f"{counted(self.manifests_before, 'manifest')} {would} {self.manifests_after:,}"


def manifests_needed(files_by_spec: dict[int, int], policy: ManifestsPolicy) -> int:
    """How few manifests can list so many files of each partition spec. Pure."""
    return sum(-(-files // policy.files_max) for files in files_by_spec.values())


def rewrite_manifests(
    table: MaintainedTable,
    policy: ManifestsPolicy = ManifestsPolicy(),
    *,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> ManifestsReport:
    """List the table's files in as few manifests as the policy allows, if there are too many as of now.

    Raises Refused (delete files of a foreign tool), Interrupted, CatalogError, CommitConflict, CommitStateUnknown;
    nothing has changed then, unless the catalog did it and did not say so.
    """
    progress.step(f"load {table.name}")
    table.reload()
    iceberg = table.iceberg_table
    snapshot = iceberg.metadata.current_snapshot()
    if snapshot is None:
        return ManifestsReport(table.name, dry_run)
    with translated(f"list the manifests of {table.name}"):
        manifests = data_manifests(table.name, snapshot, iceberg.io)
    files: dict[int, int] = {}
    for manifest in manifests:
        live = (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)
        files[manifest.partition_spec_id] = files.get(manifest.partition_spec_id, 0) + live
    needed = manifests_needed(files, policy)
    if len(manifests) - needed <= policy.spare:
        return ManifestsReport(table.name, dry_run, len(manifests), len(manifests), sum(files.values()))
    if not dry_run:
        progress.step(f"rewrite {len(manifests)} manifests of {table.name}")
        rewrite_listing(table, lambda entries: _arranged(entries, policy.files_max))
    return ManifestsReport(table.name, dry_run, len(manifests), needed, sum(files.values()))


def _arranged(entries: list[ManifestEntry], files_max: int) -> Iterator[list[ManifestEntry]]:
    """By partition, and within one in the order in which the files came in: who asks for a day opens few manifests."""
    in_order = sorted(entries, key=_place)
    for first in range(0, len(in_order), files_max):
        yield in_order[first : first + files_max]


def _place(entry: ManifestEntry) -> tuple[object, ...]:
    values = (entry.data_file.partition[number] for number in range(len(entry.data_file.partition)))
    return (*((value is None, value) for value in values), entry.sequence_number or 0, entry.data_file.file_path)
