"""Ranges of values that operators of an int8 or int16x8 TFLite file only move or select.

The kernels of such operators require operands and results with one step and zero point. Where their
ranges differ, TensorFlow's quantizer takes the range of the result. An operand that is also read
elsewhere is then clipped: max(x) gives its range to x. Here, the values get one range, in which
nothing is clipped that another operator or the user reads:

- A selection of a clipped value is the clipped selection, so that a value that is only selected
  from needs no more than the range of the selection.
- Every other reader needs the whole range of the value. So does an operator that averages, and a
  constant table, whose rows need not all occur in the calibration samples.

A value that was 0 in all samples, such as a relu behind dead units, gets the range from 0 to 1,
since kernels refuse steps as small as TensorFlow's quantizer gives it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_kind, text

# fmt: off
SELECTIONS = frozenset((
    "CONCATENATION", "DEPTH_TO_SPACE", "DYNAMIC_UPDATE_SLICE", "EXPAND_DIMS", "GATHER", "GATHER_ND",
    "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "MIRROR_PAD", "PACK", "PAD", "PADV2", "REDUCE_MAX",
    "REDUCE_MIN", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SELECT", "SELECT_V2",
    "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TOPK_V2",
    "TRANSPOSE", "UNPACK",
))
# fmt: on
_AVERAGES = frozenset(("AVERAGE_POOL_2D", "RESIZE_BILINEAR"))


def share_ranges(model: Any, floats: Container[str] = ()) -> None:
    """Give values that must share a step and zero point the same range.

    Args:
        model: A float file with the ranges of its tensors, as objects; changed in place.
        floats: Names of the operators that compute in float, whose values share nothing.
    """
    graph = model.subgraphs[0]
    groups = _groups(model, floats)
    needed = _needed(model)
    tables = [op for op in graph.operators if _reads_table(model, op)]
    for members in groups:
        ranges = {index: range_of(graph.tensors[index]) for index in members}
        ends = [ends for index, ends in ranges.items() if ends is not None and index in needed]
        ends += [_table_range(model, op) for op in tables if int(op.outputs[0]) in members]
        if not ends:
            continue
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        for index in members:
            set_range(graph.tensors[index], low, high)
    for tensor in graph.tensors:
        if range_of(tensor) == (0.0, 0.0):
            set_range(tensor, 0.0, 1.0)


def _groups(model: Any, floats: Container[str]) -> list[set[int]]:
    """Return the sets of tensors that must have one step and zero point."""
    group_of: dict[int, set[int]] = {}
    for operator in _sharing(model, floats):
        values = list(_values(model, operator))
        joined = set(values).union(*(group_of.get(index, ()) for index in values))
        for index in joined:
            group_of[index] = joined
    return list({id(group): group for group in group_of.values()}.values())


def _needed(model: Any) -> set[int]:
    """Return the tensors whose whole range is needed."""
    graph = model.subgraphs[0]
    selections = [op for op in graph.operators if operator_kind(model, op) in SELECTIONS]
    only_selected = {int(i) for op in selections for i in op.inputs}
    others = [op for op in graph.operators if operator_kind(model, op) not in SELECTIONS]
    read = {int(i) for op in others for i in op.inputs} | {int(i) for i in graph.outputs}
    return set(range(len(graph.tensors))) - (only_selected - read)


def _sharing(model: Any, floats: Container[str]) -> Iterator[Any]:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if text(graph.tensors[operator.outputs[0]].name) in floats:
            continue
        if operator_kind(model, operator) in SELECTIONS | _AVERAGES:
            yield operator


def _values(model: Any, operator: Any) -> Iterator[int]:
    """Yield the computed floats that an operator reads and returns."""
    for index in (*operator.inputs, *operator.outputs):
        tensor = model.subgraphs[0].tensors[index] if index >= 0 else None
        if tensor is not None and tensor.type == schema.TensorType.FLOAT32 and range_of(tensor):
            yield int(index)


def _reads_table(model: Any, operator: Any) -> bool:
    """Return whether an operator takes rows of a constant table of floats."""
    if operator_kind(model, operator) not in ("GATHER", "GATHER_ND"):
        return False
    table = model.subgraphs[0].tensors[int(operator.inputs[0])]
    return bool(
        table.type == schema.TensorType.FLOAT32 and model.buffers[table.buffer].data is not None
    )


def _table_range(model: Any, operator: Any) -> tuple[float, float]:
    table = constant_range(model, model.subgraphs[0].tensors[int(operator.inputs[0])])
    assert table is not None
    return table


def constant_range(model: Any, tensor: Any) -> tuple[float, float] | None:
    """Return the range of a constant of floats; None for any other tensor."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None or not len(data):
        return None
    values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32)
    return float(values.min()), float(values.max())


def range_of(tensor: Any) -> tuple[float, float] | None:
    """Return the range of a tensor; None if it is constant or was not observed."""
    steps = tensor.quantization
    if steps is None or steps.min is None or len(steps.min) != 1:
        return None
    return float(steps.min[0]), float(steps.max[0])


def set_range(tensor: Any, low: float, high: float) -> None:
    """Set the range of a tensor that has one."""
    tensor.quantization.min = np.array([low], np.float32)
    tensor.quantization.max = np.array([high], np.float32)
