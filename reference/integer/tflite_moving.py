"""Operators of .tflite files that move numbers, integers or floats, without changing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..rounding.arithmetic import Finish
from ..rounding.fixed_point import away_from_zero
from ..rounding.quantized import require_same_steps
from .base import IntegerOperator, Values, at_places, moved, picked

Move = Callable[[GraphOp, Values, np.ndarray], np.ndarray]


def _moving(move: Move, place: int = 0) -> IntegerOperator:
    """Return the reader of an op that moves the numbers of its input number ``place``."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        _same_steps(op, values, op.inputs[place])
        results = move(op, values, values.array(op.inputs[place]))
        return lambda rule: results

    return IntegerOperator(prepare, ruled=False)


def _same_steps(op: GraphOp, values: Values, *keys: str) -> None:
    """Raise `NotKnownError` if an input and an output have other steps."""
    if values.graph.tensors[op.outputs[0]].quantization is None:
        return
    first, *others = (values.steps(key) for key in (*keys, *op.outputs))
    for other in others:
        require_same_steps(first, other)


def _reshaped(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    shape = [int(size) for size in values.graph.tensors[op.outputs[0]].shape]
    if op.kind == "RESHAPE" and len(op.inputs) > 1 and values.has(op.inputs[1]):
        shape = [int(size) for size in values.array(op.inputs[1])[0].reshape(-1)]
    return moved("reshape", x, target_shape=shape)


def _transposed(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    axes = (int(axis) + 1 for axis in values.constant(op.inputs[1]))
    return moved("permute", x, axes=(0, *axes))


def _padded(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    """Read a PAD: padding has the value zero, which is the zero point of integers."""
    pads = [(int(a), int(b)) for a, b in values.constant(op.inputs[1])]
    steps = values.graph.tensors[op.inputs[0]].quantization
    fill = 0 if steps is None else steps.zero_points[0]
    if op.kind == "PADV2":
        fill = values.constant(op.inputs[2]).reshape(-1)[0]
    if op.kind == "MIRROR_PAD":
        mode = "symmetric" if op.attributes.get("mode") else "reflect"
        return moved("pad", x, padding=pads, mode=mode)
    return moved("pad", x, padding=pads, value=fill)


def _sliced(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    starts, sizes = (values.constant(key).reshape(-1) for key in op.inputs[1:3])
    cut = [(int(a), None if n < 0 else int(a + n)) for a, n in zip(starts, sizes)]
    return moved("slice", x, slices=cut)


def _strided(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    """Each bit of a mask is an axis: begin or end left open, an axis dropped or added, or "…"."""
    begins, ends, strides = (values.array(key)[0].reshape(-1) for key in op.inputs[1:4])
    masks = {
        name: int(op.attributes.get(f"{name}Mask", 0))
        for name in ("begin", "end", "ellipsis", "newAxis", "shrinkAxis")
    }
    cut: list[Any] = [slice(None)]
    for axis, (begin, end, stride) in enumerate(zip(begins, ends, strides)):
        chosen = {name for name, mask in masks.items() if mask >> axis & 1}
        if "ellipsis" in chosen:
            cut.append(Ellipsis)
        elif "newAxis" in chosen:
            cut.append(None)
        elif "shrinkAxis" in chosen:
            cut.append(int(begin))
        else:
            first = None if "begin" in chosen else int(begin)
            cut.append(slice(first, None if "end" in chosen else int(end), int(stride)))
    return np.asarray(x[tuple(cut)])


def _tiled(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    counts = [int(count) for count in values.constant(op.inputs[1]).reshape(-1)]
    return moved("tile", x, multiples=counts)


def _broadcast(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    shape = [int(size) for size in values.constant(op.inputs[1]).reshape(-1)]
    x = x.reshape(len(x), *[1] * (len(shape) + 1 - x.ndim), *x.shape[1:])
    return moved("broadcast", x, target_shape=shape)


def _gathered(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    index, axis = values.integers(op.inputs[1]), int(op.attributes.get("axis", 0))
    rows, axis = int(op.attributes.get("batchDims", 0)) + 1, axis + 1 if axis >= 0 else axis
    if rows == 1 and len(index) == 1:
        return moved("take", x, indices=index[0], axis=axis)
    return picked(
        x, index, rows, lambda part, at: np.take(part, at, axis - rows if axis >= 0 else axis)
    )


def _gathered_parts(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    return picked(x, values.integers(op.inputs[1]), 1, at_places)


def _nearest(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    """Source: TFLite, `reference/resize_nearest_neighbor.h`."""
    sizes = values.constant(op.inputs[1]).reshape(-1)
    for axis, size in zip((2, 3), sizes):
        corners = bool(op.attributes.get("alignCorners")) and size > 1
        scale = np.float32((x.shape[axis] - corners) / np.float32(size - corners))
        offset = np.float32(0.5 if op.attributes.get("halfPixelCenters") else 0.0)
        at = (np.arange(size, dtype=np.float32) + offset) * scale
        index = (away_from_zero(at) if op.attributes.get("alignCorners") else np.floor(at)).astype(
            int
        )
        x = moved("take", x, indices=np.clip(index, 0, x.shape[axis] - 1), axis=axis)
    return x


def _spread(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    """Move blocks between channels and places, as DEPTH_TO_SPACE and SPACE_TO_DEPTH do."""
    size = int(op.attributes["blockSize"])
    p, b, h, w, c = x.shape
    if op.kind == "DEPTH_TO_SPACE":
        cut = x.reshape(p, b, h, w, size, size, c // size**2)
        return cut.transpose(0, 1, 2, 4, 3, 5, 6).reshape(p, b, h * size, w * size, -1)
    cut = x.reshape(p, b, h // size, size, w // size, size, c)
    return cut.transpose(0, 1, 2, 4, 3, 5, 6).reshape(p, b, h // size, w // size, -1)


def _reversed(op: GraphOp, values: Values, x: np.ndarray) -> np.ndarray:
    axes = {int(axis) % (x.ndim - 1) for axis in values.constant(op.inputs[1]).reshape(-1)}
    steps = [-1 if axis in axes else 1 for axis in range(x.ndim - 1)]
    return moved("slice", x, slices=[(None, None, step) for step in steps])


def _split(op: GraphOp, values: Values) -> Finish:
    """Read a SPLIT or SPLIT_V: equal parts, or parts of the sizes given."""
    even = op.kind == "SPLIT"
    x = values.array(op.inputs[1 if even else 0])
    axis = int(values.constant(op.inputs[0 if even else 2]).reshape(-1)[0])
    axis = axis + 1 if axis >= 0 else x.ndim + axis
    count = len(op.outputs)
    if even:
        parts = np.split(x, count, axis=axis)
    else:
        sizes = values.constant(op.inputs[1]).reshape(-1).astype(int)
        parts = np.split(x, np.cumsum(sizes)[:-1], axis=axis)
    _same_steps(op, values, op.inputs[1 if even else 0])
    return lambda rule: list(parts)


def _unpacked(op: GraphOp, values: Values) -> Finish:
    """Read an UNPACK."""
    _same_steps(op, values, op.inputs[0])
    x, axis = values.array(op.inputs[0]), int(op.attributes.get("axis", 0))
    axis = axis + 1 if axis >= 0 else x.ndim + axis
    parts = [np.take(x, place, axis=axis) for place in range(len(op.outputs))]
    return lambda rule: parts


def _joined(op: GraphOp, values: Values) -> Finish:
    """Read a CONCATENATION or PACK of numbers in the same steps."""
    _same_steps(op, values, *op.inputs)
    parts = [values.array(key) for key in op.inputs]
    count = max(len(part) for part in parts)
    parts = [np.broadcast_to(part, (count, *part.shape[1:])) for part in parts]
    axis = int(op.attributes.get("axis", 0))
    axis = axis + 1 if axis >= 0 else axis
    if op.kind == "PACK":
        parts = [np.expand_dims(part, axis) for part in parts]
    found = moved("concatenate", *parts, axis=axis)
    return lambda rule: found


MOVING_OPS = {
    "RESHAPE": _moving(_reshaped),
    "SQUEEZE": _moving(_reshaped),
    "EXPAND_DIMS": _moving(_reshaped),
    "TRANSPOSE": _moving(_transposed),
    "PAD": _moving(_padded),
    "PADV2": _moving(_padded),
    "MIRROR_PAD": _moving(_padded),
    "SLICE": _moving(_sliced),
    "STRIDED_SLICE": _moving(_strided),
    "TILE": _moving(_tiled),
    "BROADCAST_TO": _moving(_broadcast),
    "GATHER": _moving(_gathered),
    "GATHER_ND": _moving(_gathered_parts),
    "RESIZE_NEAREST_NEIGHBOR": _moving(_nearest),
    "DEPTH_TO_SPACE": _moving(_spread),
    "SPACE_TO_DEPTH": _moving(_spread),
    "REVERSE_V2": _moving(_reversed),
    "SPLIT": IntegerOperator(_split, ruled=False),
    "SPLIT_V": IntegerOperator(_split, ruled=False),
    "UNPACK": IntegerOperator(_unpacked, ruled=False),
    "CONCATENATION": IntegerOperator(_joined, ruled=False),
    "PACK": IntegerOperator(_joined, ruled=False),
}
