"""Reads `manifest.json`: what was exported, from what, with which hashes. Nothing here needs Keras.

Every way in which the file can be missing, cut short or wrong ends in one sentence that says how to
mend it. A damaged *artifact* is not an error of reading: it is what the checks are for, so it is
found by `damaged` and reported as a failed check, while a damaged golden set or network, which
hold the truth to compare with, leave nothing to check against.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import sha256
from .network import Network, read_network

SCHEMA = "renormlite/manifest/1"
FILE = "manifest.json"

_AGAIN = "Run `renormlite export` again to write the directory anew."


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the trained network or of one artifact.

    Attributes:
        name: The name in the file that the specification belongs to.
        shape: Sizes; None where the size is free (the batch of the Keras model).
        dtype: NumPy name of the element type.
        keras_name: The name in the trained model.
        scale: Real value of one quantization step, None for float tensors.
        zero_point: The quantized value that stands for 0.0, None for float tensors.
        axes: Order of the Keras axes in the file (`numpy.transpose` of the Keras tensor by it gives
            the file's); None where it is the same.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    keras_name: str
    scale: float | None = None
    zero_point: int | None = None
    axes: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TensorSpec:
        """Read one entry of `inputs` or `outputs`."""
        return cls(
            name=record["name"],
            shape=tuple(record["shape"]),
            dtype=record["dtype"],
            keras_name=record.get("keras_name", record["name"]),
            scale=record.get("scale"),
            zero_point=record.get("zero_point"),
            axes=tuple(record["axes"]) if record.get("axes") else None,
        )


@dataclass(frozen=True)
class Artifact:
    """One exported file, as the manifest describes it.

    Attributes:
        network: File and hash of the network it was made from, where that is not the folded one
            but an equalized twin of it.
    """

    file: str
    format: str
    precision: str
    sha256: str
    bytes: int
    ops: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    network: Mapping[str, str] | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Artifact:
        """Read one entry of `artifacts`."""
        return cls(
            file=record["file"],
            format=record["format"],
            precision=record["precision"],
            sha256=record["sha256"],
            bytes=record["bytes"],
            ops=dict(record["ops"]),
            inputs=tuple(TensorSpec.from_json(entry) for entry in record["inputs"]),
            outputs=tuple(TensorSpec.from_json(entry) for entry in record["outputs"]),
            network=record.get("network"),
        )


@dataclass(frozen=True)
class ExportDirectory:
    """A directory written by `renormlite export`, read and validated.

    Attributes:
        path: The directory.
        name: Name of the exported model.
        inputs: The trained model's inputs.
        outputs: The trained model's outputs.
        artifacts: The exported files; each exists, though it may be damaged.
        golden: Path of `golden.npz`; its hash has been checked.
        network: Path of the folded network in float64, None if the export wrote none.
        record: The whole manifest as parsed, for reports.
    """

    path: Path
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...]
    golden: Path
    network: Path | None
    record: Mapping[str, Any]

    def read_network(self, artifact: Artifact) -> Network | None:
        """Return the network that an artifact was made from; None if the export wrote none.

        That is the folded network, or the same network with ranges equalized across layers, and
        has the trained model's input and output names.

        Raises:
            UserError: The network is missing or damaged.
        """
        path = self.network
        if artifact.network is not None:
            path = _trusted(self.path, artifact.network, "the network behind a file")
        if path is None:
            return None
        names = [spec.name for spec in self.inputs], [spec.name for spec in self.outputs]
        return read_network(path).named(*names)

    def damaged(self, artifact: Artifact) -> str | None:
        """Return why a file is not the one that was exported, or None when it is."""
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
    record = _parse(path)
    try:
        artifacts = tuple(Artifact.from_json(entry) for entry in record["artifacts"])
        export = ExportDirectory(
            path=path,
            name=record["name"],
            inputs=tuple(TensorSpec.from_json(entry) for entry in record["inputs"]),
            outputs=tuple(TensorSpec.from_json(entry) for entry in record["outputs"]),
            artifacts=artifacts,
            golden=_trusted(path, record["golden"], "the golden set"),
            network=_trusted(path, record["network"], "the folded network")
            if record.get("network")
            else None,
            record=record,
        )
    except KeyError as error:
        raise UserError(f"{path / FILE} lacks the entry {error}. {_AGAIN}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path / FILE} has an entry of the wrong kind ({error}). {_AGAIN}") from (
            error
        )
    if not artifacts:
        raise UserError(f"{path / FILE} lists no artifact, so there is nothing to check. {_AGAIN}")
    for artifact in artifacts:
        if not (path / artifact.file).exists():
            raise UserError(
                f"{path / artifact.file} is missing, though manifest.json lists it. {_AGAIN}"
            )
    return export


def _parse(path: Path) -> dict[str, Any]:
    """Return manifest.json as a dictionary of the known schema."""
    if not path.is_dir():
        raise UserError(
            f"Expected a directory written by `renormlite export`. Received: '{path}', which "
            f"{'is a file' if path.exists() else 'does not exist'}. "
            "Run `renormlite export MODEL.keras` first."
        )
    file = path / FILE
    if not file.is_file():
        raise UserError(
            f"{path} holds no {FILE}: it was not written by `renormlite export`, or the export "
            f"was interrupted before it finished. {_AGAIN}"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file ({error}). {_AGAIN}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is cut short or damaged: it stops being JSON at line {error.lineno}, "
            f"column {error.colno}. {_AGAIN}"
        ) from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{file} must have the schema '{SCHEMA}'. Received: {schema!r}. "
            "Export again with this version of renormlite."
        )
    return dict(record)


def _trusted(directory: Path, entry: Mapping[str, str], what: str) -> Path:
    """Return the path of a file that holds truth, after checking that it is the one exported."""
    path = directory / entry["file"]
    if not path.is_file():
        raise UserError(f"{path}, {what} to compare with, is missing. {_AGAIN}")
    found = sha256(path)
    if found != entry["sha256"]:
        raise UserError(
            f"{path}, {what} to compare with, is damaged: its SHA-256 is {found[:12]}… where "
            f"manifest.json has {entry['sha256'][:12]}…. {_AGAIN}"
        )
    return path
