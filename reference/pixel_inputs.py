"""Inputs of a file whose integers are pixels and represent pixels minus a mean.

The mean is the zero point of the input's quantization. The network subtracts it in a separate
operator, which the file does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphTensor
from ..artifacts.network import Network, Node

#: Tolerance for the mean of pixels, ten times the error of rounding it to float32.
MEAN_TOLERANCE = 1e-3


def with_pixels(network: Network, graph: ArtifactGraph) -> Network:
    """Return the network for the numbers that a file's pixels represent.

    Operators that subtract the mean, which is the file's zero point, become identities.
    """
    means = {
        name: float(tensor.quantization.zero_points[0])
        for name, key in zip(network.inputs, graph.inputs)
        for tensor in [graph.tensors[key]]
        if tensor.quantization is not None and _are_pixels(tensor)
    }
    nodes = tuple(
        node.as_identity()
        if node.op == "affine" and _subtracts(node, means.get(node.inputs[0], 0.0))
        else node
        for node in network.nodes
    )
    return replace(network, nodes=nodes)


def numbers_of(
    inputs: Mapping[str, np.ndarray], network: Network, graph: ArtifactGraph
) -> dict[str, np.ndarray]:
    """Return, in float64, the numbers that the inputs of a file represent.

    Args:
        inputs: Keras input name to samples; integers of the input's type are quantized numbers.
        network: The network; its inputs are in the order of the file's.
        graph: The file.
    """
    tensors = {n: graph.tensors[key] for n, key in zip(network.inputs, graph.inputs)}
    found = {}
    for name, array in inputs.items():
        tensor, values = tensors.get(name), array.astype(np.float64)
        if tensor is not None and array.dtype == tensor.dtype and _are_pixels(tensor):
            values = tensor.real(array).astype(np.float64)
        found[name] = values
    return found


def _are_pixels(tensor: GraphTensor) -> bool:
    steps = tensor.quantization
    return (
        steps is not None
        and tensor.dtype == np.uint8
        and steps.scales.size == 1
        and float(steps.scales[0]) == 1
    )


def _subtracts(node: Node, mean: float) -> bool:
    scale, shift = node.arrays["scale"], node.arrays["shift"]
    return bool(mean and np.all(scale == 1) and np.all(np.abs(shift + mean) < MEAN_TOLERANCE))
