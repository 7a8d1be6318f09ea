"""Reads an export directory: the manifest and, each once, the files that hold the truth.

Every way in which a file can be missing, cut short or wrong ends in one sentence that says how to
mend it. A damaged *artifact* is not an error of reading: it is what the checks are for, so it is
found by `damaged` and reported as a failed check, while a damaged golden set or network, which
hold the truth to compare with, leave nothing to check against. Nothing here needs Keras.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import sha256
from .archive import Archive
from .golden import GoldenSet, golden_of
from .network import Network, network_of
from .records import AGAIN, FILE, Artifact, FileRecord, Manifest, TensorSpec


@dataclass(frozen=True)
class ExportDirectory:
    """A directory written by `renormlite export`, read and validated.

    Attributes:
        path: The directory.
        name: Name of the exported model.
        inputs: The trained model's inputs.
        outputs: The trained model's outputs.
        artifacts: The exported files; each exists, though it may be damaged.
        golden: Path of `golden.npz`.
        network: Path of the folded network in float64, None if the export wrote none.
        record: The manifest as JSON, for reports.
        trusted: These two by name, opened: the very bytes whose hash has been checked.
    """

    path: Path
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...]
    golden: Path
    network: Path | None
    record: Mapping[str, Any]
    trusted: Mapping[str, Archive] = field(repr=False)
    _damage: dict[str, str | None] = field(default_factory=dict, repr=False)

    def read_golden(self) -> GoldenSet:
        """Return the golden set.

        Raises:
            UserError: It is no golden set, or lacks one of the model's outputs.
        """
        names = [spec.name for spec in self.outputs]
        return golden_of(self.trusted[self.golden.name], str(self.golden), names)

    def read_network(self, artifact: Artifact) -> Network | None:
        """Return the network that an artifact was made from; None if the export wrote none.

        That is the folded network, or the same network with ranges equalized across layers, and
        has the trained model's input and output names.

        Raises:
            UserError: The network is missing or damaged.
        """
        if artifact.network is not None:
            path = self.path / artifact.network.file
            archive = _trusted(self.path, artifact.network, "the network behind a file")
        elif self.network is not None:
            path, archive = self.network, self.trusted[self.network.name]
        else:
            return None
        names = [spec.name for spec in self.inputs], [spec.name for spec in self.outputs]
        return network_of(archive, str(path)).named(*names)

    def damaged(self, artifact: Artifact) -> str | None:
        """Return why a file is not the one that was exported, or None when it is.

        Each file is hashed once, however many targets run it.
        """
        if artifact.file not in self._damage:
            self._damage[artifact.file] = self._find_damage(artifact)
        return self._damage[artifact.file]

    def _find_damage(self, artifact: Artifact) -> str | None:
        path = self.path / artifact.file
        size = path.stat().st_size
        if size != artifact.bytes:
            return f"{artifact.file} has {size} bytes where the export wrote {artifact.bytes}"
        found = sha256(path)
        if found != artifact.sha256:
            return (
                f"{artifact.file} is not the file that was exported: its SHA-256 is "
                f"{found[:12]}… where manifest.json has {artifact.sha256[:12]}…"
            )
        return None


def read_export(directory: str | os.PathLike[str]) -> ExportDirectory:
    """Read and validate an export directory.

    Args:
        directory: What `renormlite export` wrote.

    Returns:
        The directory's contents, with the hashes of the golden set and the network verified.

    Raises:
        UserError: Something is missing, cut short or of another schema.
    """
    path = Path(directory)
    manifest = Manifest.load(path)
    artifacts = tuple(artifact for artifact in manifest.artifacts if artifact.files is None)
    if not artifacts:
        raise UserError(f"{path / FILE} lists no artifact, so there is nothing to check. {AGAIN}")
    for artifact in artifacts:
        if not (path / artifact.file).exists():
            raise UserError(
                f"{path / artifact.file} is missing, though manifest.json lists it. {AGAIN}"
            )
    trusted = {manifest.golden.file: _trusted(path, manifest.golden, "the golden set")}
    if manifest.network is not None:
        trusted[manifest.network.file] = _trusted(path, manifest.network, "the folded network")
    return ExportDirectory(
        path=path,
        name=manifest.name,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        artifacts=artifacts,
        golden=path / manifest.golden.file,
        network=path / manifest.network.file if manifest.network else None,
        record=manifest.to_json(),
        trusted=trusted,
    )


def _trusted(directory: Path, entry: FileRecord, what: str) -> Archive:
    """Return a file that holds truth, after checking that it is the one exported."""
    path = directory / entry.file
    if not path.is_file():
        raise UserError(f"{path}, {what} to compare with, is missing. {AGAIN}")
    archive = Archive(path)
    found = archive.sha256()
    if found != entry.sha256:
        raise UserError(
            f"{path}, {what} to compare with, is damaged: its SHA-256 is {found[:12]}… where "
            f"manifest.json has {entry.sha256[:12]}…. {AGAIN}"
        )
    return archive
