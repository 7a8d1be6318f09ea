"""Gives every output of a TFLite file a tensor of its own.

A tensor returned twice, or an input passed through, is one tensor to TFLite's converter, and a
tensor has one name. TFLite has no identity; a reshape to the shape that is there already copies.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema


def separate_outputs(model: Any) -> None:
    """Put a copy in the place of every output that is an input or an earlier output too.

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
    tensor.buffer = 0  # the empty one: computed, not stored
    operator = schema.OperatorT()
    operator.opcodeIndex = _reshape_code(model)
    operator.inputs = np.array([index], np.int32)
    operator.outputs = np.array([len(graph.tensors)], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = np.array(free, np.int32)  # -1 where the batch is free
    graph.tensors.append(tensor)
    graph.operators = [*(graph.operators or []), operator]
    return len(graph.tensors) - 1


def _reshape_code(model: Any) -> int:
    """Return the index of the operator RESHAPE, added where the file has none."""
    number = schema.BuiltinOperator.RESHAPE
    for index, code in enumerate(model.operatorCodes or []):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number
    code.version = 1
    model.operatorCodes = [*(model.operatorCodes or []), code]
    return len(model.operatorCodes) - 1
