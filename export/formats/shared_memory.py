"""Keeps LiteRT's planner from overwriting tensors that are still read.

Without a delegate, LiteRT lets ADD, SUB, MUL, DIV and SOFTMAX write their result over an input that
nothing else reads, and a reshape shares the memory of its input. Before an operator may write, the
planner counts the readers of the tensor that was in that memory *first*, not those of the tensors
that share it now. In

    a = x * 2;  t = a + 1;  r = reshape(t);  y = softmax(r);  z = y @ t

t takes the memory of a, which has one reader, so that y is written over t before z reads it. The
planner's rules are those of `arena_planner.cc` in TensorFlow 2.13 and later. A copy of r, made by a
slice of all of it, has memory of its own.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code, operator_kind

_RESHAPES = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "BITCAST"}
# Operators that may write over an input, with the inputs in question.
_WRITERS = {"ADD": 2, "SUB": 2, "MUL": 2, "DIV": 2, "SOFTMAX": 1, "DYNAMIC_UPDATE_SLICE": 1}
_WIDTHS = {schema.TensorType.INT16: 2, schema.TensorType.INT8: 1, schema.TensorType.INT64: 8}
_MOST_AXES = 5  # of a slice


def keep_from_overwriting(model: Any) -> None:
    """Insert copies where LiteRT would write over a tensor that another operator reads later.

    Args:
        model: The parsed file, in which each output is a separate tensor; changed in place.
    """
    for graph in model.subgraphs:
        while (found := next(_overwriting(model, graph), None)) is not None:
            _insert_copy(model, graph, *found)


def _overwriting(model: Any, graph: Any) -> Iterator[tuple[int, int]]:
    """Yield the operators that write over a tensor too early, each with the input in question."""
    operators = graph.operators or []
    inputs, outputs = (set(map(int, ends)) for ends in (graph.inputs, graph.outputs))
    readers = Counter([*inputs, *outputs])
    last: dict[int, int] = {}
    for place, operator in enumerate(operators):
        for index in map(int, () if operator.inputs is None else operator.inputs):
            readers[index] += 1
            last[index] = place
    first: dict[int, int] = {}  # tensor to the one that was first in its memory
    for place, operator in enumerate(operators):
        kind = operator_kind(model, operator)
        count = 1 if kind in _RESHAPES else _WRITERS.get(kind, 0)
        writes = kind in _WRITERS
        for index in map(int, operator.inputs[:count]):
            output = int(operator.outputs[0])
            if index in inputs or output in outputs or _constant(model, graph, index):
                continue
            size = _bytes(graph, index)
            if writes and (size != _bytes(graph, output) or size <= 4 or readers[index] > 1):
                continue
            memory = first.get(index, index)
            if not (writes and readers[memory] > 1):
                sharing = [memory, *(other for other, owner in first.items() if owner == memory)]
                if writes and any(last.get(other, 0) > place for other in sharing):
                    yield place, index
                first[output] = memory
            break


def _constant(model: Any, graph: Any, index: int) -> bool:
    data = model.buffers[graph.tensors[index].buffer].data
    return data is not None and len(data) > 0


def _bytes(graph: Any, index: int) -> int:
    tensor = graph.tensors[index]
    shape = tensor.shape if tensor.shape is not None else ()
    return math.prod(map(int, shape)) * _WIDTHS.get(tensor.type, 4)


def _insert_copy(model: Any, graph: Any, place: int, index: int) -> None:
    """Let an operator read a copy of its input, or let the reshape that makes the input read one.

    The one with fewer axes is copied, since a slice takes five at most.
    """
    made = next((n for n, op in enumerate(graph.operators) if index in map(int, op.outputs)), None)
    if made is not None and operator_kind(model, graph.operators[made]) in _RESHAPES:
        source = int(graph.operators[made].inputs[0])
        if _axes(graph, source) < _axes(graph, index):
            place, index = made, source
    original = graph.tensors[index]
    tensor = copy.copy(original)
    tensor.buffer = 0  # the empty buffer: the tensor is computed
    free = original.shapeSignature if original.shapeSignature is not None else original.shape
    operator = schema.OperatorT()
    operator.opcodeIndex = operator_code(model, schema.BuiltinOperator.SLICE, _version(original))
    sizes = [_number(model, graph, numbers) for numbers in (np.zeros_like(free), free)]
    operator.inputs = np.array([index, *sizes], np.int32)
    graph.tensors.append(tensor)
    added = len(graph.tensors) - 1
    operator.outputs = np.array([added], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.SliceOptions
    operator.builtinOptions = schema.SliceOptionsT()
    reader = graph.operators[place]
    reader.inputs = np.array([added if n == index else n for n in reader.inputs], np.int32)
    graph.operators.insert(place, operator)


def _axes(graph: Any, index: int) -> int:
    return len(graph.tensors[index].shape)


def _version(tensor: Any) -> int:
    """Return the first version of SLICE that takes a tensor."""
    if len(tensor.shape) == _MOST_AXES:
        return 5
    return {schema.TensorType.INT8: 2, schema.TensorType.INT16: 4}.get(tensor.type, 1)


def _number(model: Any, graph: Any, numbers: np.ndarray) -> int:
    """Add a constant; return the index of its tensor."""
    buffer = schema.BufferT()
    buffer.data = np.asarray(numbers, np.int32).view(np.uint8)
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.name, tensor.type = b"slice", schema.TensorType.INT32
    tensor.shape = np.array([len(numbers)], np.int32)
    tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
