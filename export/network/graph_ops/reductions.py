"""Sums, means, extrema and their positions along axes."""

from __future__ import annotations

import functools
from typing import Any

from .moves import known_ints
from .values import Builder, Translation, Value, axis_of, shape_of


def _reduce(operator: str, builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    shape = shape_of(op.inputs[0])
    axes = sorted({axis_of(axis, len(shape)) for axis in known_ints(inputs[1], op)})
    if shape[:1] == (1,):  # Over a batch of one there is nothing to reduce.
        axes = [axis for axis in axes if axis]
    if all(shape[axis] == 1 for axis in axes):
        return [inputs[0]]
    name, before, extra = builder.framed(inputs[0], op.inputs[0], *axes)
    after = tuple(1 if axis + 1 - extra in axes else n for axis, n in enumerate(before))
    attributes = {"axes": [axis + extra for axis in axes], "keepdims": True}
    return [builder.emit(operator, [name], after, attributes)]


def _arg(operator: str, builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    axis = axis_of(known_ints(inputs[1], op)[0], op.inputs[0].shape.rank)
    name, before, extra = builder.framed(inputs[0], op.inputs[0], axis)
    place = axis + extra
    after = tuple(size for index, size in enumerate(before, 1) if index != place)
    return [builder.emit(operator, [name], after, {"axis": place})]


def _cumsum(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    axis = axis_of(known_ints(inputs[1], op)[0], op.inputs[0].shape.rank)
    name, before, extra = builder.framed(inputs[0], op.inputs[0], axis)
    attributes = {
        "axis": axis + extra,
        "exclusive": bool(op.get_attr("exclusive")),
        "reverse": bool(op.get_attr("reverse")),
    }
    return [builder.emit("cumsum", [name], before, attributes)]


REDUCTIONS: dict[str, Translation] = {
    "Sum": functools.partial(_reduce, "reduce_sum"),
    "Mean": functools.partial(_reduce, "reduce_mean"),
    "Max": functools.partial(_reduce, "reduce_max"),
    "Min": functools.partial(_reduce, "reduce_min"),
    "Prod": functools.partial(_reduce, "reduce_prod"),
    # Truth values are 0 and 1.
    "Any": functools.partial(_reduce, "reduce_max"),
    "All": functools.partial(_reduce, "reduce_min"),
    "ArgMax": functools.partial(_arg, "argmax"),
    "ArgMin": functools.partial(_arg, "argmin"),
    "Cumsum": _cumsum,
}
