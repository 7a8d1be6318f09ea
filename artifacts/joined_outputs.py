"""Outputs that join parts along their last axis, such as boxes and scores."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from .network import Network, Node


class Part(NamedTuple):
    """A part of a joined output.

    Attributes:
        layer: The layer that computes it, the first of several.
        size: Number of its slices of the last axis.
    """

    layer: str
    size: int


def joined_outputs(network: Network | None) -> dict[str, tuple[Part, ...]]:
    """Return the parts of each output that joins several, which an export can split.

    Args:
        network: The folded network, its outputs under their public names; None if it is not known.

    Returns:
        Output name to its parts in order; other outputs are absent.
    """
    if network is None:
        return {}
    nodes = {node.name: node for node in network.nodes}
    count = Counter(node.layer for node in network.nodes)
    # A layer of several nodes was traced: its own join cannot be taken apart.
    joins = {n.name for n in network.nodes if n.op == "concatenate" and count[n.layer] == 1}
    found = {}
    for name, value in network.outputs.items():
        parts = _parts(network, nodes, joins, value)
        if parts is not None and len(parts) > 1:
            found[name] = tuple(parts)
    return found


def _parts(
    network: Network, nodes: dict[str, Node], joins: set[str], value: str
) -> list[Part] | None:
    """Return the parts that a value joins; None without a join or with free sizes."""
    if value not in joins:
        return None
    node = nodes[value]
    rank = len(node.shape)
    if node.attributes["axis"] % rank != rank - 1:
        # Values with the same parts, joined along another axis: each part is joined separately.
        alike = [_parts(network, nodes, joins, name) for name in node.inputs]
        first = alike[0]
        if first is None or any(
            other is None or [part.size for part in other] != [part.size for part in first]
            for other in alike
        ):
            return None
        return first
    parts = []
    for name in node.inputs:
        shape = nodes[name].shape if name in nodes else network.inputs[name]
        if shape[-1] is None:
            return None
        parts.append(Part(nodes[name].layer if name in nodes else name, int(shape[-1])))
    return parts
