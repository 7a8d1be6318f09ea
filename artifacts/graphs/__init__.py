"""The graph of an exported file, in one form for every format: operators, tensors, constants.

It says *where* things are in a file; the expected values come from the network.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from ...errors import UserError
from .base import ArtifactGraph

# Format to the module here that reads it.
READERS = {"tflite": "tflite_graph", "onnx": "onnx_graph"}


def read_graph(path: Path, format_name: str, data: bytes | None = None) -> ArtifactGraph:
    """Read an exported file.

    Args:
        path: The file.
        format_name: "tflite" or "onnx".
        data: Its bytes, where they have been read already.

    Returns:
        Its graph.

    Raises:
        UserError: The file cannot be parsed.
    """
    if format_name not in READERS:
        raise UserError(
            f"The ops of {path.name} cannot be read: expected a format among "
            f"{', '.join(READERS)}. Received: '{format_name}'."
        )
    reader = importlib.import_module(f".{READERS[format_name]}", __package__)
    graph: ArtifactGraph = reader.read(path, path.read_bytes() if data is None else data)
    return graph


def with_shapes(graph: ArtifactGraph, path: Path, *, one_sample: bool = False) -> ArtifactGraph:
    """Return a file's graph with the shapes that the format leaves to be inferred.

    Args:
        graph: The graph.
        path: The file.
        one_sample: Whether a batch of a free size is taken for one sample.
    """
    if path.suffix != ".onnx":
        return graph
    from .onnx_graph import with_inferred_shapes

    return with_inferred_shapes(graph, path, one_sample=one_sample)
