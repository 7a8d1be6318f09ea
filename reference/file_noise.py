"""Predicts the noise of a file of lower precision, on any kernel that may run it.

The file provides its weights, the steps of its integers, and which ops quantize their input at run
time; the noise follows from these (`noise`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..artifacts.graphs import read_graph
from ..artifacts.manifest import Artifact
from ..artifacts.network import Network
from ..artifacts.precisions import (
    GREATEST_FLOAT32,
    UNIT_ROUNDOFF,
    WORST_SAMPLE_LIMIT,
    Arithmetic,
    precision_named,
)
from ..artifacts.ranges import GREATEST_HALF
from ..artifacts.sample_kinds import RANDOM, REAL, UNUSUAL
from .file_weights import match_weights
from .integer_noise import rounding_steps
from .merged_affines import with_merged_affines
from .network import evaluate_network, node_values, opaque_layers
from .noise import NoiseSource, expected_noise
from .rounded_weights import RoundedWeights, in_half


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


def outputs_in_floats(
    path: Path,
    file_format: str,
    network: Network,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return what a runtime computes that uses a file's weights and rounds nothing else.

    Args:
        path: The file.
        file_format: "tflite" or "onnx".
        network: The network it was made from.
        inputs: Its input names to (N, …).

    Returns:
        Output name to (N, …) float64; empty for layers that only Keras can evaluate, or a weight
        that was not found in the file.

    Raises:
        UserError: The file cannot be parsed.
    """
    if opaque_layers(network):
        return {}
    graph = read_graph(path, file_format)
    network = with_merged_affines(network, graph)
    rounded = RoundedWeights.of(network, match_weights(network, graph), graph)
    if not rounded.complete:
        return {}
    with np.errstate(all="ignore"):
        return evaluate_network(rounded.applied(network), inputs)


def beyond_half(
    noise: Mapping[str, np.ndarray],
    network: Network,
    inputs: Mapping[str, np.ndarray],
    kind: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the noise of a half-precision file, infinite for samples that it cannot compute.

    Extreme samples may have values beyond 65504, of which runtimes make infinity or NaN. Values
    that large on typical samples, such as those of masks, are judged by themselves.

    Args:
        noise: Output name to the expected (N,) noise.
        network: The network it was made from.
        inputs: Its input names to (N, …).
        kind: (N,) kinds of the samples.
    """
    odd = np.isin(kind, UNUSUAL)
    lost = odd & _exceed_half(network, inputs, odd) if noise else np.zeros_like(odd)
    typical = np.isin(kind, (REAL, RANDOM))
    if not lost.any() or _exceed_half(network, inputs, typical).any():
        return dict(noise)
    return {name: np.where(lost, np.inf, array) for name, array in noise.items()}


def beyond_float32(
    noise: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], kind: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the noise of a file of floats, infinite for samples that may exceed float32 in it.

    Args:
        noise: Output name to the expected (N,) noise.
        truth: Output name to (N, …) float64.
        kind: (N,) kinds of the samples.
    """
    found = dict(noise)
    for name, array in noise.items():
        flat = np.abs(truth[name].reshape(len(array), -1), dtype=np.float64)
        peak = np.max(flat, axis=1, where=np.isfinite(flat), initial=0.0)
        unit = np.where(peak > 0, peak, 1.0)[:, None]
        usable = np.isfinite(flat)
        mean = np.mean(np.square(np.where(usable, flat / unit, 0.0)), axis=1)
        # The greatest number with an error that a sample may have, relative to its size.
        most = peak + WORST_SAMPLE_LIMIT * array / np.sqrt(np.where(mean > 0, mean, 1.0))
        lost = np.isin(kind, UNUSUAL) & (most > GREATEST_FLOAT32)
        found[name] = np.where(lost, np.inf, array)
    return found


def noise_in_half(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the expected error of half precision, of weights and arithmetic, without a file.

    Args:
        network: The network that files are made from.
        inputs: Its input names to (N, …).
        truth: Output name to (N, …) float64.
        reference: Output name to (N, …) of the trained model in float32. For layers that only Keras
            can evaluate, its errors are multiplied by the ratio of the unit roundoffs.

    Returns:
        Output name to (N,) root mean square errors.
    """
    half = UNIT_ROUNDOFF["float16"]
    found = expected_noise(in_half(network), inputs, arithmetic=NoiseSource(half), truth=truth)
    if found:
        return found
    for name, exact in truth.items():
        flat, own = (
            np.asarray(a, np.float64).reshape(len(a), -1) for a in (exact, reference[name])
        )
        error, size = (
            np.sqrt(np.mean(np.square(np.where(np.isfinite(flat * own), a, 0.0)), axis=1))
            for a in (own - flat, flat)
        )
        usual = np.sqrt(np.mean(np.square(error)))  # one sample may be exact by chance
        found[name] = np.maximum(error, usual) * half / UNIT_ROUNDOFF["float32"] + half * size
    return found


def finite_in_half(
    network: Network, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """Return where outputs stay finite if every weight and value is rounded to half precision.

    Args:
        network: The network that files are made from.
        inputs: Its input names to (N, …).

    Returns:
        Output name to (N, …); None if only Keras can evaluate some layers.
    """
    if opaque_layers(network):
        return None

    def stored(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float16).astype(value.dtype) if value.dtype.kind == "f" else value

    with np.errstate(all="ignore"):
        nodes = tuple(
            replace(node, constants={role: stored(array) for role, array in node.constants.items()})
            for node in in_half(network).nodes
        )
        given = {name: stored(np.asarray(array)) for name, array in inputs.items()}
        found = evaluate_network(replace(network, nodes=nodes), given, stored=stored)
    return {name: np.isfinite(array) for name, array in found.items()}


def _exceed_half(
    network: Network, inputs: Mapping[str, np.ndarray], where: np.ndarray
) -> np.ndarray:
    """Return (N,) which of some samples have values beyond half precision."""
    given = {name: np.asarray(array[where], np.float64) for name, array in inputs.items()}
    greatest = np.zeros(int(where.sum()))
    if len(greatest):
        for _, value in node_values(network, given):
            size = np.abs(value).reshape(len(greatest), -1)
            greatest = np.maximum(greatest, size.max(axis=1, initial=0.0))
    found = np.zeros(len(where), bool)
    found[where] = greatest > GREATEST_HALF
    return found
