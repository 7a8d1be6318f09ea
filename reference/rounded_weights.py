"""The network with the weights that a file really holds, once they were found to be the right ones.

A file of lower precision rounds the weights. That rounding was asked for and is no op's fault, so
what the ops should compute is expected from the rounded numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..artifacts.network import Network, Node
from ..artifacts.precisions import UNIT_ROUNDOFF
from .file_weights import WeightMatch, file_weight

_GREATEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class RoundedWeights:
    """What rounding did to a network.

    Attributes:
        nodes: Node name to the node with the file's weights; nodes with float32 weights are absent.
        hybrid: Names of the nodes with integer weights and float inputs, which they quantize as
            they come (dynamic range).
        complete: Whether every weight of the network was found in the file.
    """

    nodes: Mapping[str, Node]
    hybrid: frozenset[str]
    complete: bool

    @classmethod
    def of(cls, network: Network, weights: Sequence[WeightMatch]) -> RoundedWeights:
        """Take from a file what lies within half a step of the network's weights."""
        nodes = {node.name: node for node in network.nodes}
        arrays: dict[str, dict[str, np.ndarray]] = {}
        integer: dict[str, set[str]] = {}
        for match in weights:
            data = None if match.tensor is None else match.tensor.data
            if data is not None and data.dtype.kind in "iu":
                integer.setdefault(match.node, set()).add(match.role)
            if (
                match.state == "equal"
                and data is not None
                and (match.rounded or data.dtype != np.float32)
            ):
                weight = nodes[match.node].weights[match.role]
                arrays.setdefault(match.node, {})[match.role] = file_weight(match, weight.shape)
        replaced = {
            name: replace(nodes[name], weights={**nodes[name].weights, **rounded})
            for name, rounded in arrays.items()
        }
        if any(match.tensor is not None and match.tensor.dtype == np.float16 for match in weights):
            for node in network.nodes:
                if node.constants:
                    replaced[node.name] = _with_half_constants(replaced.get(node.name, node))
        # A bias that is an integer as well belongs to an op that is integer throughout.
        hybrid = frozenset(
            name
            for name, roles in integer.items()
            if "kernel" in roles and "bias" not in roles and "kernel" in arrays.get(name, {})
        )
        return cls(replaced, hybrid, all(match.state == "equal" for match in weights))

    def applied(self, network: Network) -> Network:
        """Return the network with these weights."""
        nodes = tuple(self.nodes.get(node.name, node) for node in network.nodes)
        return replace(network, nodes=nodes)


def _with_half_constants(node: Node) -> Node:
    """Return a node whose constants a file holds in half precision."""
    size = max(float(np.abs(array).max(initial=0.0)) for array in node.constants.values())
    # Numbers below the least normal half are off by half its last place; others are too large.
    rounded = UNIT_ROUNDOFF["float16"] * size + 2.0**-25 + max(size - _GREATEST_HALF, 0.0)
    known = float(node.attributes.get("constant_error", 0.0))
    return replace(node, attributes={**node.attributes, "constant_error": known + rounded})
