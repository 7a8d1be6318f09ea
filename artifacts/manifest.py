"""The records of `manifest.json`: what was exported, from what, with which hashes and options.

The one definition of that file: the export fills and writes it, the checks and the bundle on a
device read it, the reproducer does both. Its layout is documented in `docs/export.md`; `schema`
names the layout, and a reader refuses one it does not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import sha256, write_text

# Entry inside exported files that holds their metadata as JSON.
METADATA_KEY = "renormlite"
SCHEMA = "renormlite/manifest/1"
FILE = "manifest.json"

AGAIN = "Run `renormlite export` again to write the directory anew."


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the trained network or of one exported file.

    Attributes:
        name: The name in the file that the specification belongs to.
        shape: Sizes; None where the size is free (the batch of the Keras model).
        dtype: NumPy name of the element type.
        keras_name: The name in the trained model; left out of the file where it is the same.
        scale: Real value of one quantization step, real = scale · (q - zero_point); None for float
            tensors.
        zero_point: The quantized value that stands for 0.0; None for float tensors.
        axes: Order of the Keras axes in the file (`numpy.transpose` of the Keras tensor by it gives
            the file's); None where it is the same.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    keras_name: str = ""
    scale: float | None = None
    zero_point: int | None = None
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Take the file's name for the Keras name where none is given."""
        if not self.keras_name:
            object.__setattr__(self, "keras_name", self.name)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without what says nothing."""
        optional = {
            "keras_name": None if self.keras_name == self.name else self.keras_name,
            "scale": self.scale,
            "zero_point": self.zero_point,
            "axes": None if self.axes is None else list(self.axes),
        }
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            **{key: value for key, value in optional.items() if value is not None},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TensorSpec:
        """Read the JSON form."""
        return cls(
            name=record["name"],
            shape=tuple(record["shape"]),
            dtype=record["dtype"],
            keras_name=record.get("keras_name", ""),
            scale=record.get("scale"),
            zero_point=record.get("zero_point"),
            axes=tuple(record["axes"]) if record.get("axes") else None,
        )


@dataclass(frozen=True)
class FileRecord:
    """A file beside the artifacts: its name in the directory and its hash."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Hash a file that is in place."""
        return cls(path.name, sha256(path))

    def to_json(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"file": self.file, "sha256": self.sha256}

    @classmethod
    def from_json(cls, record: Mapping[str, str]) -> FileRecord:
        """Read the JSON form."""
        return cls(record["file"], record["sha256"])


@dataclass(frozen=True)
class Artifact:
    """One exported file or folder.

    Attributes:
        file: Name inside the export's directory.
        format: `tflite`, `onnx` or `saved_model`.
        precision: `float32`, `int8`, …
        sha256: Hash of the file (of a folder: of the JSON of `files`).
        bytes: Size (of a folder: of its files together).
        ops: How many operators of each kind it holds.
        inputs: Its inputs in the order of the Keras model.
        outputs: Its outputs in the order of the Keras model.
        snr_db: Signal-to-noise ratio of each output against float64 truth over the golden set's
            real samples (its random ones where there are none), by Keras name, in decibels; None
            where truth is constant zero.
        seconds: Wall time it took to convert, write and validate. Shown, never stored: the
            manifest is the same for the same input.
        notes: Sentences about choices the exporter made for this file.
        files: Of a folder, such as a SavedModel: relative path to hash of each file in it. The
            manifest lists those under `folders`, not `artifacts`. None for a file.
        network: The network this file was made from, where that is not the folded one but an
            equalized twin; its layers' weights are not those of the folded network.
    """

    file: str
    format: str
    precision: str
    sha256: str
    bytes: int
    ops: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    snr_db: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] | None = None
    network: FileRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        optional = {
            "notes": list(self.notes) or None,
            "files": self.files,
            "network": self.network.to_json() if self.network else None,
        }
        return {
            "file": self.file,
            "format": self.format,
            "precision": self.precision,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "ops": dict(sorted(self.ops.items())),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "snr_db": self.snr_db,
            **{key: value for key, value in optional.items() if value is not None},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Artifact:
        """Read the JSON form."""
        network = record.get("network")
        return cls(
            file=record["file"],
            format=record["format"],
            precision=record["precision"],
            sha256=record["sha256"],
            bytes=record["bytes"],
            ops=dict(record["ops"]),
            inputs=tuple(map(TensorSpec.from_json, record["inputs"])),
            outputs=tuple(map(TensorSpec.from_json, record["outputs"])),
            snr_db=dict(record.get("snr_db", {})),
            notes=tuple(record.get("notes", ())),
            files=record.get("files"),
            network=FileRecord.from_json(network) if network else None,
        )


@dataclass(frozen=True)
class Manifest:
    """Everything one export made; see the module's docstring.

    Attributes:
        name: Name of the export: that of its directory.
        created_by: Program and version.
        source: `model_name` and the `sha256` of the model file (None for a model in memory).
        inputs: Inputs of the Keras model; the batch dimension is None.
        outputs: Outputs of the Keras model; the batch dimension is None.
        golden: The golden set.
        network: The folded network as op list and weights; None if the export wrote none.
        artifacts: The exported files and folders.
        versions: Package name to version, of what took part.
        options: The options in force, defaults included.
        fold: `records` and `proof` of the fold.
        metadata: What the user said of the model: `labels`, `preprocessing`, `description`.
        calibration: Where the samples for quantization came from, or None.
        notes: What had to be changed before the model could be exported, a sentence each.
    """

    name: str
    created_by: str
    source: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: FileRecord
    network: FileRecord | None
    artifacts: tuple[Artifact, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    fold: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of `manifest.json`."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "created_by": self.created_by,
            "source": self.source,
            "versions": self.versions,
            "options": self.options,
            "metadata": self.metadata,
            "calibration": self.calibration,
            "notes": list(self.notes),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "fold": self.fold,
            "golden": self.golden.to_json(),
            "network": self.network.to_json() if self.network else None,
            "artifacts": [a.to_json() for a in self.artifacts if a.files is None],
            "folders": [a.to_json() for a in self.artifacts if a.files is not None],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        """Read the content of `manifest.json`."""
        network = record.get("network")
        entries = [*record["artifacts"], *record.get("folders", ())]
        return cls(
            name=record["name"],
            created_by=record["created_by"],
            source=record["source"],
            inputs=tuple(map(TensorSpec.from_json, record["inputs"])),
            outputs=tuple(map(TensorSpec.from_json, record["outputs"])),
            golden=FileRecord.from_json(record["golden"]),
            network=FileRecord.from_json(network) if network else None,
            artifacts=tuple(map(Artifact.from_json, entries)),
            versions=record["versions"],
            options=record["options"],
            fold=record["fold"],
            metadata=record.get("metadata", {}),
            calibration=record.get("calibration"),
            notes=tuple(record.get("notes", ())),
        )

    def write(self, directory: Path) -> Path:
        """Write `manifest.json` into `directory`, whole or not at all.

        Returns:
            The file written.
        """
        path = directory / FILE
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of an export.

        Args:
            directory: What `renormlite export` wrote.

        Raises:
            UserError: It is missing, cut short, lacks an entry, or has an unknown schema.
        """
        file, record = Path(directory) / FILE, _parse(Path(directory))
        try:
            return cls.from_json(record)
        except KeyError as error:
            raise UserError(f"{file} lacks the entry {error}. {AGAIN}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{file} has an entry of the wrong kind ({error}). {AGAIN}") from error


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
            f"was interrupted before it finished. {AGAIN}"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file ({error}). {AGAIN}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is cut short or damaged: it stops being JSON at line {error.lineno}, "
            f"column {error.colno}. {AGAIN}"
        ) from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{file} must have the schema '{SCHEMA}'. Received: {schema!r}. "
            "Export again with this version of renormlite."
        )
    return dict(record)
