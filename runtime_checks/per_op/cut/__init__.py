"""Extracts one operator from an exported file, one module for each format."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....errors import UserError
from .base import Cut

FORMATS = ("tflite", "onnx")


def cut_op(path: Path, index: int, values: Mapping[str, np.ndarray], got: np.ndarray) -> Cut:
    """Extract one operator from an exported file.

    Args:
        path: The file; its suffix is its format.
        index: Which operator.
        values: Name of each value that the operator reads to (P, …), in the order of its inputs.
        got: (P, …) what it computed.

    Returns:
        The operator as a file of its own.

    Raises:
        UserError: The format is unknown, or the operator cannot be cut out.
    """
    name = path.suffix.lstrip(".")
    if name not in FORMATS:
        raise UserError(
            f"An operator can be cut out of .{' and .'.join(FORMATS)} files. Received: {path.name}."
        )
    made: Cut = importlib.import_module(f".{name}", __package__).cut(path, index, values, got)
    return made
