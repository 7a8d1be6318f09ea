"""From a trained model to artifacts, golden set, network and manifest, in one call."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import __version__
from ..errors import UserError
from ..files import sha256
from ..runtime_checks.file_noise import MODELLED, file_noise
from ..runtime_checks.graphs import READERS
from ..runtime_checks.network import read_network
from ..runtime_checks.noise import expected_noise
from . import golden
from .calibrate import Calibration, load_calibration
from .fold import FoldResult, float64_twin, fold
from .formats import Contents, Job, format_named, needs_calibration, takes_channels_first
from .host import run_artifact
from .manifest import Artifact, FileRecord, Manifest, TensorInfo, hash_folder
from .network import write_network
from .options import ExportOptions
from .progress import Listener, Steps
from .samples import Preprocessing, SampleSet, Source, load_samples
from .signature import Signature, is_symbolic, signature_of
from .staging import moved_in_when_done
from .variants import Variant, Variants, choice_note, choose

NETWORK_FILE = "network.npz"

# Precisions that gain nothing from equalized ranges: their numbers carry exponents of their own.
FLOAT_PRECISIONS = ("float32", "float16")

_PACKAGES = (
    "ai-edge-litert",
    "keras",
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorflow",
    "tf2onnx",
)


def export_model(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("tflite", "onnx"),
    precisions: Sequence[str] = ("float32",),
    calibration: Source | None = None,
    calibration_samples: int = 200,
    inputs: Source | None = None,
    batch_size: int | None = 1,
    layout: str = "nhwc",
    opset: int = 17,
    quantized_io: str = "float",
    equalize: str = "auto",
    allow_flex: bool = False,
    labels: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    description: str = "",
    source: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> Manifest:
    """Fold a model, write it in every format and precision asked for, and what checks need.

    Writes `NAME.PRECISION.tflite|onnx|saved_model`, `golden.npz`, `network.npz` and, last,
    `manifest.json` into `directory`, NAME being the directory's own name. Everything is made aside
    and moved in when all of it is done: an interrupted or failed export leaves the old files.

    Args:
        model: A trained Keras model, built. It is not changed.
        directory: Where to; made when missing.
        formats: `tflite`, `onnx`, `saved_model`.
        precisions: `float32`; `float16` (weights; TFLite computes in float32); `dynamic` (int8
            weights, activations quantized as they come); `int8`; `int16x8` (int16 activations,
            TFLite only); `int4` (4-bit weights, TFLite only). A format leaves out what it lacks.
        calibration: Real samples that int8 and int16x8 take their ranges from: an array or dict of
            arrays by input name, `.npz`, `.npy`, a folder of images, a `tf.data.Dataset`, or
            `"module:function"`. Data that looks like noise is refused; `"random"` asks for random
            numbers in plain words. None takes `inputs`.
        calibration_samples: At most so many of them, evenly spread.
        inputs: Real samples for the golden set, from any source `calibration` can have.
        batch_size: The batch size the files are made for; None leaves it free.
        layout: `nhwc`, or `nchw` for ONNX files that take and give channels first.
        opset: Version of ONNX's operator set.
        quantized_io: `float`, or `integer` for int8 and int16x8 TFLite files that take and give
            integers.
        equalize: Whether quantized files are made from weights equalized across layers: `auto`
            (where it raises the measured signal-to-noise ratio), `always` or `never`.
        allow_flex: Whether TFLite files may call TensorFlow operators, which most runtimes lack.
        labels: Names of the classes, kept as metadata.
        preprocessing: How pixels become inputs; kept as metadata and applied to image folders.
        description: One line about the model, kept as metadata.
        source: The file the model was loaded from; its hash goes into the manifest.
        listener: Called at the beginning and end of every step.

    Returns:
        The manifest as written, with the time each file took.

    Raises:
        UserError: The model or an option cannot be exported; the message says how to mend it.
    """
    options = ExportOptions(
        formats=tuple(formats),
        precisions=tuple(precisions),
        batch_size=batch_size,
        opset=opset,
        layout=layout,
        quantized_io=quantized_io,
        equalize=equalize,
        calibration_samples=calibration_samples,
        allow_flex=allow_flex,
        labels=tuple(labels),
        preprocessing=preprocessing,
        description=description,
    )
    target = Path(directory)
    step = Steps(listener) if listener else Steps()
    with step("model", "fold"):
        folded = fold(model)
    signature = _public_signature(model, folded.model)
    real = None
    if inputs is not None:
        real = load_samples(
            inputs, signature.inputs, limit=golden.REAL, preprocessing=preprocessing
        )
    samples = _calibration(options, inputs if calibration is None else calibration, signature)
    run = _Run(
        model=model,
        folded=folded,
        signature=signature,
        options=options,
        calibration=samples,
        variants=Variants(
            folded.model,
            signature,
            _judges(samples, real),
            batch_size=batch_size,
            equalize=equalize,
        ),
        samples=golden.choose_samples(signature.inputs, real.arrays if real else None),
        name=target.resolve().name,
        source={
            "model_name": model.name,
            "sha256": None if source is None else sha256(source),
        },
        step=step,
    )
    with moved_in_when_done(target) as staging:
        return run.export(staging)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One export on its way: what every step needs."""

    model: keras.Model
    folded: FoldResult
    signature: Signature
    options: ExportOptions
    calibration: Calibration | None
    variants: Variants
    samples: golden.Samples
    name: str
    source: dict[str, Any]
    step: Steps

    def export(self, folder: Path) -> Manifest:
        """Write every file into `folder`, the manifest last."""
        artifacts = [self._write(name, precision, folder) for name, precision in self.options.files]
        with self.step(NETWORK_FILE, "write"):
            network = write_network(
                self.folded.model,
                folder / NETWORK_FILE,
                inputs=[tensor.name for tensor in self.signature.inputs],
                outputs=[tensor.name for tensor in self.signature.outputs],
            )
        with self.step(golden.FILE_NAME, "truth in float64"):
            exact = {name: _exact(value) for name, value in self.samples.inputs.items()}
            truth = golden.evaluate(float64_twin(self.model), self.signature, exact)
            folded64 = golden.evaluate(float64_twin(self.folded.model), self.signature, exact)
        with self.step(golden.FILE_NAME, "reference in float32"):
            reference = golden.evaluate(self.model, self.signature, self.samples.inputs)
        with self.step(golden.FILE_NAME, "noise of float32"):
            noise = expected_noise(network, self.samples.inputs)
        outputs, of_files = {}, {}
        for artifact in artifacts:
            with self.step(artifact.file, "run"):
                outputs[artifact.file] = run_artifact(artifact, folder, self.samples.inputs)
            if artifact.precision in MODELLED and artifact.format in READERS:
                with self.step(artifact.file, "noise"):
                    of_files[artifact.file] = self._noise(artifact, folder, truth)
        golden.write_golden(
            folder / golden.FILE_NAME,
            self.samples,
            truth=truth,
            folded64=folded64,
            reference=reference,
            artifacts=outputs,
            noise=noise,
            file_noise=of_files,
        )
        judged = [
            dataclasses.replace(a, snr_db=golden.snr_db(self.samples, truth, outputs[a.file]))
            for a in artifacts
        ]
        manifest = self._manifest(folder, judged)
        manifest.write(folder)
        return manifest

    def _noise(
        self, artifact: Artifact, folder: Path, truth: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return the noise that a file's own arithmetic explains."""
        record = artifact.network
        network = read_network(folder / (record.file if record else NETWORK_FILE)).named(
            [tensor.name for tensor in self.signature.inputs],
            [tensor.name for tensor in self.signature.outputs],
        )
        path = folder / artifact.file
        return file_noise(
            path, artifact.format, artifact.precision, network, self.samples.inputs, truth
        )

    def _write(self, format_name: str, precision: str, folder: Path) -> Artifact:
        """Write one file, from the variant of the network that makes the best of its bits."""
        started = time.perf_counter()
        if precision in FLOAT_PRECISIONS:
            artifact = self._convert(format_name, precision, self.variants.plain, folder)
        else:
            artifact = self._best(format_name, precision, folder)
        return dataclasses.replace(artifact, seconds=time.perf_counter() - started)

    def _best(self, format_name: str, precision: str, folder: Path) -> Artifact:
        """Write a quantized file from every variant and keep the one with the least noise."""
        with self.step("model", "equalize"):
            variants = self.variants.quantized
        if len(variants) == 1:
            return self._convert(format_name, precision, variants[0], folder)
        tried: list[tuple[Variant, float]] = []
        made: dict[str, tuple[Artifact, Path]] = {}
        for index, variant in enumerate(variants):
            place = folder / f".variant-{index}"
            place.mkdir()
            artifact = self._convert(format_name, precision, variant, place)
            with self.step(artifact.file, "judge"):
                tried.append((variant, self.variants.judge(artifact, place)))
            made[variant.name] = (artifact, place)
        chosen = choose(tried)
        artifact, place = made[chosen.name]
        os.replace(place / artifact.file, folder / artifact.file)
        for _, place in made.values():
            shutil.rmtree(place)
        if not chosen.name:
            return artifact
        network = folder / f"network.{chosen.name}.npz"
        if not network.exists():
            write_network(chosen.model, network)
        return dataclasses.replace(
            artifact, notes=(choice_note(tried, chosen),), network=FileRecord.of(network)
        )

    def _convert(
        self, format_name: str, precision: str, variant: Variant, folder: Path
    ) -> Artifact:
        """Convert, write and validate one file."""
        file_format = format_named(format_name)
        path = folder / f"{self.name}.{precision}{file_format.suffix}"
        channels_first = self.options.layout == "nchw" and takes_channels_first(format_name)
        with self.step(path.name, "trace"):
            graph = self.variants.graph(variant, channels_first)
        job = Job(
            graph,
            precision,
            self.options,
            self._metadata(precision),
            self.calibration if needs_calibration(format_name, precision) else None,
        )
        with self.step(path.name, "convert"):
            file_format.write(job, path)
        with self.step(path.name, "validate"):
            contents = file_format.validate(path, job)
        return _artifact(path, format_name, job, contents)

    def _metadata(self, precision: str) -> str:
        """Return the JSON that is kept inside a file."""
        return json.dumps(
            {
                "created_by": f"renormlite {__version__}",
                "name": self.name,
                "precision": precision,
                "source": self.source,
                "versions": versions(),
                "options": self.options.to_json(),
                **self.options.metadata(),
            },
            sort_keys=True,
        )

    def _manifest(self, folder: Path, artifacts: Sequence[Artifact]) -> Manifest:
        return Manifest(
            name=self.name,
            created_by=f"renormlite {__version__}",
            source=self.source,
            versions=versions(),
            options=self.options.to_json(),
            metadata=self.options.metadata(),
            calibration=None if self.calibration is None else self.calibration.to_json(),
            inputs=self.signature.inputs,
            outputs=self.signature.outputs,
            fold={
                "records": [record.to_json() for record in self.folded.report.records],
                "proof": self.folded.proof.to_json() if self.folded.proof else None,
            },
            golden=FileRecord.of(folder / golden.FILE_NAME),
            network=FileRecord.of(folder / NETWORK_FILE),
            artifacts=tuple(artifacts),
        )


def _artifact(path: Path, format_name: str, job: Job, contents: Contents) -> Artifact:
    """Describe a file that is written and validated."""
    expected = job.graph.signature

    def in_keras_terms(found: TensorInfo, wanted: TensorInfo) -> TensorInfo:
        return dataclasses.replace(found, axes=wanted.axes, keras_name=wanted.keras_name)

    files = hash_folder(path) if path.is_dir() else None
    return Artifact(
        file=path.name,
        format=format_name,
        precision=job.precision,
        sha256=sha256(path) if files is None else _hash_of(files),
        bytes=_size(path),
        ops=contents.ops,
        inputs=tuple(map(in_keras_terms, contents.inputs, expected.inputs)),
        outputs=tuple(map(in_keras_terms, contents.outputs, expected.outputs)),
        files=files,
    )


def _hash_of(files: dict[str, str]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _calibration(
    options: ExportOptions, source: Source | None, signature: Signature
) -> Calibration | None:
    """Load calibration samples where a file asked for needs them."""
    needed = [f"{name} {p}" for name, p in options.files if needs_calibration(name, p)]
    if not needed:
        return None
    if source is None:
        raise UserError(
            f"{', '.join(needed)} takes the ranges of activations from real samples. Give some "
            "(calibration=…, --calibration DATA); 'random' goes without and costs accuracy."
        )
    return load_calibration(
        source,
        signature.inputs,
        limit=options.calibration_samples,
        preprocessing=options.preprocessing,
    )


def _judges(calibration: Calibration | None, real: SampleSet | None) -> SampleSet | None:
    """Return real samples to judge quantized files by; random ones would judge wrongly."""
    if calibration is not None and not calibration.random:
        return calibration.samples
    return real


def _public_signature(model: keras.Model, folded: keras.Model) -> Signature:
    """Return the names of the trained model: folding may have replaced the layers that gave them.

    A subclassed model has none of its own; it is exported under those of its trace.
    """
    signature = signature_of(model if is_symbolic(model) else folded)
    unknown = [t.name for t in signature.inputs if None in t.shape[1:]]
    if unknown:
        raise UserError(
            f"Expected inputs of known size. Received: {', '.join(unknown)} with a free dimension "
            "besides the batch. Build the model with the sizes it will be deployed at."
        )
    return signature


def _exact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) if values.dtype.kind == "f" else values


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of everything that takes part in an export."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"renormlite": __version__, "python": platform.python_version(), **installed}


__all__ = ["Preprocessing", "SampleSet", "export_model", "versions"]
