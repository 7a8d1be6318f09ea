"""Reads an export directory: the manifest, the golden set and the network, each file once.

A missing, truncated or wrong file raises one sentence that says how to fix it. A damaged *artifact*
raises nothing: `damaged` describes it, and the checks report a failure. Without the golden set or
the network nothing can be checked, so damage there raises. Nothing here needs Keras.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import Hashing, sha256
from .archive import Archive
from .golden_set import GoldenSet, golden_of
from .manifest import AGAIN, FILE, Artifact, FileRecord, Manifest, TensorSpec
from .network import Network, network_of

_GOLDEN, _NETWORK = "the golden set", "the folded network"


@dataclass(frozen=True)
class ExportDirectory:
    """A directory written by `renormlite export`.

    Attributes:
        path: The directory.
        manifest: What `manifest.json` says.
        artifacts: The exported files; each may be damaged or missing (`damaged`).
        golden: Path of `golden.npz`.
        network: Path of the folded network in float64, None if the export wrote none.
    """

    path: Path
    manifest: Manifest
    artifacts: tuple[Artifact, ...]
    golden: Path
    network: Path | None
    _archives: Mapping[Path, Archive] = field(repr=False)
    _hashes: dict[Path, Hashing] = field(default_factory=dict, repr=False)
    _digests: dict[Path, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Name of the exported model."""
        return self.manifest.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The trained model's inputs."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The trained model's outputs."""
        return self.manifest.outputs

    @functools.cached_property
    def record(self) -> Mapping[str, Any]:
        """The manifest as JSON, for reports."""
        return self.manifest.to_json()

    def read_golden(self) -> GoldenSet:
        """Return the golden set.

        Raises:
            UserError: It is not a golden set, or lacks one of the model's outputs.
        """
        names = [spec.name for spec in self.outputs]
        return golden_of(self._archives[self.golden], str(self.golden), names)

    def read_network(self, artifact: Artifact) -> Network | None:
        """Return the network that an artifact was made from; None if the export wrote none.

        It is the folded network or an equivalent variant, such as an equalized one, with the
        trained model's input and output names.

        Raises:
            UserError: The network is missing or damaged.
        """
        if artifact.network is None:
            return self.folded_network
        what, path = "the network behind a file", self.path / artifact.network.file
        archive = _opened(path, what)
        _compare(path, artifact.network, what, Hashing(archive.data))
        return self._named(network_of(archive, str(path)))

    @functools.cached_property
    def folded_network(self) -> Network | None:
        """The folded network under the trained model's names; None if the export wrote none."""
        if self.network is None:
            return None
        return self._named(network_of(self._archives[self.network], str(self.network)))

    def _named(self, network: Network) -> Network:
        inputs, outputs = ([spec.name for spec in side] for side in (self.inputs, self.outputs))
        return network.named(inputs, outputs)

    def verify(self) -> None:
        """Check that the golden set and the network are those that were exported.

        Raises:
            UserError: One of them is damaged, so that there is nothing to compare with.
        """
        _compare(self.golden, self.manifest.golden, _GOLDEN, self._hashes[self.golden])
        if self.network is not None and self.manifest.network is not None:
            _compare(self.network, self.manifest.network, _NETWORK, self._hashes[self.network])

    def content(self, artifact: Artifact) -> bytes:
        """Return the bytes of an artifact; they are read once, and hashing starts then.

        Raises:
            UserError: It is missing.
        """
        missing = self._missing(artifact)
        if missing is not None:
            raise UserError(missing)
        path = self.path / artifact.file
        if path not in self._hashes:
            self._hashes[path] = Hashing(path.read_bytes())
        return self._hashes[path].data

    def damaged(self, artifact: Artifact) -> str | None:
        """Return why a file differs from the exported one; None if it does not."""
        missing = self._missing(artifact)
        if missing is not None:
            return missing
        path = self.path / artifact.file
        size = path.stat().st_size
        if size != artifact.bytes:
            return f"{artifact.file} has {size} bytes where the export wrote {artifact.bytes}"
        self.content(artifact)
        found = self._hashes[path].result()
        if found != artifact.sha256:
            return (
                f"{artifact.file} is not the file that was exported: its SHA-256 is "
                f"{found[:12]}… where manifest.json has {artifact.sha256[:12]}…"
            )
        return self._damaged_weights(artifact)

    def _damaged_weights(self, artifact: Artifact) -> str | None:
        """Return why the file that holds an artifact's weights is not the one exported."""
        weights = artifact.weights
        if weights is None:
            return None
        path = self.path / weights.file
        if not path.is_file():
            return f"{path} is missing: it holds the weights of {artifact.file}"
        if path not in self._digests:
            self._digests[path] = sha256(path)
        found = self._digests[path]
        if found != weights.sha256:
            return (
                f"{weights.file}, which holds the weights of {artifact.file}, is not the file that "
                f"was exported: its SHA-256 is {found[:12]}… where manifest.json has "
                f"{weights.sha256[:12]}…"
            )
        return None

    def _missing(self, artifact: Artifact) -> str | None:
        path = self.path / artifact.file
        return None if path.is_file() else f"{path} is missing, though manifest.json lists it"


def read_export(directory: str | os.PathLike[str]) -> ExportDirectory:
    """Read and validate an export directory.

    Args:
        directory: What `renormlite export` wrote.

    Returns:
        The directory, with the hashes of the golden set and the network verified.

    Raises:
        UserError: A file is missing or truncated, or has another schema.
    """
    export = open_export(directory)
    export.verify()
    return export


def open_export(directory: str | os.PathLike[str]) -> ExportDirectory:
    """Open an export directory and start hashing its golden set and network.

    The caller calls `ExportDirectory.verify` later, and can work while the hashes are computed.

    Args:
        directory: What `renormlite export` wrote.

    Raises:
        UserError: Something is missing or of another schema.
    """
    path = Path(directory)
    manifest = Manifest.load(path)
    artifacts = tuple(artifact for artifact in manifest.artifacts if artifact.files is None)
    if not artifacts:
        raise UserError(f"{path / FILE} lists no artifact, so there is nothing to check. {AGAIN}")
    golden = path / manifest.golden.file
    network = path / manifest.network.file if manifest.network else None
    archives = {golden: _opened(golden, _GOLDEN)}
    if network is not None:
        archives[network] = _opened(network, _NETWORK)
    hashes = {file: Hashing(archive.data) for file, archive in archives.items()}
    return ExportDirectory(path, manifest, artifacts, golden, network, archives, hashes)


def _opened(path: Path, what: str) -> Archive:
    if not path.is_file():
        raise UserError(f"{path}, {what} to compare with, is missing. {AGAIN}")
    return Archive(path)


def _compare(path: Path, entry: FileRecord, what: str, hashing: Hashing) -> None:
    """Raise an error if the golden set or the network differs from the exported one."""
    found = hashing.result()
    if found != entry.sha256:
        raise UserError(
            f"{path}, {what} to compare with, is damaged: its SHA-256 is {found[:12]}… where "
            f"manifest.json has {entry.sha256[:12]}…. {AGAIN}"
        )
