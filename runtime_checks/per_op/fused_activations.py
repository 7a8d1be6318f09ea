"""Finds activations that a file fuses into a linear operator, and that the network does not have.

Where a layer of integers is written in pieces with steps of their own, no tensor need hold the
result of the linear operator, and a relu changes few of the final integers. Its attribute tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, Quantization
from ...artifacts.network import Network, Node
from ...reference.file_weights import WeightMatch
from .culprit import Fault, declared_activation

_CLIPPING = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0)}

# Operators in which a converter may find one of these.
_CLIPS = frozenset(
    {
        *("relu", "clip", "maximum", "minimum", "leaky_relu", "prelu", "elu", "selu", "softplus"),
        *("hard_sigmoid", "hard_silu", "absolute", "sign", "mish", "select", "opaque"),
    }
)


# Operators before which a converter may compute the activation behind them, or a part of it.
_PASS = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "affine", "linear", "identity", "concatenate"),
        *("reshape", "flatten", "permute", "slice", "crop", "pad", "take", "tile", "repeat"),
        *("broadcast", "upsample_nearest", "max_pool", "global_max_pool", "reduce_max"),
    }
)


def fused_activation_faults(
    weights: Sequence[WeightMatch], graph: ArtifactGraph, network: Network
) -> list[Fault]:
    """Return a fault for each linear operator that clips, where nothing after its layer does.

    Args:
        weights: The state of each weight of the network in the file.
        graph: The file.
        network: The network.

    Returns:
        The faults, in the order of the network.
    """
    readers, nodes = network.readers(), {node.name: node for node in network.nodes}
    of_constant: dict[str, list[Node]] = {}
    for match in weights:
        if match.role == "kernel" and match.state == "equal" and match.tensor is not None:
            of_constant.setdefault(match.tensor.key, []).append(nodes[match.node])
    found = []
    for key, owners in of_constant.items():
        for op in graph.consumers(key):
            declared = declared_activation(op, graph)
            if declared not in _CLIPPING or any(_clipped_after(n, readers) for n in owners):
                continue
            if _without_effect(declared, graph.tensors[op.outputs[0]].quantization):
                continue
            layer = owners[0].layer
            says = f"op {op.index} ({op.kind}) applies {declared} where the network has none"
            found.append(Fault(layer, "activation", op, f"layer '{layer}': {says}"))
    return found


def _without_effect(declared: str, steps: Quantization | None) -> bool:
    """Return whether the integers of a result represent no number that an activation changes."""
    if steps is None or np.issubdtype(steps.dtype, np.floating):
        return False
    limits, (low, high) = np.iinfo(steps.dtype), _CLIPPING[declared]
    ends = steps.real(np.array([limits.min, limits.max]))
    half = steps.scales.max() / 2
    return bool(ends[0] >= low - half and ends[1] <= high + half)


def _clipped_after(node: Node, readers: Mapping[str, Sequence[Node]]) -> bool:
    """Return whether a value is clipped, possibly after it was moved, shifted or scaled."""
    seen, waiting = set[str](), [node]
    while waiting:
        for after in readers.get(waiting.pop().name, ()):
            if after.op in _CLIPS:
                return True
            if after.op in _PASS and after.name not in seen:
                seen.add(after.name)
                waiting.append(after)
    return False
