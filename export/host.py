"""Runs an exported file on this machine, with the names and float values of the Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..artifacts.manifest import Artifact
from ..child import DiedError, shared
from ..runtimes.base import ArtifactError
from ..runtimes.run import run_file
from ..runtimes.session import Session
from .formats.base import format_named

# Runtimes that run in a child process; TensorFlow has already run the model in this one.
_RUNTIMES = {"tflite": "litert", "onnx": "onnxruntime"}


def run_artifact(
    artifact: Artifact, folder: Path, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run all samples through a file in its format's runtime on this machine.

    Args:
        artifact: Its description: format, names, batch size, quantization.
        folder: The folder that contains it.
        inputs: Keras input name to (N, …) samples.

    Returns:
        Keras output name to (N, …); quantized outputs are dequantized to float32.
    """
    if artifact.format in _RUNTIMES:
        return run_timed(artifact, folder, inputs)[0]
    with format_named(artifact.format).runner(folder / artifact.file) as runner:
        return Session(runner, artifact).run(inputs)


def run_timed(
    artifact: Artifact, folder: Path, inputs: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """Run all samples through a .tflite or .onnx file, one thread; see `run_artifact`.

    Returns:
        Keras output name to (N, …), and the median time of a run in seconds.
    """
    path, runtime = folder / artifact.file, _RUNTIMES[artifact.format]
    try:
        return shared.call(run_file, runtime, path, artifact, dict(inputs))
    except DiedError as died:
        raise ArtifactError(
            f"{runtime} crashed ({died.cause}) while it ran {artifact.file}. Export another "
            "precision or format."
        ) from died
