"""Predicts the noise of a file of lower precision, on any kernel that may run it.

The file provides its weights, the steps of its integers, and which ops quantize their input at run
time; the noise follows from these (`noise`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..artifacts.graphs import read_graph
from ..artifacts.manifest import Artifact
from ..artifacts.network import Network
from ..artifacts.precisions import Arithmetic, precision_named
from .file_weights import match_weights
from .integer_noise import rounding_steps
from .merged_affines import with_merged_affines
from .network import opaque_layers
from .noise import NoiseSource, expected_noise
from .rounded_weights import RoundedWeights


def shares_ranges(artifact: Artifact) -> bool:
    """Return whether all samples of a batch share one range, so that each depends on the others.

    ONNX's DynamicQuantizeLinear takes the range of a whole tensor. The noise of a single sample
    cannot be derived from that.
    """
    batch = artifact.inputs[0].shape[0] or 1
    return (
        artifact.format == "onnx"
        and precision_named(artifact.precision).arithmetic is Arithmetic.HYBRID
        and batch > 1
    )


def file_noise(
    path: Path,
    file_format: str,
    precision: str,
    network: Network,
    inputs: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the expected root mean square error of a file.

    For files of floats, or with run-time quantization, it is the error against truth; for files of
    integers the difference between two correct runtimes (`integer_noise`).

    Args:
        path: The file.
        file_format: "tflite" or "onnx".
        precision: Its precision in the manifest.
        network: The network it was made from.
        inputs: Its input names to (N, …).
        truth: Output name to (N, …) float64.

    Returns:
        Output name to (N,) float64; empty if it cannot be derived: for layers that only Keras
        can evaluate, or a weight that was not found in a file of floats.

    Raises:
        UserError: The file cannot be parsed.
    """
    known = precision_named(precision)
    if not known.noise or opaque_layers(network):
        return {}
    graph = read_graph(path, file_format)
    network = with_merged_affines(network, graph)
    weights = match_weights(network, graph)
    if known.arithmetic is Arithmetic.INTEGER:
        steps = rounding_steps(network, graph, weights, inputs)
        return expected_noise(network, inputs, arithmetic=NoiseSource(steps=steps))
    rounded = RoundedWeights.of(network, weights, graph)
    if not rounded.complete:
        return {}
    return expected_noise(
        rounded.applied(network),
        inputs,
        arithmetic=NoiseSource(known.unit_roundoff, rounded.hybrid),
        truth=truth,
    )
