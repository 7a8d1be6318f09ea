"""The networks that a file may correspond to: folded here, by its converter, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...artifacts.archive import save_arrays
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import FileRecord
from ...artifacts.network import Network, Node, network_arrays
from ...reference.file_weights import match_weights
from .equalized import with_scaled_channels

# Axis of the output channels in a kernel, by operator.
_OUTPUTS = {"conv": -1, "dense": -1, "conv_transpose": -2}


def as_filed(network: Network, graph: ArtifactGraph) -> Network:
    """Return a network with the norms merged that the file's converter merged.

    Stock converters fold a norm backward or do not fold it. The file holds more numbers of the
    kernel that it was made from, also where some of them were altered.

    Args:
        network: The trained network, with its norms.
        graph: The file.
    """
    everything = with_norms_merged(network, lambda norm: True)
    merged = _held_numbers(everything, graph)
    plain = _held_numbers(network, graph)
    before = {node.name: node.inputs[0] for node in network.nodes if node.op == "affine"}
    return with_norms_merged(
        network, lambda norm: merged.get(norm, 0) >= plain.get(before[norm], 0)
    )


def made_from(
    path: Path, graph: ArtifactGraph, plain: Network, folded: Network
) -> FileRecord | None:
    """Write the network whose kernels a file holds next to it; None if that is the folded one.

    Args:
        path: The file.
        graph: Its graph.
        plain: The network with its norms.
        folded: The network that files are compared with by default.
    """
    filed = as_filed(plain, graph)
    if any(tensor.quantization is not None for tensor in graph.tensors.values()):
        # Weights of floats are compared exactly, so scaled ones are recognised where they are read.
        filed = with_scaled_channels(filed, graph) or filed
    if _agreeing(folded, graph) >= _agreeing(filed, graph):
        return None
    beside = path.with_name(f"{path.name}.network.npz")
    save_arrays(beside, network_arrays(filed))
    return FileRecord.of(beside)


def _agreeing(network: Network, graph: ArtifactGraph) -> float:
    """Return the share of a network's kernels' numbers that a file holds."""
    kernels = [m for m in match_weights(network, graph, foreign=True) if m.role == "kernel"]
    held = sum(m.size - m.differing for m in kernels if m.tensor is not None)
    return held / max(sum(m.size for m in kernels), 1)


def _held_numbers(network: Network, graph: ArtifactGraph) -> dict[str, int]:
    """Return how many numbers of each node's kernel a file holds."""
    return {
        match.node: match.size - match.differing
        for match in match_weights(network, graph, foreign=True)
        if match.role == "kernel" and match.tensor is not None
    }


def with_norms_merged(network: Network, merge: Callable[[str], bool]) -> Network:
    """Return a network in which the norms directly after linear layers are merged into them.

    Args:
        network: The network.
        merge: Returns whether to merge a norm, by the name of its node.
    """
    readers = Counter(name for node in network.nodes for name in node.inputs)
    readers.update(network.outputs.values())
    nodes: dict[str, Node] = {}
    for node in network.nodes:
        before = nodes.get(node.inputs[0]) if node.op == "affine" else None
        merged = None
        if before is not None and readers[before.name] == 1 and merge(node.name):
            merged = _merged(before, node)
        if merged is None or before is None:
            nodes[node.name] = node
        else:
            del nodes[before.name]
            nodes[node.name] = merged
    return replace(network, nodes=tuple(nodes.values()))


def _merged(linear: Node, affine: Node) -> Node | None:
    """Return one node for a linear layer and the affine after it; None if they cannot be merged."""
    kernel = linear.weights.get("kernel")
    scale, shift = (affine.weights[role].astype(np.float64) for role in ("scale", "shift"))
    if kernel is None or affine.attributes["axis"] not in (-1, len(affine.shape) - 1):
        return None
    if linear.op == "depthwise_conv":
        factor = np.broadcast_to(scale, (kernel.shape[-2] * kernel.shape[-1],))
        factor = factor.reshape(kernel.shape[-2:])
    elif linear.op in _OUTPUTS:
        shape = [1] * kernel.ndim
        shape[_OUTPUTS[linear.op]] = -1
        factor = np.broadcast_to(scale, (kernel.shape[_OUTPUTS[linear.op]],)).reshape(shape)
    else:
        return None
    weights = {"kernel": kernel.astype(np.float64) * factor}
    bias = linear.weights.get("bias", np.zeros(1)).astype(np.float64) * scale + shift
    weights["bias"] = np.broadcast_to(bias, (factor.size,)).copy()
    rounded = {role: array.astype(np.float32) for role, array in weights.items()}
    sizes = {"kernel": np.abs(factor), "bias": np.abs(scale)}
    return replace(
        linear,
        name=affine.name,
        shape=affine.shape,
        weights={**linear.weights, **rounded},
        errors={role: error * sizes.get(role, 1.0) for role, error in linear.errors.items()},
    )
