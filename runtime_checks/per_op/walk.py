"""Op by op: does every op of a file compute what the folded network says, from its own inputs?

One pass over the network (`evaluation`) finds the tensor of every node that is right; what is then
not accounted for (`accounting`) is at fault. To look behind it, the walk takes the file's tensor
for what it is and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.network import Network
from ...reference.file_weights import WeightMatch
from ...reference.network import can_evaluate, evaluate_node
from ...reference.rounded_weights import RoundedWeights
from .accounting import first_culprit
from .evaluation import Evaluation
from .matching import Tensors, within
from .op_results import Culprit, Walk

_MAX_FAULTS = 3


def walk(
    network: Network,
    graph: ArtifactGraph,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    weights: Sequence[WeightMatch],
    *,
    in_pieces: frozenset[str] = frozenset(),
) -> Walk:
    """Check a file op by op.

    Args:
        network: The folded network.
        graph: The file.
        tensors: Key to (P, …): what the runtime computed for each of P samples.
        inputs: Keras input name to the (P, …) floats that it was fed.
        weights: What became of each weight: quantized ones that lie within half a step are taken
            from the file, so that their rounding is not blamed on the op.
        in_pieces: Layers that the file may compute in other pieces; see `Evaluation`.

    Returns:
        Every op's distance to its bound, and the culprits.
    """
    shown = Tensors(graph, tensors, len(next(iter(inputs.values()))))
    rounded = RoundedWeights.of(network, weights)
    true = _evaluated(network, inputs)
    forced: dict[str, str] = {}
    culprits: list[Culprit] = []
    while True:
        evaluation = Evaluation(network, shown, inputs, rounded, true, forced, in_pieces)
        culprit = first_culprit(evaluation)
        if culprit is None:
            break
        # A bound too wide to recognise a tensor by is still a bound: what lies within is no fault.
        if culprit.got is None or not within(culprit.got, culprit.expected, culprit.allowed):
            culprits.append(culprit)
        if culprit.got is None or len(culprits) == _MAX_FAULTS:
            break
        forced[culprit.segment[-1].name] = culprit.key
    checks, unchecked = tuple(evaluation.checks), tuple(dict.fromkeys(evaluation.unchecked))
    return Walk(checks, tuple(culprits), unchecked)


def _evaluated(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return every value of the network that can be evaluated from the true inputs."""
    values = dict(inputs)
    for node in network.nodes:
        if can_evaluate(node) and all(name in values for name in node.inputs):
            values[node.name] = evaluate_node(node, [values[name] for name in node.inputs])
    return values
