"""The error of an export that wrote some of the files it was asked for."""

from __future__ import annotations

from ..artifacts.manifest import Manifest
from ..errors import UserError


class PartialExportError(UserError):
    """Some files were refused. The others are written, with a manifest and a golden set.

    Attributes:
        manifest: The manifest; `manifest.refused` has the reason for each refused file.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Name the refused files and the reasons, and the files that are written."""
        self.manifest = manifest
        files: dict[str, list[str]] = {}
        for file, reason in manifest.refused.items():
            files.setdefault(reason, []).append(file)
        reasons = " ".join(
            f"{', '.join(names)} {'were' if len(names) > 1 else 'was'} not written: {reason}"
            for reason, names in files.items()
        )
        written = ", ".join(artifact.file for artifact in manifest.artifacts)
        super().__init__(f"{reasons} Written: {written}.")
