"""A file's graph as a network, for files whose trained model is not available.

The network has the file's numbers (quantized weights as the real numbers that they represent)
without its rounding: evaluated in float64 it is the reference for the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.network import Network, Node
from . import onnx, tflite
from .control_flow import GraphWriter
from .writer import Writer, rounding_error

# The functions of a format that append the nodes of an op, and that compute it.
_FORMATS = {"tflite": (tflite.write, tflite.computed), "onnx": (onnx.write, onnx.computed)}


def network_of_file(
    graph: ArtifactGraph, file_format: str, sizes: Mapping[str, tuple[int, ...]] | None = None
) -> Network:
    """Return a file's graph as a network.

    Args:
        graph: The file.
        file_format: "tflite" or "onnx".
        sizes: Shapes of the inputs, samples left out, by name: for those whose sizes are free.

    Returns:
        The network, whose inputs and outputs have the file's names. Operators that have no form
        among those of the checks are opaque. The weights have the errors of their rounding.
    """

    def written(rounding: float) -> Network:
        write, compute = _FORMATS[file_format]
        writer = Writer(graph, compute, sizes, rounding)
        GraphWriter(writer, write).write(graph)
        return writer.network()

    network = written(0.0)
    rounded = any(rounding_error(constant) is not None for constant in graph.constants)
    return _with_errors(network, written(1.0)) if rounded else network


def _with_errors(network: Network, moved: Network) -> Network:
    """Return a network with the errors of its weights.

    Args:
        network: The network.
        moved: The same, with every constant of the file moved by its rounding error. Weights are
            linear in these constants.
    """
    others = {node.name: node for node in moved.nodes}

    def errors(node: Node) -> dict[str, np.ndarray]:
        other = others[node.name].weights if node.name in others else {}
        pairs = {
            role: (weight, other[role])
            for role, weight in node.weights.items()
            if role in other and other[role].shape == weight.shape
        }
        with np.errstate(invalid="ignore"):
            found = {role: np.abs(b - a) for role, (a, b) in pairs.items()}
        return {role: error for role, error in found.items() if error.any()}

    return replace(network, nodes=tuple(replace(n, errors=errors(n)) for n in network.nodes))
