"""Stores the constants of a TFLite file in half precision, as TensorFlow's converter does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code, text
from ...artifacts.ranges import LEAST_HALF
from .stand_ins import Weight

_HALF_DEQUANTIZE = 3  # the first version of DEQUANTIZE that reads half precision


def has_tiny_constants(model: Any) -> bool:
    """Return whether a file has a constant that is one number too small for half precision."""
    return any(_is_tiny(model, tensor) for graph in model.subgraphs for tensor in graph.tensors)


def store_halves(model: Any) -> None:
    """Store the float32 constants of a file in half precision.

    Small numbers such as epsilons keep their float32 values: half precision makes 1e-10 zero, and
    the logarithm of max(x, 1e-10) infinite.

    Args:
        model: The parsed file; changed in place.
    """
    halved: dict[int, int] = {}  # buffer of float32 numbers to the one of halves
    for graph in model.subgraphs:
        conversions = []
        for index, tensor in enumerate(list(graph.tensors)):
            buffer = model.buffers[tensor.buffer]
            constant = tensor.type == schema.TensorType.FLOAT32 and buffer.data is not None
            if not constant or _is_tiny(model, tensor):
                continue
            if tensor.buffer not in halved:
                halved[tensor.buffer] = len(model.buffers)
                model.buffers.append(_halves(buffer))
            stored = copy.copy(tensor)
            stored.buffer = halved[tensor.buffer]
            stored.name = f"{text(tensor.name)}/half".encode()
            stored.type = schema.TensorType.FLOAT16
            conversion = schema.OperatorT()
            conversion.opcodeIndex = operator_code(
                model, schema.BuiltinOperator.DEQUANTIZE, _HALF_DEQUANTIZE
            )
            conversion.inputs = np.array([len(graph.tensors)], np.int32)
            conversion.outputs = np.array([index], np.int32)
            conversions.append(conversion)
            graph.tensors.append(stored)
            tensor.buffer = 0
        graph.operators = [*conversions, *graph.operators]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for index in halved.keys() - used:
        model.buffers[index] = schema.BufferT()


def _halves(buffer: Any) -> Any:
    """Return a buffer of float32 numbers in half precision."""
    if isinstance(buffer, Weight):
        return buffer.astype(np.float16)
    numbers = np.frombuffer(bytes(bytearray(buffer.data)), np.float32).astype(np.float16)
    return schema.BufferT(np.frombuffer(numbers.tobytes(), np.uint8))


def _is_tiny(model: Any, tensor: Any) -> bool:
    """Return whether a constant is one number below half precision's least normal one.

    Zero counts in half precision alone, where it may have been another number.
    """
    data = model.buffers[tensor.buffer].data
    kind = {schema.TensorType.FLOAT16: np.float16, schema.TensorType.FLOAT32: np.float32}.get(
        tensor.type
    )
    if kind is None or data is None or len(data) != np.dtype(kind).itemsize:
        return False
    number = abs(float(np.frombuffer(bytes(bytearray(data)), kind)[0]))
    return number < LEAST_HALF and (number > 0 or kind is np.float16)
