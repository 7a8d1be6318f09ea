"""The records of `manifest.json`: the files, their source, hashes and options.

The export writes this file; the checks and the bundle on a device read it; the reproducer does
both. Its layout is documented in `docs/export.md`. `schema` is the version of the layout; readers
refuse unknown versions.
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
from .html_table import html_table, size_in_words
from .precisions import PRECISIONS
from .ranges import Misfits
from .record import Record, is_number, is_plain_name, parse_json

# Entry inside exported files that holds their metadata as JSON.
METADATA_KEY = "renormlite"
SCHEMA = "renormlite/manifest/1"
FILE = "manifest.json"

_DTYPES = {
    *("float16", "float32", "float64", "bfloat16", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "string", "object"),
}

AGAIN = "Run `renormlite export` again to write the directory anew."


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the trained network or of one exported file.

    Attributes:
        name: The name in the file that the specification belongs to.
        shape: Sizes; None if the size is free (the batch of the Keras model).
        dtype: NumPy name of the element type.
        keras_name: The name in the trained model; left out of the file where it is the same.
        scale: Real value of one quantization step, real = scale · (q - zero_point); None for float
            tensors.
        zero_point: The quantized value that stands for 0.0; None for float tensors.
        axes: Order of the Keras axes in the file (`numpy.transpose` of the Keras tensor by it gives
            the file's); None if it is the same.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    keras_name: str = ""
    scale: float | None = None
    zero_point: int | None = None
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Set the Keras name to the name in the file if it is not given."""
        if not self.keras_name:
            object.__setattr__(self, "keras_name", self.name)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form without default values."""
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
    def from_json(cls, record: Record) -> TensorSpec:
        """Read the JSON form."""
        shape = record.shape("shape")
        axes = tuple(record.sequence("axes", optional=True))
        if axes and sorted(map(str, axes)) != sorted(map(str, range(len(shape)))):
            raise record.wrong("axes", f"a permutation of {list(range(len(shape)))}")
        scale = record.number("scale")
        if scale is not None and scale <= 0:
            raise record.wrong("scale", "a positive number")
        zero_point = (
            None if "zero_point" not in record else record.integer("zero_point", least=-(2**31))
        )
        return cls(
            name=record.text("name"),
            shape=shape,
            dtype=_dtype(record),
            keras_name=record.text("keras_name", ""),
            scale=scale,
            zero_point=zero_point,
            axes=axes or None,
        )


@dataclass(frozen=True)
class FileRecord:
    """A file beside the artifacts: its name in the directory and its hash."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of an existing file."""
        return cls(path.name, sha256(path))

    def to_json(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"file": self.file, "sha256": self.sha256}

    @classmethod
    def from_json(cls, record: Record) -> FileRecord:
        """Read the JSON form."""
        return cls(record.file_name("file"), record.digest("sha256"))


@dataclass(frozen=True)
class Artifact:
    """One exported file or folder.

    Attributes:
        file: Name inside the export's directory.
        format: `tflite`, `onnx` or `saved_model`.
        precision: `float32`, `int8`, …
        sha256: Hash of the file (of a folder: of the JSON of `files`).
        bytes: Size (of a folder: of its files together).
        ops: Number of operators of each type.
        inputs: Its inputs in the order of the Keras model.
        outputs: Its outputs in the order of the Keras model.
        snr_db: Signal-to-noise ratio of each output against float64 truth over the real samples of
            the golden set (or the random ones without any), by Keras name, in decibels; None if the
            truth is constant zero.
        seconds: Wall time of conversion, writing and validation. It is not stored, so that the
            manifest depends only on the input.
        notes: Sentences about choices that the exporter made for this file.
        files: For a folder, such as a SavedModel: relative path to hash of each file in it. The
            manifest lists folders under `folders`, not `artifacts`. None for a file.
        network: The network that this file was made from if it is a variant of the folded one, such
            as an equalized network, with different weights.
        foreign: Whether another converter made the file: its weights may be folded, merged or
            scaled otherwise, so that they are no verdict where the outputs are right.
        misfits: Values of the golden set's typical samples that its numbers cannot represent.
        weights: The file beside it that holds its weights, as ONNX's external data; None where the
            file holds them itself.
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
    foreign: bool = False
    misfits: Misfits = field(default_factory=Misfits)
    weights: FileRecord | None = None

    @property
    def all_files(self) -> tuple[str, ...]:
        """The file and the one that holds its weights, if there is one."""
        return (self.file,) if self.weights is None else (self.file, self.weights.file)

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names in the file of inputs and outputs, in the order of the Keras model."""
        return [tensor.name for tensor in self.inputs], [tensor.name for tensor in self.outputs]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        optional = {
            "notes": list(self.notes) or None,
            "files": self.files,
            "network": self.network.to_json() if self.network else None,
            "foreign": self.foreign or None,
            "misfits": self.misfits.to_json() if self.misfits else None,
            "weights": self.weights.to_json() if self.weights else None,
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
    def from_json(cls, record: Record) -> Artifact:
        """Read the JSON form."""
        file_format, precision = record.text("format"), record.text("precision")
        if precision not in PRECISIONS:
            raise record.wrong("precision", f"one of {', '.join(PRECISIONS)}")
        ops = record.mapping("ops")
        if not all(isinstance(count, int) for count in ops.values()):
            raise record.wrong("ops", "a number for each operator")
        ratios = record.mapping("snr_db")
        if not all(ratio is None or is_number(ratio) for ratio in ratios.values()):
            raise record.wrong("snr_db", "a number or null for each output")
        return cls(
            file=record.file_name("file"),
            format=file_format,
            precision=precision,
            sha256=record.digest("sha256"),
            bytes=record.integer("bytes"),
            ops=dict(ops),
            inputs=tuple(map(TensorSpec.from_json, record.records("inputs"))),
            outputs=tuple(map(TensorSpec.from_json, record.records("outputs"))),
            snr_db=dict(ratios),
            notes=record.texts("notes"),
            files=_folder(record) if "files" in record else None,
            network=FileRecord.from_json(record.record("network")) if "network" in record else None,
            foreign="foreign" in record,
            misfits=Misfits.from_json(record.record("misfits"))
            if "misfits" in record
            else Misfits(),
            weights=FileRecord.from_json(record.record("weights")) if "weights" in record else None,
        )


@dataclass(frozen=True)
class Manifest:
    """The content of an export.

    Attributes:
        name: Name of the export: that of its directory.
        created_by: Program and version.
        source: `model_name` and the `sha256` of the model file (None for a model in memory).
        inputs: Inputs of the Keras model; the batch dimension is None.
        outputs: Outputs of the Keras model; the batch dimension is None.
        golden: The golden set.
        network: The folded network as op list and weights; None if the export wrote none.
        artifacts: The exported files and folders.
        versions: Package name to version.
        options: The options of the export, including defaults.
        fold: `records` and `proof` of the fold.
        metadata: The user's statements about the model: `labels`, `preprocessing`, `description`.
        calibration: Origin of the calibration samples, or None.
        notes: Sentences about changes that were made before the export.
        states: Name of each state input to the name of the output to feed back.
        refused: Name of each file that could not be written to the reason.
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
    states: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return name and files in one line."""
        return f"Manifest({self.name!r}, {', '.join(entry.file for entry in self.artifacts)})"

    def _repr_html_(self) -> str:
        """Return the files as a table, for notebooks."""
        rows = []
        for entry in self.artifacts:
            known = [ratio for ratio in entry.snr_db.values() if ratio is not None]
            snr = f"{min(known):.1f}" if known else "-"
            rows.append((entry.file, size_in_words(entry.bytes), sum(entry.ops.values()), snr))
        return html_table(
            f"{self.name}: exported files", ("file", "size", "operators", "SNR (dB)"), rows
        )

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
            **({"states": dict(self.states)} if self.states else {}),
            **({"refused": dict(self.refused)} if self.refused else {}),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "fold": self.fold,
            "golden": self.golden.to_json(),
            "network": self.network.to_json() if self.network else None,
            "artifacts": [a.to_json() for a in self.artifacts if a.files is None],
            "folders": [a.to_json() for a in self.artifacts if a.files is not None],
        }

    @classmethod
    def from_json(cls, record: Record) -> Manifest:
        """Read the content of `manifest.json`."""
        entries = [*record.records("artifacts"), *record.records("folders", optional=True)]
        return cls(
            name=record.file_name("name"),
            created_by=record.text("created_by"),
            source=record.mapping("source"),
            inputs=tuple(map(TensorSpec.from_json, record.records("inputs"))),
            outputs=tuple(map(TensorSpec.from_json, record.records("outputs"))),
            golden=FileRecord.from_json(record.record("golden")),
            network=FileRecord.from_json(record.record("network")) if "network" in record else None,
            artifacts=tuple(map(Artifact.from_json, entries)),
            versions=record.mapping("versions"),
            options=record.mapping("options"),
            fold=record.mapping("fold"),
            metadata=_metadata(record),
            calibration=record.mapping("calibration") if "calibration" in record else None,
            notes=record.texts("notes"),
            states=_names(record, "states", "the name of an output for each input"),
            refused=_names(record, "refused", "a reason for each file"),
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
            UserError: It is missing or truncated, lacks an entry, or has an unknown schema.
        """
        file, record = Path(directory) / FILE, _parse(Path(directory))
        try:
            return cls.from_json(Record(record))
        except ValueError as error:
            raise UserError(f"{file}: {error}. {AGAIN}") from error


def _names(record: Record, key: str, meaning: str) -> dict[str, str]:
    """Return an entry that maps texts to texts; empty if it is absent."""
    entries = record.mapping(key) if key in record else {}
    if not all(isinstance(value, str) for value in entries.values()):
        raise record.wrong(key, meaning)
    return dict(entries)


def _dtype(record: Record) -> str:
    """Return the name of an element type that NumPy knows."""
    name = record.text("dtype")
    if name not in _DTYPES:
        raise record.wrong("dtype", f"one of {', '.join(sorted(_DTYPES))}")
    return name


def _folder(record: Record) -> dict[str, str]:
    """Return relative path to hash of the files of a folder; no path leads out of it."""
    files = record.record("files")
    paths = record.mapping("files")
    for path in paths:
        if not all(map(is_plain_name, path.split("/"))):
            raise record.wrong("files", "relative paths within the folder")
    return {path: files.digest(path) for path in paths}


def _metadata(record: Record) -> Mapping[str, Any]:
    """Return the user's metadata, with the entries that the checks read validated."""
    metadata = record.mapping("metadata")
    if "metadata" in record:
        entries = record.record("metadata")
        entries.texts("labels")
        pixels = entries.mapping("preprocessing")
        for value in pixels.values():
            if not all(map(is_number, value if isinstance(value, list) else [value])):
                raise entries.wrong("preprocessing", "a mean and a scale of numbers")
        if not set(pixels) <= {"mean", "scale"}:
            raise entries.wrong("preprocessing", "a mean and a scale of numbers")
    return metadata


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
        record = parse_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file ({error}). {AGAIN}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is cut short or damaged: it stops being JSON at line {error.lineno}, "
            f"column {error.colno}. {AGAIN}"
        ) from error
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not a manifest ({error}). {AGAIN}") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{file} must have the schema '{SCHEMA}'. Received: {schema!r}. "
            "Export again with this version of renormlite."
        )
    return dict(record)
