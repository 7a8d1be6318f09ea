"""What an exported file holds, in one form for every format: ops, tensors, constants.

Read only to find out *where* in a file something is; what it should be comes from the network.
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
        data: What it holds, where that has been read already.

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
