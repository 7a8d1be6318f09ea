"""From a trained model to artifacts, golden set, network and manifest, in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import __version__
from ..errors import UserError
from ..files import sha256
from . import golden
from .fold import FoldResult, float64_twin, fold
from .formats import Format, Job, format_named
from .freeze import FrozenGraph, freeze
from .host import run_artifact
from .manifest import FILE_NAME as MANIFEST_FILE
from .manifest import Artifact, FileRecord, Manifest
from .network import write_network
from .options import ExportOptions
from .samples import load_samples
from .signature import Signature, is_symbolic, signature_of

NETWORK_FILE = "network.npz"

_PACKAGES = (
    "keras",
    "tensorflow",
    "numpy",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "ai-edge-litert",
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """One step of an export, told when it begins and when it ends.

    Attributes:
        subject: The file the step works on, or `model`.
        stage: What is done: `fold`, `trace`, `convert`, `validate`, `run`, ….
        seconds: Wall time it took; None when it begins.
    """

    subject: str
    stage: str
    seconds: float | None = None


Listener = Callable[[Progress], None]
SampleSource = np.ndarray | Mapping[str, np.ndarray] | str | os.PathLike[str]


def export_model(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("tflite", "onnx"),
    precisions: Sequence[str] = ("float32",),
    calibration: Any = None,
    batch_size: int | None = 1,
    inputs: SampleSource | None = None,
    opset: int = 17,
    allow_flex: bool = False,
    source: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> Manifest:
    """Fold a model, write it in every format and precision asked for, and what checks need.

    Writes `NAME.PRECISION.tflite|onnx`, `golden.npz`, `network.npz` and, last, `manifest.json`
    into `directory`, NAME being the directory's own name. Everything is made aside and moved in
    when all of it is done: an interrupted or failed export leaves the old files.

    Args:
        model: A trained Keras model, built. It is not changed.
        directory: Where to; made when missing.
        formats: `tflite`, `onnx`.
        precisions: `float32`.
        calibration: Samples for quantization.
        batch_size: The batch size the files are made for; None leaves it free.
        inputs: Real samples for the golden set: an array, a dict of arrays by input name, or a
            `.npz` or `.npy` file of them.
        opset: Version of ONNX's operator set.
        allow_flex: Whether TFLite files may call TensorFlow operators, which most runtimes lack.
        source: The file the model was loaded from; its hash goes into the manifest.
        listener: Called at the beginning and end of every step.

    Returns:
        The manifest as written.

    Raises:
        UserError: The model or an option cannot be exported; the message says how to mend it.
    """
    options = ExportOptions(
        formats=tuple(formats),
        precisions=tuple(precisions),
        batch_size=batch_size,
        opset=opset,
        allow_flex=allow_flex,
    )
    target = Path(directory)
    step = _Steps(listener or _ignore)
    with step("model", "fold"):
        folded = fold(model)
        signature = _public_signature(model, folded.model)
    real = _real_samples(inputs, signature)
    samples = golden.choose_samples(signature.inputs, real, seed=0)
    with _moved_in_when_done(target) as staging:
        run = _Run(options, signature, folded, samples, staging, target.resolve().name, step)
        return run.export(model, source)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One export on its way: what every step needs."""

    options: ExportOptions
    signature: Signature
    folded: FoldResult
    samples: golden.Samples
    staging: Path
    name: str
    step: _Steps

    def export(self, model: keras.Model, source: str | os.PathLike[str] | None) -> Manifest:
        """Write every file into the staging folder, the manifest last."""
        with self.step("model", "trace"):
            graph = freeze(self.folded.model, self.signature, batch_size=self.options.batch_size)
        written = [
            self._write(format_named(name), precision, graph)
            for precision in self.options.precisions
            for name in self.options.formats
            if precision in format_named(name).precisions
        ]
        with self.step(NETWORK_FILE, "write"):
            write_network(self.folded.model, self.staging / NETWORK_FILE)
        with self.step(golden.FILE_NAME, "float64 truth"):
            exact = {name: _exact(value) for name, value in self.samples.inputs.items()}
            truth = golden.evaluate(float64_twin(model), self.signature, exact)
            folded64 = golden.evaluate(float64_twin(self.folded.model), self.signature, exact)
        with self.step(golden.FILE_NAME, "float32 reference"):
            reference = golden.evaluate(model, self.signature, self.samples.inputs)
        outputs = {artifact.file: self._run(artifact) for artifact in written}
        golden.write_golden(
            self.staging / golden.FILE_NAME,
            self.samples,
            truth=truth,
            folded64=folded64,
            reference=reference,
            artifacts=outputs,
        )
        manifest = Manifest(
            name=self.name,
            created_by=f"renormlite {__version__}",
            source={
                "model_name": model.name,
                "sha256": None if source is None else sha256(source),
            },
            versions=_versions(),
            options=self.options.to_json(),
            inputs=self.signature.inputs,
            outputs=self.signature.outputs,
            fold=_fold_record(self.folded),
            golden=FileRecord.of(self.staging / golden.FILE_NAME),
            network=FileRecord.of(self.staging / NETWORK_FILE),
            artifacts=tuple(
                dataclasses.replace(
                    artifact, snr_db=golden.snr_db(self.samples, truth, outputs[artifact.file])
                )
                for artifact in written
            ),
        )
        manifest.write(self.staging)
        return manifest

    def _write(self, file_format: Format, precision: str, graph: FrozenGraph) -> Artifact:
        """Convert, write and validate one file."""
        path = self.staging / f"{self.name}.{precision}{file_format.suffix}"
        started = time.perf_counter()
        job = Job(graph, precision, self.options, f"{self.name}, renormlite {__version__}", {})
        with self.step(path.name, "convert"):
            file_format.write(job, path)
        with self.step(path.name, "validate"):
            contents = file_format.validate(path, job)
        return Artifact(
            file=path.name,
            format=file_format.name,
            precision=precision,
            sha256=sha256(path),
            bytes=path.stat().st_size,
            ops=contents.ops,
            inputs=contents.inputs,
            outputs=contents.outputs,
            seconds=time.perf_counter() - started,
        )

    def _run(self, artifact: Artifact) -> dict[str, np.ndarray]:
        with self.step(artifact.file, "run"):
            return run_artifact(
                format_named(artifact.format),
                self.staging / artifact.file,
                artifact,
                self.samples.inputs,
            )


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Tells a listener of the beginning and end of every step."""

    listener: Listener

    @contextlib.contextmanager
    def __call__(self, subject: str, stage: str) -> Iterator[None]:
        self.listener(Progress(subject, stage))
        started = time.perf_counter()
        yield
        self.listener(Progress(subject, stage, time.perf_counter() - started))


def _ignore(progress: Progress) -> None:
    """Stand in for a listener."""


def _public_signature(model: keras.Model, folded: keras.Model) -> Signature:
    """Return the names of the trained model: folding may have replaced the layers that gave them.

    A subclassed model has none of its own; it is exported under those of its trace.
    """
    if not is_symbolic(model):
        return signature_of(folded)
    signature = signature_of(model)
    unknown = [t.name for t in signature.inputs if None in t.shape[1:]]
    if unknown:
        raise UserError(
            f"Expected inputs of known size. Received: {', '.join(unknown)} with a free dimension "
            "besides the batch. Build the model with the sizes it will be deployed at."
        )
    return signature


def _real_samples(
    source: SampleSource | None, signature: Signature
) -> dict[str, np.ndarray] | None:
    if isinstance(source, (str, os.PathLike)):
        return load_samples(Path(source), signature.inputs)
    return golden.as_named(source, signature.inputs)


def _exact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _fold_record(folded: FoldResult) -> dict[str, Any]:
    return {
        "records": [record.to_json() for record in folded.report.records],
        "proof": folded.proof.to_json() if folded.proof is not None else None,
    }


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"renormlite": __version__, "python": platform.python_version(), **versions}


@contextlib.contextmanager
def _moved_in_when_done(directory: Path) -> Iterator[Path]:
    """Yield a folder to write into; move its files into `directory` when all is done.

    The manifest goes last. Files of an earlier export that the new manifest no longer names are
    removed; whatever else lies in the directory stays.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory) as folder:
        staging = Path(folder)
        yield staging
        earlier = _files_of_earlier_export(directory)
        new = sorted(path.name for path in staging.iterdir())
        for name in sorted(new, key=lambda name: name == MANIFEST_FILE):
            os.replace(staging / name, directory / name)
        for name in earlier - set(new):
            (directory / name).unlink(missing_ok=True)


def _files_of_earlier_export(directory: Path) -> set[str]:
    try:
        manifest = Manifest.load(directory)
    except UserError:  # none, or damaged: nothing is known to be ours
        return set()
    # Only plain names: a manifest from elsewhere must not point out of its directory.
    return {a.file for a in manifest.artifacts if Path(a.file).name == a.file}
