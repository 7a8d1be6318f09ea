"""Reads the graph of an .onnx file; the key of a tensor is its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .base import ArtifactGraph, GraphOp, GraphTensor


def read(path: Path) -> ArtifactGraph:
    """Return the graph of an .onnx file.

    Raises:
        UserError: The file is damaged, or onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UserError(
            "Reading the ops of an .onnx file needs onnx. Install it: pip install onnx"
        ) from error
    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as an ONNX file: {error}") from error
    graph = model.graph
    tensors = {
        entry.name: _constant(entry.name, onnx.numpy_helper.to_array(entry))
        for entry in graph.initializer
    }
    ops = []
    for index, node in enumerate(graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            value = onnx.numpy_helper.to_array(attributes["value"])
            tensors[node.output[0]] = _constant(node.output[0], value)
            continue
        ops.append(
            GraphOp(
                index=index,
                kind=node.op_type,
                name=node.name,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes={key: _plain(value) for key, value in attributes.items()},
            )
        )
    for value in (*graph.input, *graph.output):
        tensors.setdefault(value.name, _declared(value))
    for op in ops:
        for key in (*op.inputs, *op.outputs):
            if key:
                tensors.setdefault(key, GraphTensor(key, key, (), np.dtype(np.float32)))
    constants = {entry.name for entry in graph.initializer}
    return ArtifactGraph(
        tensors=tensors,
        ops=tuple(ops),
        inputs=tuple(value.name for value in graph.input if value.name not in constants),
        outputs=tuple(value.name for value in graph.output),
    )


def _constant(name: str, value: np.ndarray) -> GraphTensor:
    return GraphTensor(name, name, value.shape, value.dtype, data=value)


def _declared(value: Any) -> GraphTensor:
    import onnx

    kind = value.type.tensor_type
    shape = tuple(size.dim_value or -1 for size in kind.shape.dim)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return GraphTensor(value.name, value.name, shape, dtype)


def _plain(value: Any) -> Any:
    """Return an attribute as plain Python: bytes as text, lists as lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__iter__"):
        return [_plain(entry) for entry in value]
    return str(value)
