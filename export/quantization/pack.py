"""Packs weights of at most four bits as INT4 tensors, two numbers per byte.

Weights are packed only if the INT4 kernels compute the same integers. Those of FULLY_CONNECTED do
on XNNPACK, on the reference kernels and on TFLite Micro. XNNPACK has no INT4 convolutions: LiteRT
uses TFLite's kernels for them, which round differently, so convolutions are packed only for
``rounding="double"``, the rounding of the reference kernels and TFLite Micro.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code, operator_kind

# The version of each operator from which on its weights may be INT4. Source: TensorFlow,
# `compiler/mlir/lite/tools/versioning/op_version.cc`; there DEPTHWISE_CONV_2D has 7, but LiteRT 2.3
# registers its reference kernel, which reads INT4, for versions up to 6 only.
_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 10}
_EXACT = {"float": {"FULLY_CONNECTED"}, "double": set(_VERSIONS)}
_MOST = 7


def pack(model: Any, operator: Any, graph: Any, rounding: str) -> None:
    """Pack the weights of one operator, if possible.

    Args:
        model: The parsed file; changed in place.
        operator: A linear operator with weights of at most four bits.
        graph: The subgraph that contains it.
        rounding: Arithmetic of the target.
    """
    kind = operator_kind(model, operator)
    x, kernel, y = (graph.tensors[i] for i in (*operator.inputs[:2], operator.outputs[0]))
    grouped = kind == "CONV_2D" and kernel.shape[-1] != x.shape[-1]
    if kind not in _EXACT[rounding] or grouped or y.type != schema.TensorType.INT8:
        return
    if kernel.type == schema.TensorType.INT8:
        buffer = schema.BufferT()
        stored = model.buffers[kernel.buffer].data
        buffer.data = packed(np.frombuffer(bytes(bytearray(stored)), np.int8))
        kernel.type, kernel.buffer = schema.TensorType.INT4, len(model.buffers)
        model.buffers.append(buffer)
    number = getattr(schema.BuiltinOperator, kind)
    operator.opcodeIndex = operator_code(model, number, _VERSIONS[kind])


def packed(values: np.ndarray) -> np.ndarray:
    """Return integers from -7 to 7 packed two per byte, the first in the lower half."""
    if np.abs(values).max(initial=0) > _MOST:
        raise ValueError(f"expected integers of at most {_MOST}")
    even = np.append(values, np.zeros(len(values) % 2, np.int8)).view(np.uint8) & 15
    return np.asarray(even[::2] | even[1::2] << 4, np.uint8)
