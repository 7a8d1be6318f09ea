"""Finds the values of a network that a file cannot represent, measured in float arithmetic.

Integers represent a range chosen by calibration; values beyond it are clipped on every runtime.
Half precision ends at 65504; a file of float16 weights may be computed in it, so neither a value
nor a sum of any layer may exceed that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphOp
from ..artifacts.graphs.norms import norms_of
from ..artifacts.manifest import Artifact
from ..artifacts.network import Network, Node
from ..artifacts.precisions import Arithmetic, precision_named
from ..artifacts.ranges import GREATEST_HALF, Clipped, Misfits, Overflow
from .constant_values import needless_nodes
from .file_weights import match_weights
from .integer_noise import Step, input_steps, rounded_values, steps_with_weights
from .merged_affines import with_merged_affines
from .network import node_values, opaque_layers
from .rounded_parts import rounded_part
from .saturation import ROUNDED_TO_INFINITY, overflows_harmlessly, with_saturated_constants

# Shares below this, in percent, are not reported: some value is always the greatest.
_LEAST_SHARE = 0.1

_BATCH = 8

_FLOAT = 1  # ONNX's number of the element type float32


def misfits(
    artifact: Artifact, graph: ArtifactGraph, network: Network, inputs: Mapping[str, np.ndarray]
) -> Misfits:
    """Return the values that a file cannot represent.

    Args:
        artifact: The manifest's entry of the file.
        graph: The file.
        network: The network it was made from.
        inputs: Keras input name to (N, …) typical samples.

    Returns:
        Clipped inputs and layers for a file of integers, numbers beyond half precision for a file
        of float16; nothing for other files. If only Keras can evaluate some layers, the inputs
        alone.
    """
    arithmetic = precision_named(artifact.precision).arithmetic
    known = not opaque_layers(network)
    if arithmetic is Arithmetic.INTEGER:
        network = with_merged_affines(network, graph, rounded=False) if known else network
        steps = steps_with_weights(graph, match_weights(network, graph)) if known else {}
        needless = needless_nodes(network)
        steps = {name: step for name, step in steps.items() if name not in needless}
        layers = sorted(_clipped(network, steps, inputs), key=lambda entry: -entry.share)
        # Values clipped in the input cause the clipping after it.
        clipped = [*_clipped_inputs(artifact, graph, inputs), *layers]
        return Misfits(clipped=tuple(entry for entry in clipped if entry.share >= _LEAST_SHARE))
    if arithmetic is Arithmetic.FLOAT16 and known:
        network = with_saturated_constants(network, graph, artifact.precision, lambda: inputs)
        wide = _computed_in_floats(network, graph)
        found = [entry for name, entry in _overflows(network, inputs) if name not in wide]
        if any(entry.what == "value" for entry in found) and overflows_harmlessly(network, inputs):
            found = [entry for entry in found if entry.what != "value"]
        return Misfits(overflows=tuple(found))
    return Misfits()


def _clipped_inputs(
    artifact: Artifact, graph: ArtifactGraph, inputs: Mapping[str, np.ndarray]
) -> Iterator[Clipped]:
    samples = [inputs[spec.keras_name] for spec in artifact.inputs]
    steps = input_steps(graph, [spec.name for spec in artifact.inputs], samples)
    for spec in artifact.inputs:
        if spec.name in steps:
            tally = _Tally(steps[spec.name])
            tally.add(rounded_part(graph, spec.name, inputs[spec.keras_name]))
            yield tally.clipped(f"input '{spec.keras_name}'")


def _clipped(
    network: Network, steps: Mapping[str, Step], inputs: Mapping[str, np.ndarray]
) -> Iterator[Clipped]:
    """Yield the values clipped in the results of linear operators and their fused relus."""
    tallies = {name: _Tally(step) for name, step in steps.items()}
    places = {place: name for name, place in rounded_values(network, steps).items()}
    if steps:
        for name, value in _values(network, inputs):
            if name in places:
                tallies[places[name]].add(value)
    for node in network.nodes:
        if node.name in tallies:
            yield tallies[node.name].clipped(f"layer '{node.layer}'")


class _Tally:
    """Counts the values beyond the range of some integers, by more than half a step."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._beyond = self._count = 0
        self._least, self._most = np.inf, -np.inf

    def add(self, value: np.ndarray) -> None:
        """Count more values."""
        if value.dtype.kind != "f":
            value = value.astype(np.float64)
        finite, step = value[np.isfinite(value)], self._step
        half = step.size / 2
        self._beyond += int(np.sum((finite < step.low - half) | (finite > step.high + half)))
        self._count += finite.size
        self._least = min(self._least, float(finite.min(initial=np.inf)))
        self._most = max(self._most, float(finite.max(initial=-np.inf)))

    def clipped(self, place: str) -> Clipped:
        """Return the counted values."""
        share = 100 * self._beyond / max(self._count, 1)
        least, most = (self._least, self._most) if self._count else (0.0, 0.0)
        low, high = self._step.low, self._step.high
        return Clipped(place, share, low, high, least, most, self._count)


def _computed_in_floats(network: Network, graph: ArtifactGraph) -> set[str]:
    """Return the nodes inside norms, if a file of half precision computes norms in float32."""
    casts = (op for op in graph.ops if op.kind == "Cast" and op.attributes.get("to") == _FLOAT)
    norms = list(norms_of(graph.ops))
    squares = [op for norm in norms for op in norm.squares]
    divided = [op for norm in norms for op in norm.divisions]  # a norm may follow another one
    wide = {*graph.inputs, *(op.outputs[0] for op in (*casts, *divided))}
    if not squares or not all(op.inputs[0] in wide for op in squares):
        return set()
    nodes = [
        GraphOp(index, node.op, node.name, node.inputs, (node.name,))
        for index, node in enumerate(network.nodes)
    ]
    return {op.name for norm in norms_of(nodes) for op in norm.inside}


def _overflows(
    network: Network, inputs: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Overflow]]:
    """Yield the values and sums that exceed half precision, with the name of the node."""
    nodes = {node.name: node for node in network.nodes}
    sizes = {name: array.shape[1:] for name, array in inputs.items()}
    values: dict[str, float] = {}
    sums: dict[str, float] = {}
    for name, value in _values(network, inputs):
        sizes[name] = value.shape[1:]
        node = nodes.get(name)
        if node is not None and value.dtype.kind == "f":
            values[name] = max(values.get(name, 0.0), _greatest(value))
            total = _greatest_sum(node, value, sizes)
            sums[name] = max(sums.get(name, 0.0), total)
    for node in network.nodes:
        if values.get(node.name, 0.0) >= ROUNDED_TO_INFINITY:
            yield node.name, Overflow(node.layer, "value", values[node.name])
        elif sums.get(node.name, 0.0) > GREATEST_HALF:
            yield node.name, Overflow(node.layer, "sum", sums[node.name])


def _greatest_sum(node: Node, value: np.ndarray, sizes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the greatest sum in a node before its division or bias; 0 for none."""
    if "bias" in node.weights and node.weights["bias"].size == value.shape[-1]:
        return _greatest(value - node.weights["bias"])
    if node.op in ("global_average_pool", "reduce_mean"):
        terms = math.prod(sizes[node.inputs[0]]) / max(math.prod(value.shape[1:]), 1)
        return _greatest(value) * terms
    if node.op == "average_pool":
        return _greatest(value) * float(np.prod(node.attributes["pool_size"]))
    return 0.0


def _greatest(value: np.ndarray) -> float:
    return float(np.max(np.abs(value), where=np.isfinite(value), initial=0.0))


def _values(network: Network, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every value of the network, a few samples at a time to bound memory."""
    count = len(next(iter(inputs.values())))
    for start in range(0, count, _BATCH):
        part = {name: array[start : start + _BATCH] for name, array in inputs.items()}
        # The nodes compute in floats what the model computes after a cast; int32 needs float64.
        floats = {
            name: array.astype(
                np.float32 if array.dtype.kind == "f" else np.result_type(array.dtype, np.float32)
            )
            for name, array in part.items()
        }
        with np.errstate(all="ignore"):
            yield from node_values(network, floats)
