"""Parts of inputs that operators of an int8 TFLite file read in float, such as columns of ids.

TensorFlow's quantizer rounds an input for all its readers, even for a part that it then converts
back to floats, since the operators that cut it out only move numbers. An id of 3 may become 2.99
and then, as an index, 2. Here, such parts are cut out of the input itself.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_kind
from .shared_ranges import SELECTIONS


def leave_inputs_unrounded(model: Any) -> bool:
    """Let float operators read parts of the inputs as they are.

    Args:
        model: A parsed int8 file; changed in place.

    Returns:
        Whether there are such parts.
    """
    graph = model.subgraphs[0]
    parts, changed = _Parts(model), False
    for operator in list(graph.operators):
        result = int(operator.outputs[0])
        if operator_kind(model, operator) != "DEQUANTIZE" or result in graph.outputs:
            continue
        part = parts.unrounded(int(operator.inputs[0]))
        if part is not None:
            changed = True
            for reader in graph.operators:
                reader.inputs = np.where(reader.inputs == result, part, reader.inputs)
    if changed:
        _drop_unread(graph)
    return changed


class _Parts:
    """Finds the float form of integers that were only moved since they were rounded."""

    def __init__(self, model: Any) -> None:
        self._model, self._graph = model, model.subgraphs[0]
        self._made = {int(i): op for op in self._graph.operators for i in op.outputs}
        self._floats: dict[int, int] = {}

    def unrounded(self, index: int) -> int | None:
        """Return the tensor with the numbers that a tensor has rounded; None if none has."""
        operator = self._made.get(index)
        if index in self._floats or operator is None:
            return self._floats.get(index)
        kind = operator_kind(self._model, operator)
        if kind == "QUANTIZE" and operator.inputs[0] in self._graph.inputs:
            source = int(operator.inputs[0])
            return source if self._is_float(source) else None
        if kind not in SELECTIONS:
            return None
        found = {int(i): self.unrounded(int(i)) for i in operator.inputs if self._has_steps(i)}
        if None in found.values():
            return None
        moved = copy.copy(operator)
        moved.inputs = np.array([found.get(int(i), i) for i in operator.inputs], np.int32)
        moved.outputs = np.array([self._float_copy(int(i)) for i in operator.outputs], np.int32)
        self._graph.operators.insert(self._graph.operators.index(operator), moved)
        return self._floats[index]

    def _is_float(self, index: int) -> bool:
        return bool(self._graph.tensors[index].type == schema.TensorType.FLOAT32)

    def _has_steps(self, index: int) -> bool:
        return index >= 0 and self._graph.tensors[index].type == schema.TensorType.INT8

    def _float_copy(self, index: int) -> int:
        tensor = copy.copy(self._graph.tensors[index])
        if self._has_steps(index):  # the places of TOPK_V2 have none
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        self._graph.tensors.append(tensor)
        self._floats[index] = len(self._graph.tensors) - 1
        return self._floats[index]


def _drop_unread(graph: Any) -> None:
    """Remove operators whose results nothing reads."""
    needed = {int(i) for i in graph.outputs}
    kept = []
    for operator in reversed(graph.operators):
        if needed & {int(i) for i in operator.outputs}:
            needed |= {int(i) for i in operator.inputs}
            kept.append(operator)
    graph.operators = kept[::-1]
