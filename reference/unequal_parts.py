"""Outputs that join parts with very different ranges, for which one step is too coarse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from ..artifacts.network import Network, Node

_UNEQUAL = 8.0  # ratio of ranges: three of eight bits


def unequal_parts(network: Network, outputs: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield a sentence for each output that should be split in files of 8-bit integers.

    Args:
        network: The folded network, its outputs under their public names.
        outputs: Output name to (N, …) real values.
    """
    nodes = {node.name: node for node in network.nodes}
    for name, value in network.outputs.items():
        sizes = _sizes(network, nodes, value)
        if name not in outputs or sizes is None or sum(sizes) != outputs[name].shape[-1]:
            continue
        ends = np.cumsum([0, *sizes])
        ranges = [
            float(np.abs(outputs[name][..., start:end]).max(initial=0.0))
            for start, end in itertools.pairwise(ends)
        ]
        if min(ranges) > 0 and max(ranges) > _UNEQUAL * min(ranges):
            layers = [nodes[part].layer if part in nodes else part for part in nodes[value].inputs]
            listed = ", ".join(
                f"{layer} up to {most:.3g}" for layer, most in zip(layers, ranges, strict=True)
            )
            yield (
                f"output '{name}' joins parts with different ranges ({listed}), which share a step "
                f"of at least {max(ranges) / 255:.2g}; --split-outputs {name} gives each part its "
                "own step"
            )


def _sizes(network: Network, nodes: Mapping[str, Node], value: str) -> list[int] | None:
    """Return the sizes of the parts that a value joins along its last axis; None without a join."""
    node = nodes.get(value)
    if node is None or node.op != "concatenate":
        return None
    if node.attributes["axis"] not in (-1, len(node.shape) - 1):
        return None
    shapes = [nodes[part].shape if part in nodes else network.inputs[part] for part in node.inputs]
    sizes = [shape[-1] for shape in shapes]
    return None if None in sizes else [int(size or 0) for size in sizes]
