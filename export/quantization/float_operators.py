"""Operators that TensorFlow's int8 quantizer would quantize wrongly, which stay in float.

- ONE_HOT: the quantizer gives the two values that it writes other steps than its result.
- EQUAL and NOT_EQUAL: numbers are compared in two quantizations, in which equal numbers differ.
- Other comparisons: the kernels support only steps below 1.
- DIV by a computed number: the kernel fails where it is 0, as the number of steps in a sequence of
  padding.
- LOG_SOFTMAX of less than -16: the kernels' results are between -16 and 0.
- Operators that only move numbers on the way from an integer to an integer, such as an index.

Operators that read inputs of the file stay in float too (`of_inputs`), since inputs are floats:

- those that round an input or compare it with constants, such as the edges of bins, and those that
  move it there: in steps, a number may lie on the other side of an edge;
- those that take columns with a narrow range from an input with a wide one, so that the columns
  get steps of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_kind, text
from .shared_ranges import SELECTIONS, constant_range, range_of

_EQUALITIES = ("EQUAL", "NOT_EQUAL")
_COMPARISONS = ("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
_LEAST_LOG_SOFTMAX = -16.0
_LARGEST_STEPS = 255  # of 1 in the range of a tensor
#: Operators whose results jump where a number passes another one.
JUMPS = (*_COMPARISONS, *_EQUALITIES, "CAST", "CEIL", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "ROUND",
          "SIGN")  # fmt: skip
_NARROW = 2.0  # Ratio of ranges that costs one bit.

Range = tuple[float, float]


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
    tensors = [model.subgraphs[0].tensors[i] for i in operator.inputs if i >= 0]
    ranges = [range_of(tensor) for tensor in tensors]
    if kind in _COMPARISONS:
        compared = [range_of(tensor) or constant_range(model, tensor) for tensor in tensors]
        # The range of steps includes zero.
        widths = (max(ends[1], 0.0) - min(ends[0], 0.0) for ends in compared if ends)
        return any(width >= _LARGEST_STEPS for width in widths)
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


def of_inputs(model: Any) -> set[str]:
    """Return the names of the operators that read inputs of the file unquantized.

    Args:
        model: A float file with the ranges of its tensors, as objects.
    """
    graph = model.subgraphs[0]
    # Each input and each part of one, with the operators that took it and the input's range.
    parts: dict[int, tuple[list[Any], Range]] = {}
    for i in map(int, graph.inputs):
        ends = range_of(graph.tensors[i])
        if ends is not None:
            parts[i] = [], ends
    found: list[Any] = []
    for operator in graph.operators:
        read = [int(i) for i in operator.inputs if i >= 0 and range_of(graph.tensors[i])]
        if not read or any(i not in parts for i in read):
            continue
        kind = operator_kind(model, operator)
        path = [*(before for i in read for before in parts[i][0]), operator]
        if kind in JUMPS:
            found += path
        elif kind in SELECTIONS:
            whole = max((parts[i][1] for i in read), key=_width)
            for i in map(int, operator.outputs):
                own = range_of(graph.tensors[i])
                if own is not None:
                    parts[i] = path, whole
                    columns = _takes_columns(graph.tensors[read[0]], graph.tensors[i])
                    if columns and _NARROW * _width(own) <= _width(whole):
                        found += path
    return {text(graph.tensors[op.outputs[0]].name) for op in found}


def _takes_columns(read: Any, written: Any) -> bool:
    """Return whether a tensor is a part of the last axis of another one."""
    before, after = (tensor.shape for tensor in (read, written))
    if before is None or after is None:  # single numbers
        return False
    return bool(len(before) == len(after) > 0 and after[-1] < before[-1])


def _width(ends: Range) -> float:
    return ends[1] - ends[0]
