"""Run an exported file on this machine by the names and floats of the Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .formats import Format
from .manifest import Artifact, TensorInfo

Arrays = Mapping[str, np.ndarray]


def run_artifact(
    file_format: Format, path: Path, artifact: Artifact, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Run all samples through a file in its format's host runtime.

    Args:
        file_format: The format of the file.
        path: Where it lies.
        artifact: Its description: names, batch size, quantization.
        inputs: Keras input name to (N, …) samples.

    Returns:
        Keras output name to (N, …): float32 where the file's output is quantized.
    """
    session = file_format.open(path)
    count = len(next(iter(inputs.values())))
    size = artifact.inputs[0].shape[0] or 1
    parts: dict[str, list[np.ndarray]] = {keras_name(t): [] for t in artifact.outputs}
    for start in range(0, count, size):
        fed = {
            tensor.name: quantize(_batch(inputs[keras_name(tensor)], start, size), tensor)
            for tensor in artifact.inputs
        }
        results = session(fed)
        for tensor in artifact.outputs:
            parts[keras_name(tensor)].append(dequantize(results[tensor.name], tensor))
    return {name: np.concatenate(part)[:count] for name, part in parts.items()}


def keras_name(tensor: TensorInfo) -> str:
    """Return the Keras name of a file's input or output."""
    return tensor.keras_name or tensor.name


def _batch(values: np.ndarray, start: int, size: int) -> np.ndarray:
    """Return `size` samples, the last one repeated where they run out."""
    chosen = values[start : start + size]
    missing = size - len(chosen)
    return np.concatenate([chosen, np.repeat(chosen[-1:], missing, axis=0)]) if missing else chosen


def quantize(values: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """Return real values in the type a file takes: nearest step, ties to even, saturated."""
    if tensor.scale is None:
        return np.ascontiguousarray(values, dtype=tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    steps = np.rint(values.astype(np.float64) / tensor.scale) + (tensor.zero_point or 0)
    return np.clip(steps, limits.min, limits.max).astype(tensor.dtype)


def dequantize(values: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """Return the real values a file's output stands for."""
    if tensor.scale is None:
        return values
    real = (values.astype(np.float64) - (tensor.zero_point or 0)) * tensor.scale
    return real.astype(np.float32)
