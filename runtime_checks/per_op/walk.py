"""Checks op by op whether a file computes the folded network, each op from its actual inputs.

One pass over the network (`evaluation`) finds the tensor of every correct node; a node that is then
not accounted for (`accounting`) is at fault. To check the nodes after it, the walk continues from
the file's own tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.network import Network
from ...artifacts.ranges import GREATEST_HALF
from ...reference.file_weights import WeightMatch
from ...reference.network import can_evaluate, evaluate_node
from ...reference.rounded_weights import RoundedWeights
from .accounting import first_culprit
from .evaluation import Evaluation
from .matching import Tensors, within
from .op_results import Culprit, Walk

_MAX_FAULTS = 3
# Passes over the network that may be spent on one culprit.
_MOST_ALTERNATIVES = 8


def walk(
    network: Network,
    graph: ArtifactGraph,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    weights: Sequence[WeightMatch],
    *,
    in_pieces: frozenset[str] = frozenset(),
    further: float = 0.0,
    half: bool = False,
) -> Walk:
    """Check a file op by op.

    Args:
        network: The folded network.
        graph: The file.
        tensors: Key to (P, …): what the runtime computed for each of P samples.
        inputs: Keras input name to (P, …) floats.
        weights: The state of each weight: quantized ones within half a step are taken from the
            file, so that their rounding is not attributed to the op.
        in_pieces: Layers that the file may split into other operations; see `Evaluation`.
        further: Steps that each op of integers may err more than by the known rules.
        half: Whether the runtime may compute in half precision.

    Returns:
        Every op's error relative to its bound, and the culprits.
    """
    true = _evaluated(network, inputs)
    kept = _held(true, tensors, graph, half=half)
    if not kept.all():
        tensors, inputs, true = (_of_samples(part, kept) for part in (tensors, inputs, true))
    shown = Tensors(graph, tensors, len(next(iter(inputs.values()))), further)
    rounded = RoundedWeights.of(network, weights, graph)
    places = {node.name: place for place, node in enumerate(network.nodes)}

    def evaluated(forced: Mapping[str, str], whole: frozenset[str]) -> Evaluation:
        return Evaluation(
            network, shown, inputs, rounded, true, forced, in_pieces, whole, half=half
        )

    def excused(
        found: Evaluation, culprit: Culprit, forced: dict[str, str], whole: frozenset[str]
    ) -> dict[str, str] | None:
        """Return tensors with which a culprit is right, if others before it agree as well."""
        # Of an activation, also the op before it, which may be blamed for lacking it.
        others = found.alternatives(culprit.segment[-1])
        for name, key in itertools.islice(others, _MOST_ALTERNATIVES):
            later = first_culprit(evaluated({**forced, name: key}, whole))
            if later is None or places[later.node.name] > places[culprit.node.name]:
                return {**forced, name: key}
        return None

    def followed(whole: frozenset[str]) -> tuple[Evaluation, list[Culprit]]:
        forced: dict[str, str] = {}
        culprits: list[Culprit] = []
        while True:
            found = evaluated(forced, whole)
            culprit = first_culprit(found)
            if culprit is None:
                break
            others = excused(found, culprit, forced, whole)
            if others is not None:
                forced = others
                continue
            # A bound too wide to identify a tensor still holds: a tensor within it is not a fault.
            if culprit.got is None or not within(culprit.got, culprit.expected, culprit.allowed):
                culprits.append(culprit)
            if culprit.got is None or len(culprits) == _MAX_FAULTS:
                break
            forced[culprit.segment[-1].name] = culprit.key
        return found, culprits

    evaluation, culprits = followed(frozenset())
    if culprits and evaluation.halved:
        other, later = followed(frozenset(evaluation.halved))
        if not later or places[later[0].node.name] > places[culprits[0].node.name]:
            evaluation, culprits = other, later
    checks, unchecked = tuple(evaluation.checks), tuple(dict.fromkeys(evaluation.unchecked))
    return Walk(checks, tuple(culprits), unchecked)


def _held(
    values: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray],
    graph: ArtifactGraph,
    *,
    half: bool,
) -> np.ndarray:
    """Return (P,) which samples a file's numbers can hold all values of; all if they can hold none.

    Infinite results are right in the others, so nothing distinguishes their tensors. Integers
    cannot hold the mean of no numbers either, which is NaN.
    """
    half = half or any(array.dtype == np.float16 for array in tensors.values())
    limit = GREATEST_HALF if half else float(np.finfo(np.float32).max)
    largest = [
        np.abs(array).reshape(len(array), -1).max(axis=1, initial=0.0) for array in values.values()
    ]
    most = np.max(largest, axis=0)
    integers = any(tensor.quantization is not None for tensor in graph.tensors.values())
    held = most <= limit if integers else ~(most > limit)
    return held if held.any() else np.ones_like(held)


def _of_samples(arrays: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[chosen] for name, array in arrays.items()}


def _evaluated(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return every value of the network that can be evaluated from the true inputs."""
    values = dict(inputs)
    for node in network.nodes:
        if can_evaluate(node) and all(name in values for name in node.inputs):
            values[node.name] = evaluate_node(node, [values[name] for name in node.inputs])
    return values
