"""Extracts one op from an .onnx file, with its attributes and constants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....artifacts.manifest import TensorSpec
from ....errors import UserError
from .base import Cut

# Ops that read and write channels first, where the network has them last.
_CHANNELS_FIRST = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")


def cut(path: Path, index: int, values: Mapping[str, np.ndarray], got: np.ndarray) -> Cut:
    """Extract an op from a file.

    Args:
        path: The file.
        index: Which op.
        values: Name of each value that the op reads to (P, …), in the order of its inputs.
        got: (P, …) what it computed.

    Raises:
        UserError: The file's op reads other tensors than these.
    """
    import onnx

    model = onnx.load(path)
    node = model.graph.node[index]
    weights = {entry.name: entry for entry in model.graph.initializer}
    computed = [key for key in node.input if key and key not in weights]
    if len(computed) != len(values) or len(node.output) != 1:
        raise UserError(
            f"Op {index} ({node.op_type}) reads {len(computed)} tensors where the network's layer "
            f"reads {len(values)}; such an op cannot be cut out by itself."
        )
    inputs = tuple(
        _spec(key, name, array, node.op_type)
        for key, (name, array) in zip(computed, values.items())
    )
    output = _spec(node.output[0], "got", got, node.op_type)
    graph = onnx.helper.make_graph(
        [node],
        "op",
        [_info(spec) for spec in inputs],
        [_info(output)],
        [weights[key] for key in node.input if key in weights],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    alone.ir_version = model.ir_version
    return Cut(alone.SerializeToString(), "float32", {node.op_type: 1}, inputs, output)


def _spec(key: str, name: str, array: np.ndarray, kind: str) -> TensorSpec:
    rank = array.ndim
    axes = (0, rank - 1, *range(1, rank - 1)) if kind in _CHANNELS_FIRST and rank > 2 else None
    shape = tuple(array.shape[axis] for axis in axes) if axes else array.shape
    return TensorSpec(key, (1, *shape[1:]), "float32", keras_name=name, axes=axes)


def _info(spec: TensorSpec) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, spec.shape)
