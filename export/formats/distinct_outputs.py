"""Gives every output of a TFLite file a separate tensor.

If a tensor is returned twice, or an input is returned, TFLite's converter writes one tensor, which
can have only one name. TFLite has no identity operator; a reshape to the same shape copies.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code


def separate_outputs(model: Any) -> None:
    """Replace every output that is also an input or an earlier output by a copy.

    Args:
        model: The parsed file, a `schema.ModelT`; changed in place.
    """
    graph = model.subgraphs[0]
    taken = {int(index) for index in graph.inputs}
    outputs = []
    for index in map(int, graph.outputs):
        outputs.append(_copied(model, graph, index) if index in taken else index)
        taken.add(index)
    graph.outputs = np.array(outputs, np.int32)


def _copied(model: Any, graph: Any, index: int) -> int:
    """Add a reshape that copies a tensor; return the index of the copy."""
    original = graph.tensors[index]
    free = original.shapeSignature if original.shapeSignature is not None else original.shape
    tensor = copy.copy(original)  # type, shape and quantization stay the same
    tensor.buffer = 0  # the empty buffer: the tensor is computed
    operator = schema.OperatorT()
    operator.opcodeIndex = operator_code(model, schema.BuiltinOperator.RESHAPE, 1)
    operator.inputs = np.array([index], np.int32)
    operator.outputs = np.array([len(graph.tensors)], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = np.array(free, np.int32)  # -1 if the batch is free
    graph.tensors.append(tensor)
    graph.operators = [*(graph.operators or []), operator]
    return len(graph.tensors) - 1
