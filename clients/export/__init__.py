"""A result of any size as files: at one cut, by several connections at once, each row once, however it is interrupted.

    clients.export.export(lambda: clients.connect(uri), "SELECT * FROM market.trades", Path("out"))

`plan` cuts the result into slices, `files` writes one, `manifest` remembers those that are there, `run` does it all.
"""

from __future__ import annotations

from clients.export.files import COMPRESSIONS, EXPORT_FORMATS, Compression, ExportFormat
from clients.export.manifest import MANIFEST, DataFile, ExportError, Manifest, Verified, verify
from clients.export.run import ExportOptions, Progress, export

__all__ = [
    "COMPRESSIONS",
    "EXPORT_FORMATS",
    "MANIFEST",
    "Compression",
    "DataFile",
    "ExportError",
    "ExportFormat",
    "ExportOptions",
    "Manifest",
    "Progress",
    "Verified",
    "export",
    "verify",
]
