"""Runs an exported file on this machine by the names and floats of the Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..artifacts.manifest import Artifact
from ..runtimes.session import Session
from .formats.base import format_named


def run_artifact(
    artifact: Artifact, folder: Path, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run all samples through a file in its format's runtime on this machine.

    Args:
        artifact: Its description: format, names, batch size, quantization.
        folder: Where it lies.
        inputs: Keras input name to (N, …) samples.

    Returns:
        Keras output name to (N, …): float32 where the file's output is quantized.
    """
    with format_named(artifact.format).runner(folder / artifact.file) as runner:
        return Session(runner, artifact).run(inputs)
