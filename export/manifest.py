"""The manifest: what an export made, from what, with which hashes, versions and options.

`manifest.json` is written last, after every file it names is in place. Its layout is documented
in `docs/export.md`; `schema` names the layout, and a reader refuses one it does not know.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import sha256, write_text

SCHEMA = "renormlite/manifest/1"
FILE_NAME = "manifest.json"
METADATA_KEY = "renormlite"  # of the entry inside exported files that holds their metadata, JSON


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model or of an exported file.

    Attributes:
        name: Name in the file (for the model itself: the Keras name).
        shape: Dimensions; None where the size is free.
        dtype: NumPy name of the element type.
        keras_name: Name in the Keras model, only where the file's own name differs.
        scale: Quantization scale (real = scale * (q - zero_point)), only where quantized.
        zero_point: Quantization zero point, only where quantized.
        axes: Which axis of the Keras tensor each axis of the file's is (`numpy.transpose` of the
            Keras tensor by `axes` gives the file's), only where the order differs.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    keras_name: str | None = None
    scale: float | None = None
    zero_point: int | None = None
    axes: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: absent optional fields are left out."""
        record: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }
        optional = {
            "keras_name": self.keras_name,
            "scale": self.scale,
            "zero_point": self.zero_point,
            "axes": None if self.axes is None else list(self.axes),
        }
        return record | {key: value for key, value in optional.items() if value is not None}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TensorInfo:
        """Read the JSON form."""
        return cls(
            name=record["name"],
            shape=tuple(record["shape"]),
            dtype=record["dtype"],
            keras_name=record.get("keras_name"),
            scale=record.get("scale"),
            zero_point=record.get("zero_point"),
            axes=tuple(record["axes"]) if "axes" in record else None,
        )


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file beside the artifacts: its name in the directory and its hash."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Hash a file that is in place."""
        return cls(path.name, sha256(path))


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported file.

    Attributes:
        file: File name inside the export's directory.
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
    ops: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    snr_db: dict[str, float | None] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    files: dict[str, str] | None = None
    network: FileRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        record: dict[str, Any] = {
            "file": self.file,
            "format": self.format,
            "precision": self.precision,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "ops": dict(sorted(self.ops.items())),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "snr_db": self.snr_db,
        }
        if self.notes:
            record["notes"] = list(self.notes)
        if self.files is not None:
            record["files"] = self.files
        if self.network is not None:
            record["network"] = dataclasses.asdict(self.network)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Artifact:
        """Read the JSON form."""
        return cls(
            file=record["file"],
            format=record["format"],
            precision=record["precision"],
            sha256=record["sha256"],
            bytes=record["bytes"],
            ops=dict(record["ops"]),
            inputs=tuple(map(TensorInfo.from_json, record["inputs"])),
            outputs=tuple(map(TensorInfo.from_json, record["outputs"])),
            snr_db=dict(record["snr_db"]),
            notes=tuple(record.get("notes", ())),
            files=record.get("files"),
            network=FileRecord(**record["network"]) if "network" in record else None,
        )


def hash_folder(folder: Path) -> dict[str, str]:
    """Return relative path to hash of every file in a folder, in the order of the paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything one export made; see the module's docstring.

    Attributes:
        name: Name of the export: that of its directory.
        created_by: Program and version.
        source: `model_name` and the `sha256` of the model file (None for a model in memory).
        versions: Package name to version, of what took part.
        options: The options in force, defaults included.
        inputs: Inputs of the Keras model; the batch dimension is None.
        outputs: Outputs of the Keras model; the batch dimension is None.
        fold: `records` and `proof` of the fold.
        golden: The golden set.
        network: The folded network as op list and weights.
        artifacts: The exported files and folders.
        metadata: What the user said of the model: `labels`, `preprocessing`, `description`.
        calibration: Where the samples for quantization came from, or None.
    """

    name: str
    created_by: str
    source: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    fold: dict[str, Any]
    golden: FileRecord
    network: FileRecord
    artifacts: tuple[Artifact, ...]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Any] | None = None

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
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "fold": self.fold,
            "golden": dataclasses.asdict(self.golden),
            "network": dataclasses.asdict(self.network),
            "artifacts": [a.to_json() for a in self.artifacts if a.files is None],
            "folders": [a.to_json() for a in self.artifacts if a.files is not None],
        }

    def write(self, directory: Path) -> Path:
        """Write `manifest.json` into `directory`, whole or not at all.

        Returns:
            The file written.
        """
        path = directory / FILE_NAME
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Read the manifest of an export.

        Args:
            directory: The directory that holds `manifest.json`.

        Raises:
            UserError: It is missing, is not JSON, lacks a field, or has an unknown schema.
        """
        path = Path(directory) / FILE_NAME
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"No {FILE_NAME} in {directory}. Export a model there first.") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is damaged ({error}). Export the model again.") from error
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise UserError(
                f"Expected a manifest of schema {SCHEMA!r} in {path}. Received: {schema!r}. "
                "Export the model again with this version."
            )
        try:
            return cls(
                name=record["name"],
                created_by=record["created_by"],
                source=record["source"],
                versions=record["versions"],
                options=record["options"],
                inputs=tuple(map(TensorInfo.from_json, record["inputs"])),
                outputs=tuple(map(TensorInfo.from_json, record["outputs"])),
                fold=record["fold"],
                golden=FileRecord(**record["golden"]),
                network=FileRecord(**record["network"]),
                artifacts=tuple(
                    map(Artifact.from_json, [*record["artifacts"], *record["folders"]])
                ),
                metadata=record["metadata"],
                calibration=record["calibration"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} lacks or misstates a field ({error!r}). Export the model again."
            ) from error
