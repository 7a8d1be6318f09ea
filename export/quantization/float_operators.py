"""Operators that TensorFlow's int8 quantizer would quantize wrongly, which stay in float.

- ONE_HOT: the quantizer gives the two values that it writes other steps than its result.
- EQUAL and NOT_EQUAL: numbers are compared in two quantizations, in which equal numbers differ.
- Other comparisons: the kernels support only steps below 1.
- DIV by a computed number: the kernel fails where it is 0, as the number of steps in a sequence of
  padding.
- LOG_SOFTMAX of less than -16: the kernels' results are between -16 and 0.
- Operators that only move numbers on the way from an integer to an integer, such as an index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_kind, text
from .shared_ranges import SELECTIONS, range_of

_EQUALITIES = ("EQUAL", "NOT_EQUAL")
_COMPARISONS = ("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
_LEAST_LOG_SOFTMAX = -16.0
_LARGEST_STEPS = 255  # of 1 in the range of a tensor


def float_operators(model: Any) -> set[str]:
    """Return the names of the operators that must stay in float.

    Args:
        model: A float file with the ranges of its tensors, as objects.
    """
    graph = model.subgraphs[0]
    found = [op for op in graph.operators if _fails(model, op)]
    found += _between_integers(model)
    return {text(graph.tensors[op.outputs[0]].name) for op in found}


def _fails(model: Any, operator: Any) -> bool:
    kind = operator_kind(model, operator)
    ranges = [range_of(model.subgraphs[0].tensors[i]) for i in operator.inputs if i >= 0]
    if kind in _COMPARISONS:
        return any(ends and ends[1] - ends[0] >= _LARGEST_STEPS for ends in ranges)
    if kind == "LOG_SOFTMAX":
        ends = range_of(model.subgraphs[0].tensors[operator.outputs[0]])
        return ends is not None and ends[0] < _LEAST_LOG_SOFTMAX
    return kind in ("ONE_HOT", *_EQUALITIES) or (kind == "DIV" and ranges[1] is not None)


def _between_integers(model: Any) -> Iterator[Any]:
    """Yield the operators that only move numbers from a cast of integers to a cast to integers."""
    graph = model.subgraphs[0]
    made = {int(i): op for op in graph.operators for i in op.outputs}
    for cast in graph.operators:
        if operator_kind(model, cast) != "CAST":
            continue
        if graph.tensors[int(cast.outputs[0])].type == schema.TensorType.FLOAT32:
            continue
        moves, before = [], made.get(int(cast.inputs[0]))
        while before is not None and operator_kind(model, before) in SELECTIONS:
            moves.append(before)
            before = made.get(int(before.inputs[0]))
        if before is not None and operator_kind(model, before) == "CAST":
            yield from moves
