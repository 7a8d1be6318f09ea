"""Writes the weights of a large ONNX model into a separate file, as ONNX's external data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...files import atomic_path

if TYPE_CHECKING:
    import onnx

#: A protocol buffer is smaller than 2 GiB; its nodes and names need some of that.
MOST_INSIDE = 2**31 - 2**26
_SUFFIX = ".data"
# Smaller constants, such as shapes, stay in the model, where shape inference reads them.
_LEAST = 1024  # bytes
# Runtimes map the file into memory page by page.
_PAGE = 4096


def weights_path(path: Path) -> Path:
    """Return the path of the separate file for the weights of an .onnx file."""
    return path.with_name(path.name + _SUFFIX)


def move_weights(model: onnx.ModelProto, path: Path) -> None:
    """Move the weights of a model into a separate file if they are too large for one file.

    Args:
        model: The model, changed in place.
        path: The .onnx file that it will be written to.
    """
    import onnx

    weights = [t for t in model.graph.initializer if len(t.raw_data) >= _LEAST]
    if sum(len(tensor.raw_data) for tensor in weights) <= MOST_INSIDE:
        return
    beside = weights_path(path)
    with atomic_path(beside) as partial, open(partial, "wb") as file:
        for tensor in weights:
            file.write(bytes(-file.tell() % _PAGE))
            offset, length = file.tell(), len(tensor.raw_data)
            file.write(tensor.raw_data)
            onnx.external_data_helper.set_external_data(tensor, beside.name, offset, length)
            tensor.ClearField("raw_data")
