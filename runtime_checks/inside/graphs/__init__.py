"""What an exported file holds, in one form for every format: ops, tensors, constants.

Read only to find out *where* in a file something is; what it should be comes from the network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....errors import UserError
from .base import ArtifactGraph, Cut

# Format to the module here that reads it, and to the one that cuts an op out of it.
READERS = {"tflite": "tflite_graph", "onnx": "onnx_graph"}
CUTTERS = {"tflite": "tflite_cut", "onnx": "onnx_cut"}


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


def cut_op(path: Path, index: int, values: Mapping[str, np.ndarray], got: np.ndarray) -> Cut:
    """Cut one op out of an exported file.

    Args:
        path: The file, whose suffix says its format.
        index: Which op.
        values: Name of each value that the op reads to (P, …), in the order of its inputs.
        got: (P, …) what it computed.

    Returns:
        The op as a file of its own.

    Raises:
        UserError: The format is another one, or the op cannot be cut out by itself.
    """
    name = path.suffix.lstrip(".")
    if name not in CUTTERS:
        raise UserError(
            f"One op can be cut out of .{' and .'.join(CUTTERS)} files. Received: {path.name}."
        )
    cutter = importlib.import_module(f".{CUTTERS[name]}", __package__)
    made: Cut = cutter.cut(path, index, values, got)
    return made
