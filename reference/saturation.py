"""Recognizes numbers beyond the range of a type of floats that change no output.

A mask adds -1e9 or minus infinity to scores, which a softmax turns into zero. A file of half
precision holds -65504 instead, a .tflite file the least number of its type, and a file of integers
the end of their range, with the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph
from ..artifacts.network import Network
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.ranges import GREATEST_HALF
from .network import evaluate_network, opaque_layers

# Numbers below this one are rounded to the greatest number of half precision.
ROUNDED_TO_INFINITY = 65520.0

# Outputs that differ by less, relative to the greatest, are equal.
_EQUAL = 1e-6

_SAMPLES = 8

# In files of integers, constants from the first number on are taken for masks, and replaced by so
# many times the range of all integers, plus scores that a softmax turns into zero.
_LEAST_MASK, _ABOVE, _NO_WEIGHT = 1e4, 4.0, 100.0

Arrays = Mapping[str, np.ndarray]


def with_saturated_constants(
    network: Network, graph: ArtifactGraph, precision: str, inputs: Callable[[], Arrays]
) -> Network:
    """Return the network with constants limited to those of a file, if that changes no output.

    Args:
        network: The network.
        graph: The file.
        precision: The precision of the file.
        inputs: Returns Keras input name to (N, …) typical samples.
    """
    limit = _limit(graph, precision_named(precision).arithmetic)
    if not _beyond(network, max(limit, _LEAST_MASK)) or opaque_layers(network):
        return network
    infinite = any(
        c.data is not None and c.data.dtype.kind == "f" and bool(np.isinf(c.data).any())
        for c in graph.constants
    )
    nodes = []
    for node in network.nodes:
        weights, constants = (
            {
                role: _limited(array, limit, infinite) if array.dtype.kind == "f" else array
                for role, array in arrays.items()
            }
            for arrays in (node.weights, node.constants)
        )
        nodes.append(replace(node, weights=weights, constants=constants))
    saturated = replace(network, nodes=tuple(nodes))
    samples = {name: array[:_SAMPLES] for name, array in inputs().items()}
    return saturated if _same(network, saturated, samples) else network


def _limit(graph: ArtifactGraph, arithmetic: Arithmetic) -> float:
    """Return the greatest constant that a file of some arithmetic can hold, or may hold instead.

    Integers saturate. So a mask is as good as any that is well below all scores and that a softmax
    turns into zero, and rounding errors relative to it stay small.
    """
    if arithmetic is Arithmetic.FLOAT16:
        return GREATEST_HALF
    if arithmetic is not Arithmetic.INTEGER:
        return float(np.finfo(np.float32).max)
    ranges = [
        float(np.abs(tensor.real(np.array([limits.min, limits.max], tensor.dtype))).max())
        for tensor in graph.tensors.values()
        if tensor.data is None and tensor.quantization is not None and tensor.dtype.kind in "iu"
        for limits in [np.iinfo(tensor.dtype)]
    ]
    return _ABOVE * max(ranges, default=0.0) + _NO_WEIGHT


def _limited(array: np.ndarray, limit: float, infinite: bool) -> np.ndarray:
    """Return numbers within a limit; infinite ones stay if the file has such."""
    limited = np.clip(array, -limit, limit)
    return np.where(np.isinf(array), array, limited) if infinite else limited


def overflows_harmlessly(network: Network, inputs: Arrays) -> bool:
    """Return whether values beyond half precision may become infinite without any effect.

    Args:
        network: The network, without opaque layers.
        inputs: Keras input name to (N, …) typical samples.
    """

    def stored(value: np.ndarray) -> np.ndarray:
        beyond = np.abs(value) >= ROUNDED_TO_INFINITY
        return np.where(beyond, np.copysign(np.inf, value), value)

    samples = {name: array[:_SAMPLES] for name, array in inputs.items()}
    return _same(network, network, samples, stored)


def _beyond(network: Network, limit: float) -> bool:
    """Return whether a constant is beyond a limit."""
    return any(
        array.dtype.kind == "f" and np.abs(array).max() > limit
        for node in network.nodes
        for array in node.arrays.values()
        if array.size
    )


def _same(
    network: Network,
    other: Network,
    inputs: Arrays,
    stored: Callable[[np.ndarray], np.ndarray] | None = None,
) -> bool:
    """Return whether two networks, the second with its values stored, have the same outputs."""
    with np.errstate(all="ignore"):
        expected = evaluate_network(network, inputs)
        found = evaluate_network(other, inputs, stored=stored)
    for name, array in expected.items():
        finite = np.isfinite(array)
        size = float(np.max(np.abs(array), where=finite, initial=0.0))
        if not np.array_equal(array[~finite], found[name][~finite], equal_nan=True):
            return False
        if not np.all(np.abs(found[name] - array)[finite] <= _EQUAL * size):
            return False
    return True
