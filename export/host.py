"""Run an exported file on this machine by the names and floats of the Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .formats.base import format_named
from .manifest import Artifact, TensorInfo
from .quantization.calibration import in_file_order

Arrays = Mapping[str, np.ndarray]


def run_artifact(artifact: Artifact, folder: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    """Run all samples through a file in its format's host runtime.

    Args:
        artifact: Its description: format, names, batch size, quantization.
        folder: Where it lies.
        inputs: Keras input name to (N, …) samples.

    Returns:
        Keras output name to (N, …): float32 where the file's output is quantized.
    """
    session = format_named(artifact.format).open(folder / artifact.file)
    count = len(next(iter(inputs.values())))
    size = artifact.inputs[0].shape[0] or 1
    parts: dict[str, list[np.ndarray]] = {t.keras_name: [] for t in artifact.outputs}
    for start in range(0, count, size):
        fed = {
            tensor.name: to_file(_batch(inputs[tensor.keras_name], start, size), tensor)
            for tensor in artifact.inputs
        }
        results = session(fed)
        for tensor in artifact.outputs:
            parts[tensor.keras_name].append(from_file(results[tensor.name], tensor))
    return {name: np.concatenate(part)[:count] for name, part in parts.items()}


def _batch(values: np.ndarray, start: int, size: int) -> np.ndarray:
    """Return `size` samples, the last one repeated where they run out."""
    chosen = values[start : start + size]
    missing = size - len(chosen)
    return np.concatenate([chosen, np.repeat(chosen[-1:], missing, axis=0)]) if missing else chosen


def to_file(values: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """Return a batch of Keras values as a file takes it: axes in its order, quantized.

    Quantizing rounds to the nearest step, ties to even, and saturates.
    """
    ordered = in_file_order(values, tensor.axes)
    if tensor.scale is None:
        return np.ascontiguousarray(ordered, dtype=tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    steps = np.rint(ordered.astype(np.float64) / tensor.scale) + (tensor.zero_point or 0)
    return np.clip(steps, limits.min, limits.max).astype(tensor.dtype)


def from_file(values: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """Return a file's output as Keras would give it: dequantized, axes in Keras order."""
    real = values
    if tensor.scale is not None:
        steps = values.astype(np.float64) - (tensor.zero_point or 0)
        real = (steps * tensor.scale).astype(np.float32)
    return real if tensor.axes is None else np.transpose(real, np.argsort(tensor.axes))
