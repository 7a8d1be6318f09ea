"""A file's graph as a network, for files whose trained model is not available.

The network has the file's numbers (quantized weights as the real numbers that they represent)
without its rounding: evaluated in float64 it is the reference for the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.network import Network
from . import onnx, tflite
from .writer import Writer

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
        among those of the checks are opaque.
    """
    write, compute = _FORMATS[file_format]
    writer = Writer(graph, compute, sizes)
    for op in graph.ops:
        writer.write(op, write)
    return writer.network()
